"""Pictures larger than the memory: the bytes of the in-memory path, resumable, little memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tifffile

import n2n
from n2n import checkpoints, cli, devices, images, networks
from n2n.cli import jobs
from n2n.denoiser import streaming
from n2n.types import Error

TILE = 288
"""The smallest that the U-Net allows: a yield of 32 pixels."""


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Compile once and lightly for all processes, away from the user's own cache."""
    before = jax.config.jax_compilation_cache_dir
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("N2N_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", True)
        yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A tiny model of small random weights."""
    network = networks.build(networks.UNet(3, 3, width=2, residual=True))
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype("f4"), shapes)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    n2n.Denoiser(params, network).save(path)
    return path


def noise(*shape: int, dtype: str = "uint16") -> np.ndarray:
    return images.from_float(np.random.default_rng(1).random(shape), dtype)


def denoise(*arguments) -> int:
    return cli.main(["denoise", "--quiet", *map(str, arguments)])


def command(*arguments) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "n2n", "denoise", *map(str, arguments)]


CASES = [
    ("uint8", (70, 50, 3), {"photometric": "rgb"}, []),
    ("uint16", (70, 50, 4), {"photometric": "rgb", "compression": "zlib", "tile": (16, 32)}, []),
    ("uint16", (70, 50, 3), {"photometric": "rgb"}, ["--data-range", "0,4095"]),
    ("float32", (70, 50), {"photometric": "minisblack"}, ["--strength", "0.5"]),
    ("float64", (70, 50), {"photometric": "minisblack"}, []),
    ("uint32", (40, 50), {"photometric": "minisblack"}, ["--data-range", "0,4e9"]),
]


@pytest.mark.parametrize("dtype, shape, layout, options", CASES)
def test_streamed_bytes_are_those_in_memory(
    tmp_path, model, dtype: str, shape: tuple[int, ...], layout: dict, options: list[str]
) -> None:
    source = tmp_path / "a.tif"
    tags = {"resolution": (300, 300), "extratags": [(315, 2, 4, "Ann", True)]}
    tifffile.imwrite(source, noise(*shape, dtype=dtype), metadata=None, **layout, **tags)
    whole, pieces = tmp_path / "whole.tif", tmp_path / "pieces.tif"
    given = [source, "--model", model, "--tile", TILE, *options]
    assert denoise(*given, "-o", whole) == 0
    assert denoise(*given, "-o", pieces, "--stream") == 0
    assert pieces.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "pieces.tif", "whole.tif"]
    assert not np.array_equal(images.read(whole).array, images.read(source).array)


def test_a_bigtiff_stays_one(tmp_path, model) -> None:
    source, pieces, whole = (tmp_path / name for name in ("a.tif", "pieces.tif", "whole.tif"))
    tifffile.imwrite(source, noise(40, 30, 3), photometric="rgb", bigtiff=True)
    given = [source, "--model", model, "--tile", TILE]
    assert denoise(*given, "-o", pieces, "--stream") == denoise(*given, "-o", whole) == 0
    with tifffile.TiffFile(pieces) as file:
        assert file.is_bigtiff and file.pages.first.is_contiguous
    assert np.array_equal(images.read(pieces).array, images.read(whole).array)


def test_large_pictures_are_streamed_unasked(tmp_path, model, monkeypatch) -> None:
    source = tmp_path / "a.tif"
    tifffile.imwrite(source, noise(40, 30, 3), photometric="rgb")
    seen = []
    monkeypatch.setattr(streaming, "stream", lambda *given, **options: seen.append(given[2]))
    assert denoise(source, "--model", model, "-o", tmp_path / "b.tif") == 0 and not seen
    monkeypatch.setattr(devices, "host_memory", lambda: 4 * 40 * 30 * 6 - 4)
    assert denoise(source, "--model", model, "-o", tmp_path / "c.tif") == 0
    assert denoise(source, "--model", model, "-o", tmp_path / "d.png") == 0
    assert seen == [tmp_path / "c.tif"]


def test_what_cannot_be_streamed_is_said(tmp_path, model, capsys) -> None:
    images.write(tmp_path / "a.png", noise(40, 30))
    tifffile.imwrite(tmp_path / "a.tif", np.full((40, 30), 9, "f4"))
    for source, target, says in [
        ("a.png", "b.tif", "is no TIFF"),
        ("a.tif", "b.png", "--stream writes TIFF; name a .tif file"),
        ("a.tif", "b.tif", "say which values are black and white"),
    ]:
        given = [tmp_path / source, "-o", tmp_path / target, "--model", model, "--stream"]
        assert denoise(*given) == cli.REFUSED
        err = capsys.readouterr().err
        assert says in err and err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.tif"]


class Stop(Exception):
    """Stand for a crash."""


def stop_after(bands: int, monkeypatch) -> None:
    """Let the run die when it has kept this many rows of tiles."""
    save, count = checkpoints.Run.save, []

    def counted(run, arrays, meta):
        save(run, arrays, meta)
        count.append(meta["rows"])
        if len(count) == bands:
            raise Stop

    monkeypatch.setattr(checkpoints.Run, "save", counted)


def test_an_interrupted_stream_goes_on(tmp_path, model, monkeypatch, capsys) -> None:
    source, out, whole = (tmp_path / name for name in ("a.tif", "b.tif", "whole.tif"))
    tifffile.imwrite(source, noise(100, 40, 3), photometric="rgb")
    given = [source, "--model", model, "--tile", TILE]
    assert denoise(*given, "-o", whole, "--stream", "--resume") == 0  # there is none: starts
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_after(2, patch)
        denoise(*given, "-o", out, "--stream")
    assert jobs.holds_run(out) and not out.exists()
    for more, says in [
        ([], "continue it with --resume"),
        (["--resume", "--strength", "0.5"], "was begun with strength 1.0, now it is 0.5"),
        (["--resume", "--data-range", "0,5"], "was begun with data range None"),
    ]:
        assert denoise(*given, "-o", out, *more) == cli.REFUSED
        assert says in capsys.readouterr().err
    predicted = []
    apply = streaming.prediction.apply
    monkeypatch.setattr(
        streaming.prediction,
        "apply",
        lambda *given: predicted.append(1) or apply(*given),
    )
    assert denoise(*given, "-o", out, "--resume") == 0
    assert len(predicted) == 2 * 2  # of four rows of two tiles
    assert out.read_bytes() == whole.read_bytes() and not jobs.run_folder(out).exists()


def test_a_stream_whose_end_was_lost_begins_again(tmp_path, model, monkeypatch) -> None:
    source, out = tmp_path / "a.tif", tmp_path / "b.tif"
    tifffile.imwrite(source, noise(40, 30))
    given = [source, "--model", model, "--tile", TILE, "-o", out]
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "remove", lambda out: None)
        assert denoise(*given, "--stream") == 0
    first = out.read_bytes()
    assert jobs.holds_run(out)
    assert denoise(*given, "--resume") == 0
    assert out.read_bytes() == first and not jobs.holds_run(out)


def test_a_full_disk_is_one_line(tmp_path, model, monkeypatch, capsys) -> None:
    source, out = tmp_path / "a.tif", tmp_path / "b.tif"
    tifffile.imwrite(source, noise(40, 30))

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(streaming.os, "fsync", full)
    assert denoise(source, "--model", model, "--stream", "-o", out) == cli.FAILED
    err = capsys.readouterr().err
    assert "cannot write" in err and "No space left" in err and not out.exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.slow
def test_killed_and_resumed_as_a_user(tmp_path, model) -> None:
    source, out, whole = (tmp_path / name for name in ("a.tif", "b.tif", "whole.tif"))
    tifffile.imwrite(source, noise(600, 40, 3), photometric="rgb", bigtiff=True)
    given = [source, "--model", model, "--tile", TILE]
    process = subprocess.Popen(command(*given, "-o", out, "--stream"), stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not jobs.holds_run(out) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, err
    assert not out.exists() and (jobs.run_folder(out) / checkpoints.PART).exists()
    done = subprocess.run(command(*given, "-o", out, "--resume"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("b.tif")
    assert denoise(*given, "-o", whole, "--stream") == 0
    assert out.read_bytes() == whole.read_bytes()
    assert not jobs.run_folder(out).exists()


# Not ru_maxrss, which a new process takes over from the one that started it.
MEASURE = """
import sys
from n2n import cli
status = cli.main(sys.argv[1:])
peak = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(status, *peak)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")
def test_memory_does_not_grow_with_the_picture(tmp_path, model) -> None:
    peaks = []
    for height in (640, 10_240):
        source, out = tmp_path / f"{height}.tif", tmp_path / f"{height}-n2n.tif"
        written = tifffile.memmap(source, shape=(height, 2048, 3), dtype="uint16", bigtiff=True)
        written[:] = 1000
        written.flush()
        given = ["denoise", source, "-o", out, "--model", model, "--stream", "--tile", 896]
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, *map(str, given)], capture_output=True, text=True
        )
        status, peak = done.stdout.split()[-2:]
        assert status == "0", done.stderr
        peaks.append(int(peak) * 1024)
    assert source.stat().st_size > 2 * 60e6
    assert peaks[1] < peaks[0] + 60e6, peaks


def test_the_model_is_known_by_its_weights(model) -> None:
    first = n2n.load(model)
    assert streaming._digest(first) == streaming._digest(n2n.load(model))
    other = jax.tree.map(lambda leaf: leaf + 1, first.params)
    assert streaming._digest(n2n.Denoiser(other, first.network)) != streaming._digest(first)


def test_a_network_without_tiles_cannot_stream(tmp_path, model) -> None:
    import dataclasses

    source = tmp_path / "a.tif"
    tifffile.imwrite(source, noise(40, 30, 3), photometric="rgb")
    first = n2n.load(model)
    whole = n2n.Denoiser(first.params, dataclasses.replace(first.network, halo=None))
    with images.TiffRows(source) as rows, pytest.raises(Error, match="take another --model"):
        streaming.stream(whole, rows, tmp_path / "b.tif")
