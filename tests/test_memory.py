"""Memory that does not suffice, in training and prediction: advice that holds, or small tiles."""

from __future__ import annotations

import re
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest
from test_resume import fit

from n2n import cli, devices, networks, predict
from n2n.cli import inspection
from n2n.networks import Lean
from n2n.training import TrainConfig, loop
from n2n.training.memory import too_large
from n2n.types import Failure

pytestmark = pytest.mark.usefixtures("hasty")
FULL = RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 12 bytes.")


def step_bytes(monkeypatch, batch: int, crop: int) -> int:
    """Return what a step of this size works with, as a run finds it."""
    seen = []
    chunk = loop.make_chunk

    def counted(*arguments):
        made = chunk(*arguments)
        return made._replace(bytes=lambda *given: seen.append(made.bytes(*given)) or seen[-1])

    with monkeypatch.context() as patch:
        patch.setattr(loop, "make_chunk", counted)
        fit("pairs", None, batch=batch, crop=crop, steps=1)
    return seen[0]


def advised(text: str, batch: int, crop: int) -> tuple[int, int]:
    found = re.search(r"take batch (\d+)(?: and crop (\d+))?", text)
    assert found, text
    return int(found[1]), int(found[2] or crop)


def test_what_a_step_needs_grows_with_its_pixels(monkeypatch) -> None:
    """The advice goes by proportion; a fixed share would make it too hopeful, never too shy."""
    small, many, large = (step_bytes(monkeypatch, *size) for size in ((4, 32), (16, 32), (4, 64)))
    assert small > 0
    assert many / small == pytest.approx(4, rel=0.25)
    assert large / small == pytest.approx(4, rel=0.25)


@pytest.mark.parametrize("share", [0.6, 0.2, 0.04])
def test_a_step_too_large_is_refused_with_one_that_fits(share, monkeypatch, tmp_path) -> None:
    batch, crop, out = 8, 64, tmp_path / "m.safetensors"
    free = int(share * step_bytes(monkeypatch, batch, crop))
    monkeypatch.setattr(devices, "free_memory", lambda: free)
    with pytest.raises(Failure, match="batch 8 and crop 64 does not fit .* GB are free") as caught:
        fit("pairs", out, batch=batch, crop=crop)
    batch, crop = advised(str(caught.value), batch, crop)
    assert batch < 8 and crop % 2 == 0
    model = fit("pairs", tmp_path / "other.safetensors", batch=batch, crop=crop, steps=1)
    assert model.card["steps"] == 1


def test_where_nothing_fits_that_is_said() -> None:
    text = too_large(TrainConfig(steps=1), 8, 1, 10**9, 10**3)
    assert "it needs 1 GB, 1e-06 GB are free" in text and "smaller network" in text


@pytest.mark.parametrize("count", [1, 4])
def test_advice_divides_among_the_devices(count) -> None:
    for free in range(10, 1000, 7):
        text = too_large(TrainConfig(steps=1, batch=16), 16, count, 1000, free)
        if "smaller network" in text:
            assert 16 * 16**2 * count * 1000 > 0.9 * free * 16 * 64**2 / 16
            continue
        batch, crop = advised(text, 16, 64)
        assert batch % count == crop % 16 == 0 and batch * crop**2 <= 0.9 * free / 1000 * 16 * 64**2


@pytest.mark.parametrize("error", [FULL, MemoryError()])
def test_memory_that_runs_out_in_a_step_is_told(error, monkeypatch, tmp_path) -> None:
    chunk = loop.make_chunk

    def broken(*arguments):
        def run(*given):
            raise error

        return chunk(*arguments)._replace(run=run)

    monkeypatch.setattr(loop, "make_chunk", broken)
    with pytest.raises(Failure, match="batch 2 and crop 32 does not fit the memory; take batch 1"):
        fit("pairs", tmp_path / "m.safetensors")


def test_other_faults_of_a_step_pass(monkeypatch) -> None:
    chunk = loop.make_chunk

    def broken(*arguments):
        return chunk(*arguments)._replace(run=lambda *given: (_ for _ in ()).throw(OSError("no")))

    monkeypatch.setattr(loop, "make_chunk", broken)
    with pytest.raises(OSError, match="no"):
        fit("pairs", None)


def test_memory_that_opencv_does_not_get_is_one_line(capsys, monkeypatch) -> None:
    """More than any address space holds, so that OpenCV itself says it."""

    def fill(options):
        cv2.copyMakeBorder(np.zeros((1, 1)), 0, 2**30, 0, 2**30, cv2.BORDER_CONSTANT)

    monkeypatch.setattr(inspection, "run", fill)
    assert cli.main(["inspect", "x"]) == cli.FAILED
    err = capsys.readouterr().err
    assert err.startswith("n2n: out of memory") and err.count("\n") == 1


@pytest.mark.parametrize("seed", range(4))
def test_memory_that_comes_and_goes_changes_no_pixel(seed, monkeypatch) -> None:
    """Tiles of any size fail at random, after some rows or before the first."""
    rng = np.random.default_rng(seed)
    network = networks.build(Lean(1, 1, (4, 8)))
    params = network.init(jax.random.key(seed))
    image = rng.random((int(rng.integers(20, 300)), int(rng.integers(20, 300)), 1), np.float32)
    whole = predict.predict(network, params, image, tile=512)
    least, halo = 2 * network.halo + network.lattice, network.halo
    apply, calls, failed = predict.apply, [], []

    def fickle(network, params, mesh, tiles):
        calls.append(tiles[0].shape[0])
        if calls[-1] > least and rng.random() < 0.3:
            failed.append(calls[-1])
            raise FULL if rng.random() < 0.5 else MemoryError
        return apply(network, params, mesh, tiles)

    monkeypatch.setattr(predict, "apply", fickle)
    shown: list[tuple[int, int]] = []
    got = predict.predict(
        network, params, image, tile=256, progress=lambda *step: shown.append(step)
    )
    np.testing.assert_allclose(got, whole, atol=2e-6)
    assert calls == sorted(calls, reverse=True) and halo > 0
    assert shown[-1][0] == shown[-1][1]
    if seed == 0:
        assert failed


LIMITED = """
import resource
import numpy as np
import jax
jax.config.update("jax_disable_most_optimizations", True)
import n2n
from n2n import networks, predict
from n2n.networks import Lean
from n2n.types import Failure

def size():
    lines = open("/proc/self/status")
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmSize"))

rng = np.random.default_rng(0)
frames = tuple(rng.random((256, 256, 1), np.float32) for _ in range(2))
settings = dict(network=Lean(1, 1, (4, 8)), steps=1)
model = n2n.fit(frames, batch=1, crop=32, **settings)
image = rng.random((1500, 1500, 1), np.float32)
small = predict.predict(model.network, model.params, image, tile=128)
limit = size() + 600_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    n2n.fit(frames, batch=64, crop=256, **settings)
except Failure as failure:
    print(failure)
tiles = []
large = predict.predict(
    model.network, model.params, image, tile=4096, progress=lambda _, of: tiles.append(of))
print(tiles[-1], abs(large - small).max())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory as Linux has them")
def test_a_process_that_gets_no_memory_says_so_and_goes_on() -> None:
    """The system itself refuses here: a step is given up with advice, a tile is halved."""
    line = [sys.executable, "-c", LIMITED]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    said, predicted = done.stdout.splitlines()
    assert "batch 64 and crop 256 does not fit the memory" in said
    assert 1 <= advised(said, 64, 256)[0] < 64
    tiles, error = predicted.split()
    assert int(tiles) > 1 and float(error) < 2e-6
