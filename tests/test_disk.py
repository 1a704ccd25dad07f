"""A disk that fills up, in training, in a burst and under an output: what was there stays."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from test_resume import every_step, fit, frames  # noqa: F401

import n2n
from n2n import checkpoints, cli, images
from n2n.cli import jobs
from n2n.training import Event
from n2n.types import Failure

resource = pytest.importorskip("resource", reason="Windows has no limit of file sizes")

pytestmark = [
    pytest.mark.usefixtures("hasty", "every_step"),
    pytest.mark.skipif(sys.platform != "linux", reason="limits and tmpfs as Linux has them"),
]
FOLDER_BYTES = 160_000
"""Room of the small disk: for the first checkpoint and not for its successor beside it."""


@contextlib.contextmanager
def largest(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size` bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of a few kilobytes, or a skip where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={FOLDER_BYTES}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(["mount", *options], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("needs mount")
    if done.returncode:
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def filled(folder: Path, left: int) -> Path:
    """Fill a disk until so many bytes are left; return the file to delete."""
    ballast = folder / "ballast"
    room = os.statvfs(folder)
    ballast.write_bytes(bytes(max(0, room.f_bavail * room.f_frsize - left)))
    return ballast


def at_step(number: int, act: Callable[[], None]) -> Callable[[Event], None]:
    def progress(event: Event) -> None:
        if event.step == number:
            act()

    return progress


@pytest.mark.parametrize("kind", ["pairs", "burst"])
def test_a_checkpoint_that_cannot_be_written_leaves_the_last(kind, tmp_path) -> None:
    whole, out = tmp_path / "whole.safetensors", tmp_path / "m.safetensors"
    fit(kind, whole)
    with contextlib.ExitStack() as limits:
        with pytest.raises(Failure) as caught:
            fit(kind, out, progress=at_step(4, lambda: limits.enter_context(largest(5_000))))
    text = str(caught.value)
    assert "checkpoint.safetensors' (0.0" in text and "MB): File too large" in text
    assert "the last checkpoint stays" in text and "--resume" in text and "\n" not in text
    arrays, _ = checkpoints.load(jobs.run_folder(out) / "checkpoint.safetensors")
    assert arrays["step"] == 3
    assert sorted(os.listdir(jobs.run_folder(out))) == ["checkpoint.safetensors", "log.jsonl"]
    fit(kind, out, resume=True)
    assert out.read_bytes() == whole.read_bytes()


def test_a_log_that_cannot_be_written_is_told(tmp_path, monkeypatch) -> None:
    out, save = tmp_path / "m.safetensors", checkpoints.Run.save
    with contextlib.ExitStack() as limits, monkeypatch.context() as patch:

        def then_full(self, *what):
            save(self, *what)
            limits.enter_context(largest(10))

        patch.setattr(checkpoints.Run, "save", then_full)
        with pytest.raises(Failure, match="log.jsonl' .* File too large; the last checkpoint"):
            fit("pairs", out)
    fit("pairs", out, resume=True)
    assert out.exists()


def test_a_model_that_does_not_fit_is_written_when_there_is_room(tmp_path, monkeypatch) -> None:
    """The training is over, and its last state is in the run: nothing has to be done again."""
    out, save = tmp_path / "m.safetensors", n2n.Denoiser.save

    def under_limit(self, path, **options):
        with largest(1_000):
            save(self, path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(n2n.Denoiser, "save", under_limit)
        with pytest.raises(Failure, match=r"m.safetensors' \(0.0\d\d MB\): File too large"):
            fit("pairs", out)
    assert not out.exists() and jobs.holds_run(out)
    events = []
    fit("pairs", out, resume=True, progress=events.append)
    assert out.exists() and events == []


def test_a_small_disk_in_training(small_disk) -> None:
    out = small_disk / "m.safetensors"
    with pytest.raises(Failure, match=r"MB are free\): No space left on device; the last check"):
        fit("pairs", out, progress=at_step(4, lambda: filled(small_disk, 4096)))
    (small_disk / "ballast").unlink()
    model = fit("pairs", out, resume=True)
    assert model.card["steps"] == 8 and n2n.load(out)


def test_a_small_disk_under_a_burst_s_picture(small_disk, tmp_path, capsys, monkeypatch) -> None:
    """Training has ended, its picture does not fit: a line, and the rest once there is room."""
    shots = tmp_path / "shots"
    shots.mkdir()
    for number, frame in enumerate(frames(3)):
        array = np.round(65535 * np.repeat(frame, 3, -1).clip(0, 1)).astype(np.uint16)
        tifffile.imwrite(shots / f"{number}.tif", array, photometric="rgb")
    out, whole = small_disk / "out.tif", tmp_path / "whole.tif"
    monkeypatch.setenv("N2N_CACHE", str(tmp_path / "cache"))
    line = ["burst", str(shots), "--init", tiny(tmp_path), "--steps", "4", "--quiet", "-o"]
    assert cli.main([*line, str(whole)]) == cli.DONE
    write = images.write

    def no_room(*arguments, **options):
        ballast = filled(small_disk, 0)
        try:
            write(*arguments, **options)
        finally:
            ballast.unlink()

    with monkeypatch.context() as patch:
        patch.setattr(images, "write", no_room)
        assert cli.main([*line, str(out)]) == cli.FAILED
    said = capsys.readouterr().err
    assert "cannot write" in said and "out.tif' (0.0" in said and "No space left" in said
    assert said.count("\n") == 1 and not out.exists() and jobs.holds_run(out)
    assert cli.main([*line, str(out), "--resume"]) == cli.DONE
    assert (images.read(out).array == images.read(whole).array).all()
    assert os.listdir(small_disk) == ["out.tif"]


def tiny(folder: Path) -> str:
    """Write small weights to start from; their checkpoint fits the small disk."""
    import jax

    from n2n import networks

    network = networks.build(networks.Lean(4, 3, (4, 8)))
    path = folder / "tiny.safetensors"
    n2n.Denoiser(network.init(jax.random.key(0)), network).save(path)
    return str(path)


@pytest.mark.parametrize("name", ["out.png", "out.tif", "out.jpg", "out.webp"])
def test_a_picture_that_does_not_fit_leaves_the_old_one(name, tmp_path) -> None:
    path, rng = tmp_path / name, np.random.default_rng(0)
    images.write(path, rng.integers(0, 256, (8, 8, 3), np.uint8))
    before = path.read_bytes()
    with largest(4_000), pytest.raises(Failure, match=r"out\.\w+' \(0\.\d+ MB\): File too large"):
        images.write(path, rng.integers(0, 256, (200, 200, 3), np.uint8), overwrite=True)
    assert path.read_bytes() == before and os.listdir(tmp_path) == [name]
