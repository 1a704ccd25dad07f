"""What the experiments share: their command line, runs in slices, and the lines of their results.

    python -m experiments.gaussian DATA --preset cpu --minutes 9

DATA holds the folders of pictures that an experiment names. `--preset cpu` shows the effect on two
cores, `--preset paper` is the full recipe; `long`, of the few experiments that have it, is what two
cores can do in an hour or two. After `--minutes` the state is saved and the command
ends with status 75; the same command goes on where it stopped. Models stay in `--runs`, a folder
for each experiment and preset; what is finished there is not done again. Every figure is a line of
`experiments/results/NAME.jsonl`; a line of the same preset, row and seed is replaced.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

import n2n
from n2n import evaluation
from n2n.corruptions import Clean

RESULTS = Path(__file__).parent / "results"
AGAIN = 75
"""Exit status of a command that has more to do (EX_TEMPFAIL)."""
SUFFIXES = {".jpg", ".png", ".webp"}


@dataclass(frozen=True)
class Recipe:
    """Configure a training: what `n2n.fit` is told."""

    network: str | Mapping[str, Any]
    steps: int
    batch: int = 8
    crop: int = 64
    learning_rate: float = 1e-3
    optimizer: str = "adam"
    """The paper's."""
    seeds: tuple[int, ...] = (0,)
    """The paper's rows come from one; gaps from three."""


LEAN = {"kind": "lean", "inputs": 3, "outputs": 3, "widths": [16, 32, 64, 64, 64]}
"""A small network without an input for a noise map: these tasks are blind."""
CPU = Recipe(LEAN, steps=1500, seeds=(0, 1, 2))
"""About two and a half minutes for each model on two cores."""
LONG = Recipe(LEAN, steps=12_000, batch=4, crop=96, optimizer="muon")
"""About 50 minutes for each model on one core; `--rows` gives each a core of its own."""
PAPER = Recipe("unet", steps=500_000, batch=4, crop=256, learning_rate=3e-4)
"""The recipe behind the original code's figures (reference 1.3, `--long-train`)."""
TRAINING: Mapping[str, tuple[str, ...]] = {
    "cpu": ("bsd300_train",),
    "long": ("bsd300_train", "bsds500_extra", "cid22_train"),
    "paper": ("bsd300_train", "bsds500_extra", "cid22_train"),
}
"""Folders of training pictures of each preset, in place of ImageNet, which may not be passed on."""


BOTH = ("noisy", "clean")
"""The targets that Table 1 compares."""


@dataclass(frozen=True)
class Problem:
    """Hold what an experiment asks: the noise of training and of the test, and the test's sets."""

    input: Callable
    test: Callable
    sets: tuple[str, ...] = ("kodak24", "bsd300_test")


