"""`n2n train`: a model from noisy pictures, or from clean ones that are made noisy."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from n2n.cli import jobs, outputs
from n2n.cli.screen import Screen, duration, shown
from n2n.types import Error, Task

STEPS = {"bursts": 4000}
_OTHER_STEPS = 10_000


def run(options: Any) -> int:
    """Train a model, maybe together with other processes; return the status."""
    out = plan(options)
    from n2n import devices

    with devices.joined(options.distributed):
        _work(Screen(options.quiet, silent=not devices.leads()), out, options)
    return 0


def _work(screen: Screen, out: Path, options: Any) -> None:
    device, began = jobs.start(), time.monotonic()
    with screen.waiting("reading the pictures"):
        task, what = make_task(screen, options)
    screen.note(_headline(device, what, options))
    with jobs.unfinished(out):
        model, loss = _fit(screen, task, out, options)
    length = f"{model.card['steps']:,} steps in {duration(time.monotonic() - began)}"
    screen.result(f"written: {shown(out)} ({length}{loss})")


def plan(options: Any) -> Path:
    """Return the output; refuse what can be refused before any work."""
    from n2n.corruptions import parse

    if (options.clean is None) != (options.corrupt is None):
        raise Error("train: --clean and --corrupt belong together; see n2n train --help")
    if options.target is not None and options.clean is None:
        raise Error("train: --target goes with --clean and --corrupt; see n2n train --help")
    for name in ("corrupt", "target"):
        if getattr(options, name) is not None:
            parse(getattr(options, name))
    out = Path(options.out)
    if out.suffix != ".safetensors":
        raise Error(f"{outputs.quoted(out)}: a model's name must end in .safetensors")
    jobs.check(out, options)
    return out


def make_task(screen: Screen, options: Any) -> tuple[Task, str]:
    """Return what to learn, and a few words about it."""
    if options.clean is not None:
        return _simulated(options)
    return _pairs(options) if options.pairs else _bursts(screen, options)


def _simulated(options: Any) -> tuple[Task, str]:
    from n2n import images, tasks
    from n2n.corruptions import parse

    paths = images.frames_in(options.clean)
    task = tasks.simulated(
        paths,
        input=parse(options.corrupt),
        target=options.target and parse(options.target),
        noise_map=_reads_noise_map(options),
        data_range=options.data_range,
    )
    return task, f"{len(paths)} pictures, {options.corrupt}"


def _reads_noise_map(options: Any) -> bool:
    """Say whether the network has an input channel beside the picture's."""
    if options.network is not None or options.init is None:
        return options.network in (None, "default")
    from n2n.denoiser import load_model

    inputs, outputs = load_model(options.init).network.channels
    return inputs == outputs + 1


def _pairs(options: Any) -> tuple[Task, str]:
    from n2n import images, tasks

    sides: Any = [images.frames_in(side) for side in options.pairs]
    if not any(Path(side).is_dir() for side in options.pairs):
        # Two files named by hand are a pair whatever their names.
        sides = [[images.read(path).array for path in side] for side in sides]
    return tasks.pairs(*sides, data_range=options.data_range), f"{len(sides[0])} pairs"


def _bursts(screen: Screen, options: Any) -> tuple[Task, str]:
    import n2n
    from n2n import tasks

    stacks = []
    for folder in burst_folders(Path(options.bursts)):
        burst = n2n.align([folder], data_range=options.data_range)
        for sentence in burst.checks:
            screen.note(f"{shown(folder)}: {sentence}")
        stacks.append(burst)
    task = tasks.bursts(stacks, seed=options.seed, cut=(options.batch, options.crop))
    return task, f"{len(stacks)} burst{'s' * (len(stacks) > 1)}"


def burst_folders(folder: Path) -> list[Path]:
    """Return the folders inside a folder that hold pictures, or itself where there are none."""
    from n2n import images

    if not folder.is_dir():
        raise Error(f"--bursts {outputs.quoted(folder)}: is no folder; name a folder of bursts")
    inside = sorted(each for each in folder.iterdir() if each.is_dir())
    visible = [each for each in inside if not each.name.startswith(".")]
    return [each for each in visible if any(map(images.is_picture, each.iterdir()))] or [folder]


def _headline(device: str, what: str, options: Any) -> str:
    steps = options.steps or (STEPS["bursts"] if options.bursts else _OTHER_STEPS)
    crops = options.batch * options.crop**2 / (8 * 64**2)
    seconds = jobs.plan_seconds(
        steps, minutes=options.minutes, network=options.network, crops=crops
    )
    each = f"{options.batch} crops of {options.crop} px"
    return f"n2n train: {device}, {what}, {each}, {jobs.plan_text(steps, seconds, options.minutes)}"


def _fit(screen: Screen, task: Task, out: Path, options: Any) -> tuple[Any, str]:
    """Train, and return the model and how the loss ended."""
    import n2n

    last: list[Any] = []
    with screen.training() as show:

        def progress(event: Any) -> None:
            last[:] = [event]
            if show:
                show(event)

        model = n2n.fit(task, **settings(options), out=out, progress=progress)
    return model, f", loss {last[0].loss:.5f}" if last else ""


def settings(options: Any) -> dict[str, Any]:
    """Return the options that `n2n.fit` has under the same names."""
    given = {name: getattr(options, name) for name in FIT}
    return given | {"overwrite": options.overwrite or options.resume}


FIT = (
    "network",
    "init",
    "loss",
    "steps",
    "minutes",
    "batch",
    "crop",
    "learning_rate",
    "optimizer",
    "precision",
    "seed",
    "devices",
    "resume",
    "keep",
)
"""Options of `train` that are keywords of `n2n.fit` too."""
