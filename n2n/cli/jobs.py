"""What the long commands have in common: their first line, their run folder, their settings."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import n2n.cli
from n2n.cli import outputs
from n2n.cli.screen import Screen, duration
from n2n.types import Error, Interrupted

_STEP_SECONDS = {"default": 0.15, "unet": 0.33, "red30": 6.0}
"""Measured on two cores for 8 crops of 64 px; the bar corrects it as soon as it runs."""
_PREDICT_SECONDS = 1.3
"""For a megapixel on two cores, the default network."""
_ACCELERATOR = 50
"""How many times faster than two cores an accelerator is taken to be."""


def start() -> str:
    """Begin computing: set the cache of compiled programs and name the device."""
    from n2n import devices

    devices.enable_cache()
    return devices.describe()


def plan_seconds(
    steps: int,
    megapixels: float = 0.0,
    *,
    minutes: float | None = None,
    network: str | None = None,
    crops: float = 1.0,
) -> float:
    """Return the time that training, and predicting so many megapixels, will take about.

    `crops`: pixels in a step, in units of 8 crops of 64 px.
    """
    import jax

    cores = min(os.cpu_count() or 2, 8)
    pace = cores / 2 if jax.default_backend() == "cpu" else _ACCELERATOR
    step = _STEP_SECONDS.get(network or "default", _STEP_SECONDS["default"]) * crops
    training = 60 * minutes if minutes else steps * step / pace
    return training + megapixels * _PREDICT_SECONDS / pace


def plan_text(steps: int, seconds: float, minutes: float | None = None) -> str:
    """Say how long a training is and how long it will take: `2,500 steps, about 5 min`."""
    length = f"{duration(60 * minutes)} of training" if minutes else f"{steps:,} steps"
    return f"{length}, about {duration(max(10, round(seconds, -1)))}"


def run_folder(out: Path) -> Path:
    """Return where the run for `out` keeps its state."""
    return out.with_name(out.name + ".run")


def holds_run(out: Path) -> bool:
    """Say whether there is something beside `out` to go on from."""
    return (run_folder(out) / "checkpoint.safetensors").exists()


def check(out: Path, options: Any, sources: Any = ()) -> None:
    """Refuse an output of a long job before it begins.

    `--resume` may replace an output only where there is a run to go on with.
    """
    from n2n import checkpoints

    checkpoints.check_free(out)
    resumed = options.resume and holds_run(out)
    outputs.check(out, overwrite=options.overwrite or resumed, sources=sources)
    outputs.check_folder(out, options.out)
    if holds_run(out) and not options.resume:
        raise Error(
            f"{outputs.quoted(run_folder(out))}: holds an unfinished run; continue it with "
            "--resume, or delete that folder"
        )


@contextlib.contextmanager
def unfinished(out: Path) -> Iterator[None]:
    """Leave a run's folder behind only where there is something in it to go on from."""
    try:
        yield
    except BaseException as problem:
        if not holds_run(out):
            _clear(out)
        elif isinstance(problem, KeyboardInterrupt) and not isinstance(problem, Interrupted):
            where = outputs.quoted(run_folder(out))
            raise Interrupted(f"stopped; the state is in {where}: continue with --resume") from None
        raise


def _clear(out: Path) -> None:
    """Remove a folder without a checkpoint, unless another process has just begun a run in it."""
    from n2n import checkpoints

    if run_folder(out).is_dir():
        with contextlib.suppress(Error), checkpoints.running(out):
            checkpoints.remove(out)


def versions() -> dict[str, str]:
    """Return all versions that a result depends on."""
    from n2n import __version__, devices

    return {"n2n": __version__, "python": platform.python_version(), **devices.versions()}


def guarded(screen: Screen, work: Any, *arguments: Any) -> int:
    """Do work on one of several pictures or bursts; what goes wrong becomes a line and a status."""
    try:
        work(*arguments)
    except Error as error:
        screen.problem(f"n2n: {error}")
        return n2n.cli.REFUSED
    except Exception as error:  # of OpenCV's and jax's, those that tell of full memory
        text = n2n.cli.failure(error)
        if text is None:
            raise
        screen.problem(f"n2n: {text}")
        return n2n.cli.FAILED
    return n2n.cli.DONE
