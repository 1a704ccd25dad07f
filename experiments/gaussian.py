"""Reproduce Table 1, Gaussian: noisy targets reach what clean ones reach, above BM3D.

Lehtinen et al. 2018, section 3.1; reference 1.5. Input and target have their own sigma, uniform in
0 to 50 (of 255), unclipped; tested at sigma 25, rounded to uint8. Expected of 500,000 steps on
ImageNet: 32.39 dB on Kodak, 31.02 on BSD300 with noisy targets, 32.38 and 31.01 with clean ones
(the original code's U-Net); RED30 32.48 and 31.06; BM3D with sigma known 31.82 and 30.34.

    python -m experiments.gaussian DATA --preset cpu    (22 minutes on two cores, BM3D 50 more)
    python -m experiments.gaussian DATA --preset long --rows noisy    (an hour of one core)
    python -m experiments.gaussian DATA --preset long --rows clean    (the same, beside it)
    python -m experiments.gaussian DATA --preset paper   (7.5 hours a model on a Titan V)
"""

from __future__ import annotations

from experiments import runs
from n2n.corruptions import Gaussian

PROBLEM = runs.Problem(input=Gaussian((0.0, 50 / 255)), test=Gaussian(25 / 255))
RECIPES = {"cpu": runs.CPU, "long": runs.LONG, "paper": runs.PAPER}


def main() -> None:
    """Train with noisy and with clean targets, seed by seed, and score both; BM3D, too."""
    experiment = runs.start(__doc__, "gaussian", rows=runs.BOTH, presets=tuple(RECIPES))
    runs.compare(experiment, PROBLEM, RECIPES[experiment.preset])
    runs.classical(experiment, "bm3d", PROBLEM.sets, PROBLEM.test)


if __name__ == "__main__":
    main()
