"""Train the weights in the package, each from two noisy versions of every picture.

Pictures: `cid22_train` (Cloudinary CID22, CC BY-SA 4.0) and `gb82_cc0` (CC0). No network ever sees
one of them clean: input and target are two independent corruptions of each crop.

- `photo`, the default of `n2n.denoise`: a camera's noise, from none to that of ISO 12,800, through
  a mosaic or not, developed, reduced by the camera or not, and compressed; L2
  (`n2n.corruptions.Camera`). Pictures are taken as they are and enlarged, since a camera's own
  pixels are softer than a picture made small.
- `gaussian`: white noise of sigma 0 to 50 (of 255), L2 (Lehtinen et al. 2018, section 3.1).
- `text`: strings over 0 to half of the picture, L1 (section 3.3), in the smaller `runs.LEAN`.

`photo` and `gaussian` read a noise map half of the time. On a core 63, 27 and 56 minutes;
`--rows` trains one of them, and the same command goes on where it was stopped:

    python -m experiments.weights DATA --preset cpu --minutes 9

DATA holds the folders of training pictures and, for the figures, `kodak24`, `cid22_val` and
`real_cc15`. `--preset paper` trains thirty times as long, for an accelerator.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from skimage import data as samples

import n2n
from experiments import runs
from n2n.corruptions import Camera, Clean, Gaussian, Text

WEIGHTS = Path(n2n.__file__).parent / "weights"
TRAINING = ("cid22_train", "gb82_cc0")
ISO_12800 = Camera(
    gain=(2e-5, 2e-2),
    read=(2e-4, 1.2e-2),
    gamma=(1.8, 2.4),
    red=(1.3, 2.6),
    blue=(1.2, 2.4),
    mosaic=0.75,
    quality=(90, 100),
    chroma=0.5,
    reduced=0.6,
    grain=(0.0, 1.2),
    blotch=(0.0, 3.0),
    colour=(0.2, 1.0),
)
"""From the base ISO of a large sensor, 50,000 electrons in white, to ISO 12,800 of a small one; in
most pictures the camera has reduced the noise. Trained on noise as the mosaic alone leaves it,
`photo` kept most of a hand-held JPEG's (39.4 dB clean-free; 40.1 after 1,500 steps on this)."""
LARGER = 1.5
"""Factor of the enlarged pictures."""
RECIPE = runs.Recipe(
    "default", steps=12_000, batch=4, crop=96, learning_rate=1e-3, optimizer="muon"
)


@dataclass(frozen=True)
class Shipped:
    """Configure one of the weights: what it learns, and what its card says."""

    input: Callable
    purpose: str
    limits: str
    tests: tuple[tuple[str, Callable], ...]
    """Folder and corruption of the figures on the card."""
    loss: str = "l2"
    recipe: runs.Recipe = RECIPE
    noise_map: bool = True
    enlarged: bool = False


MODELS = {
    "photo": Shipped(
        ISO_12800,
        "pictures of cameras, from clean to ISO 12,800, also after demosaicking and JPEG",
        "noise that the camera itself has smoothed to large blots stays in part",
        (
            ("cid22_val", Camera(2e-3, 4e-3, 2.2, 2.0, 1.6)),
            ("cid22_val", Camera(2e-3, 4e-3, 2.2, 2.0, 1.6, 1.0, 95.0)),
            ("cid22_val", Camera(2e-3, 4e-3, 2.2, 2.0, 1.6, 1.0, 95.0, 1.0, 1.0, 0.6, 2.0, 0.6)),
            ("kodak24", Clean()),
            ("kodak24", Gaussian(10 / 255)),
        ),
        enlarged=True,
        recipe=dataclasses.replace(RECIPE, steps=25_000, learning_rate=6e-4),
    ),
    "gaussian": Shipped(
        Gaussian((0.0, 50 / 255)),
        "white Gaussian noise of any sigma from 0 to 50 (of 255), told or not",
        "camera noise that is correlated between pixels (JPEG, demosaicking) stays; trained for "
        "27 minutes of one core, 0.2 dB below BM3D that knows sigma on Kodak, level with it on "
        "BSD300",
        (("kodak24", Gaussian(25 / 255)), ("bsd300_test", Gaussian(25 / 255))),
    ),
    "text": Shipped(
        Text((0.0, 0.5)),
        "text written over up to half of a picture",
        "writing in the colours of what it covers stays in part, large logos stay",
        (("kodak24", Text(0.25)),),
        loss="l1",
        recipe=runs.Recipe(runs.LEAN, steps=8_000, batch=4, crop=128, learning_rate=5e-4),
        noise_map=False,
    ),
}


