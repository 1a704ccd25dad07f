"""Runs killed at the worst moments go on to the very bytes of a run that nobody disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs fork and SIGKILL")

STAGES = ("before", "half", "written", "after")
"""Of the writing of a file: not begun, half of its bytes aside, all of them, and just renamed."""
STEPS = 8


def run(kind: str, out: Path) -> None:
    """Do one job, or go on with it: a model of pairs or of a burst, or a burst's picture."""
    if kind == "picture":
        from n2n import cli

        line = ["burst", out.parent / "frames", "-o", out, "--steps", STEPS, "--resume", "--quiet"]
        assert (
            cli.main([*map(str, line), "--init", str(out.parent / "frames" / "tiny.safetensors")])
            == 0
        )
    else:
        from test_resume import fit

        fit(kind, out, resume=True)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(stage: str, number: int, output: str | None) -> None:
    """Let this process die at a stage of its n-th write (of the output alone, if it is named).

    The stage `between` is after the n-th step, before anything is written.
    """
    from n2n import checkpoints
    from n2n.images import writing
    from n2n.training import loop

    loop._CHUNK_SECONDS = loop._CHECKPOINT_SECONDS = 0.0  # every step writes
    whole, left = writing.replace_file, [number]

    def dying(path: Path, data: bytes) -> None:
        left[0] -= stage != "between" and output in (None, path.name)
        if left[0]:
            return whole(path, data)
        if stage == "half":
            path.with_name(".n2n-0123456789abcdef.part").write_bytes(data[: len(data) // 2])
        if stage == "written":
            os.replace = lambda *names: die()  # type: ignore[assignment]
        if stage in ("written", "after"):
            whole(path, data)
        die()

    checkpoints.replace_file = writing.replace_file = dying
    log = checkpoints.Run.log

    def counted(self: checkpoints.Run, row: dict) -> None:
        log(self, row)
        left[0] -= stage == "between"
        if not left[0]:
            die()

    checkpoints.Run.log = counted  # type: ignore[method-assign]


def drive(kind: str, out: Path, kills: list) -> None:
    """Do the job in one process after another, each of which is killed; print how they ended.

    They are forked before JAX starts its threads, which spares them the imports.
    """
    import jax

    from n2n import devices

    jax.config.update("jax_num_cpu_devices", 4)
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_compilation_cache_dir", os.environ["N2N_CACHE"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
    devices.enable_cache = lambda: None
    import test_resume  # noqa: F401

    import n2n.cli.burst
    import n2n.denoiser  # noqa: F401

    ends = []
    for kill in [*kills, ["between", 10**9, None]]:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                arm(*kill)
                run(kind, out)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        if ends[-1] >= 0:
            break
    print(json.dumps(ends))


def finished(kind: str, folder: Path, kills: list) -> tuple[bytes, list[int]]:
    """Return what a job writes, and how its processes ended."""
    name = "out.png" if kind == "picture" else "m.safetensors"
    if kind == "picture":
        shoot(folder / "frames")
    environment = os.environ | {"N2N_CACHE": str(folder.parent / "cache")}
    line = [sys.executable, __file__, kind, str(folder / name), json.dumps(kills)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    left = [path.name for path in folder.iterdir() if not path.name.endswith(".part")]
    assert sorted(left) == sorted({name, "frames"} if kind == "picture" else {name}), done.stderr
    return (folder / name).read_bytes(), json.loads(done.stdout.splitlines()[-1])


def shoot(folder: Path) -> None:
    """Write a burst of four frames, and small weights to start from."""
    import jax
    import tifffile
    from test_resume import frames

    from n2n import Denoiser, networks

    folder.mkdir()
    for number, frame in enumerate(frames(4)):
        array = np.round(65535 * np.repeat(frame, 3, -1).clip(0, 1)).astype(np.uint16)
        tifffile.imwrite(folder / f"{number}.tif", array, photometric="rgb")
    network = networks.build(networks.Lean(4, 3, (4, 8)))
    params = network.init(jax.random.key(0))
    Denoiser(params, network).save(folder / "tiny.safetensors")


KILLS = {
    "pairs": [("half", 2, None), ("between", 2, None), ("half", 1, "m.safetensors")],
    "picture": [("written", 3, None), ("before", 2, None), ("after", 1, "out.png")],
}


@pytest.mark.parametrize("kind", KILLS)
def test_a_killed_job_ends_in_the_same_bytes(kind, tmp_path) -> None:
    """Six kills: three in a checkpoint's writing, one between two, two in that of the output."""
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole, ends = finished(kind, tmp_path / "whole", [])
    assert ends == [0]
    killed, ends = finished(kind, tmp_path / "killed", KILLS[kind])
    assert ends == [-signal.SIGKILL] * 3 + [0]
    assert killed == whole


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pairs", "burst", "picture"])
def test_a_job_killed_again_and_again_ends_in_the_same_bytes(kind, tmp_path) -> None:
    """Kills at random moments, 18 for each kind; each gets one or two steps further, or none."""
    (tmp_path / "whole").mkdir()
    whole, _ = finished(kind, tmp_path / "whole", [])
    rng, kills = np.random.default_rng(0), 0
    for attempt in range(20):
        if kills >= 18:
            break
        folder = tmp_path / str(attempt)
        folder.mkdir()
        stages = rng.choice([*STAGES, "between"], 6)
        plan = [(str(stage), int(rng.integers(1, 3)), None) for stage in stages]
        killed, ends = finished(kind, folder, plan)
        kills += sum(end == -signal.SIGKILL for end in ends)
        assert killed == whole
    print(kind, kills, "kills survived")
    assert kills >= 18


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(__file__))
    drive(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]))
