"""Measure what the original's padding costs against ours, on the figures of the paper's tables.

Validation of the original code (reference 1.4) continues a picture at the right and the bottom to
the next multiple of 32, by reflection, and leaves the other borders to the network's zeros. n2n
continues it by reflection on all sides as far as the network sees. Both see the same noise, sigma
25, and the same weights: those in the package.

    python -m experiments.padding DATA     (five minutes on two cores)
"""

from __future__ import annotations

import numpy as np

import n2n
from experiments import runs
from n2n.corruptions import Gaussian

SETS = ("kodak24", "bsd300_test")


def main() -> None:
    """Score both on every set and record the means."""
    experiment = runs.start(__doc__, "padding")
    model = n2n.load("gaussian")
    for row, run in (("ours", model), ("original", lambda picture: cornered(model, picture))):
        scores = {
            name: runs.score(run, experiment.pictures(name), Gaussian(25 / 255)) for name in SETS
        }
        experiment.record(row, 0, None, weights=model.card["steps"], **scores)


def cornered(model: n2n.Denoiser, picture: np.ndarray) -> np.ndarray:
    """Apply a network to a picture H,W,C padded at the right and the bottom only; H,W,C."""
    height, width = picture.shape[:2]
    more = [(0, -height % 32), (0, -width % 32), (0, 0)]
    seen = np.pad(picture, more, mode="reflect")[None]
    return np.asarray(model.network.apply(model.params, seen))[0, :height, :width]


if __name__ == "__main__":
    main()