@dataclass
class Experiment:
    """Hold one run of an experiment: its name, data, preset and what is left of the slice."""

    name: str
    data: Path
    preset: str
    runs: Path
    seeds: tuple[int, ...] | None = None
    """What the command line asks for in place of the recipe's."""
    until: float = float("inf")
    """`time.monotonic()` at which the slice ends."""
    rows: tuple[str, ...] = ()
    """What the command line asks for, of an experiment whose rows may be asked for."""

    @property
    def folder(self) -> Path:
        """Where the models of this experiment and preset are kept."""
        return self.runs / f"{self.name}-{self.preset}"

    def pictures(self, name: str) -> Path:
        """Return a folder of pictures; Error where it is absent."""
        if not (self.data / name).is_dir():
            raise n2n.Error(f"DATA {str(self.data)!r} has no folder {name!r}; name one that has")
        return self.data / name

    def files(self, names: Sequence[str]) -> list[Path]:
        """Return the pictures of several folders, sorted; Error where a folder is absent."""
        folders = [sorted(self.pictures(name).iterdir()) for name in names]
        return [path for paths in folders for path in paths if path.suffix in SUFFIXES]

    def pause(self) -> None:
        """End the command with status 75 if the slice is over."""
        if time.monotonic() > self.until:
            raise SystemExit(AGAIN)

    def train(
        self,
        row: str,
        task: n2n.types.Task,
        recipe: Recipe,
        *,
        seed: int = 0,
        loss: Any = None,
        init: Any = None,
        watch: Callable[[Any], None] | None = None,
    ) -> n2n.Denoiser:
        """Return the model of a row: the finished one, or trained now, or trained on.

        Equal seeds give equal crops and equal noise in the input, whatever the targets are.
        `watch` is called with the event of each chunk of steps. Ends the command with status 75
        when the slice is over; Error where the finished model took another number of steps.
        """
        path = self.file(row, seed, ".safetensors")
        if path.exists():
            return _finished(path, recipe)
        self.pause()

        def follow(event: Any) -> None:
            if watch:
                watch(event)
            self.file(row, seed, ".seconds").write_text(f"{event.seconds:.1f}")
            self._show(row, seed, event)
            if time.monotonic() > self.until and event.step < event.total:
                signal.raise_signal(signal.SIGINT)  # the trainer saves and raises Interrupted

        network = recipe.network
        try:
            return n2n.fit(
                task,
                network=network if isinstance(network, str) else dict(network),
                init=init,
                loss=loss,
                steps=recipe.steps,
                batch=recipe.batch,
                crop=recipe.crop,
                learning_rate=recipe.learning_rate,
                optimizer=recipe.optimizer,
                seed=seed,
                out=path,
                resume=True,
                progress=follow,
            )
        except n2n.types.Interrupted as stop:
            print(f"\n{stop}", file=sys.stderr)
            raise SystemExit(AGAIN if time.monotonic() > self.until else 130) from None

    def file(self, row: str, seed: int, suffix: str) -> Path:
        """Return where something of a row is kept; makes the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"{row}-{seed}{suffix}"

    def _show(self, row: str, seed: int, event: Any) -> None:
        line = f"{self.name} {row}, seed {seed}: {event.step:,} of {event.total:,} steps"
        end = "\n" if event.step == event.total else ""
        left = "" if event.left is None else f", {event.left / 60:.1f} min left "
        print(f"\r{line}, loss {event.loss:.5f}{left}", end=end,
              file=sys.stderr)  # fmt: skip

    def record(self, row: str, seed: int, recipe: Recipe | None, **figures: Any) -> None:
        """Write a row's line, replacing that of the same preset, row and seed, and print it."""
        took = self.file(row, seed, ".seconds")
        line = {
            "experiment": self.name,
            "preset": self.preset,
            "row": row,
            "seed": seed,
            **(_settings(recipe) if recipe else {}),
            "seconds": float(took.read_text()) if took.exists() else None,
            **figures,
            **facts(),
        }
        self.file(row, seed, ".json").write_text(json.dumps(line))
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{self.name}.jsonl"
        kept = [old for old in lines(self.name) if _key(old) != _key(line)]
        aside = path.with_suffix(".new")
        aside.write_text("".join(json.dumps(each) + "\n" for each in [*kept, line]))
        aside.replace(path)
        print(json.dumps({name: line[name] for name in ("row", "seed", *figures)}), flush=True)

    def recorded(self, row: str, seed: int = 0) -> dict[str, Any] | None:
        """Return the line of a row that was finished in these runs, or None.

        Not that of the results, which come with the project and would leave nothing to be done.
        """
        path = self.file(row, seed, ".json")
        return json.loads(path.read_text()) if path.exists() else None


