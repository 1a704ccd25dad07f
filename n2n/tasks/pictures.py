"""Pictures and pairs of pictures on their way into a pool: reading, matching, ranges."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from n2n import images
from n2n.types import Error


def gather(source: Any) -> list[Any]:
    """Return the paths of a folder, or the given paths or arrays as a list."""
    if isinstance(source, (str, Path)):
        return list(images.frames_in([source]))
    if isinstance(source, np.ndarray) and source.ndim <= 3:
        return [source]
    pictures = list(source)
    if not pictures:
        raise Error("pictures is an empty list; give at least one picture")
    return pictures


def matched(a: Any, b: Any) -> tuple[list[Any], list[Any]]:
    """Return two equally long lists of pictures that belong together.

    Files match by stem, less what all stems of a side end in (`_mean` against `_real`); arrays by
    order.

    Raises:
        Error: a picture without a partner.
    """
    first, second = gather(a), gather(b)
    if all(isinstance(x, (str, Path)) for x in [*first, *second]):
        left, right = _by_stem(first), _by_stem(second)
        if set(left) != set(right):
            left, right = _without_common_end(left), _without_common_end(right)
        strangers = sorted(set(left) ^ set(right))
        if strangers:
            raise Error(f"pairs: {strangers[0]!r} has no partner of the same stem; match the names")
        return list(left.values()), [right[stem] for stem in left]
    if len(first) != len(second):
        raise Error(f"pairs: {len(first)} pictures against {len(second)}; give as many of each")
    return first, second


def _by_stem(paths: Sequence[Any]) -> dict[str, Any]:
    stems = {Path(path).stem: path for path in paths}
    if len(stems) != len(paths):
        raise Error("pairs: two files of one side have the same stem; match the names")
    return stems


def _without_common_end(stems: Mapping[str, Any]) -> dict[str, Any]:
    end = os.path.commonprefix([stem[::-1] for stem in stems])[::-1]
    end = end[min((end.find(mark) for mark in "_-. " if mark in end), default=len(end)) :]
    if len(stems) < 2:  # all of a single stem would be common
        return dict(stems)
    return {stem.removesuffix(end): path for stem, path in stems.items()}


def storable(picture: Any, data_range: Any, index: int = 0) -> np.ndarray:
    """Return H,W,C in a dtype that a pool can hold: integers as they are, else float32 units.

    `index`: the picture's place among others, from 0.
    """
    try:
        return _storable(picture, data_range)
    except Error as error:
        if isinstance(picture, (str, Path)) and Path(picture).name in str(error):
            raise
        raise Error(f"picture {name_of(picture, index)}: {error}") from None


def _storable(picture: Any, data_range: Any) -> np.ndarray:
    if isinstance(picture, (str, Path)):
        picture = images.read(picture).array
    array = np.asarray(picture)
    native = array.dtype.newbyteorder("=")
    if (
        data_range is None
        and native in (np.uint8, np.uint16)
        and array.ndim in (2, 3)
        and array.size
    ):
        array = array.astype(native)
        return array if array.ndim == 3 else array[..., None]
    return images.to_float(array, data_range)


def match_channels(scenes: list[dict[str, Any]]) -> None:
    """Give grey pictures the channels that others have, and all one dtype per name, in place."""
    for name in [n for n in scenes[0] if scenes[0][n].ndim >= 3]:
        values = [scene[name] for scene in scenes]
        most = max(value.shape[-1] for value in values)
        mixed = len({value.dtype for value in values}) > 1
        for scene in scenes:
            value = scene[name]
            if mixed:
                value = np.asarray(unit(value))
            if value.shape[-1] == 1 and most > 1:
                value = np.repeat(value, most, axis=-1)
            if value.shape[-1] != most:
                raise Error(
                    f"pictures have {value.shape[-1]} and {most} channels; give equal channels"
                )
            scene[name] = value


def check_pair(name: str, scene: Mapping[str, np.ndarray]) -> None:
    """Refuse a pair of different sizes, the same picture twice, and a side that shows nothing."""
    a, b = scene["a"], scene["b"]
    if a.shape != b.shape:
        raise Error(f"pair {name}: sizes {a.shape} and {b.shape} differ; give pictures of one size")
    if np.array_equal(a, b):
        raise Error(f"pair {name}: both pictures are identical; give two independent captures")
    flat = [one.flat[0] for one in (a, b) if one.min() == one.max()]
    if len(flat) == 1:  # of both it is a dark frame, or a sky that is clipped
        what = "black" if flat[0] <= 0 else f"the value {flat[0]:.4g} everywhere"
        raise Error(f"pair {name}: one picture is {what}, the other is not; leave the pair out")


def name_of(picture: Any, index: int) -> str:
    """Return what to call the picture at a place, from 0, in a message."""
    return repr(Path(picture).name) if isinstance(picture, (str, Path)) else str(index + 1)


def robust_range(arrays: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return the 0.1 % and 99.9 % points over all arrays, in display units."""
    samples = [np.asarray(unit(a.reshape(-1)[:: max(1, a.size // 10**6)])) for a in arrays]
    low, high = np.quantile(np.concatenate(samples), [0.001, 0.999])
    return (float(low), float(high)) if high > low else (float(low), float(low) + 1.0)


def unit(values: Any) -> Any:
    """Map integers to [0, 1] by their type's maximum; floats are display units already."""
    if jnp.issubdtype(values.dtype, jnp.integer):
        return values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)
    return values


def scaled(values: jax.Array, scale: tuple[float, float]) -> jax.Array:
    """Map (low, high) to (0, 1)."""
    low, high = scale
    return (values - low) / (high - low)


def box_mean(values: jax.Array, side: int = 9) -> jax.Array:
    """Average H,W,C over side x side pixels, fewer at the border."""
    for axis in (0, 1):
        window = [side if axis == each else 1 for each in range(3)]
        total = jax.lax.reduce_window(values, 0.0, jax.lax.add, window, (1, 1, 1), "SAME")
        length = values.shape[axis]
        place, half = np.arange(length), side // 2
        # In numpy: XLA would fold a window over ones for seconds.
        count = np.minimum(place, half) + np.minimum(length - 1 - place, half) + 1
        values = total / np.expand_dims(
            count.astype(np.float32), [e for e in range(3) if e != axis]
        )
    return values
