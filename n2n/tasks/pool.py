"""Cut scenes into blocks, deal them to stripes, and draw crops from them inside a step.

A scene is a dict of arrays of one size, [...,H,W,C]. Blocks overlap by at least crop - 1, so that
every crop of a picture lies whole in some block, and are drawn in proportion to the crops that they
stand for. They keep the arrays' dtype and are dealt to as many stripes as the batch has examples;
one stripe where there are fewer blocks than that. Of several processes each cuts its stripes only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from n2n import devices, losses
from n2n.types import Batch, Task

BLOCK = 512
"""A block yields so many crop positions per side at most."""

Scene = Mapping[str, np.ndarray]
"""Arrays of one scene under their names; the last three axes are H,W,C, of one size."""


def arranged(
    scenes: Sequence[Scene],
    sample: Callable,
    name: str,
    *,
    scale: tuple[float, float] = (0.0, 1.0),
    floor: float | None = None,
    score: Callable | None = None,
    patience: float | None = None,
    cut: tuple[int, int] = (8, 64),
) -> Task:
    """Return the task whose pool is cut for a batch and a crop; `arrange` cuts anew."""

    def arrange(batch: int, crop: int) -> Task:
        fill = functools.partial(_pool, scenes, batch, crop)
        whole = fill(None)
        thinned = whole is None
        return Task(
            pool=fill(0) if thinned else whole,
            sample=Crops(sample, crop),
            loss=losses.l2,
            arrange=arrange,
            cut=(batch, crop),
            refresh=fill if thinned else None,
            scale=scale,
            floor=floor,
            score=score,
            patience=patience,
            name=name,
        )

    return arrange(*cut)


@dataclass(frozen=True)
class Crops:
    """Hold the law of a stripe: a random crop, and what `sample` makes of it.

    Equal laws are equal objects, so that the trainer knows a program that it has compiled before.
    """

    sample: Callable
    crop: int
    turned: bool = True
    """Flip and transpose at random; not where a picture's blur has a direction."""

    def __call__(self, key: jax.Array, stripe: Mapping[str, Any], progress: jax.Array) -> Batch:
        del progress
        view_key, sample_key = jax.random.split(key)
        return self.sample(sample_key, _view(view_key, stripe, self.crop, self.turned))


def _view(
    key: jax.Array, stripe: Mapping[str, Any], crop: int, turned: bool = True
) -> dict[str, jax.Array]:
    """Cut one random crop of one random block, if `turned` at random, from a stripe."""
    chance = jax.random.uniform(key, (6,))  # one draw for all: each costs a second of compilation
    block = jnp.searchsorted(stripe["until"], chance[0], side="right")
    block = jnp.minimum(block, stripe["until"].shape[0] - 1)
    height, width = stripe["extent"][block]
    y = (chance[1] * (height - crop + 1)).astype(jnp.int32)
    x = (chance[2] * (width - crop + 1)).astype(jnp.int32)
    turn = (chance[3:] < 0.5) & turned
    view = {}
    for name, blocks in stripe.items():
        if name in ("extent", "until"):
            continue
        if blocks.ndim < 4:  # a fact about the block, not a picture
            view[name] = blocks[block]
            continue
        start: list[Any] = [block, *[0] * (blocks.ndim - 4), y, x, 0]
        size = (1, *blocks.shape[1:-3], crop, crop, blocks.shape[-1])
        view[name] = _turned(jax.lax.dynamic_slice(blocks, start, size)[0], turn)
    return view


def _turned(values: jax.Array, turn: jax.Array) -> jax.Array:
    """Apply up to two flips and a transposition to the square H,W of [...,H,W,C]."""
    values = jnp.where(turn[0], jnp.flip(values, -3), values)
    values = jnp.where(turn[1], jnp.flip(values, -2), values)
    return jnp.where(turn[2], jnp.swapaxes(values, -3, -2), values)


