"""Task builders: pictures, pairs or bursts become a pool and a pure sampler.

Pictures are cut into blocks that overlap by crop - 1, so that every crop of a picture lies whole
in some block; blocks keep the files' dtype and are dealt to as many stripes as the batch has
examples (one stripe when there are fewer blocks). A sample is one random crop, flipped and
transposed at random; values are mapped by the task's scale (low, high) to [0, 1], never clipped.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from n2n import devices, images, losses, metrics
from n2n.types import Batch, Burst, Error, Task

BLOCK = 512
_FLOOR_DRAWS = 256

Scene = Mapping[str, np.ndarray]
"""Arrays of one scene under their names; the last three axes are H,W,C, of one size."""


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
        target: corruption of what it is compared with; None: the same law, drawn independently;
            `corruptions.Clean()` for comparison with clean targets.
        noise_map: add the noise's standard deviation as a further input channel, for half of the
            examples (zeros for the rest), where the corruption knows it.
        data_range: (low, high) or high of float pictures; see `images.to_float`.

    Raises:
        Error: no pictures, or pictures that cannot be used.
    """
    target = input if target is None else target
    scenes = [{"image": _storable(picture, data_range)} for picture in _gather(clean)]
    _match_channels(scenes)

    def sample(key: jax.Array, view: Mapping[str, jax.Array]) -> Batch:
        input_key, target_key, map_key = jax.random.split(key, 3)
        picture = _unit(view["image"])
        seen, wanted = input(input_key, picture), target(target_key, picture)
        image = seen.image
        if noise_map:
            known = jax.random.bernoulli(map_key)
            level = _noise_map(input, input_key, picture)
            image = jnp.concatenate([image, jnp.where(known, level, 0.0)], axis=-1)
        return Batch(image, wanted.image, wanted.weight)

    name = f"simulated {input} -> {target}" + (" with noise map" if noise_map else "")
    return _arranged(scenes, sample, name, floor=_simulated_floor(scenes, target))


def pairs(a: Any, b: Any, *, data_range: Any = None) -> Task:
    """Make the task of two noisy pictures per scene, each the other's target in turn.

    Args:
        a: a folder, or a list of paths or of arrays H,W or H,W,C; one array is one picture.
        b: the same scenes with independent noise, in the same order; folders match by stem.
        data_range: (low, high) or high of float pictures; see `images.to_float`.

    Raises:
        Error: unmatched names, different sizes, identical pictures, or unusable pictures.
    """
    first, second = _matched(a, b)
    scenes = []
    for index, (x, y) in enumerate(zip(first, second, strict=True)):
        scene = {"a": _storable(x, data_range), "b": _storable(y, data_range)}
        _check_pair(_name(x, index), scene)
        scenes.append(scene)
    _match_channels(scenes)
    scale = _robust_range([scene[side] for scene in scenes for side in ("a", "b")])

    def sample(key: jax.Array, view: Mapping[str, jax.Array]) -> Batch:
        x, y = (_scaled(_unit(view[side]), scale) for side in ("a", "b"))
        swap = jax.random.bernoulli(key)
        weight = jnp.ones((*x.shape[:2], 1), jnp.float32)
        return Batch(jnp.where(swap, y, x), jnp.where(swap, x, y), weight)

    return _arranged(scenes, sample, "pairs", scale=scale)


def bursts(stacks: Sequence[Burst], *, seed: int = 0) -> Task:
    """Make the task of registered bursts: the mean of some frames predicts the mean of the rest.

    One 32-px block in eight (`metrics.held_out`) never enters the loss, for the clean-free score.

    Args:
        stacks: bursts of equally many channels.
        seed: chooses the held-out blocks.

    Raises:
        Error: no burst, or bursts of different channel counts.
    """
    if not stacks:
        raise Error("bursts is empty; give at least one burst of two frames")
    most = max(len(burst.frames) for burst in stacks)
    scenes = [_burst_scene(burst, most, seed) for burst in stacks]
    _match_channels(scenes)
    scale = stacks[0].scale if len(stacks) == 1 else _robust_range([b.frames for b in stacks])
    patchy = any(float(np.mean(burst.weights == 0)) > 0.001 for burst in stacks)
    patchy = patchy or any(len(burst.frames) != most for burst in stacks)

    def sample(key: jax.Array, view: Mapping[str, jax.Array]) -> Batch:
        a, b = _subset_weights(key, view["count"], most, patchy)
        frames = _scaled(view["frames"], scale)
        image, seen = _combine(a, frames, view["weights"])
        wanted, share = _combine(b, frames, view["weights"])
        return Batch(image, wanted, share * (seen > 0) * view["mask"])

    name = f"burst of {most}"
    return _arranged(scenes, sample, name, scale=scale, floor=_burst_floor(stacks, scale))


