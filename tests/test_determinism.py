"""The same commands in two processes give the same bytes: training, a burst, a picture."""

from __future__ import annotations

import os
import subprocess
import sys

from test_survival import shoot

COMMANDS = """
import jax
jax.config.update("jax_disable_most_optimizations", True)
from n2n import cli
few = "--steps 2 --batch 2 --crop 32 --init frames/tiny.safetensors"
for line in (
    f"train --pairs frames/0.tif frames/1.tif -o pairs.safetensors {few}",
    f"train --clean frames --corrupt poisson:30+text:0-0.3 -o noise.safetensors {few}",
    "burst frames -o burst.png --report burst.html --steps 2 --init frames/tiny.safetensors",
    "denoise frames -o clean/ --model noise.safetensors",
    "evaluate --clean frames --corrupt gaussian:25 --model noise.safetensors --json score.json",
):
    assert cli.main([*line.split(), "--seed", "7", "--quiet"]) == 0, line
"""


def made(folder, seed: int) -> dict[str, bytes]:
    """Return the files that the commands write in a process of its own, in a new folder."""
    folder.mkdir()
    shoot(folder / "frames")
    environment = os.environ | {"PYTHONHASHSEED": str(seed), "N2N_CACHE": str(folder / "cache")}
    line = [sys.executable, "-c", COMMANDS]
    done = subprocess.run(
        line, cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    files = [path for path in folder.rglob("*") if path.is_file() and "cache" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_two_processes_write_the_same_bytes(tmp_path) -> None:
    first, second = (made(tmp_path / str(seed), seed) for seed in (1, 2))
    assert sorted(first) == sorted(second)
    assert {"pairs.safetensors", "noise.safetensors", "burst.png", "clean/3-n2n.tif"} <= set(first)
    told = {"burst.html"}  # it names the seconds that it took
    assert [name for name in first if first[name] != second[name] and name not in told] == []