def _pool(
    scenes: Sequence[Scene], batch: int, crop: int, number: int | None
) -> dict[str, np.ndarray] | None:
    """Cut scenes into blocks and deal them to stripes.

    With number None the whole of it, or None if that exceeds the device's budget; else the subset
    that this number draws, of the budget's size.
    """
    places, side = _places(scenes, crop)
    rng = np.random.default_rng([0, number or 0])
    order = rng.permutation(len(places))
    size = _block_bytes(scenes[0], side)
    most = max(1, devices.pool_budget() // size)
    if number is None and len(places) > most:
        return None
    kept = [places[i] for i in order[:most]]
    stripes = batch if len(kept) >= batch else 1
    each = -(-len(kept) // stripes)
    own = range(stripes)[devices.share(stripes)]
    dealt = [kept[(row * each + i) % len(kept)] for row in own for i in range(each)]
    pool: dict[str, np.ndarray] = {}
    for index, place in enumerate(dealt):
        for name, value in _block(scenes[place.scene], place, side, crop).items():
            if name not in pool:
                pool[name] = devices.aligned((len(own), each, *value.shape), value.dtype)
            pool[name][divmod(index, each)] = value
    share = np.array([place.crops(crop) for place in dealt]).reshape(len(own), each)
    until = np.cumsum(share, axis=1) / share.sum(1, keepdims=True)
    return {**pool, "until": until.astype(np.float32)}


def _size(scene: Scene) -> tuple[int, int]:
    height, width = max((v for v in scene.values()), key=np.ndim).shape[-3:-1]
    return height, width


class _Place(NamedTuple):
    """Name a block: of which scene, from where, how large."""

    scene: int
    y: int
    x: int
    height: int
    width: int

    def crops(self, crop: int) -> int:
        """Return how many crops lie in it: what it is drawn in proportion to."""
        return max(1, self.height - crop + 1) * max(1, self.width - crop + 1)


def _places(scenes: Sequence[Scene], crop: int) -> tuple[list[_Place], int]:
    """Return the blocks of all scenes, and their common side.

    Every crop of a scene lies in exactly one of its blocks, so that within a stripe all crops of
    all pictures are equally likely.
    """
    sizes = [_size(scene) for scene in scenes]
    side = max(crop, min(BLOCK + crop - 1, max(max(size) for size in sizes)))
    places = []
    for index, (height, width) in enumerate(sizes):
        rows, columns = _spans(height, side, crop), _spans(width, side, crop)
        places += [_Place(index, y, x, h, w) for y, h in rows for x, w in columns]
    return places, side


def _spans(length: int, side: int, crop: int) -> list[tuple[int, int]]:
    """Return (start, length) of as few blocks as hold every crop of a line, each crop once."""
    positions = max(1, length - crop + 1)
    count = -(-positions // (side - crop + 1))
    edges = [round(i * positions / count) for i in range(count + 1)]
    return [(a, b - a + crop - 1) for a, b in zip(edges, edges[1:], strict=False)]


def _block_bytes(scene: Scene, side: int) -> int:
    return sum(
        v.nbytes if v.ndim < 3 else v.itemsize * v.shape[-1] * side**2 * int(np.prod(v.shape[:-3]))
        for v in scene.values()
    )


def _block(scene: Scene, place: _Place, side: int, crop: int) -> dict[str, np.ndarray]:
    """Cut one block, completed to the common side; `extent` says how much of it is picture."""
    block: dict[str, np.ndarray] = {}
    for name, value in scene.items():
        if value.ndim < 3:
            block[name] = value
            continue
        rows = slice(place.y, place.y + place.height)
        columns = slice(place.x, place.x + place.width)
        cut = at_least(value[..., rows, columns, :], crop)
        height, width = cut.shape[-3:-1]
        block["extent"] = np.array([height, width], np.int32)
        more = [(0, 0)] * (cut.ndim - 3) + [(0, side - height), (0, side - width), (0, 0)]
        block[name] = np.pad(cut, more)
    return block


def at_least(picture: np.ndarray, side: int) -> np.ndarray:
    """Continue a picture [...,H,W,C] smaller than `side` by reflection."""
    height, width = picture.shape[-3:-1]
    more = [(0, max(0, side - height)), (0, max(0, side - width))]
    if not any(after for _, after in more):
        return picture
    return np.pad(picture, [(0, 0)] * (picture.ndim - 3) + more + [(0, 0)], mode="reflect")
