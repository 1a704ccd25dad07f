"""Reproduce Fig. 3: text is removed by L1 from targets with other text on them; L2 turns it grey.

Lehtinen et al. 2018, section 3.3; reference 2.3. Strings cover a share of the pixels, uniform in 0
to 0.5 for input and target each; tested at 0.25. Where less than half is covered, the median of all
texts is the picture, and the mean is not. Expected of the paper's one picture: input 17.12 dB, L2
26.89, L1 35.75, clean targets 35.82; here the mean of all Kodak pictures. Clean targets are learnt
by L1, too.

    python -m experiments.text DATA --preset cpu     (22 minutes on two cores)
    python -m experiments.text DATA --preset paper   (8 hours a model on a Titan V)
"""

from __future__ import annotations

from experiments import runs
from n2n.corruptions import Text

PROBLEM = runs.Problem(input=Text((0.0, 0.5)), test=Text(0.25), sets=("kodak24",))
RECIPES = {"cpu": runs.CPU, "paper": runs.PAPER}


def main() -> None:
    """Train with noisy and clean targets by L1, and once with noisy ones by L2."""
    experiment = runs.start(__doc__, "text")
    runs.given(experiment, PROBLEM)
    recipe = RECIPES[experiment.preset]
    runs.compare(experiment, PROBLEM, recipe, loss="l1")
    runs.learn(experiment, PROBLEM, "l2", recipe, loss="l2")


if __name__ == "__main__":
    main()
