"""Simulated hand-held bursts with a known truth, for the demo, experiments and tests.

A scene H,W,C in display values is seen N times from an unsteady hand, in a light that changes, with
something moving through it, and photographed by one camera. All follows from the seed, and every
fault has draws of its own: switching one on leaves the others as they are.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from n2n.corruptions import JPEG, Camera, Chain, Corruption
from n2n.registration import displacement, warp
from n2n.types import Error

LENS = 0.7
"""Standard deviation in pixels of the blur that every view gets before it is sampled."""
GAMMA = 2.2
"""Exponent from display values to linear light where the corruption is no `Camera`."""
_RAMP = 1025
_CHUNK = 8


@dataclass(frozen=True, eq=False)
class Simulated:
    """Hold a burst whose scene and movements are known."""

    frames: np.ndarray
    """N,h,w,C float32 display values: what the camera saw."""
    truth: np.ndarray
    """h,w,C float32: the scene, the moving object included, as frame 0 sees it; as sharp as the
    frames are."""
    expected: np.ndarray
    """h,w,C float32: the mean of many photographs of `truth`. Clipping under the display curve,
    mosaic and JPEG keep it away from the scene, and no method that learns from noisy frames can do
    better."""
    transforms: np.ndarray
    """N,3,3 float64: pixel (x, y, 1) of frame 0 -> frame pixel; the first is the identity."""
    fields: np.ndarray | None
    """N,h,w,2 float32: (dx, dy) in frame pixels added to that; None without `local`."""
    path: np.ndarray
    """h,w bool: where the object is in any of the frames, in the geometry of frame 0."""
    light: np.ndarray
    """N,C float64: factor of each frame's linear light by channel; the first is 1."""
    corruption: Corruption
    """The one camera that took all frames: of every range a number is drawn."""


def hand_held(
    scene: np.ndarray,
    *,
    frames: int = 8,
    shift: float = 8.0,
    rotation: float = 0.5,
    local: float = 0.0,
    crossing: float = 0.0,
    flicker: float = 0.0,
    drift: float = 0.0,
    corruption: Corruption | None = None,
    seed: int = 0,
    margin: int | None = None,
    draws: int = 1024,
) -> Simulated:
    """Photograph a scene H,W,C float32 in [0, 1] several times from an unsteady hand.

    Frame 0 stands still in its own light; of the others:

    Args:
        shift: largest shift along each axis, pixels.
        rotation: largest turn, degrees.
        local: largest smooth local displacement, pixels: rolling shutter (by rows) and parallax.
        crossing: diameter of an opaque, textured disc that crosses the scene at even pace, pixels;
            0: there is none. Frame 0 sees it at one end of its path.
        flicker: largest relative difference of exposure, in linear light.
        drift: largest relative difference of red and of blue on top of that.
        corruption: the camera, by default `Camera(0.01, 0.005)`. Its noise is added last. Of every
            range one number is drawn for the whole burst (`settled`).
        margin: pixels cut off each side so that every frame shows real scene; None: as few as
            needed.
        draws: that of `expected_frame`.

    The scene is blurred by 0.7 px before it is sampled: Lanczos resampling then loses next to
    nothing, so that frame 0 and truth, which are not resampled, are no sharper than the rest.

    Raises:
        Error: the scene is no H,W,C or too small, fewer than 2 frames, or a fault out of its range.
    """
    scene = np.asarray(scene, np.float32)
    if scene.ndim != 3:
        raise Error(f"scene has shape {scene.shape}: give H,W,C")
    if frames < 2:
        raise Error(f"frames={frames}: a burst needs at least 2")
    _check_faults(local=local, crossing=crossing, flicker=flicker, drift=drift)
    corruption = Camera(gain=0.01, read=0.005) if corruption is None else corruption
    corruption = settled(corruption, seed=seed)
    moves = _movements(scene.shape, frames, shift, rotation, seed)
    least = _margin(moves, scene.shape) + int(np.ceil(local))
    margin = least if margin is None else margin
    if min(scene.shape[:2]) <= 2 * margin + 16:
        raise Error(
            f"scene is {scene.shape[1]}x{scene.shape[0]} pixels, margin={margin}: nothing would be "
            "left; give a larger scene or smaller movements"
        )
    scenes, path = _crossed(scene, frames, crossing, margin, seed)
    wobbles = [_wobble(scene.shape, local, seed, index) for index in range(frames)]
    views = [
        _view(_blurred(one), move, wobble, margin)
        for one, move, wobble in zip(scenes, moves, wobbles, strict=True)
    ]
    light = _light(frames, scene.shape[2], flicker, drift, seed)
    crop = np.array([[1, 0, -margin], [0, 1, -margin], [0, 0, 1.0]])
    return Simulated(
        frames=_photographed(corruption, views, light, seed),
        truth=views[0],
        expected=expected_frame(corruption, views[0], draws=draws, seed=seed),
        transforms=crop @ moves @ np.linalg.inv(crop),
        fields=np.stack([_inner(_field(*one), margin) for one in zip(moves, wobbles, strict=True)])
        if local
        else None,
        path=_inner(path, margin),
        light=light,
        corruption=corruption,
    )


