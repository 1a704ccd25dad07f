"""Registration: known movements are found to 0.1 px, none is none, and one resampling is exact."""

from __future__ import annotations

import builtins
import importlib
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage import data

from n2n import registration
from n2n.bursts import checks
from n2n.registration import Transform, displacement, largest, register, warp
from n2n.types import Error

DATA = Path(__file__).parents[2] / "shared" / "data"


def photograph(name: str) -> np.ndarray:
    return getattr(data, name)().astype(np.float32) / 255


def movement(shape, dx, dy, degrees=0.0, tilt=0.0) -> np.ndarray:
    """Return a shift and turn about the centre, with a little perspective."""
    centre = np.array([[1, 0, (shape[1] - 1) / 2], [0, 1, (shape[0] - 1) / 2], [0, 0, 1]])
    angle = np.deg2rad(degrees)
    turn = np.array(
        [
            [np.cos(angle), -np.sin(angle), dx],
            [np.sin(angle), np.cos(angle), dy],
            [tilt, -tilt, 1],
        ]
    )
    return centre @ turn @ np.linalg.inv(centre)


def moved_pair(name, dx, dy, degrees, sigma, seed, margin=64, tilt=0.0):
    """Return frame, reference and the true matrix; real scene everywhere, noise added last."""
    scene = photograph(name)
    matrix = movement(scene.shape, dx, dy, degrees, tilt)
    size = scene.shape[1::-1]
    moved = cv2.warpPerspective(scene, matrix, size, flags=cv2.INTER_LANCZOS4)
    rng = np.random.default_rng(seed)
    inner = (slice(margin, -margin),) * 2
    pair = [
        np.clip(one[inner] + sigma / 255 * rng.standard_normal(one[inner].shape), 0, 1)
        for one in (moved, scene)
    ]
    crop = np.array([[1, 0, -margin], [0, 1, -margin], [0, 0, 1]])
    return *(one.astype(np.float32) for one in pair), crop @ matrix @ np.linalg.inv(crop)


def mean_error(found: np.ndarray, true: np.ndarray, shape) -> float:
    """Return the mean distance in pixels between two matrices' images of the picture."""
    y, x = np.mgrid[0 : shape[0] : 16, 0 : shape[1] : 16].astype(float)
    (ax, ay), (bx, by) = displacement(found, x, y), displacement(true, x, y)
    return float(np.mean(np.hypot(ax - bx, ay - by)))


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea", "rocket"])
@pytest.mark.parametrize("move", [(3.3, -5.6, 0.5), (31.4, -22.7, 2.0)])
# Measured: at most 0.023 px at sigma 10 and 0.054 px at sigma 25 over these pictures.
@pytest.mark.parametrize(("sigma", "bound"), [(10, 0.04), (25, 0.09)])
def test_known_movements_are_found(name, move, sigma, bound):
    frame, reference, true = moved_pair(name, *move, sigma, seed=1)
    found = register(frame, reference, local=False)
    assert mean_error(found.matrix, true, reference.shape) < bound
    assert found.error < 0.1 and found.correlation > 0.9


def test_perspective_and_forty_pixels_are_found():
    frame, reference, true = moved_pair("astronaut", -40.3, 17.2, 1.0, 10, 2, tilt=2e-5)
    assert mean_error(register(frame, reference).matrix, true, reference.shape) < 0.04


def test_standard_error_is_that_of_repeated_draws():
    errors, claimed = [], []
    for seed in range(6):
        frame, reference, true = moved_pair("chelsea", 2.6, -1.7, 0.4, 25, seed)
        found = register(frame, reference, local=False)
        errors.append(mean_error(found.matrix, true, reference.shape))
        claimed.append(found.error)
    assert 0.4 < np.mean(errors) / np.mean(claimed) < 1.6


@pytest.mark.parametrize("sigma", [5, 25, 50])
@pytest.mark.parametrize("name", ["coffee", "rocket"])
def test_standing_still_is_exactly_the_identity(name, sigma):
    frame, reference, _ = moved_pair(name, 0, 0, 0, sigma, seed=3)
    found = register(frame, reference)
    np.testing.assert_array_equal(found.matrix, np.eye(3))
    assert found.field is None


def test_movement_under_a_tenth_of_a_pixel_is_none():
    frame, reference, _ = moved_pair("astronaut", 0.06, -0.04, 0.0, 2, seed=4)
    np.testing.assert_array_equal(register(frame, reference).matrix, np.eye(3))


def test_movement_of_a_third_of_a_pixel_is_not():
    frame, reference, true = moved_pair("astronaut", 0.3, -0.2, 0.0, 2, seed=5)
    assert mean_error(register(frame, reference).matrix, true, reference.shape) < 0.03


def test_gain_and_offset_do_not_matter():
    frame, reference, true = moved_pair("coffee", 6.2, 3.1, 0.3, 10, seed=6)
    found = register(1.2 * frame + 0.05, reference)
    assert mean_error(found.matrix, true, reference.shape) < 0.04