# -- pictures ------------------------------------------------------------------------------------


def _gather(source: Any) -> list[Any]:
    """Return the paths of a folder, or the given paths or arrays as a list."""
    if isinstance(source, (str, Path)):
        return list(images.frames_in([source]))
    if isinstance(source, np.ndarray) and source.ndim <= 3:
        return [source]
    pictures = list(source)
    if not pictures:
        raise Error("pictures is an empty list; give at least one picture")
    return pictures


def _matched(a: Any, b: Any) -> tuple[list[Any], list[Any]]:
    first, second = _gather(a), _gather(b)
    if all(isinstance(x, (str, Path)) for x in [*first, *second]):
        left, right = ({Path(x).stem: x for x in side} for side in (first, second))
        strangers = sorted(set(left) ^ set(right))
        if strangers:
            raise Error(f"pairs: {strangers[0]!r} has no partner of the same stem; match the names")
        return list(left.values()), [right[stem] for stem in left]
    if len(first) != len(second):
        raise Error(f"pairs: {len(first)} pictures against {len(second)}; give as many of each")
    return first, second


def _storable(picture: Any, data_range: Any) -> np.ndarray:
    """Return H,W,C in a dtype that a pool can hold: integers as they are, else float32 units."""
    if isinstance(picture, (str, Path)):
        picture = images.read(picture).array
    array = np.asarray(picture)
    if data_range is None and array.dtype in (np.uint8, np.uint16) and array.ndim in (2, 3):
        array = array.astype(array.dtype.newbyteorder("="))
        return array if array.ndim == 3 else array[..., None]
    return images.to_float(array, data_range)


def _match_channels(scenes: list[dict[str, Any]]) -> None:
    """Give grey pictures three channels where others have them, and all one dtype per name."""
    for name in [n for n in scenes[0] if scenes[0][n].ndim >= 3]:
        values = [scene[name] for scene in scenes]
        most = max(value.shape[-1] for value in values)
        mixed = len({value.dtype for value in values}) > 1
        for scene in scenes:
            value = scene[name]
            if mixed:
                value = np.asarray(_unit(value))
            if value.shape[-1] == 1 and most > 1:
                value = np.repeat(value, most, axis=-1)
            if value.shape[-1] != most:
                raise Error(
                    f"pictures have {value.shape[-1]} and {most} channels; give equal channels"
                )
            scene[name] = value


def _check_pair(name: str, scene: Scene) -> None:
    a, b = scene["a"], scene["b"]
    if a.shape != b.shape:
        raise Error(f"pair {name}: sizes {a.shape} and {b.shape} differ; give pictures of one size")
    if np.array_equal(a, b):
        raise Error(f"pair {name}: both pictures are identical; give two independent captures")


def _name(picture: Any, index: int) -> str:
    return repr(Path(picture).name) if isinstance(picture, (str, Path)) else str(index)


def _robust_range(arrays: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return the 0.1 % and 99.9 % points over all arrays, in display units."""
    samples = [np.asarray(_unit(a.reshape(-1)[:: max(1, a.size // 10**6)])) for a in arrays]
    low, high = np.quantile(np.concatenate(samples), [0.001, 0.999])
    return (float(low), float(high)) if high > low else (float(low), float(low) + 1.0)


def _unit(values: Any) -> Any:
    """Map integers to [0, 1] by their type's maximum; floats are display units already."""
    if jnp.issubdtype(values.dtype, jnp.integer):
        return values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)
    return values


