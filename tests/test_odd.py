"""Strange pictures, as a user meets them: the right picture or one clear line, soon."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import n2n
from n2n import cli, images, networks
from n2n.networks import UNet

ODD = Path(__file__).parents[2] / "shared" / "data" / "odd"
FILES = sorted(path for path in ODD.rglob("*") if path.is_file())
SECONDS = 10
LARGE = 1_000_000
"""Bytes of a file from which on it is for the slow run."""

pytestmark = pytest.mark.skipif(not FILES, reason="needs ../shared/data/odd, which is not here")


def marked(path: Path):
    slow = path.stat().st_size > LARGE
    return pytest.param(path, id=path.name, marks=[pytest.mark.slow] if slow else [])


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Return a tiny model that gives back what it sees."""
    network = networks.build(UNet(3, 3, width=2, residual=True, depth=1))
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, "f4"), shapes)
    path = tmp_path_factory.mktemp("model") / "same.safetensors"
    n2n.Denoiser(zeros, network).save(path)
    return path


def run(capfd, *arguments) -> tuple[int, list[str]]:
    """Run a command; return its status and what it printed on stderr, no progress."""
    capfd.readouterr()
    began = time.monotonic()
    status = cli.main([str(one) for one in arguments] + ["--quiet"])
    assert time.monotonic() - began < SECONDS
    return status, capfd.readouterr().err.splitlines()


@pytest.mark.parametrize("path", [marked(path) for path in FILES])
def test_odd_pictures_are_denoised_or_refused(path, tmp_path, model, capfd) -> None:
    status, err = run(capfd, "denoise", path, "-o", f"{tmp_path}/", "--model", model)
    if status == 0:
        assert err == []
        (made,) = tmp_path.iterdir()
        given, got = images.read(path).array, images.read(made).array
        if path.suffix.lower() in (".png", ".ppm", ".tif", ".tiff"):  # neither lossy nor developed
            if got.ndim > given.ndim:  # 16-bit grey with alpha is written as colours
                got = got[..., 0]
            assert got.shape == given.shape and got.dtype == given.dtype, path
            # The model changes nothing; what is left is what the way through float32 rounds.
            assert np.abs(given.astype(float) - got).max() <= (
                1 if given.dtype.kind == "u" else 1e-6
            )
    else:
        assert status == 2 and len(err) == 1 and err[0].startswith("n2n: "), err
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", [marked(path) for path in FILES])
def test_odd_pictures_in_a_burst_are_one_line(path, tmp_path, capfd) -> None:
    """A picture beside its copy is no burst; whatever else is wrong with it is told before."""
    copy = tmp_path / f"copy{path.suffix}"
    shutil.copy(path, copy)
    status, err = run(capfd, "burst", path, copy, "-o", tmp_path / "out.png", "--steps", 1)
    assert status == 2 and len(err) == 1 and err[0].startswith("n2n: "), err
    assert list(tmp_path.iterdir()) == [copy]
