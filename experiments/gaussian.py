"""Reproduce Table 1, Gaussian: noisy targets reach what clean ones reach, above BM3D.

Lehtinen et al. 2018, section 3.1; reference 1.5. Input and target have their own sigma, uniform in
0 to 50 (of 255), unclipped; tested at sigma 25, rounded to uint8. Expected of 500,000 steps on
ImageNet: 32.39 dB on Kodak, 31.02 on BSD300 with noisy targets, 32.38 and 31.01 with clean ones
(the original code's U-Net); RED30 32.48 and 31.06; BM3D with sigma known 31.82 and 30.34.

    python -m experiments.gaussian DATA --preset cpu        (20 minutes on two cores)
    python -m experiments.gaussian DATA --preset paper      (hours on an accelerator)

Trains on `bsd300_train`, with `--preset paper` on `bsds500_extra` and `cid22_train`, too, since
ImageNet may not be passed on: the absolute figures stay below the paper's.
"""

from __future__ import annotations

import n2n
from experiments import runs
from n2n.corruptions import Clean, Gaussian

SIGMA = Gaussian((0.0, 50 / 255))
TEST = Gaussian(25 / 255)
SETS = ("kodak24", "bsd300_test")
TRAINING = {"cpu": ["bsd300_train"], "paper": ["bsd300_train", "bsds500_extra", "cid22_train"]}
RECIPES = {"cpu": runs.CPU, "paper": runs.PAPER}


def main() -> None:
    """Train with noisy and with clean targets, seed by seed, and score both and BM3D."""
    experiment = runs.start(__doc__, "gaussian")
    recipe = RECIPES[experiment.preset]
    data = TRAINING[experiment.preset]
    pictures = [p for name in data for p in sorted(experiment.pictures(name).iterdir())]
    for seed in experiment.seeds or recipe.seeds:
        for row, target in (("noisy", None), ("clean", Clean())):
            if experiment.recorded(row, seed):
                continue
            task = n2n.simulated(pictures, input=SIGMA, target=target)
            model = experiment.train(row, task, recipe, seed=seed)
            scores = {name: runs.score(model, experiment.pictures(name), TEST) for name in SETS}
            experiment.record(row, seed, recipe, data=data, **scores)
    runs.classical(experiment, "bm3d", SETS, TEST)


if __name__ == "__main__":
    main()
