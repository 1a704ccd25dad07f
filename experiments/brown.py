"""Reproduce Fig. 1b: noise that is correlated in space slows the learning, and the end is near.

Lehtinen et al. 2018, section 3.1; reference 2.2. The targets' noise is white noise blurred by a
Gaussian of 1, 2 and 4 px (the paper gives no widths) and brought back to sigma 25: the more it is
correlated, the fewer independent draws a gradient averages. The input's noise stays white in all
rows, and the same, so that they share a test: Kodak at sigma 25. Expected: slower with more blur,
in the end within 0.1 dB of white targets; at the length of `--preset cpu` 0.3 dB, and shrinking.

    python -m experiments.brown DATA --preset cpu     (estimated: 18 minutes on two cores)
    python -m experiments.brown DATA --preset paper   (8 hours a model on a Titan V)
"""

from __future__ import annotations

import dataclasses

from experiments import runs
from n2n.corruptions import Brown, Gaussian

WHITE = Gaussian(25 / 255)
PROBLEM = runs.Problem(input=WHITE, test=WHITE, sets=("kodak24",))
BLURS = (1.0, 2.0, 4.0)
RECIPES = {"cpu": dataclasses.replace(runs.CPU, steps=2500, seeds=(0,)), "paper": runs.PAPER}
"""The length was chosen by the gap at 4 px: 0.40 dB at the end of 1,500 steps; of these it is 0.72,
0.45, 0.35 and 0.26 after 625, 1,250, 1,875 and 2,500."""


def main() -> None:
    """Train with white and with brown targets and record all curves."""
    experiment = runs.start(__doc__, "brown")
    recipe = RECIPES[experiment.preset]
    rows = {"white": WHITE} | {f"blur{blur:g}": Brown(25 / 255, blur) for blur in BLURS}
    for seed in experiment.seeds or recipe.seeds:
        for row, target in rows.items():
            runs.learn(experiment, PROBLEM, row, recipe, target=target, seed=seed,
                       marks=runs.marks(recipe.steps))  # fmt: skip


if __name__ == "__main__":
    main()
