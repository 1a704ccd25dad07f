"""Simulated bursts: known truth, known movements, and a mean as good as theory says."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from skimage import data

from n2n.bursts import align
from n2n.corruptions import JPEG, Camera, Chain, Gaussian, Poisson
from n2n.registration import displacement, warp
from n2n.simulate import Simulated, expected_frame, hand_held, noise_for, settled
from n2n.types import Error

STILL = {"shift": 0.0, "rotation": 0.0, "draws": 1, "corruption": Gaussian(sigma=0.0)}


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


def unwarped(burst: Simulated, index: int, *, field: bool = True) -> np.ndarray:
    """Return a frame in the geometry of frame 0, by quintic splines: not n2n's own warp."""
    h, w = burst.truth.shape[:2]
    y, x = np.mgrid[:h, :w].astype(float)
    at = np.stack([x, y, np.ones_like(x)], -1) @ burst.transforms[index].T
    at = at[..., :2] / at[..., 2:]
    if field and burst.fields is not None:
        at = at + burst.fields[index]
    planes = np.moveaxis(burst.frames[index].astype(float), -1, 0)
    places = [at[..., 1], at[..., 0]]
    return np.stack([map_coordinates(one, places, order=5, mode="mirror") for one in planes], -1)


@pytest.fixture(scope="module")
def local():
    """Return a burst without noise whose parts move, too."""
    options = {"frames": 3, "shift": 6.0, "local": 2.0, "draws": 1}
    return hand_held(scene("astronaut"), corruption=Gaussian(sigma=0.0), seed=3, **options)


def test_local_movement_agrees_with_an_independent_warp(local):
    inner = (slice(12, -12),) * 2
    for index in (1, 2):
        back = unwarped(local, index)[inner]
        assert decibels(back, local.truth[inner]) > 50  # measured 54
        rigid = unwarped(local, index, field=False)[inner]
        assert decibels(rigid, local.truth[inner]) < 35


def test_local_movement_is_smooth_and_bounded(local):
    assert local.fields.shape == (3, *local.truth.shape[:2], 2)
    assert not local.fields[0].any()
    size = np.hypot(*np.moveaxis(local.fields, -1, 0))
    assert 1.0 < size[1:].max() <= 2.05  # turned by half a degree, and the largest may be cut off
    assert np.abs(np.diff(local.fields, axis=1)).max() < 0.15


def test_rigid_bursts_have_no_fields(burst):
    assert burst.fields is None and not burst.path.any()
    np.testing.assert_array_equal(burst.light, np.ones((8, 3)))


@pytest.fixture(scope="module")
def crossed():
    """Return a burst from a tripod, without noise, that a disc of 40 px crosses."""
    return hand_held(scene("astronaut")[:256, :256], frames=5, crossing=40.0, seed=2, **STILL)


def test_object_is_nowhere_but_in_its_path(crossed):
    without = hand_held(scene("astronaut")[:256, :256], frames=5, seed=2, **STILL).truth
    changed = np.abs(crossed.frames - without).max(-1) > 1e-3
    assert not changed[:, ~crossed.path].any()
    assert crossed.path.shape == without.shape[:2] and crossed.path.dtype == bool
    # Wherever it is, it is seen: an opaque disc in other colours.
    disc = np.pi * 20**2
    assert all(0.9 * disc < one.sum() < 1.25 * disc for one in changed)
    # The path is five discs, somewhat widened.
    assert 5 * disc < crossed.path.sum() < 5 * np.pi * 26**2


def test_object_crosses_the_scene_at_even_pace(crossed):
    without = hand_held(scene("astronaut")[:256, :256], frames=5, seed=2, **STILL).truth
    changed = np.abs(crossed.frames - without).max(-1) > 1e-3
    centres = np.array([np.mean(np.nonzero(one), axis=1) for one in changed])
    steps = np.diff(centres, axis=0)
    np.testing.assert_allclose(steps, np.broadcast_to(steps.mean(0), steps.shape), atol=0.6)
    # From one side to the other: a frame of 246 px, less the disc.
    assert np.abs(centres[-1] - centres[0]).max() == pytest.approx(246 - 40 - 4, abs=3)


