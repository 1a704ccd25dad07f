"""Reproduce Fig. 1a: noisy targets teach as fast as clean ones, although their loss stays high.

Lehtinen et al. 2018, section 3.1; reference 2.2. Gaussian noise as in `gaussian`, dB on Kodak at
sigma 25 at eight steps of the training, of the averaged weights. Kodak's clean pictures draw the
curve and choose nothing. Expected: the curves lie on each other; a difference of 0.1 dB is chance
in a short run.

    python -m experiments.convergence DATA --preset cpu     (13 minutes on two cores)
    python -m experiments.convergence DATA --preset paper   (8 hours a model on a Titan V)
"""

from __future__ import annotations

import dataclasses

from experiments import runs
from n2n.corruptions import Gaussian

PROBLEM = runs.Problem(Gaussian((0.0, 50 / 255)), Gaussian(25 / 255), sets=("kodak24",))
RECIPES = {"cpu": dataclasses.replace(runs.CPU, steps=2000, seeds=(0,)), "paper": runs.PAPER}


def main() -> None:
    """Train with noisy and with clean targets and record both curves."""
    experiment = runs.start(__doc__, "convergence")
    recipe = RECIPES[experiment.preset]
    runs.compare(experiment, PROBLEM, recipe, marks=runs.marks(recipe.steps))


if __name__ == "__main__":
    main()