def settled(corruption: Corruption, *, seed: int = 0) -> Corruption:
    """Return the one camera of a burst: from every range, and every share of pictures, one draw.

    Gain and read noise are drawn by stops, as `Camera` draws them.
    """
    return _settled(corruption, np.random.default_rng([seed, 1]))


def expected_frame(
    corruption: Corruption, picture: np.ndarray, *, draws: int = 1024, seed: int = 0
) -> np.ndarray:
    """Return the mean of infinitely many photographs of a display picture H,W,C; float32.

    A `Camera` without balance, mosaic or JPEG treats every value alike, so 16,384 photographs of a
    ramp tell it to 0.01 of one photograph's noise. For other corruptions `draws` photographs of
    the picture are averaged, each with a phase of the mosaic and a JPEG grid of its own: the error
    has 1/draws of one photograph's variance. With mosaic and JPEG a thousand of 512x512 pixels take
    about two minutes on two cores.

    Raises:
        Error: ranges, which stand for many cameras, whose mean is no camera's; see `settled`.
    """
    if _settled(corruption, np.random.default_rng(0)) != corruption:
        raise Error(
            f"corruption={str(corruption)!r} stands for many cameras, and an expected frame is one "
            "camera's: give numbers for its ranges, or simulate.settled(corruption)"
        )
    key = jax.random.fold_in(jax.random.key(seed), 2**31 - 1)
    if isinstance(corruption, Camera) and corruption.pointwise:
        ramp = np.linspace(0, 1, _RAMP, dtype=np.float32)
        means = _average(corruption, ramp[None, :, None], key, 16_384, 1024).ravel()
        return np.interp(picture, ramp, means).astype(np.float32)
    return _average(corruption, picture, key, draws, _CHUNK).astype(np.float32)


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


