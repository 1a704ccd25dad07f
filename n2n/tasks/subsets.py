"""The burst's task: the mean of some frames predicts the mean of the others (design: subset means).

Frames are registered already; weights say where a frame shows nothing, the mask where the loss is
off. Input and target never share a frame, or share them so that their noises are uncorrelated.
Where the noise of a frame is known, the input has that of the mean as a further channel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from n2n import metrics
from n2n.tasks.pictures import box_mean, match_channels, robust_range, scaled
from n2n.tasks.pool import arranged
from n2n.types import Batch, Burst, Error, Task

_STEPS = 256
_TABLE = ("levels", "variance")
_PATIENCE = 0.25
_WINDOW, _WINDOWS, _INSIDE = 256, 4, 32
"""Side and number of the details that the checkpoints of a burst are compared on, and the pixels
at their borders that do not count."""


def bursts(
    stacks: Sequence[Burst],
    *,
    seed: int = 0,
    noise_map: bool = True,
    cut: tuple[int, int] = (8, 64),
) -> Task:
    """Make the task of registered bursts: the mean of some frames predicts the mean of the rest.

    One 32-px block in eight (`metrics.held_out`) never enters the loss, for the clean-free score.

    Args:
        stacks: bursts of equally many channels.
        seed: chooses the held-out blocks.
        noise_map: give the noise of the input as a further channel, if all bursts know theirs.
        cut: batch and side of the crops that the pool is cut for; for others it is cut again,
            which takes its memory twice.

    Raises:
        Error: no burst, or bursts of different channel counts.
    """
    if not stacks:
        raise Error("bursts is empty; give at least one burst of two frames")
    most = max(len(burst.frames) for burst in stacks)
    scenes = [_burst_scene(burst, most, seed) for burst in stacks]
    match_channels(scenes)
    scale = stacks[0].scale if len(stacks) == 1 else robust_range([b.frames for b in stacks])
    if not noise_map or any(burst.profile is None for burst in stacks):
        scenes = [{k: v for k, v in scene.items() if k not in _TABLE} for scene in scenes]
    patchy = any(float(np.mean(burst.weights == 0)) > 0.001 for burst in stacks)
    patchy = patchy or any(len(burst.frames) != most for burst in stacks)
    law, floor = _Subsets(most, patchy, scale), _burst_floor(stacks, scale)
    score = None
    if len(stacks) == 1:
        score = _held_out_score(stacks[0], scale, seed, "variance" in scenes[0])
    name = f"burst of {most}"
    return arranged(scenes, law, name, scale=scale, floor=floor, score=score, patience=_PATIENCE,
                    cut=cut)  # fmt: skip


@dataclass(frozen=True)
class _Subsets:
    """Compare the means of two subsets of frames; (key, view) -> Batch of one example."""

    most: int
    patchy: bool
    scale: tuple[float, float]

    def __call__(self, key: jax.Array, view: Mapping[str, jax.Array]) -> Batch:
        a, b = _subset_weights(key, view["count"], self.most, self.patchy)
        frames = scaled(view["frames"], self.scale)
        image, seen = _combine(a, frames, view["weights"])
        wanted, share = _combine(b, frames, view["weights"])
        if "variance" in view:
            level = _level(image, view, self.scale) * _averaged(a, view["weights"])
            image = jnp.concatenate([image, level], -1)
        return Batch(image, wanted, share * (seen > 0) * view["mask"])


def _burst_scene(burst: Burst, most: int, seed: int) -> dict[str, np.ndarray]:
    missing = most - len(burst.frames)
    more = [(0, missing), (0, 0), (0, 0), (0, 0)]
    _, trained = metrics.held_out(burst.frames.shape[1:3], seed=seed)
    count = np.zeros(most, np.float32)
    count[: len(burst.frames)] = 1
    return {
        "frames": np.pad(burst.frames, more) if missing else burst.frames,
        "weights": np.pad(burst.weights, more) if missing else burst.weights,
        "mask": burst.mask * trained[..., None].astype(np.float32),
        "count": count,
        **({} if burst.profile is None else _noise_table(burst)),
    }


def _subset_weights(
    key: jax.Array, present: jax.Array, most: int, patchy: bool
) -> tuple[jax.Array, jax.Array]:
    """Draw what each frame weighs in input and target; the two noises are uncorrelated.

    Four frames or more: means over a random subset S and over the rest, |S| uniform from
    ceil(N/2) to N-1; where masks thin the frames out, one draw in five has any |S|. Two or three:
    a = (1-u) 1_S/|S| + u/N and b = 1/N + (1_T/|T| - 1/N)/(1-u), whose product a.b is 0, so that
    the input comes nearer to the noise of the whole mean, lower than that of any subset.
    """
    chance = jax.random.uniform(key, (3 + most,))  # one draw for all: each costs compilation
    n = present.sum().astype(jnp.int32)
    least = (n + 1) // 2
    if patchy:
        least = jnp.where(chance[0] < 0.2, 1, least)
    size = least + (chance[1] * (n - least)).astype(jnp.int32)
    order = jnp.where(present > 0, chance[3:], 2.0)
    chosen = (order.argsort().argsort() < size).astype(jnp.float32)
    rest = present - chosen
    s, t = chosen / chosen.sum(), rest / jnp.maximum(rest.sum(), 1.0)
    even = present / n
    u = jnp.where(n <= 3, 0.75 * chance[2], 0.0)
    b = jnp.where(n <= 3, even + (t - even) / (1 - u), t)
    return (1 - u) * s + u * even, b


def _combine(
    share: jax.Array, frames: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Average frames N,h,w,C by shares N and weights N,h,w,1; also say how much of it was valid.

    Where too little is valid the plain average stands in, and the second result is 0.
    """
    shares = share[:, None, None, None]
    valid = (jnp.abs(shares) * weights).sum(0) / jnp.abs(share).sum()
    total = (shares * weights).sum(0)
    # Negative shares (two or three frames) may cancel: then only places where all are valid count.
    usable = (total > 1e-3) & ((share >= 0).all() | (valid > 0.999))
    weighted = (shares * weights * frames).sum(0) / jnp.where(usable, total, 1.0)
    return jnp.where(usable, weighted, (shares * frames).sum(0)), jnp.where(usable, valid, 0.0)


