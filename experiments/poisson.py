"""Reproduce Table 1, Poisson: noisy targets reach what clean ones reach, above Anscombe and BM3D.

Lehtinen et al. 2018, section 3.2; reference 1.2 and 1.5. Input and target have their own rate,
uniform in 0.001 to 50 photons from white, as in the original code (0 to 50 in the paper); tested at
30. The loss is L2 with all its outliers: at a rate of 0.01 one photon counts for 100 times white,
and one such crop outweighs all others for hundreds of steps (measured: 18.8 to 23.7 dB after 800,
by chance). A short run has no time to forget, so that `--preset cpu` starts from a rate of 1.
Expected of 500,000 steps on ImageNet: 31.66 dB on Kodak, 30.26 on BSD300 with noisy targets, 31.66
and 30.27 with clean ones (the original code; the paper's table says 31.50 and 30.16); BM3D behind
the Anscombe transform 29.15 and 27.56 in the paper.

    python -m experiments.poisson DATA --preset cpu    (30 minutes on two cores, BM3D 50 more)
    python -m experiments.poisson DATA --preset long --rows noisy    (an hour of one core)
    python -m experiments.poisson DATA --preset paper   (8 hours a model on a Titan V)
"""

from __future__ import annotations

import dataclasses

from experiments import runs
from n2n.corruptions import Poisson

RATES = {"cpu": (1.0, 50.0), "long": (1.0, 50.0), "paper": (0.001, 50.0)}
PROBLEM = runs.Problem(input=Poisson(RATES["paper"]), test=Poisson(30.0))
RECIPES = {
    "cpu": dataclasses.replace(runs.CPU, learning_rate=5e-4),
    "long": runs.LONG,
    "paper": runs.PAPER,
}


def main() -> None:
    """Train with noisy and with clean targets, seed by seed, and score both; BM3D, too."""
    experiment = runs.start(__doc__, "poisson", rows=runs.BOTH, presets=tuple(RECIPES))
    problem = dataclasses.replace(PROBLEM, input=Poisson(RATES[experiment.preset]))
    runs.compare(experiment, problem, RECIPES[experiment.preset])
    runs.classical(experiment, "bm3d", PROBLEM.sets, PROBLEM.test)


if __name__ == "__main__":
    main()
