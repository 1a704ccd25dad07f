"""The claim itself: noisy targets teach what clean ones do (Lehtinen et al. 2018, 3.1)."""

from __future__ import annotations

import statistics

import pytest

import n2n
from n2n.corruptions import Clean, Gaussian

NETWORK = {"kind": "unet", "inputs": 3, "outputs": 3, "width": 24, "residual": True}
STEPS = 3000


@pytest.mark.slow
def test_noisy_targets_reach_clean_targets(data):
    """Same crops, same input noise; mean of three seeds on bsd300_test at sigma 25."""
    train, test = data / "bsd300_train", data / "bsd300_test"
    scores: dict[str, list[float]] = {"noisy": [], "clean": []}
    for seed in range(3):
        for name, target in (("noisy", None), ("clean", Clean())):
            task = n2n.simulated(train, input=Gaussian((0, 50 / 255)), target=target)
            model = n2n.fit(
                task, network=NETWORK, steps=STEPS, crop=32, optimizer="adam", seed=seed
            )
            rows = n2n.evaluate(model, test, corruption=Gaussian(25 / 255))
            scores[name].append(statistics.mean(row["psnr"] for row in rows))
            print(f"seed {seed}, {name} targets: {scores[name][-1]:.3f} dB", flush=True)
    noisy, clean = (statistics.mean(scores[name]) for name in ("noisy", "clean"))
    print(f"noisy {noisy:.3f} dB, clean {clean:.3f} dB, gap {clean - noisy:+.3f} dB")
    assert abs(noisy - clean) <= 0.15
    assert min(noisy, clean) >= 28.5