class Curve:
    """Write a figure of the averaged weights down at chosen steps; it chooses no weights.

    `score` is for `Task.score`, `follow` for `Experiment.train`'s `watch`. What is written stands
    beside the model, so that it survives the slices of a run.
    """

    def __init__(self, path: Path, marks: Sequence[int], figure: Callable[[Callable], float]):
        kept: dict[str, Any] = {"calls": 0, "points": []}
        if path.exists():
            kept = json.loads(path.read_text())
        self.path, self.marks, self.figure = path, marks, figure
        self.calls: int = kept["calls"]
        self.points: list[list[float]] = kept["points"]
        """(step, figure), by step."""
        self.predict: Callable | None = None

    def score(self, predict: Callable) -> float:
        """Return how often this was asked, over all slices: the last weights are the best."""
        self.predict = predict
        self.calls += 1
        self._keep()
        return self.calls

    def follow(self, event: Any) -> None:
        """Take the figure if a mark was passed; forget what a run that was killed had beyond."""
        self.points[:] = [point for point in self.points if point[0] < event.step]
        last = self.points[-1][0] if self.points else 0
        if self.predict and any(last < mark <= event.step for mark in self.marks):
            self.points.append([event.step, self.figure(functools.partial(_whole, self.predict))])
            self._keep()

    def _keep(self) -> None:
        aside = self.path.with_suffix(".new")
        aside.write_text(json.dumps({"calls": self.calls, "points": self.points}))
        aside.replace(self.path)


def start(
    doc: str,
    name: str,
    *,
    rows: tuple[str, ...] = (),
    presets: tuple[str, ...] = ("cpu", "paper"),
) -> Experiment:
    """Read the command line of an experiment; with `rows` some of them may be asked for."""
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", type=Path, help="the folder that holds the folders of pictures")
    parser.add_argument("--preset", choices=presets, default="cpu")
    parser.add_argument("--minutes", type=float, help="save and end after so many")
    parser.add_argument("--seeds", type=int, nargs="+", help="in place of the preset's")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="(default: %(default)s)")
    if rows:
        parser.add_argument("--rows", choices=rows, nargs="+", default=rows, help="(default: all)")
    given = parser.parse_args()
    until = float("inf") if given.minutes is None else time.monotonic() + 60 * given.minutes
    seeds = tuple(given.seeds) if given.seeds else None
    asked = tuple(given.rows) if rows else ()
    return Experiment(name, given.data, given.preset, given.runs, seeds, until, asked)


def learn(
    experiment: Experiment,
    problem: Problem,
    row: str,
    recipe: Recipe,
    *,
    target: Callable | None = None,
    task: n2n.types.Task | None = None,
    loss: Any = None,
    seed: int = 0,
    marks: Sequence[int] = (),
) -> None:
    """Train a row, score it on the problem's sets, and record the line; nothing if it is there.

    Trains on pictures under the problem's input, unless a `task` is given. `target`: the targets'
    corruption, None for the input's law drawn anew. With `marks` the line has a `curve`, too: the
    score on the first set at these steps.
    """
    if experiment.recorded(row, seed):
        return
    data = TRAINING[experiment.preset]
    sets = {name: experiment.pictures(name) for name in problem.sets}
    if task is None:
        task = n2n.simulated(experiment.files(data), input=problem.input, target=target)
    more, watch = {}, None
    if marks:
        first = sets[problem.sets[0]]
        path = experiment.file(row, seed, ".curve")
        curve = Curve(path, marks, lambda run: score(run, first, problem.test))
        task, watch = scored(task, curve.score), curve.follow
        more["curve"] = curve.points
    model = experiment.train(row, task, recipe, seed=seed, loss=loss, watch=watch)
    scores = {name: score(model, pictures, problem.test) for name, pictures in sets.items()}
    experiment.record(row, seed, recipe, data=data, **scores, **more)


def compare(
    experiment: Experiment,
    problem: Problem,
    recipe: Recipe,
    *,
    loss: Any = None,
    marks: Sequence[int] = (),
) -> None:
    """Train with noisy and with clean targets, or what is asked for, and record them by seed."""
    targets = dict(zip(BOTH, (None, Clean()), strict=True))
    for seed in experiment.seeds or recipe.seeds:
        for row in experiment.rows or targets:
            target = targets[row]
            learn(experiment, problem, row, recipe, target=target, loss=loss, seed=seed,
                  marks=marks)  # fmt: skip


