"""Several processes, one run: equal to one process, and no one left waiting when one dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import n2n
from n2n import corruptions, devices
from n2n.training import loop
from n2n.types import Error, Network

UNWANTED = ("SLURM_", "OMPI_", "JAX_", "TF_CPP_")

WORKER = """
import sys
from pathlib import Path
import n2n
from n2n import cli

folder, steps, out, *arguments = sys.argv[1:]

def fit(task, **options):
    sys.path.insert(0, folder)
    from test_distributed import tiny
    from n2n import denoiser
    from n2n.training import loop
    loop._CHUNK_SECONDS = loop._CHECKPOINT_SECONDS = 0.0
    return denoiser.fit(task, **options | {"network": tiny()})

n2n.fit = fit  # nothing heavy is imported before the command line has made its child
cli._hush()
data = str(Path(out).parent / "clean")
fixed = ["--clean", data, "--corrupt", "gaussian:25", "--network", "unet", "--batch", "4"]
fixed += ["--crop", "32", "--steps", steps, "--keep", "--overwrite", "-o", out]
sys.exit(cli.main(["train", *fixed, *arguments]))
"""


def tiny() -> Network:
    """Return a network of one convolution, compiled in no time."""

    def init(key):
        return {"kernel": 0.1 * jax.random.normal(key, (3, 3, 3, 3))}

    def apply(params, x, context=()):
        del context
        axes = ("NHWC", "HWIO", "NHWC")
        kernel = params["kernel"]
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=axes)

    return Network(init, apply, (3, 3), 1, 1, {"kind": "tiny"})


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """Return an environment without a cluster, whose processes share their compiled programs."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(UNWANTED)}
    return kept | {"N2N_CACHE": str(tmp_path_factory.mktemp("cache"))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return a folder with four tiny clean pictures in it."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("distributed")
    (folder / "clean").mkdir()
    rng = np.random.default_rng(0)
    for name in "abcd":
        picture = np.kron(rng.random((5, 5, 3)), np.ones((8, 8, 1)))
        Image.fromarray((255 * picture).astype(np.uint8)).save(folder / "clean" / f"{name}.png")
    return folder


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(environment, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, os.path.dirname(__file__), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_both(environment, *arguments: str) -> list[subprocess.Popen]:
    address = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port()}", "JAX_NUM_PROCESSES": "2"}
    return [
        start(environment | address | {"JAX_PROCESS_ID": str(i)}, *arguments, "--distributed")
        for i in range(2)
    ]


def ends(processes: list[subprocess.Popen], seconds: float) -> list[tuple[int, str, str]]:
    """Return status, stdout and stderr of each; none may outlive the time."""
    try:
        texts = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return [(p.returncode, *text) for p, text in zip(processes, texts, strict=True)]


def losses(out: Path) -> dict[int, float]:
    """Return the running loss after each step that the log of a run holds."""
    lines = (out.parent / f"{out.name}.run" / "log.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return {row["step"]: row["loss"] for row in rows}


def test_two_processes_train_what_two_devices_do(environment, folder, monkeypatch) -> None:
    out, alone = folder / "two.safetensors", folder / "alone.safetensors"
    both = start_both(environment, "6", str(out))
    monkeypatch.setattr(loop, "_CHUNK_SECONDS", 0.0)
    task = n2n.simulated(folder / "clean", input=corruptions.Gaussian(25 / 255))
    settings = {"batch": 4, "crop": 32, "steps": 6, "devices": 2}
    n2n.fit(task, network=tiny(), out=alone, keep=True, **settings)
    first, second = ends(both, 120)
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert first[1].startswith("written: ") and "2 processes" in first[2]
    assert second[1:] == ("", "")  # one writes, on the screen too
    ours, theirs = losses(out), losses(alone)
    assert list(ours) == list(theirs) == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_one_is_killed_and_the_run_resumed(environment, folder, victim: int) -> None:
    out = folder / f"killed{victim}.safetensors"
    both = start_both(environment, "100000", str(out))
    wait_for(out, both, 2)
    os.kill(both[victim].pid, signal.SIGKILL)
    began = time.monotonic()
    left = ends(both, 100)[1 - victim]
    assert time.monotonic() - began < 2 * devices.HEARTBEAT_SECONDS
    assert left[0] == 1 and "another process of this run has ended" in left[2].splitlines()[-1]
    assert len(left[2].splitlines()) <= 3  # the headline, maybe progress, the error
    assert not out.exists()
    done = max(losses(out))
    first, second = ends(start_both(environment, str(done + 3), str(out), "--resume"), 120)
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert max(losses(out)) == done + 3 and out.exists()


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_signal_to_one_stops_all_and_saves(environment, folder, stopped: int) -> None:
    out = folder / f"stopped{stopped}.safetensors"
    both = start_both(environment, "100000", str(out))
    wait_for(out, both, 2)
    os.kill(both[stopped].pid, signal.SIGTERM)
    for status, _, problems in ends(both, 100):
        assert status == 130 and "stopped by SIGTERM at step" in problems.splitlines()[-1]
    run = out.parent / f"{out.name}.run"
    assert (run / "checkpoint.safetensors").exists() and not (run / "lock").exists()


@pytest.mark.slow
def test_bad_input_that_all_meet_is_told_as_always(environment, folder) -> None:
    out = folder / "refused.safetensors"
    for status, _, problems in ends(start_both(environment, "6", str(out), "--batch", "3"), 100):
        assert status == 2
        assert "batch is 3, which does not divide among 2 devices" in problems.splitlines()[-1]


def wait_for(out: Path, processes: list[subprocess.Popen], step: int) -> None:
    """Wait until a run has taken so many steps."""
    end = time.monotonic() + 120
    while time.monotonic() < end and all(process.poll() is None for process in processes):
        try:
            if max(losses(out)) >= step:
                return
        except (FileNotFoundError, ValueError):
            pass
        time.sleep(0.1)
    pytest.fail("the run did not begin: " + "".join(text for _, *text in ends(processes, 1)))


# It signals its parent, which passes the signal on.
STOPPED = "lambda: [os.kill(os.getppid(), signal.SIGTERM), time.sleep(20)]"

SUPERVISED = """
import os, signal, sys, time
from n2n import cli
from n2n.cli import together
def work():
    {}
    return 7
sys.exit(cli._attempt(lambda: together.run(work)))
"""


@pytest.mark.parametrize(
    "deed, status, words",
    [
        ("pass", 7, ""),
        ("os.abort()", 1, "n2n: another process of this run has ended"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 1, "n2n: the training was ended by SIGKILL"),
        (f"return cli._attempt({STOPPED})", 130, "n2n: stopped by SIGTERM"),
        ("os.write(2, b'chat' b'ter'); os.environ['X']", 1, "Traceback"),
    ],
)
def test_a_parent_tells_the_end_in_a_line(deed: str, status: int, words: str) -> None:
    code = SUPERVISED.format(deed)
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode == status and done.stderr.startswith(words), done.stderr
    assert "chatter" not in done.stderr


def test_a_child_does_not_outlive_its_parent(tmp_path) -> None:
    note = tmp_path / "alive"
    deed = f"[(open({str(note)!r}, 'a').write('x'), time.sleep(0.05)) for _ in range(600)]"
    parent = subprocess.Popen([sys.executable, "-c", SUPERVISED.format(deed)])
    end = time.monotonic() + 60
    while not note.exists() and time.monotonic() < end:
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    time.sleep(1)
    size = note.stat().st_size
    time.sleep(1)
    assert note.stat().st_size == size > 0


# Without other processes -------------------------------------------------------------------------


def test_a_run_of_nobody_else_is_refused(environment, folder) -> None:
    out = folder / "nobody.safetensors"
    [(status, _, problems)] = ends([start(environment, "6", str(out), "--distributed")], 60)
    assert status == 2 and "no Slurm, Kubernetes, Open MPI or TPU pod is here" in problems
    assert len(problems.splitlines()) == 1


def test_a_number_of_processes_is_a_number(monkeypatch) -> None:
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with (
        pytest.raises(Error, match="JAX_NUM_PROCESSES is 'two'; it must be a whole number"),
        devices.joined(),
    ):
        pass


def test_a_broken_collective_means_that_somebody_has_gone() -> None:
    with pytest.raises(devices.Failure, match="another process of this run has ended"):
        with devices.blamed():
            raise ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer")
    with pytest.raises(ValueError, match="shapes"), devices.blamed():
        raise ValueError("shapes differ")


@pytest.mark.parametrize("index, wanted", [(0, (0, 4)), (2, (8, 12))])
def test_a_process_holds_its_part_of_the_stripes(monkeypatch, index: int, wanted) -> None:
    monkeypatch.setattr("jax.process_count", lambda: 3)
    monkeypatch.setattr("jax.process_index", lambda: index)
    assert devices.share(12) == slice(*wanted)
    assert devices.share(8) == slice(0, 8)  # does not divide: all hold all
    pool = {"a": np.arange(12), "b": np.zeros((1, 2))}
    part = devices.own(pool, 12)
    assert part["a"].tolist() == list(range(*wanted)) and part["b"].shape == (1, 2)