def _blurred(scene: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(scene, (0, 0), LENS).reshape(scene.shape)


def _inner(picture: np.ndarray, margin: int) -> np.ndarray:
    inner = picture[margin : picture.shape[0] - margin, margin : picture.shape[1] - margin]
    return np.ascontiguousarray(inner)


def _view(scene: np.ndarray, move: np.ndarray, wobble: np.ndarray, margin: int) -> np.ndarray:
    """Return what the camera sees: its pixel shows the reference pixel that `move` takes there.

    `wobble` H,W,2 is added to that reference pixel.
    """
    back = np.linalg.inv(move) if np.any(move != np.eye(3)) else np.eye(3)
    view, _ = warp(scene, back, wobble if wobble.any() else None)
    return np.clip(_inner(view, margin), 0, 1)


def _photographed(
    corruption: Corruption, views: list[np.ndarray], light: np.ndarray, seed: int
) -> np.ndarray:
    """Return frames N,h,w,C float32: each view in its light, with noise of its own."""
    gamma = getattr(corruption, "gamma", GAMMA)
    key = jax.random.key(seed)
    photograph = jax.jit(lambda key, view: corruption(key, view).image)
    # Factors of display values; what they lift beyond white is for the camera to clip.
    lit = [view * (gain ** (1 / gamma)) for view, gain in zip(views, light, strict=True)]
    taken = [photograph(jax.random.fold_in(key, i), np.float32(v)) for i, v in enumerate(lit)]
    return np.stack([np.asarray(one, np.float32) for one in taken])


def _light(frames: int, channels: int, flicker: float, drift: float, seed: int) -> np.ndarray:
    """Return N,C: factors of linear light; green and grey have the exposure's alone."""
    rng = np.random.default_rng([seed, 2])
    light = np.repeat(1 + rng.uniform(-flicker, flicker, (frames, 1)), channels, axis=1)
    if channels == 3:
        light[:, [0, 2]] *= 1 + rng.uniform(-drift, drift, (frames, 2))
    light[0] = 1
    return light


def _wobble(shape: tuple[int, ...], local: float, seed: int, index: int) -> np.ndarray:
    """Return H,W,2 float32: a smooth displacement of at most `local` pixels; frame 0 has none."""
    if not local or not index:
        return np.zeros((*shape[:2], 2), np.float32)
    rng = np.random.default_rng([seed, 3, index])
    size = shape[1::-1]
    rows = cv2.resize(rng.standard_normal((7, 1, 2)), size, interpolation=cv2.INTER_CUBIC)
    depth = cv2.resize(rng.standard_normal((4, 4, 2)), size, interpolation=cv2.INTER_CUBIC)
    field = rows + depth
    return (local * field / np.hypot(field[..., 0], field[..., 1]).max()).astype(np.float32)


def _field(move: np.ndarray, wobble: np.ndarray) -> np.ndarray:
    """Solve q = move(p - wobble(q)) for the frame pixel q of each reference pixel p.

    H,W,2 float32: q less move(p).
    """
    y, x = np.mgrid[: wobble.shape[0], : wobble.shape[1]].astype(np.float64)
    there = np.stack(_moved(move, x, y), -1)
    q = there
    # A pixel's wobble differs little from its neighbour's, so that each round is 10 times nearer.
    for _ in range(6):
        at = q.astype(np.float32)
        shifted = cv2.remap(wobble, at[..., 0], at[..., 1], cv2.INTER_LINEAR,
                            borderMode=cv2.BORDER_REPLICATE)  # fmt: skip
        q = np.stack(_moved(move, x - shifted[..., 0], y - shifted[..., 1]), -1)
    return (q - there).astype(np.float32)


def _moved(move: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    dx, dy = displacement(move, x, y)
    return x + dx, y + dy


def _crossed(
    scene: np.ndarray, frames: int, size: float, margin: int, seed: int
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the scene as each frame meets it, and H,W bool: the object's path."""
    path = np.zeros(scene.shape[:2], bool)
    if not size:
        return [scene] * frames, path
    rng = np.random.default_rng([seed, 4])
    texture, scenes = _texture(size, scene.shape[2], rng), []
    for centre in _places(scene.shape, frames, size, margin, rng):
        picture, cover = _placed(scene, texture, size, centre)
        scenes.append(picture)
        path |= cover > 0
    # The lens carries its rim 2 px further, resampling a little more.
    return scenes, cv2.dilate(path.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0


def _texture(size: float, channels: int, rng: np.random.Generator) -> np.ndarray:
    """Return n,n,C in [0, 1]: coarse and fine structure in strong colours."""
    side = int(np.ceil(size)) + 4
    layers = [
        cv2.resize(rng.uniform(-1, 1, (cells, cells, channels)), (side, side),
                   interpolation=cv2.INTER_CUBIC).reshape(side, side, channels)
        for cells in (3, max(3, side // 4))
    ]  # fmt: skip
    return np.clip(0.5 + 0.6 * layers[0] + 0.3 * layers[1], 0, 1).astype(np.float32)


def _places(
    shape: tuple[int, ...], frames: int, size: float, margin: int, rng: np.random.Generator
) -> np.ndarray:
    """Return N,2: where the object's centre (x, y) is, on a line through the picture's middle."""
    angle = rng.uniform(0, 2 * np.pi)
    way = np.array([np.cos(angle), np.sin(angle)])
    # Within what all frames show, and 2 px of the lens's blur.
    room = np.array([shape[1], shape[0]]) / 2 - margin - size / 2 - 2
    if room.min() <= 0:
        raise Error(
            f"crossing={size:g}: the object must be smaller than the frames, which are "
            f"{shape[1] - 2 * margin}x{shape[0] - 2 * margin} pixels"
        )
    reach = (room / np.maximum(np.abs(way), 1e-9)).min()
    middle = (np.array([shape[1], shape[0]]) - 1) / 2
    return middle + np.linspace(-reach, reach, frames)[:, None] * way


def _placed(
    scene: np.ndarray, texture: np.ndarray, size: float, centre: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the scene with a disc before it, and H,W: its cover, whose rim is a pixel wide."""
    y, x = np.mgrid[: scene.shape[0], : scene.shape[1]]
    away = np.hypot(x - centre[0], y - centre[1])
    cover = np.clip((size + 1) / 2 - away, 0, 1).astype(np.float32)
    corner = centre - (texture.shape[0] - 1) / 2
    there = cv2.warpAffine(
        texture, np.array([[1, 0, corner[0]], [0, 1, corner[1]]]), scene.shape[1::-1],
        flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE,
    ).reshape(scene.shape)  # fmt: skip
    return scene + cover[..., None] * (there - scene), cover


def _settled(corruption: Corruption, rng: np.random.Generator) -> Corruption:
    if isinstance(corruption, Chain):
        parts = [_settled(p, rng) if isinstance(p, Corruption) else p for p in corruption.parts]
        return Chain(tuple(parts))
    fixed = {}
    for each in dataclasses.fields(corruption):
        value = getattr(corruption, each.name)
        if isinstance(value, tuple):
            stops = isinstance(corruption, Camera) and each.name in ("gain", "read") and value[0]
            value = float(np.exp(rng.uniform(*np.log(value))) if stops else rng.uniform(*value))
        if isinstance(corruption, Camera | JPEG) and each.name in ("mosaic", "chroma"):
            value = float(rng.uniform() < value)
        fixed[each.name] = value
    return dataclasses.replace(corruption, **fixed)


def _check_faults(**faults: float) -> None:
    for name, value in faults.items():
        most = 0.5 if name in ("flicker", "drift") else np.inf
        if not 0 <= value <= most:
            rule = "a number of pixels of at least 0" if most > 1 else "a share from 0 to 0.5"
            raise Error(f"{name}={value!r} must be {rule}")