def marks(steps: int) -> list[int]:
    """Return the steps at which curves are taken: dense where they are steep."""
    return [steps * share // 32 for share in (1, 2, 4, 8, 12, 16, 24, 32)]


def score(model: Any, pictures: Path, corruption: Callable, *, repeat: int = 1) -> float:
    """Return the mean PSNR over a folder's pictures by the paper's protocol, dB, noise seed 0."""
    rows = n2n.evaluate(model, pictures, corruption=corruption, repeat=repeat)
    return round(statistics.mean(row["psnr"] for row in rows), 3)


def given(experiment: Experiment, problem: Problem) -> None:
    """Record the scores of the input as it is, unless there is such a line in these runs."""
    if experiment.recorded("input"):
        return
    scores = {
        name: score(lambda seen: seen, experiment.pictures(name), problem.test)
        for name in problem.sets
    }
    experiment.record("input", 0, None, **scores)


def classical(
    experiment: Experiment, method: str, sets: tuple[str, ...], corruption: Callable
) -> None:
    """Record the scores of a classical method on the same draws, unless these runs have them.

    It is dear: BM3D takes a minute for a picture. Every picture is kept in the runs, so that slices
    go on, and of all presets only `cpu` measures it.
    """
    if experiment.preset != "cpu" or experiment.recorded(method):
        return
    run = _remembered(experiment, method, evaluation.method(method, corruption))
    scores = {name: score(run, experiment.pictures(name), corruption) for name in sets}
    experiment.record(method, 0, None, **scores)


def lines(name: str) -> list[dict[str, Any]]:
    """Return the recorded lines of an experiment, oldest first."""
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def facts() -> dict[str, Any]:
    """Return what a figure depends on beside its settings: device, versions, date."""
    import jax

    device = jax.devices()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cpu = f"CPU, {cores} {'core' if cores == 1 else 'cores'}, {platform.machine()}"
    kind = cpu if device.platform == "cpu" else device.device_kind
    versions = {"n2n": n2n.__version__, "jax": jax.__version__, "python": platform.python_version()}
    return {"device": kind, "versions": versions, "date": date.today().isoformat()}


def _settings(recipe: Recipe) -> dict[str, Any]:
    kind = recipe.network if isinstance(recipe.network, str) else recipe.network["kind"]
    names = ("steps", "batch", "crop", "learning_rate", "optimizer")
    return {"network": kind, **{name: getattr(recipe, name) for name in names}}


def _key(line: Mapping[str, Any]) -> tuple[Any, ...]:
    return line["preset"], line["row"], line["seed"]


def _finished(path: Path, recipe: Recipe) -> n2n.Denoiser:
    model = n2n.load(path)
    if model.card["steps"] != recipe.steps:
        raise n2n.Error(
            f"{str(path)!r} took {model.card['steps']} steps, the recipe asks for {recipe.steps}; "
            "delete it or choose other --runs"
        )
    return model


def scored(task: n2n.types.Task, score: Callable) -> n2n.types.Task:
    """Give a task a score, also when it has been cut for another batch."""
    arrange = task.arrange
    again = None if arrange is None else lambda *size: scored(arrange(*size), score)
    return dataclasses.replace(task, score=score, arrange=again)


def _whole(predict: Callable, picture: np.ndarray) -> np.ndarray:
    """Apply a network's (n,h,w,c) to a picture H,W,C, continued by reflection to its lattice."""
    height, width = picture.shape[:2]
    more = [(32, 32 + -height % 32), (32, 32 + -width % 32), (0, 0)]
    seen = np.pad(picture, more, mode="reflect")[None]
    return np.asarray(predict(seen))[0, 32 : 32 + height, 32 : 32 + width]


def _remembered(experiment: Experiment, method: str, run: Callable) -> Callable:
    """Keep what a slow method makes of each picture, as the 8 bits that the protocol compares."""
    folder = experiment.folder / method
    folder.mkdir(parents=True, exist_ok=True)

    def again(seen: np.ndarray) -> np.ndarray:
        path = folder / (hashlib.sha256(seen.tobytes()).hexdigest()[:16] + ".npy")
        if not path.exists():
            experiment.pause()
            aside = path.with_suffix(".new.npy")
            np.save(aside, np.round(255 * evaluation.rounded(run(seen))).astype(np.uint8))
            aside.replace(path)
        return np.load(path) / np.float32(255)

    return again
