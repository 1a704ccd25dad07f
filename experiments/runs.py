"""What the experiments share: their command line, runs in slices, and the lines of their results.

    python -m experiments.gaussian DATA --preset cpu --minutes 9

DATA holds the folders of pictures that an experiment names. `--preset cpu` shows the effect on two
cores, `--preset paper` is the full recipe. After `--minutes` the state is saved and the command
ends with status 75; the same command goes on where it stopped. Models stay in `--runs`, a folder
for each experiment and preset; a finished one is not trained again. Every figure is a line of
`experiments/results/NAME.jsonl`; a line of the same preset, row and seed is replaced.
"""

from __future__ import annotations

import argparse
import json
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import n2n
from n2n import evaluation

RESULTS = Path(__file__).parent / "results"
AGAIN = 75
"""Exit status of a command that has more to do (EX_TEMPFAIL)."""


@dataclass(frozen=True)
class Recipe:
    """Configure a training: what `n2n.fit` is told."""

    network: str | Mapping[str, Any]
    steps: int
    batch: int = 8
    crop: int = 64
    learning_rate: float = 1e-3
    seeds: tuple[int, ...] = (0,)
    """The paper's rows come from one; gaps from three."""


LEAN = {"kind": "lean", "inputs": 3, "outputs": 3, "widths": [16, 32, 64, 64, 64]}
"""The default network without the input for a noise map: these tasks are blind."""
CPU = Recipe(LEAN, steps=1500, seeds=(0, 1, 2))
"""About two and a half minutes for each model on two cores."""
PAPER = Recipe("unet", steps=500_000, batch=4, crop=256, learning_rate=3e-4)
"""The recipe behind the original code's figures (reference 1.3, `--long-train`)."""


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
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where the models of this experiment and preset are kept."""
        return self.runs / f"{self.name}-{self.preset}"

    def pictures(self, name: str) -> Path:
        """Return a folder of pictures; Error where it is absent."""
        if not (self.data / name).is_dir():
            raise n2n.Error(f"DATA {str(self.data)!r} has no folder {name!r}; name one that has")
        return self.data / name

    def train(
        self,
        row: str,
        task: n2n.types.Task,
        recipe: Recipe,
        *,
        seed: int = 0,
        loss: Any = None,
        init: Any = None,
    ) -> n2n.Denoiser:
        """Return the model of a row: the finished one, or trained now, or trained on.

        Equal seeds give equal crops and equal noise in the input, whatever the targets are.
        Ends the command with status 75 when the slice is over.
        """
        path = self.folder / f"{row}-{seed}.safetensors"
        took = path.with_suffix(".seconds")
        if path.exists() and took.exists():
            self.seconds[f"{row}-{seed}"] = float(took.read_text())
            return n2n.load(path)
        self.folder.mkdir(parents=True, exist_ok=True)

        def watch(event: Any) -> None:
            self.seconds[f"{row}-{seed}"] = event.elapsed
            self._show(row, seed, event)
            if time.monotonic() > self.until:
                signal.raise_signal(signal.SIGINT)  # the trainer saves and raises Interrupted

        try:
            network: Any = recipe.network
            model = n2n.fit(
                task,
                network=network if isinstance(network, str) else dict(network),
                init=init,
                loss=loss,
                steps=recipe.steps,
                batch=recipe.batch,
                crop=recipe.crop,
                learning_rate=recipe.learning_rate,
                seed=seed,
                out=path,
                resume=True,
                progress=watch,
            )
        except n2n.types.Interrupted as stop:
            print(f"\n{stop}", file=sys.stderr)
            raise SystemExit(AGAIN if time.monotonic() > self.until else 130) from None
        took.write_text(f"{self.seconds[f'{row}-{seed}']:.1f}")
        print(file=sys.stderr)
        return model

    def _show(self, row: str, seed: int, event: Any) -> None:
        line = f"{self.name} {row}, seed {seed}: {event.step:,} of {event.total:,} steps"
        print(f"\r{line}, loss {event.loss:.5f}, {event.left / 60:.1f} min left ", end="",
              file=sys.stderr)  # fmt: skip

    def record(self, row: str, seed: int, recipe: Recipe | None, **figures: Any) -> None:
        """Write a row's line, replacing that of the same preset, row and seed, and print it."""
        line = {
            "experiment": self.name,
            "preset": self.preset,
            "row": row,
            "seed": seed,
            "steps": recipe.steps if recipe else None,
            "batch": recipe.batch if recipe else None,
            "crop": recipe.crop if recipe else None,
            "seconds": self.seconds.get(f"{row}-{seed}"),
            **figures,
            **facts(),
        }
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{self.name}.jsonl"
        kept = [old for old in lines(self.name) if _key(old) != _key(line)]
        path.write_text("".join(json.dumps(each) + "\n" for each in [*kept, line]))
        print(json.dumps({name: line[name] for name in ("row", "seed", *figures)}), flush=True)

    def recorded(self, row: str, seed: int = 0) -> dict[str, Any] | None:
        """Return the line of a row, or None."""
        wanted = (self.preset, row, seed)
        return next((old for old in lines(self.name) if _key(old) == wanted), None)


def start(doc: str, name: str) -> Experiment:
    """Read the command line of an experiment."""
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", type=Path, help="the folder that holds the folders of pictures")
    parser.add_argument("--preset", choices=("cpu", "paper"), default="cpu")
    parser.add_argument("--minutes", type=float, help="save and end after so many")
    parser.add_argument("--seeds", type=int, nargs="+", help="in place of the preset's")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="(default: %(default)s)")
    given = parser.parse_args()
    until = time.monotonic() + 60 * given.minutes if given.minutes else float("inf")
    seeds = tuple(given.seeds) if given.seeds else None
    return Experiment(name, given.data, given.preset, given.runs, seeds, until)


def score(model: Any, pictures: Path, corruption: Callable, *, repeat: int = 1) -> float:
    """Return the mean PSNR over a folder's pictures by the paper's protocol, dB, noise seed 0."""
    rows = n2n.evaluate(model, pictures, corruption=corruption, repeat=repeat)
    return round(statistics.mean(row["psnr"] for row in rows), 3)


def classical(
    experiment: Experiment, method: str, sets: tuple[str, ...], corruption: Callable
) -> None:
    """Record the scores of a classical method on the same draws, unless they are there."""
    if experiment.recorded(method):
        return
    run = evaluation.method(method, corruption)
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
    kind = f"{device.platform} {device.device_kind}".strip()
    versions = {"n2n": n2n.__version__, "jax": jax.__version__, "python": platform.python_version()}
    return {"device": kind, "versions": versions, "date": date.today().isoformat()}


def _key(line: Mapping[str, Any]) -> tuple[Any, ...]:
    return line["preset"], line["row"], line["seed"]
