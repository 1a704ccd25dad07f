"""Task builders: pictures, pairs or bursts become a pool and a pure sampler.

A sample is one random crop, flipped and transposed at random, its values mapped by the task's scale
(low, high) to [0, 1] and never clipped. `pictures` reads and matches, `pool` cuts and draws,
`subsets` holds the burst's law, `blurred` that of unblurring.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from n2n import losses
from n2n.tasks.blurred import deblurring as deblurring
from n2n.tasks.blurred import single as single
from n2n.tasks.pictures import (
    box_mean,
    check_pair,
    gather,
    match_channels,
    matched,
    name_of,
    robust_range,
    scaled,
    storable,
    unit,
)
from n2n.tasks.pool import Scene, arranged, at_least
from n2n.tasks.subsets import bursts as bursts
from n2n.tasks.subsets import noise_map as noise_map
from n2n.types import Batch, Task

_FLOOR_DRAWS = 256


def simulated(
    clean: Any,
    *,
    input: Callable,
    target: Callable | None = None,
    noise_map: bool = False,
    data_range: Any = None,
) -> Task:
    """Make the task of the paper: two independent corruptions of one clean picture.

    The clean picture never reaches the trainer: a step sees two corrupted copies of each crop.

    Args:
        clean: a folder, or a list of paths or of arrays H,W or H,W,C.
        input: corruption of what the network reads.
        target: corruption of what it is compared with; None: the same law, drawn independently,
            but for `Camera`, of which only the noise is, and `Impulse`, whose p is the pair's
            (their `again`);
            `corruptions.Clean()` for comparison with clean targets.
        noise_map: add the noise's standard deviation as a further input channel, for half of the
            examples (zeros for the rest), where the corruption knows it.
        data_range: (low, high) or high of float pictures; see `images.to_float`.

    Raises:
        Error: no pictures, or pictures that cannot be used.
    """
    target = input if target is None else target
    pictures = enumerate(gather(clean))
    scenes = [{"image": storable(picture, data_range, index)} for index, picture in pictures]
    match_channels(scenes)
    sample = _Simulated(input, target, noise_map)
    name = f"simulated {input} -> {target}" + (" with noise map" if noise_map else "")
    return arranged(scenes, sample, name, floor=_simulated_floor(scenes, target))


def pairs(a: Any, b: Any, *, data_range: Any = None) -> Task:
    """Make the task of two noisy pictures per scene, each the other's target in turn.

    Args:
        a: a folder, or a list of paths or of arrays H,W or H,W,C; one array is one picture.
        b: the same scenes with independent noise, in the same order; folders match by stem.
        data_range: (low, high) or high of float pictures; see `images.to_float`.

    Raises:
        Error: unmatched names, different sizes, identical pictures, one that shows nothing beside
            one that does, or unusable pictures.
    """
    first, second = matched(a, b)
    scenes = []
    for index, (x, y) in enumerate(zip(first, second, strict=True)):
        scene = {"a": storable(x, data_range, index), "b": storable(y, data_range, index)}
        check_pair(name_of(x, index), scene)
        scenes.append(scene)
    match_channels(scenes)
    scale = robust_range([scene[side] for scene in scenes for side in ("a", "b")])
    return arranged(scenes, _Pairs(scale), "pairs", scale=scale)


@dataclass(frozen=True)
class _Simulated:
    """Corrupt a picture twice; (key, view) -> Batch of one example."""

    input: Callable
    target: Callable
    noise_map: bool

    def __call__(self, key: jax.Array, view: Mapping[str, jax.Array]) -> Batch:
        input_key, target_key, map_key = jax.random.split(key, 3)
        picture = unit(view["image"])
        seen = self.input(input_key, picture)
        if self.target == self.input and hasattr(self.target, "again"):
            wanted = self.target.again(input_key, target_key, picture)
        else:
            wanted = self.target(target_key, picture)
        image = seen.image
        if self.noise_map:
            known = jax.random.bernoulli(map_key)
            level = _noise_map(self.input, input_key, seen.image)
            image = jnp.concatenate([image, jnp.where(known, level, 0.0)], axis=-1)
        return Batch(image, wanted.image, wanted.weight)


@dataclass(frozen=True)
class _Pairs:
    """Make either picture of a pair the other's target; (key, view) -> Batch of one example."""

    scale: tuple[float, float]

    def __call__(self, key: jax.Array, view: Mapping[str, jax.Array]) -> Batch:
        x, y = (scaled(unit(view[side]), self.scale) for side in ("a", "b"))
        swap = jax.random.bernoulli(key)
        weight = jnp.ones((*x.shape[:2], 1), jnp.float32)
        return Batch(jnp.where(swap, y, x), jnp.where(swap, x, y), weight)


def _noise_map(corruption: Any, key: jax.Array, seen: jax.Array) -> jax.Array:
    """Return H,W,1: the noise's standard deviation at the brightness of the noisy picture around.

    Taken from the noisy picture, since a map made of the clean one would show it to the network.
    """
    level = getattr(corruption, "noise_map", None)
    if level is None:
        return jnp.zeros((*seen.shape[:2], 1), seen.dtype)
    return level(key, box_mean(seen))


def _simulated_floor(scenes: Sequence[Scene], target: Callable) -> float:
    """Measure the mean squared noise of targets on 256 random crops; what L2 cannot go below."""
    rng = np.random.default_rng(0)
    key = jax.random.key(0)
    observe = jax.jit(lambda k, x: _squared_noise(target(k, x), x))
    total = 0.0
    for index in range(_FLOOR_DRAWS):
        picture = scenes[int(rng.integers(len(scenes)))]["image"]
        crop = _fit_crop(picture, 64, rng)
        total += float(observe(jax.random.fold_in(key, index), np.asarray(unit(crop))))
    return total / _FLOOR_DRAWS


def _squared_noise(seen: Any, clean: jax.Array) -> jax.Array:
    return losses.weighted_mean(((seen.image - clean) ** 2)[None], seen.weight[None])


def _fit_crop(picture: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    picture = at_least(picture, side)
    y, x = (int(rng.integers(n - side + 1)) for n in picture.shape[:2])
    return picture[y : y + side, x : x + side]