def test_object_is_opaque_and_keeps_its_looks(crossed):
    """Moved back by its own way the disc is the same in all frames, whatever is behind it."""
    without = hand_held(scene("astronaut")[:256, :256], frames=5, seed=2, **STILL).truth
    cuts = []
    for frame in crossed.frames:
        y, x = np.mean(np.nonzero(np.abs(frame - without).max(-1) > 1e-3), axis=1)
        rows, columns = np.mgrid[-12:13, -12:13]
        planes = np.moveaxis(frame.astype(float), -1, 0)
        cuts.append([map_coordinates(one, [rows + y, columns + x], order=3) for one in planes])
    cuts = np.array(cuts)
    # Its centre is known to half a pixel; strangers differ by 0.3.
    assert np.abs(cuts - cuts.mean(0)).mean() < 0.05
    assert cuts.std() > 0.1


def test_truth_shows_the_object_where_the_reference_sees_it(crossed):
    np.testing.assert_array_equal(crossed.truth, crossed.frames[0])


def test_path_lies_in_the_geometry_of_frame_0():
    options = {"frames": 4, "shift": 6.0, "rotation": 0.5, "draws": 1, "seed": 4}
    options["corruption"] = Gaussian(sigma=0.0)
    picture = scene("astronaut")[:256, :256]
    crossed, free = (hand_held(picture, crossing=c, **options) for c in (48.0, 0.0))
    for index in range(4):
        changed = np.abs(unwarped(crossed, index) - unwarped(free, index)).max(-1) > 0.02
        assert changed.sum() > 0.8 * np.pi * 24**2
        # Some ringing of the splines at the rim.
        assert (changed & ~crossed.path).sum() < 0.01 * changed.sum()


def test_flicker_and_drift_are_measured_back():
    camera = Camera(gain=0.0, read=0.0)
    picture = 0.1 + 0.7 * scene("coffee")[:128, :128]
    options = {**STILL, "corruption": camera, "frames": 6, "seed": 5}
    burst = hand_held(picture, flicker=0.05, drift=0.02, **options)
    linear = burst.frames.astype(float) ** 2.2
    measured = linear.mean((1, 2)) / linear[0].mean((0, 1))
    np.testing.assert_allclose(measured, burst.light, rtol=1e-4)
    np.testing.assert_array_equal(burst.light[0], 1)
    green = burst.light[1:, 1]
    assert np.abs(green - 1).max() <= 0.05 and np.ptp(green) > 0.02
    colour = burst.light[1:, [0, 2]] / green[:, None]
    assert np.abs(colour - 1).max() <= 0.02 and np.ptp(colour) > 0.01
    grey = hand_held(picture[..., :1], flicker=0.05, drift=0.02, **options)
    np.testing.assert_allclose(grey.light[:, 0], burst.light[:, 1])


def test_brighter_light_has_the_photons_of_brighter_light():
    """Flicker changes the light, not the values: the noise grows by the root of it."""
    camera = Camera(gain=0.01, read=0.0, gamma=1.0)
    flat = np.full((160, 160, 1), 0.4, np.float32)
    options = {**STILL, "corruption": camera, "seed": 6, "frames": 6}
    burst = hand_held(flat, flicker=0.5, **options)
    noise = burst.frames.var(axis=(1, 2))[:, 0]
    # 22,500 samples tell a variance to 1 %.
    np.testing.assert_allclose(noise, 0.004 * burst.light[:, 0], rtol=0.04)
    assert np.ptp(noise) > 0.001


def test_a_fault_leaves_the_others_as_they_are(burst):
    more = hand_held(
        scene(),
        corruption=Camera(gain=0.01, read=0.005),
        flicker=0.03,
        crossing=30,
        seed=1,
        draws=1,
    )
    np.testing.assert_array_equal(more.transforms, burst.transforms)
    np.testing.assert_array_equal(more.frames[0][~more.path], burst.frames[0][~more.path])


def test_all_faults_together_follow_from_the_seed():
    options = {"frames": 2, "local": 1.0, "crossing": 16.0, "flicker": 0.1, "drift": 0.05}
    options |= {"corruption": Gaussian((0.01, 0.1)), "draws": 8}
    picture = scene()[:96, :96]
    first, again, other = (hand_held(picture, seed=s, **options) for s in (5, 5, 6))
    np.testing.assert_array_equal(first.frames, again.frames)
    np.testing.assert_array_equal(first.expected, again.expected)
    assert first.corruption == again.corruption != other.corruption
    assert np.abs(first.light[1] - other.light[1]).min() > 0