@dataclass(frozen=True, eq=False)
class _HeldOut:
    """Score a network on places that no loss has touched: -MSE, clean-free, of means of N-2 frames.

    Differences between two checkpoints are paired: both are compared with the same two frames.
    """

    input: np.ndarray
    """n,s,s,ci: details of the mean of all frames but two; of two frames, 2n of one and other."""
    x: np.ndarray
    """n,s,s,C: the same details of the frames left out."""
    y: np.ndarray
    mask: np.ndarray
    """n,s,s bool."""

    def __call__(self, predict: Callable) -> float:
        seen = np.asarray(predict(jnp.asarray(self.input)))
        estimate, x, y, mask = map(_side_by_side, (seen, self.x, self.y, self.mask))
        if len(estimate) == len(x):
            return -metrics.product_mse(estimate, x, y, mask=mask)[0]
        return -metrics.pair_mse(estimate[: len(x)], x, estimate[len(x) :], y, mask=mask)[0]


def _held_out_score(
    burst: Burst, scale: tuple[float, float], seed: int, informed: bool
) -> _HeldOut | None:
    """Return what compares a burst's checkpoints; None where the picture is too small for it."""
    places = _windows(burst.frames.shape[1:3])
    scored, _ = metrics.held_out(burst.frames.shape[1:3], seed=seed)
    scored &= np.all(burst.weights > 0, axis=(0, -1)) & (burst.mask[..., 0] > 0)
    mask = _cut(scored, places)
    inside = slice(_INSIDE, -_INSIDE)
    kept = np.zeros_like(mask)
    kept[:, inside, inside] = mask[:, inside, inside]
    if not kept.any():
        return None
    count = len(burst.frames)
    groups = [[0], [1]] if count == 2 else [list(range(count - 2))]
    details = [
        np.stack([_input(burst, group, scale, informed, place) for place in places])
        for group in groups
    ]
    x, y = (_cut(_scaled(burst.frames[i], scale), places) for i in (-2, -1))
    return _HeldOut(np.concatenate(details), x, y, kept)


def _input(
    burst: Burst,
    group: list[int],
    scale: tuple[float, float],
    informed: bool,
    place: tuple[slice, slice],
) -> np.ndarray:
    """Return what the network reads of the mean of some frames at a place, h,w,ci."""
    y, x = (max(0, side.start - _INSIDE) for side in place)
    rows, columns = slice(y, place[0].stop + _INSIDE), slice(x, place[1].stop + _INSIDE)
    frames, weights = (one[:, rows, columns][group] for one in (burst.frames, burst.weights))
    some = replace(burst, frames=frames, weights=weights)
    image = _scaled(some.mean(), scale)
    level = noise_map(some) if informed else None
    if level is not None:
        image = np.concatenate([image, level / np.float32(scale[1] - scale[0])], -1)
    inner = (slice(side.start - at, side.stop - at) for side, at in zip(place, (y, x), strict=True))
    return image[tuple(inner)]


