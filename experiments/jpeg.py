"""Take compression away: from compressed noisy shots to noisy shots that nothing has compressed.

Input: noise of sigma 0 to 10 (of 255), then JPEG of quality 10 to 60, 4:2:0, its grid of blocks
anywhere. Rows: `noisy`: the target is another noisy shot of the scene, uncompressed; `clean`: the
scene itself; `compressed`: another shot that was compressed, too, whose mean is a softened picture
(what a quantiser erases, it erases every time). Figures: dB on Kodak by quality and noise, `input`
for the compressed picture itself. Expected of noisy targets: 1 dB at quality 10 and 20 without
noise, and what clean targets reach within 0.2 dB.

    python -m experiments.jpeg DATA --preset cpu     (30 minutes on two cores)
    python -m experiments.jpeg DATA --preset paper   (50 times as long)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import n2n
from experiments import runs
from n2n.corruptions import JPEG, Chain, Clean, Gaussian

SHOT = Gaussian((0.0, 10 / 255))
INPUT = Chain((SHOT, JPEG((10.0, 60.0))))
TARGETS = {"noisy": SHOT, "clean": Clean(), "compressed": INPUT}
QUALITIES, SIGMAS = (10, 20, 40, 60), (0, 10)
RECIPES = {
    "cpu": runs.Recipe("default", steps=5000, batch=4, crop=96, learning_rate=5e-4),
    "paper": runs.Recipe("default", steps=250_000, batch=4, crop=96, learning_rate=5e-4),
}
START = "photo"
"""Weights to start from, which noisy pictures alone have taught; from none, noisy targets gained
0.86 dB at quality 10 and 1.04 dB at 20 in as many steps."""


def main() -> None:
    """Train with each kind of target, score all, and record a line for each."""
    experiment = runs.start(__doc__, "jpeg", rows=("input", *TARGETS))
    recipe, data = RECIPES[experiment.preset], runs.TRAINING[experiment.preset]
    for row in experiment.rows:
        if experiment.recorded(row):
            continue
        if row == "input":
            experiment.record(row, 0, None, **figures(experiment, np.asarray))
            continue
        task = n2n.simulated(experiment.files(data), input=INPUT, target=TARGETS[row])
        model = experiment.train(row, task, recipe, init=START)
        experiment.record(row, 0, recipe, data=data, **figures(experiment, model))


def figures(experiment: runs.Experiment, run: Callable) -> dict[str, float]:
    """Return dB on Kodak by quality and noise."""
    found = {}
    for quality in QUALITIES:
        for sigma in SIGMAS:
            shot = JPEG(float(quality))
            seen = Chain((Gaussian(sigma / 255), shot)) if sigma else shot
            name = f"quality {quality}, sigma {sigma}"
            found[name] = runs.score(run, experiment.pictures("kodak24"), seen)
    return found


if __name__ == "__main__":
    main()