def main() -> None:
    """Train, measure, and write the weights with their cards."""
    experiment = runs.start(__doc__, "weights", rows=tuple(MODELS))
    for name in experiment.rows:
        shipped = MODELS[name]
        longer = 30 if experiment.preset == "paper" else 1
        recipe = dataclasses.replace(shipped.recipe, steps=longer * shipped.recipe.steps)
        task = n2n.simulated(
            training(experiment, shipped.enlarged), input=shipped.input, noise_map=shipped.noise_map
        )
        model = experiment.train(name, task, recipe, loss=shipped.loss)
        figures = measured(experiment, name, model)
        experiment.record(name, 0, recipe, data=TRAINING, **figures)
        ship(name, model, experiment.recorded(name) or {}, figures)


def training(experiment: runs.Experiment, enlarged: bool) -> list[Any]:
    """Return the pictures, and with `enlarged` each once more with LARGER sides, as arrays."""
    pictures: list[Any] = list(experiment.files(TRAINING))
    if enlarged:
        arrays = [n2n.read(path).array for path in pictures]
        pictures += [
            cv2.resize(array, None, fx=LARGER, fy=LARGER, interpolation=cv2.INTER_CUBIC)
            for array in arrays
        ]
    return pictures


def measured(experiment: runs.Experiment, name: str, model: n2n.Denoiser) -> dict[str, Any]:
    """Return the figures of a card: mean PSNR before and after, dB, by set and corruption."""
    figures: dict[str, Any] = {}
    for folder, corruption in MODELS[name].tests:
        rows = n2n.evaluate(model, experiment.pictures(folder), corruption=corruption)
        figures[f"{folder} {corruption}"] = means(rows)
    if name == "photo":
        both = experiment.pictures("real_cc15")
        rows = n2n.evaluate(model, both / "cc_real", reference=both / "cc_mean")
        figures["real_cc15"] = means(rows)
        figures["real_cc15 least gain"] = round(
            min(row["psnr"] - row["input_psnr"] for row in rows), 2
        )
    figures["samples"] = samples_db(model, MODELS[name].tests[0][1])
    return figures


def means(rows: Sequence[dict[str, Any]]) -> list[float | None]:
    """Return the mean PSNR of the inputs, None where they are clean, and of the outputs, dB."""
    both = [statistics.mean(row[key] for row in rows) for key in ("input_psnr", "psnr")]
    return [round(value, 2) if math.isfinite(value) else None for value in both]


def samples_db(model: n2n.Denoiser, corruption: Callable) -> list[float]:
    """Return the PSNR on two of scikit-image's photographs, which the package's test repeats."""
    pictures = [np.asarray(samples.astronaut()), np.asarray(samples.coffee())]
    rows = n2n.evaluate(model, pictures, corruption=corruption)
    return [round(row["psnr"], 3) for row in rows]


def ship(name: str, model: n2n.Denoiser, line: dict[str, Any], figures: dict[str, Any]) -> Path:
    """Write a model into the package in half precision, with its card; return its file."""
    card = model.card | {
        "name": name,
        "steps": line.get("steps"),
        "purpose": MODELS[name].purpose,
        "noise": str(MODELS[name].input),
        "loss": MODELS[name].loss,
        "optimizer": MODELS[name].recipe.optimizer,
        "data": "cid22_train (Cloudinary CID22, CC BY-SA 4.0), gb82_cc0 (CC0); noisy pairs only",
        "device": line.get("device"),
        "psnr": figures,
        "sample_noise": str(MODELS[name].tests[0][1]),
        "licence": "CC BY-SA 4.0, as its training pictures",
        "limits": MODELS[name].limits,
    }
    path = WEIGHTS / f"{name}.safetensors"
    dataclasses.replace(model, facts=json.dumps(card, sort_keys=True)).save(path, half=True)
    return path


if __name__ == "__main__":
    main()
