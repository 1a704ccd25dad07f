"""A run that is stopped, by whatever, gives the very bytes of one that is not."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

import n2n
from n2n import checkpoints
from n2n.networks import Lean
from n2n.training import loop
from n2n.types import Burst, Error, Interrupted

pytestmark = pytest.mark.usefixtures("hasty")
STEPS = 8
NETWORK = Lean(1, 1, (4, 8))


def frames(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    scene = np.sin(np.arange(40)[:, None] / 5) * np.cos(np.arange(48) / 7) / 4 + 0.5
    noisy = scene[None, :, :, None] + 0.1 * rng.standard_normal((count, 40, 48, 1))
    return noisy.astype(np.float32)


def burst(count: int = 5) -> Burst:
    ones = np.ones((count, 40, 48, 1), np.float32)
    moves = np.tile(np.eye(3), (count, 1, 1))
    return Burst(frames(count), ones, ones[0], moves)


def problem(kind: str):
    return burst() if kind == "burst" else tuple(frames(2))


def fit(kind: str, out, **options):
    settings = {"network": NETWORK, "steps": STEPS, "batch": 2, "crop": 32} | options
    task = settings.pop("task", problem(kind))
    return n2n.fit(task, out=out, **settings)


@pytest.fixture
def every_step(monkeypatch) -> None:
    monkeypatch.setattr(loop, "_CHUNK_SECONDS", 0.0)
    monkeypatch.setattr(loop, "_CHECKPOINT_SECONDS", 0.0)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    """Return the bytes of each model as written by a run in one piece."""
    found = {}
    for kind in ("pairs", "burst"):
        out = tmp_path_factory.mktemp("undisturbed") / "m.safetensors"
        fit(kind, out)
        found[kind] = out.read_bytes()
        assert not out.with_name("m.safetensors.run").exists()
    return found


@pytest.mark.slow
def test_a_run_stopped_after_every_step_is_the_same(tmp_path, undisturbed, every_step) -> None:
    out = tmp_path / "m.safetensors"
    for step in range(1, STEPS):
        with pytest.raises(Interrupted, match=f"stopped by SIGTERM at step {step}"):
            fit("burst", out, resume=True, progress=lambda _: os.kill(os.getpid(), signal.SIGTERM))
    fit("burst", out, resume=True)
    assert out.read_bytes() == undisturbed["burst"]


def test_an_interrupted_run_says_where_it_is(tmp_path, every_step) -> None:
    out = tmp_path / "m.safetensors"
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as caught:
        fit("pairs", out, progress=lambda event: os.kill(os.getpid(), signal.SIGINT))
    assert "stopped by SIGINT at step 1" in str(caught.value)
    assert "m.safetensors.run" in str(caught.value) and "--resume" in str(caught.value)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert not (tmp_path / "m.safetensors.run" / "lock").exists()
    with pytest.raises(Interrupted, match="nothing was to be kept"):
        fit("pairs", None, progress=lambda event: os.kill(os.getpid(), signal.SIGINT))


@pytest.mark.parametrize(
    "changed, field",
    [
        ({"seed": 1}, "seed is 1, but the run in"),
        ({"network": Lean(1, 1, (4, 9))}, "network is"),
        ({"task": tuple(frames(2, seed=1))}, "data is"),
        ({"task": burst(2)}, "noise is 'burst of 2'"),
        ({"batch": 1}, "batch is 1"),
        ({"learning_rate": 2e-3}, "learning_rate is 0.002"),
        ({"optimizer": "adam"}, "optimizer is 'adam'"),
    ],
)
def test_another_run_is_not_continued(interrupted, changed, field) -> None:
    with pytest.raises(Error) as caught:
        fit("pairs", interrupted, resume=True, **changed)
    assert field in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_from_other_weights_is_not_continued(interrupted, undisturbed, tmp_path) -> None:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(undisturbed["pairs"])
    with pytest.raises(Error, match="init is '[0-9a-f]{16}', but the run in .* has None"):
        fit("pairs", interrupted, resume=True, network=None, init=weights)
    out = tmp_path / "m.safetensors"
    with pytest.raises(Interrupted):
        fit("pairs", out, init=weights, progress=lambda _: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Error, match="init is None, but the run in"):
        fit("pairs", out, resume=True)
    fit("pairs", out, resume=True, init=weights)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """Return the output of a run that was stopped after its first step."""
    out = tmp_path_factory.mktemp("stopped") / "m.safetensors"
    with pytest.raises(Interrupted):
        fit("pairs", out, progress=lambda event: os.kill(os.getpid(), signal.SIGTERM))
    return out


def test_a_run_in_use_is_left_alone(interrupted) -> None:
    with checkpoints.running(interrupted, resume=True):
        with pytest.raises(Error, match=f"in use by process {os.getpid()}"):
            fit("pairs", interrupted, resume=True)


def test_a_broken_checkpoint_is_told(interrupted, tmp_path) -> None:
    out = tmp_path / "m.safetensors"
    (tmp_path / "m.safetensors.run").mkdir()
    kept = interrupted.with_name("m.safetensors.run") / "checkpoint.safetensors"
    (tmp_path / "m.safetensors.run" / kept.name).write_bytes(kept.read_bytes()[:-7])
    with pytest.raises(Error, match="broken"):
        fit("pairs", out, resume=True)
    assert not (tmp_path / "m.safetensors.run" / "lock").exists()


def test_resume_starts_afresh_where_there_is_no_run(tmp_path, undisturbed) -> None:
    out = tmp_path / "m.safetensors"
    fit("pairs", out, resume=True)
    assert out.read_bytes() == undisturbed["pairs"]


def test_an_existing_model_is_kept(tmp_path) -> None:
    out = tmp_path / "m.safetensors"
    out.write_text("mine")
    with pytest.raises(Error, match="exists"):
        fit("pairs", out)
    assert out.read_text() == "mine"
