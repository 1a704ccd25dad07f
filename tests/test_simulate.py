"""Simulated bursts: known truth, known movements, and a mean as good as theory says."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from skimage import data

from n2n.bursts import align
from n2n.corruptions import Camera, Gaussian
from n2n.registration import displacement, warp
from n2n.simulate import expected_frame, hand_held, noise_for
from n2n.types import Error


def scene(name: str = "chelsea") -> np.ndarray:
    return getattr(data, name)().astype(np.float32) / 255


def decibels(a: np.ndarray, b: np.ndarray) -> float:
    return -10 * np.log10(np.mean(np.square(np.float64(a) - b)))


@pytest.fixture(scope="module")
def burst():
    return hand_held(scene(), frames=8, corruption=Camera(gain=0.01, read=0.005), seed=1)


@pytest.fixture(scope="module")
def still():
    """Return a burst without noise."""
    return hand_held(scene("astronaut"), frames=4, corruption=Gaussian(sigma=0.0), draws=1)


def test_shapes_and_ranges(burst):
    h, w, c = burst.truth.shape
    assert burst.frames.shape == (8, h, w, c) and burst.expected.shape == (h, w, c)
    assert burst.frames.dtype == burst.truth.dtype == burst.expected.dtype == np.float32
    assert burst.frames.min() >= 0 and burst.frames.max() <= 1
    assert 300 - 2 * 20 < h < 300 and burst.transforms.shape == (8, 3, 3)


def test_frame_0_stands_still_and_the_others_move_within_bounds(burst):
    np.testing.assert_array_equal(burst.transforms[0], np.eye(3))
    h, w = burst.truth.shape[:2]
    centre = [displacement(one, (w - 1) / 2, (h - 1) / 2) for one in burst.transforms]
    assert np.abs(centre).max() <= 8 and np.abs(centre[1:]).max() > 2
    angles = np.rad2deg(np.arctan2(burst.transforms[:, 1, 0], burst.transforms[:, 0, 0]))
    assert np.abs(angles).max() <= 0.5 and np.abs(angles).max() > 0.1


def test_transforms_carry_frames_to_the_truth(still):
    """Without noise only the resampling is left: Lanczos of a picture blurred by 0.7 px."""
    np.testing.assert_array_equal(still.frames[0], still.truth)
    for frame, matrix in zip(still.frames[1:], still.transforms[1:], strict=True):
        back, overlap = warp(frame, matrix)
        inner = overlap[..., 0] > 0
        # Measured 57 to 59 dB; a tenth of a pixel wrong is 40 dB here.
        assert decibels(back[inner], still.truth[inner]) > 55


def test_frames_are_as_sharp_as_the_truth(still):
    slopes = [np.square(np.diff(one, axis=0)).mean() for one in still.frames]
    assert np.ptp(slopes) / np.mean(slopes) < 0.04


def test_same_seed_same_burst_and_another_seed_another():
    options = {"frames": 3, "corruption": Gaussian(sigma=0.1), "draws": 1, "margin": 20}
    picture = scene()[:96, :96]
    first, again, other = (hand_held(picture, seed=s, **options) for s in (5, 5, 6))
    np.testing.assert_array_equal(first.frames, again.frames)
    assert np.abs(first.transforms - other.transforms).max() > 0.1


def test_noise_of_frames_is_independent():
    flat = hand_held(
        np.full((128, 128, 3), 0.5, np.float32), frames=3, corruption=Gaussian(sigma=0.1), draws=1
    )
    noise = (flat.frames - flat.truth).reshape(3, -1)
    correlation = np.corrcoef(noise) - np.eye(3)
    assert np.abs(correlation).max() < 4 / np.sqrt(noise.shape[1])


def test_expected_frame_is_the_mean_of_photographs():
    camera, picture = Camera(gain=0.04, read=0.01), scene()[100:132, 100:132]
    expected = expected_frame(camera, picture)
    keys = jax.random.split(jax.random.key(3), 2000)
    draws = np.asarray(jax.vmap(lambda key: camera(key, picture).image)(keys), np.float64)
    z = (draws.mean(0) - expected) / (draws.std(0) / np.sqrt(2000))
    assert np.abs(z.mean()) < 0.1 and 0.9 < z.std() < 1.15
    # The camera clips under its display curve: the scene itself would be far off.
    assert np.abs((draws.mean(0) - picture) / (draws.std(0) / np.sqrt(2000))).mean() > 2


def test_expected_frame_of_another_corruption_is_an_average():
    picture = scene()[:16, :16]
    expected = expected_frame(Gaussian(sigma=0.1), picture, draws=100)
    assert 0.008 < (expected - picture).std() < 0.012


def test_mean_of_the_aligned_burst_is_as_good_as_theory(burst):
    """White noise over 8, of which Lanczos keeps 0.82 on average over sub-pixel shifts."""
    aligned = align(burst.frames)
    error = [
        np.hypot(*np.subtract(displacement(a, x, y), displacement(b, x, y)))
        for a, b in zip(aligned.transforms, burst.transforms, strict=True)
        for x, y in ((20, 20), (400, 250), (200, 140))
    ]
    assert max(error) < 0.1
    inner = (slice(aligned.margin, -aligned.margin),) * 2
    one = decibels(burst.frames[0][inner], burst.expected[inner])
    theory = one + 10 * np.log10(8) - 10 * np.log10((1 + 7 * 0.82) / 8)
    assert decibels(aligned.mean()[inner], burst.expected[inner]) == pytest.approx(theory, abs=0.25)
    assert 1 - aligned.weights[(slice(None), *inner)].mean() < 0.01


@pytest.mark.parametrize("name", ["chelsea", "rocket"])
def test_noise_for_reaches_its_target(name):
    picture = scene(name)[:256, :256]
    camera = noise_for(picture, target_db=29.5, frames=8)
    keys = jax.random.split(jax.random.key(9), 8)
    frames = np.stack([np.asarray(camera(key, picture).image) for key in keys])
    assert decibels(frames.mean(0), expected_frame(camera, picture)) == pytest.approx(29.5, abs=0.2)


def test_impossible_noise_is_refused():
    with pytest.raises(Error, match="target_db=5"):
        noise_for(scene()[:64, :64], target_db=5)


@pytest.mark.parametrize(
    ("picture", "options", "text"),
    [
        (np.zeros((64, 64), np.float32), {}, "give H,W,C"),
        (np.zeros((64, 64, 3), np.float32), {"frames": 1}, "frames=1"),
        (np.zeros((40, 64, 3), np.float32), {"margin": 15}, "margin=15"),
    ],
)
def test_impossible_bursts_are_refused(picture, options, text):
    with pytest.raises(Error, match=text):
        hand_held(picture, **options)