def _scaled(picture: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    return np.asarray(scaled(jnp.asarray(picture), scale))


def _windows(size: tuple[int, int]) -> list[tuple[slice, slice]]:
    """Return up to four squares of a picture, spread over it, of a side that 16 divides."""
    side = min(_WINDOW, *(n // 16 * 16 for n in size))
    if side <= 2 * _INSIDE:
        return []
    free = [n - side for n in size]
    shares = [0.25, 0.75] if min(size) >= 2 * side else [0.5]
    corners = [(round(free[0] * a), round(free[1] * b)) for a in shares for b in shares]
    return [(slice(y, y + side), slice(x, x + side)) for y, x in corners[:_WINDOWS]]


def _cut(picture: np.ndarray, places: list[tuple[slice, slice]]) -> np.ndarray:
    """Return n,s,s[,C]: details of H,W[,C]."""
    if not places:
        return np.zeros((0, *picture.shape), picture.dtype)
    return np.stack([picture[place] for place in places])


def _side_by_side(details: np.ndarray) -> np.ndarray:
    """Return n,s,s[,C] as one picture, n*s,s[,C]."""
    return details.reshape(-1, *details.shape[2:])


def noise_map(burst: Burst) -> np.ndarray | None:
    """Return the standard deviation of the noise of a burst's mean, as its task gives it: H,W,1.

    Display units, root mean square over the channels; None where the burst has no noise profile.
    """
    if burst.profile is None:
        return None
    return np.asarray(_mapped(burst.mean(), _noise_table(burst), burst.weights))


@jax.jit
def _mapped(mean: jax.Array, table: Mapping[str, jax.Array], weights: jax.Array) -> jax.Array:
    even = jnp.ones(len(weights)) / len(weights)
    return _level(mean, table, (0.0, 1.0)) * _averaged(even, weights)


def _noise_table(burst: Burst) -> dict[str, np.ndarray]:
    """Return one frame's noise by brightness: `variance` 256,C at even steps between `levels`."""
    low, high = burst.scale
    first, last = low - 0.1 * (high - low), high + 0.1 * (high - low)
    steps = np.linspace(first, last, _STEPS, dtype=np.float32)[:, None, None]
    variance = burst.profile.variance(np.repeat(steps, burst.frames.shape[-1], axis=-1))
    return {"levels": np.array([first, last], np.float32), "variance": variance[:, 0]}


def _level(image: jax.Array, table: Mapping[str, jax.Array], scale: tuple[float, float]) -> Any:
    """Return one frame's noise h,w,1 at the brightness around each pixel of an input, scaled alike.

    The input tells it itself: a map made of all frames would show the network the target's noise.
    """
    low, high = scale
    bright = box_mean(image) * (high - low) + low
    first, last = table["levels"]
    place = jnp.clip((bright - first) / (last - first) * (_STEPS - 1), 0, _STEPS - 1.001)
    below = place.astype(jnp.int32)
    share, variance = place - below, table["variance"]
    channels = jnp.minimum(jnp.arange(image.shape[-1]), variance.shape[-1] - 1)
    at = (1 - share) * variance[below, channels] + share * variance[below + 1, channels]
    return jnp.sqrt(at.mean(-1, keepdims=True)) / (high - low)


def _averaged(share: jax.Array, weights: jax.Array) -> jax.Array:
    """Return the noise of the mean by shares N and weights N,h,w,1, in that of a frame; h,w,1."""
    parts = share[:, None, None, None] * weights
    total = jnp.abs(parts.sum(0))
    return jnp.where(total > 1e-3, jnp.sqrt(jnp.square(parts).sum(0)) / total.clip(1e-3), 1.0)


def _burst_floor(stacks: Sequence[Burst], scale: tuple[float, float]) -> float | None:
    """Return the mean variance of the targets of one burst: E over |S| of var / (N - |S|)."""
    if len(stacks) != 1 or len(stacks[0].frames) < 4:
        return None
    frames = stacks[0].frames
    n = len(frames)
    variance = float(np.mean(np.var(frames[:, ::2, ::2], axis=0, ddof=1)))
    draws = range((n + 1) // 2, n)
    return variance / (scale[1] - scale[0]) ** 2 * float(np.mean([1 / (n - s) for s in draws]))