def test_a_large_moving_object_does_not_pull_the_scene_along():
    frame, reference, true = moved_pair("astronaut", 5.5, -3.5, 0.2, 10, seed=7)
    frame[200:330, 40:190] = np.random.default_rng(7).random((130, 150, 3), np.float32)
    assert mean_error(register(frame, reference).matrix, true, reference.shape) < 0.04


def night(at: tuple[int, int], matrix: np.ndarray, seed: int) -> np.ndarray:
    """Return a noisy night sky of few lights, 448x448, with a bright ball before it."""
    rng, side = np.random.default_rng(10), 576
    sky = np.repeat(np.linspace(0.02, 0.25, side, dtype=np.float32)[:, None], side, axis=1)
    for _ in range(60):
        x, y, angle = rng.uniform(0, side), rng.uniform(0, 0.8 * side), rng.uniform(0, np.pi)
        end = (int(x + 40 * np.cos(angle)), int(y + 40 * np.sin(angle)))
        cv2.line(sky, (int(x), int(y)), end, float(rng.uniform(0.3, 0.8)), 1, cv2.LINE_AA)
    sky = cv2.GaussianBlur(np.repeat(sky[..., None], 3, axis=2), (0, 0), 0.7)
    frame = cv2.warpPerspective(sky, matrix, (side, side), flags=cv2.INTER_LANCZOS4)[64:-64, 64:-64]
    y, x = np.mgrid[:448, :448]
    ball = np.hypot(x - at[0], y - at[1]) < 30
    texture = rng.random((12, 12, 3), np.float32)
    frame[ball] = cv2.resize(texture, (448, 448), interpolation=cv2.INTER_CUBIC)[ball]
    spread = np.sqrt(0.005**2 + 0.04 * np.maximum(frame, 0))
    noise = spread * np.random.default_rng(seed).standard_normal(frame.shape)
    return np.clip(frame + noise, 0, 1).astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
def test_a_bright_thing_crossing_a_dark_scene_does_not_hide_it(seed):
    dx, dy = np.random.default_rng(seed).uniform(-9, 9, 2)
    matrix = movement((576, 576), dx, dy, 0.3)
    crop = np.array([[1, 0, -64], [0, 1, -64], [0, 0, 1]])
    true = crop @ matrix @ np.linalg.inv(crop)
    reference = night((60, 100), np.eye(3), seed)
    found = register(night((200, 180), matrix, seed + 50), reference)
    assert checks.unrelated(found, reference.shape, "frame 2", "frame 1") is None
    # Its standard error is 0.06 px; without care for the ball it is lost by some 25 px.
    assert mean_error(found.matrix, true, reference.shape) < 0.2


def test_arguments_are_left_alone():
    # cv2.phaseCorrelate windows its own arguments when their size needs no padding, as 384 does.
    frame, reference, _ = moved_pair("astronaut", 3, 2, 0, 10, seed=8)
    copies = frame.copy(), reference.copy()
    register(frame, reference)
    np.testing.assert_array_equal(frame, copies[0])
    np.testing.assert_array_equal(reference, copies[1])


def test_unrelated_pictures_have_a_low_correlation():
    first, second = photograph("astronaut")[:400, :500], photograph("coffee")[:400, :500]
    assert register(first, second).correlation < 0.4


@pytest.mark.parametrize("shape", [(12, 12), (16, 16), (24, 300), (65, 33)])
def test_tiny_pictures_do_not_fail(shape):
    rng = np.random.default_rng(9)
    found = register(rng.random((*shape, 1), np.float32), rng.random((*shape, 1), np.float32))
    assert np.isfinite(found.matrix).all()


def test_local_field_follows_parallax_and_only_that():
    """Lower half 3 px further than the upper: no homography does that."""
    scene = photograph("astronaut")
    y, x = np.mgrid[0:512, 0:512].astype(np.float32)
    bend = 3 / (1 + np.exp(-(y - 256) / 20))
    rng = np.random.default_rng(10)
    frame, reference = (
        (cv2.remap(scene, x - one, y, cv2.INTER_LANCZOS4)[64:-64, 64:-64])
        + 10 / 255 * rng.standard_normal((384, 384, 3), np.float32)
        for one in (bend, 0 * bend)
    )
    found, flat = register(frame, reference), register(frame, reference, local=False)
    assert found.field is not None and found.field.shape == (384, 384, 2)
    true = bend[64:-64, 64:-64]
    rows, columns = np.mgrid[0:384, 0:384]

    def error(one: Transform) -> float:
        dx, dy = displacement(one.matrix, columns, rows)
        extra = np.zeros((384, 384, 2)) if one.field is None else one.field
        return float(np.mean(np.hypot(dx + extra[..., 0] - true, dy + extra[..., 1])))

    # Measured 0.08 against 0.44 px.
    assert error(found) < 0.15 and error(flat) > 0.3
    still, reference, _ = moved_pair("astronaut", 5, 3, 0.5, 10, seed=11)
    assert register(still, reference).field is None