def _scaled(values: jax.Array, scale: tuple[float, float]) -> jax.Array:
    low, high = scale
    return (values - low) / (high - low)


def _noise_map(corruption: Any, key: jax.Array, picture: jax.Array) -> jax.Array:
    level = getattr(corruption, "noise_map", None)
    return level(key, picture) if level else jnp.zeros((*picture.shape[:2], 1), picture.dtype)


# -- bursts --------------------------------------------------------------------------------------


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
    size_key, order_key, any_key, mix_key = jax.random.split(key, 4)
    n = present.sum().astype(jnp.int32)
    least = (n + 1) // 2
    if patchy:
        least = jnp.where(jax.random.bernoulli(any_key, 0.2), 1, least)
    size = jax.random.randint(size_key, (), least, jnp.maximum(n, least + 1))
    order = jnp.where(present > 0, jax.random.uniform(order_key, (most,)), 2.0)
    chosen = (order.argsort().argsort() < size).astype(jnp.float32)
    rest = present - chosen
    s, t = chosen / chosen.sum(), rest / jnp.maximum(rest.sum(), 1.0)
    even = present / n
    u = jnp.where(n <= 3, jax.random.uniform(mix_key, maxval=0.75), 0.0)
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


# -- noise floors --------------------------------------------------------------------------------


def _simulated_floor(scenes: Sequence[Scene], target: Callable) -> float:
    """Measure the mean squared noise of targets on 256 random crops; what L2 cannot go below."""
    rng = np.random.default_rng(0)
    key = jax.random.key(0)
    observe = jax.jit(lambda k, x: _squared_noise(target(k, x), x))
    total = 0.0
    for index in range(_FLOOR_DRAWS):
        picture = scenes[rng.integers(len(scenes))]["image"]
        crop = _fit_crop(picture, 64, rng)
        total += float(observe(jax.random.fold_in(key, index), np.asarray(_unit(crop))))
    return total / _FLOOR_DRAWS


def _squared_noise(seen: Any, clean: jax.Array) -> jax.Array:
    return losses.weighted_mean(((seen.image - clean) ** 2)[None], seen.weight[None])


