"""Simulated hand-held bursts with a known truth, for the demo and for tests."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from n2n.corruptions import Camera, Corruption
from n2n.registration import displacement, warp
from n2n.types import Error

LENS = 0.7
"""Standard deviation in pixels of the blur that every view gets before it is sampled."""
_RAMP = 1025


@dataclass(frozen=True, eq=False)
class Simulated:
    """Hold a burst whose scene and movements are known."""

    frames: np.ndarray
    """N,h,w,C float32 display values in [0, 1]: what the camera saw."""
    truth: np.ndarray
    """h,w,C float32: the scene in the geometry of frame 0, as sharp as the frames are."""
    expected: np.ndarray
    """h,w,C float32: the mean of many photographs of `truth`. Clipping under the display curve
    keeps it away from the scene, and no method that learns from noisy frames can do better."""
    transforms: np.ndarray
    """N,3,3 float64: pixel (x, y, 1) of frame 0 -> frame pixel; the first is the identity."""


def hand_held(
    scene: np.ndarray,
    *,
    frames: int = 8,
    shift: float = 8.0,
    rotation: float = 0.5,
    corruption: Corruption | None = None,
    seed: int = 0,
    margin: int | None = None,
    draws: int = 1024,
) -> Simulated:
    """Photograph a scene H,W,C float32 in [0, 1] several times from an unsteady hand.

    Frame 0 stands still; the others move by up to `shift` pixels along each axis and turn by up to
    `rotation` degrees. `margin` pixels are cut off each side so that every frame shows real scene
    (None: as few as needed). The noise is `corruption`'s, by default `Camera(0.01, 0.005)`; it is
    added last. `draws` is that of `expected_frame`.

    The scene is blurred by 0.7 px before it is sampled: Lanczos resampling then loses next to
    nothing, so that frame 0 and truth, which are not resampled, are no sharper than the rest.
    """
    scene = np.asarray(scene, np.float32)
    if scene.ndim != 3:
        raise Error(f"scene has shape {scene.shape}: give H,W,C")
    if frames < 2:
        raise Error(f"frames={frames}: a burst needs at least 2")
    corruption = Camera(gain=0.01, read=0.005) if corruption is None else corruption
    moves = _movements(scene.shape, frames, shift, rotation, seed)
    margin = _margin(moves, scene.shape) if margin is None else margin
    if min(scene.shape[:2]) <= 2 * margin + 16:
        raise Error(
            f"scene is {scene.shape[1]}x{scene.shape[0]} pixels, margin={margin}: nothing would be "
            "left; give a larger scene or smaller movements"
        )
    scene = cv2.GaussianBlur(scene, (0, 0), LENS).reshape(scene.shape)
    views = [_view(scene, move, margin) for move in moves]
    key = jax.random.key(seed)
    photograph = jax.jit(lambda key, view: corruption(key, view).image)
    taken = [photograph(jax.random.fold_in(key, i), view) for i, view in enumerate(views)]
    crop = np.array([[1, 0, -margin], [0, 1, -margin], [0, 0, 1.0]])
    return Simulated(
        frames=np.stack([np.asarray(one, np.float32) for one in taken]),
        truth=views[0],
        expected=expected_frame(corruption, views[0], draws=draws, seed=seed),
        transforms=crop @ moves @ np.linalg.inv(crop),
    )


def expected_frame(
    corruption: Corruption, picture: np.ndarray, *, draws: int = 1024, seed: int = 0
) -> np.ndarray:
    """Return the mean of infinitely many photographs of a display picture H,W,C; float32.

    A `Camera` without balance, mosaic or JPEG treats every value alike, so 16,384 photographs of a
    ramp tell it to 0.01 of one photograph's noise. For other corruptions `draws` photographs of
    the picture are averaged: the error has 1/draws of one photograph's variance.
    """
    key = jax.random.fold_in(jax.random.key(seed), 2**31 - 1)
    if isinstance(corruption, Camera) and corruption.pointwise:
        ramp = np.linspace(0, 1, _RAMP, dtype=np.float32)
        means = _average(corruption, ramp[None, :, None], key, 16_384, 1024).ravel()
        return np.interp(picture, ramp, means).astype(np.float32)
    return _average(corruption, picture, key, draws, 8).astype(np.float32)


def _average(
    corruption: Corruption, picture: np.ndarray, key: jax.Array, draws: int, chunk: int
) -> np.ndarray:
    view = jnp.asarray(picture)

    @jax.jit
    def summed(keys: jax.Array) -> jax.Array:
        return jax.vmap(lambda one: corruption(one, view).image)(keys).sum(0)

    keys = jax.random.split(key, draws)
    total = np.zeros(picture.shape, np.float64)
    for first in range(0, draws, chunk):
        total += np.asarray(summed(keys[first : first + chunk]))
    return total / draws


def noise_for(
    scene: np.ndarray, *, target_db: float = 29.5, frames: int = 8, seed: int = 0
) -> Camera:
    """Choose a camera whose mean of `frames` aligned photographs has `target_db` dB PSNR.

    Against the expected frame of a display picture H,W,C in [0, 1], by bisection over the gain;
    the read noise is that of 1/400 of white. Resampling a hand-held burst adds about 0.8 dB.
    """
    low, high = np.log(1e-6), np.log(10.0)
    for _ in range(20):
        middle = (low + high) / 2
        reached = _mean_db(_camera(middle), scene, frames, seed)
        low, high = (middle, high) if reached > target_db else (low, middle)
    if abs(reached - target_db) > 0.5:
        raise Error(
            f"target_db={target_db}: no gain gives it on this scene, the nearest is {reached:.1f}; "
            "choose a target between 10 and 50"
        )
    return _camera((low + high) / 2)


def _camera(log_gain: float) -> Camera:
    gain = float(np.exp(log_gain))
    return Camera(gain=gain, read=0.05 * gain**0.5)


def _mean_db(camera: Camera, scene: np.ndarray, frames: int, seed: int) -> float:
    keys = jax.random.split(jax.random.key(seed))
    first, second = (np.asarray(camera(key, jnp.asarray(scene)).image, np.float64) for key in keys)
    variance = float(np.mean(np.square(first - second))) / 2
    return float(-10 * np.log10(max(variance / frames, 1e-20)))


def _movements(
    shape: tuple[int, ...], frames: int, shift: float, rotation: float, seed: int
) -> np.ndarray:
    """Return N,3,3: shifts and turns about the centre, uniform; the first is none."""
    rng = np.random.default_rng(seed)
    centre = np.array([(shape[1] - 1) / 2, (shape[0] - 1) / 2])
    moves = np.tile(np.eye(3), (frames, 1, 1))
    for move in moves[1:]:
        angle = np.deg2rad(rng.uniform(-rotation, rotation))
        move[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        move[:2, 2] = centre - move[:2, :2] @ centre + rng.uniform(-shift, shift, 2)
    return moves


def _margin(moves: np.ndarray, shape: tuple[int, ...]) -> int:
    x, y = np.meshgrid([0.0, shape[1] - 1.0], [0.0, shape[0] - 1.0])
    moved = [displacement(move, x, y) for move in moves]
    largest = max(float(np.max(np.hypot(dx, dy))) for dx, dy in moved)
    return int(np.ceil(largest)) + 5


def _view(scene: np.ndarray, move: np.ndarray, margin: int) -> np.ndarray:
    """Return what the camera sees: its pixel shows the reference pixel that `move` takes there."""
    view, _ = warp(scene, np.linalg.inv(move) if np.any(move != np.eye(3)) else np.eye(3))
    inner = view[margin : view.shape[0] - margin, margin : view.shape[1] - margin]
    return np.ascontiguousarray(np.clip(inner, 0, 1))
