"""The clean-free score of a burst: its interval holds what f really reaches on those places."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from n2n.denoiser import fusing
from n2n.types import Burst

RUNS = 100
SIDE = 256


def scene() -> np.ndarray:
    """Return a textured picture H,W,1 between 0.1 and 0.9."""
    down, right = np.mgrid[:SIDE, :SIDE] / SIDE
    chirps = 0.25 * np.sin(40 * right**2 + 9 * down) * np.cos(25 * down * right)
    return (0.5 + chirps + 0.15 * (np.hypot(right - 0.5, down - 0.4) < 0.3))[..., None]


def noisy(kind: str, clean: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Return frames N,H,W,1 of standard deviation 0.06 or so."""
    white = generator.standard_normal((count, *clean.shape))
    if kind == "correlated":
        smooth = gaussian_filter(white, (0, 1, 1, 0), mode="wrap")
        return clean + 0.06 * smooth / smooth.std()
    sigma = 0.06 if kind == "white" else np.sqrt(0.01 * clean)
    return clean + sigma * white


def smoothed(image: np.ndarray, noise_map: np.ndarray | None) -> np.ndarray:
    """Stand for a denoiser."""
    del noise_map
    return gaussian_filter(image, (0.7, 0.7, 0))


def stacked(frames: np.ndarray) -> Burst:
    ones = np.ones((*frames.shape[:3], 1), np.float32)
    names = tuple(str(number) for number in range(len(frames)))
    return Burst(frames, ones, ones[0], np.tile(np.eye(3), (len(frames), 1, 1)), names=names)


@pytest.mark.parametrize(
    "kind, count",
    [("white", 8), ("correlated", 8), ("signal-dependent", 8), ("signal-dependent", 3)],
)
def test_the_score_of_a_burst_holds_the_truth(kind: str, count: int) -> None:
    generator, clean = np.random.default_rng(0), scene()
    errors, halves, gains = [], [], []
    for run in range(RUNS):
        burst = stacked(noisy(kind, clean, count, generator))
        places = fusing._scored_places(burst, run)
        means = [np.delete(burst.frames, (i, i + 1), 0).mean(0) for i in range(0, count - 1, 2)]
        true, plain = (
            np.mean([np.mean(np.square(f(mean) - clean)[places]) for mean in means])
            for f in (lambda mean: smoothed(mean, None), lambda mean: mean)
        )
        fused = fusing.fuse(smoothed, burst, run)
        found, half = 10 ** (-fused.score.db / 10), width(fused.score)
        errors.append(found - true)
        halves.append(half)
        gains.append(fused.gain.low <= 10 * math.log10(plain / true) <= fused.gain.high)
    covered = np.mean(np.abs(errors) <= halves)
    # 90 to 99 of 100: 95 +- 2.3 standard deviations of a binomial.
    assert 0.90 <= covered <= 0.99
    assert np.mean(halves) <= 2 * 1.96 * np.std(errors, ddof=1)
    assert abs(np.mean(errors)) < 4 * np.std(errors, ddof=1) / math.sqrt(RUNS)
    assert 0.90 <= np.mean(gains)


def width(score: fusing.Score) -> float:
    """Return half of a score's interval as an MSE."""
    return 10 ** (-score.low / 10) - 10 ** (-score.db / 10)


def test_the_picture_is_the_mean_of_eight_ways() -> None:
    generator = np.random.default_rng(3)
    image = generator.random((12, 20, 3)).astype(np.float32)
    level = generator.random((12, 20, 1)).astype(np.float32)
    found = fusing.turned(lambda x, noise_map: np.roll(x + noise_map, 1, axis=1), image, level)
    # What moves to the right in every way of looking moves to all four sides, twice.
    sides = [np.roll(image + level, by, axis) for axis in (0, 1) for by in (-1, 1)]
    np.testing.assert_allclose(found, np.mean(sides, 0), rtol=1e-6)
    assert found.dtype == np.float32
    blind = fusing.turned(lambda x, noise_map: x if noise_map is None else 0 * x, image, None)
    np.testing.assert_allclose(blind, image, rtol=1e-6)