def _fit_crop(picture: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    picture = _at_least(picture, side)
    y, x = (int(rng.integers(n - side + 1)) for n in picture.shape[:2])
    return picture[y : y + side, x : x + side]


def _burst_floor(stacks: Sequence[Burst], scale: tuple[float, float]) -> float | None:
    """Return the mean variance of the targets of one burst: E over |S| of var / (N - |S|)."""
    if len(stacks) != 1 or len(stacks[0].frames) < 4:
        return None
    frames = stacks[0].frames
    n = len(frames)
    variance = float(np.mean(np.var(frames[:, ::2, ::2], axis=0, ddof=1)))
    draws = range((n + 1) // 2, n)
    return variance / (scale[1] - scale[0]) ** 2 * float(np.mean([1 / (n - s) for s in draws]))


# -- pools ---------------------------------------------------------------------------------------


def _arranged(
    scenes: Sequence[Scene],
    sample: Callable,
    name: str,
    *,
    scale: tuple[float, float] = (0.0, 1.0),
    floor: float | None = None,
) -> Task:
    """Return the task whose pool is cut for a batch of 8 crops of 64; `arrange` cuts anew."""

    def arrange(batch: int, crop: int) -> Task:
        fill = functools.partial(_pool, scenes, batch, crop)
        whole = fill(None)
        thinned = whole is None
        return Task(
            pool=fill(0) if thinned else whole,
            sample=functools.partial(_sample, sample, crop),
            loss=losses.l2,
            arrange=arrange,
            refresh=fill if thinned else None,
            scale=scale,
            floor=floor,
            name=name,
        )

    return arrange(8, 64)


def _sample(
    sample: Callable, crop: int, key: jax.Array, stripe: Mapping[str, Any], progress: jax.Array
) -> Batch:
    del progress
    view_key, sample_key = jax.random.split(key)
    return sample(sample_key, _view(view_key, stripe, crop))


def _view(key: jax.Array, stripe: Mapping[str, Any], crop: int) -> dict[str, jax.Array]:
    """Cut one random crop of one random block, flipped and transposed at random, from a stripe."""
    block_key, y_key, x_key, turn_key = jax.random.split(key, 4)
    block = jnp.searchsorted(stripe["until"], jax.random.uniform(block_key), side="right")
    block = jnp.minimum(block, stripe["until"].shape[0] - 1)
    height, width = stripe["extent"][block]
    y = jax.random.randint(y_key, (), 0, height - crop + 1)
    x = jax.random.randint(x_key, (), 0, width - crop + 1)
    turn = jax.random.bernoulli(turn_key, shape=(3,))
    view = {}
    for name, blocks in stripe.items():
        if name in ("extent", "until"):
            continue
        if blocks.ndim < 4:  # a fact about the block, not a picture
            view[name] = blocks[block]
            continue
        lead = blocks.ndim - 3
        start = (block, *([0] * (lead - 1)), y, x, 0)
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
    dealt = [kept[i % len(kept)] for i in range(stripes * each)]
    blocks = [_block(scenes[s], y, x, side, crop) for s, y, x, _ in dealt]
    pool = {
        name: np.stack([b[name] for b in blocks]).reshape(stripes, each, *blocks[0][name].shape)
        for name in blocks[0]
    }
    share = np.array([place[3] for place in dealt]).reshape(stripes, each)
    until = np.cumsum(share, axis=1) / share.sum(1, keepdims=True)
    return {**pool, "until": until.astype(np.float32)}


def _size(scene: Scene) -> tuple[int, int]:
    height, width = max((v for v in scene.values()), key=np.ndim).shape[-3:-1]
    return height, width


def _places(
    scenes: Sequence[Scene], crop: int
) -> tuple[list[tuple[int, int, int, float]], int]:
    """Return (scene, y, x, crops) of every block, and the blocks' common side.

    `crops` is how many crops of the picture a block stands for, so that blocks drawn in proportion
    to it make every picture count by its area however its blocks overlap.
    """
    sizes = [_size(scene) for scene in scenes]
    side = max(crop, min(BLOCK + crop - 1, max(max(size) for size in sizes)))
    places = []
    for index, size in enumerate(sizes):
        ys, xs = (_starts(length, side, crop) for length in size)
        crops = [max(1, length - crop + 1) for length in size]
        share = crops[0] * crops[1] / (len(ys) * len(xs))
        places += [(index, y, x, share) for y in ys for x in xs]
    return places, side


def _starts(length: int, side: int, crop: int) -> list[int]:
    """Spread as few blocks over a line as hold every crop of it whole."""
    count = max(1, -(-(length - crop + 1) // (side - crop + 1)))
    if count == 1:
        return [0]
    return [round(i * (length - side) / (count - 1)) for i in range(count)]


def _block_bytes(scene: Scene, side: int) -> int:
    return sum(
        v.nbytes if v.ndim < 3 else v.itemsize * v.shape[-1] * side**2 * int(np.prod(v.shape[:-3]))
        for v in scene.values()
    )


def _block(scene: Scene, y: int, x: int, side: int, crop: int) -> dict[str, np.ndarray]:
    """Cut one block, completed to the common side; `extent` says how much of it is picture."""
    block: dict[str, np.ndarray] = {}
    for name, value in scene.items():
        if value.ndim < 3:
            block[name] = value
            continue
        cut = _at_least(value[..., y : y + side, x : x + side, :], crop)
        height, width = cut.shape[-3:-1]
        block["extent"] = np.array([height, width], np.int32)
        more = [(0, 0)] * (cut.ndim - 3) + [(0, side - height), (0, side - width), (0, 0)]
        block[name] = np.pad(cut, more)
    return block


def _at_least(picture: np.ndarray, side: int) -> np.ndarray:
    """Continue a picture [...,H,W,C] smaller than `side` by reflection."""
    height, width = picture.shape[-3:-1]
    more = [(0, max(0, side - height)), (0, max(0, side - width))]
    if not any(after for _, after in more):
        return picture
    return np.pad(picture, [(0, 0)] * (picture.ndim - 3) + more + [(0, 0)], mode="reflect")