def test_different_sizes_are_refused():
    with pytest.raises(Error, match="30x20 and reference 31x20 pixels"):
        register(np.zeros((20, 30, 1), np.float32), np.zeros((20, 31, 1), np.float32))


@pytest.mark.parametrize("shape", [(1, 100_000), (11, 40), (3, 3)])
def test_lines_and_specks_are_refused(shape):
    picture = np.random.default_rng(0).random((*shape, 1), np.float32)
    with pytest.raises(Error, match=f"{shape[1]}x{shape[0]} pixels cannot be registered"):
        register(picture, picture)


def wave(x, y):
    return (0.5 + 0.3 * np.sin(0.5 * x + 0.2) * np.cos(0.4 * y))[..., None].astype(np.float32)


@pytest.mark.parametrize(("shift", "bound"), [((2.25, -1.5), 2e-3), ((2.26, -1.49), 8e-3)])
def test_warp_is_the_analytic_shift(shift, bound):
    """Multiples of 1/32 px are exact to the kernel; others to cv2's rounding of 1/64 px."""
    y, x = np.mgrid[0:60, 0:80].astype(float)
    frame = wave(x - shift[0], y - shift[1])
    picture, overlap = warp(frame, movement(frame.shape, *shift))
    inner = overlap[..., 0] > 0
    assert np.abs(picture - wave(x, y))[inner].max() < bound
    assert inner[:, :-8].mean() > 0.8


def test_warp_of_the_identity_is_the_frame_itself():
    frame = photograph("chelsea")
    picture, overlap = warp(frame, np.eye(3))
    assert picture is frame and overlap.shape == (*frame.shape[:2], 1) and overlap.min() == 1


def test_warp_adds_the_field_to_the_matrix():
    frame = photograph("chelsea")
    field = np.full((*frame.shape[:2], 2), (1.5, -2.25), np.float32)
    both = warp(frame, movement(frame.shape, 3, 4), field)
    once = warp(frame, movement(frame.shape, 4.5, 1.75))
    np.testing.assert_allclose(both[0], once[0], atol=1e-5)
    np.testing.assert_array_equal(both[1], once[1])


def test_overlap_ends_where_the_kernel_leaves_the_frame():
    frame = np.random.default_rng(12).random((40, 50, 3), np.float32)
    _, overlap = warp(frame, movement(frame.shape, 10, 0))
    columns = np.flatnonzero(overlap[20, :, 0])
    assert (columns.min(), columns.max()) == (0, 50 - 5 - 10)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_warp_keeps_the_channels(channels):
    frame = np.random.default_rng(13).random((30, 30, channels), np.float32)
    assert warp(frame, movement(frame.shape, 1.5, 0))[0].shape == frame.shape


def test_largest_counts_matrix_and_field():
    field = np.full((10, 10, 2), (0, 2), np.float32)
    assert largest(Transform(movement((10, 10), 3, 4), field), (10, 10)) == pytest.approx(7)


def test_missing_cv2_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest, **options):
        if name == "cv2":
            raise ImportError("No module named 'cv2'")
        return real(name, *rest, **options)

    geometry = sys.modules["n2n.registration.geometry"]
    spec = importlib.util.spec_from_file_location("n2n_geometry_again", geometry.__file__)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(Error, match="opencv-python-headless"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def real(folder: str, *names: str) -> list[np.ndarray]:
    if not (DATA / folder).is_dir():
        pytest.skip(f"shared/data/{folder} is not here")
    read = [cv2.imread(str(DATA / folder / name), cv2.IMREAD_UNCHANGED) for name in names]
    return [one.reshape(*one.shape[:2], -1) / np.float32(255) for one in read]


def test_real_tripod_frames_are_within_a_fifth_of_a_pixel():
    reference, *others = real("burst_handheld_maitek", "1.jpg", "3.jpg")
    for frame in others:
        assert largest(register(frame, reference, local=False), reference.shape) < 0.2


def test_real_hand_held_frame_is_found():
    reference, frame = real("burst_handheld_maitek", "1.jpg", "5.jpg")
    found = register(frame, reference)
    dx, dy = displacement(found.matrix, np.array(539.5), np.array(359.5))
    assert dx == pytest.approx(37, abs=0.5) and dy == pytest.approx(1, abs=0.5)
    back = register(reference, frame, local=False)
    there = found.matrix @ [539.5, 359.5, 1]
    again = back.matrix @ (there / there[2])
    # Not exact: with parallax the two directions do not weigh the same places.
    assert np.hypot(*(again[:2] / again[2] - [539.5, 359.5])) < 0.5


def test_real_microscope_does_not_move():
    reference, *others = real("burst_scmos_eb3", "frame_00.png", "frame_13.png")
    for frame in others:
        np.testing.assert_array_equal(register(frame, reference).matrix, np.eye(3))


def test_finest_level_is_bounded():
    levels = registration.pyramid(np.zeros((3000, 4000), np.float32), np.ones((3000, 4000), "f4"))
    assert max(levels[-1].reference.shape) == 1440 and len({level.tiles for level in levels}) == 1
