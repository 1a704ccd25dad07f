"""Colour grey pictures: from grey noisy shots to noisy shots in colour.

Input: the luma of the scene, with noise of sigma 10 (of 255); target: another noisy shot, in
colour. A squared error asks for the mean of all colours that such a place may have, and that is
what comes out: skies, fur and leaves get a pale colour of their own, things that may have any get a
tint, and a smooth bright wall is taken for a sky. This is no fault of noisy targets: clean ones
give the same. Figures on Kodak: dB of the whole picture and of `luma` alone, and `chroma`, how
strongly the true colours are shown, as a share of their own strength (the slope of shown over true
ones, to which noise adds nothing); `input` for the noisy grey picture itself.

    python -m experiments.colour DATA --preset cpu     (10 minutes on two cores)
    python -m experiments.colour DATA --preset paper   (50 times as long)
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import numpy as np

import n2n
from experiments import runs
from n2n import evaluation
from n2n.corruptions import Chain, Clean, Gaussian, Grey

SHOT = Gaussian(10 / 255)
INPUT = Chain((Grey(), SHOT))
TARGETS = {"noisy": SHOT, "clean": Clean()}
RECIPES = {
    "cpu": runs.Recipe("default", steps=3000, batch=4, crop=96, learning_rate=5e-4),
    "paper": runs.Recipe("default", steps=150_000, batch=4, crop=96, learning_rate=5e-4),
}
START = "photo"
"""Weights to start from, which noisy pictures alone have taught. From none, the colours' error
leaves the noise's no say for a while: after 1,500 steps much of the noise was left."""
LUMA = np.array([0.299, 0.587, 0.114])


def main() -> None:
    """Train with noisy and with clean targets, and record a line for each."""
    experiment = runs.start(__doc__, "colour", rows=("input", *TARGETS))
    recipe, data = RECIPES[experiment.preset], runs.TRAINING[experiment.preset]
    for row in experiment.rows:
        if experiment.recorded(row):
            continue
        if row == "input":
            experiment.record(row, 0, None, **figures(experiment, np.asarray))
            continue
        task = n2n.simulated(experiment.files(data), input=INPUT, target=TARGETS[row])
        model = experiment.train(row, task, recipe, init=START)
        experiment.record(row, 0, recipe, data=data, **figures(experiment, model.predict))


def figures(experiment: runs.Experiment, run: Callable) -> dict[str, float]:
    """Return the mean dB of the picture and of its luma, and the share of chroma, on Kodak."""
    whole, luma, chroma = [], [], []
    for index, path in enumerate(sorted(experiment.pictures("kodak24").iterdir())):
        clean = n2n.read(path).array / np.float32(255)
        made = np.clip(run(evaluation.corrupted(clean, INPUT, index=index)), 0, 1)
        whole.append(n2n.psnr(made, clean))
        luma.append(n2n.psnr(made @ LUMA, clean @ LUMA))
        true = colours(clean)
        chroma.append(float((colours(made) * true).sum() / np.square(true).sum()))
    mean = (statistics.mean(each) for each in (whole, luma, chroma))
    return dict(zip(("kodak24", "luma", "chroma"), (round(one, 3) for one in mean), strict=True))


def colours(picture: np.ndarray) -> np.ndarray:
    """Return how far each channel lies from the luma, H,W,3."""
    return picture - (picture @ LUMA)[..., None]


if __name__ == "__main__":
    main()
