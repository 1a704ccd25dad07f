"""The clean-free score of a burst: its interval holds what f really reaches on those places."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from n2n.denoiser import fusing
from n2n.types import Burst

RUNS = 100
SIDE = 256


def scene(side: int) -> np.ndarray:
    """Return a textured picture H,W,1 between 0.1 and 0.9."""
    down, right = np.mgrid[:side, :side] / side
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
    "kind, count, large",
    [
        ("white", 8, False),
        ("correlated", 8, False),
        ("signal-dependent", 8, False),
        ("signal-dependent", 3, False),
        ("signal-dependent", 4, True),
    ],
)
def test_the_score_of_a_burst_holds_the_truth(
    kind: str, count: int, large: bool, monkeypatch
) -> None:
    # Bands need enough blocks each, or Student's factor makes the interval wider than 95 %.
    generator, clean = np.random.default_rng(0), scene(2 * SIDE if large else SIDE)
    if large:
        monkeypatch.setattr(fusing, "LARGE", 0)
    errors, halves, gains = [], [], []
    for run in range(RUNS):
        burst = stacked(noisy(kind, clean, count, generator))
        places = fusing._scored_places(burst, run)
        true, plain = (
            truth(f, burst, clean, places)
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


def truth(f: Callable, burst: Burst, clean: np.ndarray, places: np.ndarray) -> float:
    """Return the MSE against the clean picture of f of what each pair of frames scores."""
    sharp = stacked(np.repeat(clean[None], len(burst.frames), 0))
    parts = zip(fusing._shares(burst, places), fusing._shares(sharp, places), strict=True)
    errors = [
        np.square(f(np.delete(part.frames, (i, i + 1), 0).mean(0)) - same.frames[0])[where]
        for (part, i, where), (same, _, _) in parts
    ]
    return float(np.mean(np.concatenate(errors)))


def test_the_bands_of_a_large_picture_are_scored_once(monkeypatch) -> None:
    monkeypatch.setattr(fusing, "LARGE", 0)
    generator = np.random.default_rng(5)
    burst = stacked(generator.random((7, 200, 96, 1)).astype(np.float32))
    mask = generator.random((200, 96)) < 0.5
    mask[:70] = False
    scored = np.zeros(mask.shape, int)
    for part, first, places in fusing._shares(burst, mask):
        assert part.frames.shape[1:3] == places.shape and first in (2, 4)  # nothing in the first
        rows = np.flatnonzero((burst.frames[0, :, 0] == part.frames[0, 0, 0]).all(-1))[0]
        scored[rows : rows + len(places)] += places
    np.testing.assert_array_equal(scored, mask)


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


def crossed(places: tuple[slice, slice], frames: np.ndarray) -> Burst:
    """Return a burst of which the first frame alone shows some places."""
    burst = stacked(frames.astype(np.float32))
    burst.weights[1:, *places] = 0
    return burst


def test_a_large_picture_is_turned_but_not_mirrored(monkeypatch) -> None:
    rng = np.random.default_rng(6)
    image = rng.random((20, 30, 1), np.float32)
    monkeypatch.setattr(fusing, "LARGE", 20 * 30)
    seen = list[np.ndarray]()

    def lopsided(picture: np.ndarray, noise: np.ndarray | None) -> np.ndarray:
        seen.append(picture)
        return picture + np.linspace(0, 1, picture.shape[1], dtype=np.float32)[None, :, None]

    found = fusing.turned(lopsided, image, None)
    assert [each.shape for each in seen] == [(20, 30, 1), (30, 20, 1)] * 2
    # What is added to one side is, turned four times, added everywhere alike: half.
    np.testing.assert_allclose(found - image, 0.5, atol=1e-6)


def test_what_the_reference_alone_shows_is_the_starts() -> None:
    generator = np.random.default_rng(11)
    frames = noisy("white", scene(SIDE), 6, generator)
    thing = (slice(150, 180), slice(60, 100))
    burst = crossed(thing, frames)
    burst.weights[1:, 40:44, 90:94] = 0  # a speck
    burst.weights[1:, :, :12] = 0  # beyond the edges of the other frames
    burst.transforms[1:, 0, 2] = -12.0

    def start(image: np.ndarray, noise_map: np.ndarray | None) -> np.ndarray:
        del noise_map
        return gaussian_filter(image, (2.5, 2.5, 0)) + 0.05

    name, mixed = fusing.best(smoothed, start, burst, 0)
    assert name == "burst" and mixed.borrowed == 30 * 40 / SIDE**2
    learnt = fusing.fuse(smoothed, burst, 0)
    theirs = fusing.turned(start, burst.mean(), None)
    np.testing.assert_allclose(mixed.image[thing], theirs[thing], rtol=0, atol=1e-6)
    near = np.zeros((SIDE, SIDE), bool)
    near[142:188, 52:108] = True
    np.testing.assert_array_equal(mixed.image[~near], learnt.image[~near])
    # What is between lies between, and no step is larger than either picture has.
    fading = (mixed.image - learnt.image) / (theirs - learnt.image)
    assert -1e-3 <= fading[near].min() and fading[near].max() < 1.001
    assert np.abs(np.diff(fading[165, 40:120, 0])).max() < 0.15
    assert mixed.score == learnt.score  # of what was learnt, which is told from all frames


def test_what_moves_at_the_border_is_borrowed_too() -> None:
    burst = crossed((slice(0, 30), slice(100, 140)), np.zeros((5, SIDE, SIDE, 1)))
    burst.transforms[1:, 1, 2] = 10.0
    found = fusing.lone(burst)
    assert found[:30, 100:140].all() and found.sum() == 30 * 40
    burst.transforms[1:, 1, 2] = -10.0  # the upper ten rows no other frame has seen
    found = fusing.lone(burst)
    assert found[10:30, 100:140].all() and found.sum() == 20 * 40


def test_from_scratch_nothing_is_borrowed() -> None:
    generator = np.random.default_rng(12)
    burst = crossed((slice(150, 180), slice(60, 100)), noisy("white", scene(SIDE), 6, generator))
    name, fused = fusing.best(smoothed, None, burst, 0)
    assert name == "burst" and fused.borrowed == 0
    np.testing.assert_array_equal(fused.image, fusing.fuse(smoothed, burst, 0).image)


def test_the_passes_are_counted_with_what_is_borrowed() -> None:
    burst = stacked(np.zeros((6, 64, 64, 1), np.float32))
    assert fusing.passes(burst, 2) == 2 * 3 + 8
    burst.weights[1:, 20:40, 20:40] = 0
    assert fusing.passes(burst, 1) == 3 + 8
    assert fusing.passes(burst, 2) == 2 * 3 + 16