def test_one_camera_takes_a_burst():
    camera = Camera((1e-4, 1e-1), (0.0, 0.01), mosaic=(0.3, 0.7), quality=(50, 90), chroma=0.5)
    drawn = [settled(camera, seed=seed) for seed in range(200)]
    assert settled(camera, seed=3) == drawn[3] and settled(drawn[3], seed=9) == drawn[3]
    gains = np.log10([one.gain for one in drawn])
    # By stops: the logarithm is uniform on [-4, -1], its mean known to 3 / sqrt(12 x 200) = 0.061.
    assert abs(gains.mean() + 2.5) < 4 * 0.061 and -4 <= gains.min() < gains.max() <= -1
    for field in ("mosaic", "chroma"):
        assert abs(np.mean([getattr(one, field) for one in drawn]) - 0.5) < 4 * 0.5 / np.sqrt(200)
    assert all(50 <= one.quality <= 90 for one in drawn)
    chain = settled(Chain((Poisson((10, 30)), Gaussian((0.0, 0.1)))), seed=1)
    assert isinstance(chain.parts[0].rate, float) and isinstance(chain.parts[1].sigma, float)


def test_noise_is_alike_in_all_frames_of_a_burst():
    flat = np.full((96, 96, 1), 0.5, np.float32)
    burst = hand_held(flat, frames=4, corruption=Gaussian((0.0, 0.3)), draws=1, seed=7)
    sigma = (burst.frames - burst.truth).std(axis=(1, 2, 3))
    np.testing.assert_allclose(sigma, burst.corruption.sigma, rtol=0.06)


@pytest.mark.parametrize(
    "corruption",
    [Camera((0.01, 0.02), 0.01), Camera(0.01, 0.01, mosaic=0.5), JPEG(50, 0.5),
     Chain((Gaussian((0.0, 0.1)), JPEG(50)))],
    ids=str,
)  # fmt: skip
def test_expected_frame_of_many_cameras_is_refused(corruption):
    with pytest.raises(Error, match="settled"):
        expected_frame(corruption, scene()[:16, :16])


def test_expected_frame_through_mosaic_and_jpeg():
    """The mean of other draws differs by their number's root; what is left is the development's."""
    camera = Camera(0.01, 0.005, red=2, blue=1.6, mosaic=1, quality=90)
    picture = scene("coffee")[100:132, 200:232]
    few, many = (
        [expected_frame(camera, picture, draws=n, seed=seed) for seed in (0, 1)] for n in (96, 960)
    )
    spread = [float(np.std(pair[1] - pair[0])) for pair in (few, many)]
    # 3,072 values of which neighbours and channels share noise, phases and JPEG blocks.
    assert spread[0] / spread[1] == pytest.approx(np.sqrt(10), rel=0.3)
    # The development's own mean is not the scene: false detail, clipping and JPEG remain.
    off = np.sqrt(np.mean(np.square(many[0] - picture)))
    assert off > 3 * spread[1]


def test_impossible_noise_is_refused():
    with pytest.raises(Error, match="target_db=5"):
        noise_for(scene()[:64, :64], target_db=5)


@pytest.mark.parametrize(
    ("picture", "options", "text"),
    [
        (np.zeros((64, 64), np.float32), {}, "give H,W,C"),
        (np.zeros((64, 64, 3), np.float32), {"frames": 1}, "frames=1"),
        (np.zeros((40, 64, 3), np.float32), {"margin": 15}, "margin=15"),
        (np.zeros((64, 64, 3), np.float32), {"local": -1.0}, "local=-1.0"),
        (np.zeros((64, 64, 3), np.float32), {"crossing": 60.0}, "crossing=60"),
        (np.zeros((64, 64, 3), np.float32), {"flicker": 0.9}, "flicker=0.9.*0 to 0.5"),
        (np.zeros((64, 64, 3), np.float32), {"drift": float("nan")}, "drift=nan"),
    ],
)
def test_impossible_bursts_are_refused(picture, options, text):
    with pytest.raises(Error, match=text):
        hand_held(picture, **options)
