"""Numbers of files to display units and back: 1.0 is the white of the file; nothing is clipped
on the way in."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from n2n.types import Error

DataRange = float | tuple[float, float] | None


def to_float(array: Any, data_range: DataRange = None) -> np.ndarray:
    """Convert H,W or H,W,C of any real dtype to float32 H,W,C; white becomes 1.0.

    Integers are divided by their type's maximum, unless they have 32 or 64 bits and use less than
    one part in 4,096 of them; floats are taken as they are if 99 % of them lie in [-1, 2].
    data_range=(low, high), or a number for (0, number), maps low to 0 and high to 1 instead. The
    result is a new array. Raises Error for complex or empty arrays, non-finite values, and floats
    and wide integers of unknown range.
    """
    array = np.asarray(array)
    _check(array)
    low, high = _input_range(array, data_range)
    image = _scaled(array, low, high)
    _check_finite(image)
    return image[..., None] if image.ndim == 2 else image


def _scaled(array: np.ndarray, low: float, high: float) -> np.ndarray:
    wide = array.dtype.itemsize > 4 or (array.dtype.kind in "iu" and array.dtype.itemsize > 2)
    with np.errstate(over="ignore", invalid="ignore"):
        image: Any = array.astype(np.float64 if wide else np.float32, order="C")
        if low != 0:
            image -= low
        if high - low != 1:
            image /= high - low
        return image.astype(np.float32, copy=False)


def ends(dtype: Any, data_range: DataRange = None) -> tuple[float, float]:
    """Return the values of black and white: data_range, or those of the dtype."""
    return _range(data_range) or (0.0, _white(np.dtype(dtype)))


def settle(source: Any, data_range: DataRange = None, *, rows: int = 512) -> tuple[float, float]:
    """Return (low, high), the values that `to_float` would make 0 and 1 of a whole picture.

    For `to_float` and `from_float` of its parts. Floats and wide integers are looked through once,
    `rows` rows at a time: source is anything with dtype, shape and `source[a:b]`. Raises Error
    where `to_float` would.
    """
    _check(source)
    low, high = ends(source.dtype, data_range)
    if source.dtype.kind != "f" and not _wide(source.dtype):
        return low, high
    lost = inside = 0
    least, most = math.inf, -math.inf
    for first in range(0, source.shape[0], rows):
        part = source[first : first + rows]
        lost += _not_finite(_scaled(part, low, high))
        inside += int(np.count_nonzero((part >= -1) & (part <= 2)))
        least, most = min(least, float(part.min())), max(most, float(part.max()))
    size = math.prod(source.shape)
    _refuse_not_finite(lost, size)
    if _range(data_range) is None and source.dtype.kind == "f":
        _refuse_range(inside, size, least, most)
    elif _range(data_range) is None:
        _refuse_sliver(source.dtype, least, most)
    return low, high


def from_float(image: Any, dtype: Any, data_range: DataRange = None) -> np.ndarray:
    """Convert display units to dtype, the inverse of `to_float`; the shape stays.

    Integers are rounded to nearest and clipped to the type's range; floats are not clipped.
    Raises Error for a dtype that is not boolean, integer or floating, and non-finite values.
    """
    image, dtype = np.asarray(image), np.dtype(dtype)
    if dtype.kind not in "buif" or image.dtype.kind not in "buif":
        raise Error(f"from_float: {image.dtype} to {dtype}; both must be real numbers; use uint16")
    _check_finite(image)
    low, high = ends(dtype, data_range)
    values = image.astype(np.float64 if dtype.itemsize > 2 else np.float32)
    values *= high - low
    values += low
    return values.astype(dtype) if dtype.kind == "f" else _rounded(values, dtype)


def _rounded(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    least, most = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    np.rint(values, out=values)
    np.clip(values, least, most, out=values)
    if dtype.itemsize < 8:
        return values.astype(dtype)
    # 2**63 - 1 and 2**64 - 1 are no doubles: clipping rounds them up, past the type.
    full = values >= most
    result = np.where(full, 0, values).astype(dtype)
    result[full] = most
    return result


def _check(array: Any) -> None:
    if array.dtype.kind not in "buif":
        raise Error(f"image: dtype {array.dtype}; it must be boolean, integer or floating")
    if len(array.shape) not in (2, 3):
        raise Error(f"image: shape {array.shape}; it must be H,W or H,W,C")
    if math.prod(array.shape) == 0:
        raise Error(f"image: shape {array.shape} is empty; every side must be at least 1")


def _check_finite(image: np.ndarray) -> None:
    _refuse_not_finite(_not_finite(image), image.size)


def _not_finite(image: np.ndarray) -> int:
    return image.size - int(np.count_nonzero(np.isfinite(image)))


def _refuse_not_finite(count: int, size: int) -> None:
    if count:
        raise Error(
            f"image: {count} of {size} values are not finite in float32; replace them, for "
            "example with numpy.nan_to_num"
        )


def _white(dtype: np.dtype) -> float:
    return float(np.iinfo(dtype).max) if dtype.kind in "iu" else 1.0


def _input_range(array: np.ndarray, data_range: DataRange) -> tuple[float, float]:
    given = _range(data_range)
    if given is not None:
        return given
    if array.dtype.kind == "f":
        _check_floats(array)
    elif _wide(array.dtype):
        _refuse_sliver(array.dtype, float(array.min()), float(array.max()))
    return 0.0, _white(array.dtype)


def _wide(dtype: np.dtype) -> bool:
    """Say whether a type is an integer of more bits than any camera or scanner gives."""
    return dtype.kind in "iu" and dtype.itemsize > 2


def _refuse_sliver(dtype: np.dtype, least: float, most: float) -> None:
    if 0 < max(-least, most) < _white(dtype) / 4096:
        raise Error(
            f"image: {dtype} values from {least:.0f} to {most:.0f}, a sliver of what the type "
            "holds; say which are black and white with data_range=(low, high) "
            "(--data-range LOW,HIGH)"
        )


def _check_floats(array: np.ndarray) -> None:
    _check_finite(array)
    inside = int(np.count_nonzero((array >= -1) & (array <= 2)))
    _refuse_range(inside, array.size, float(array.min()), float(array.max()))


def _refuse_range(inside: int, size: int, least: float, most: float) -> None:
    if inside < 0.99 * size:
        raise Error(
            f"image: floats from {least:.6g} to {most:.6g}, where 99 % must lie in "
            "[-1, 2]; say which values are black and white with data_range=(low, high)"
        )


def _range(data_range: DataRange) -> tuple[float, float] | None:
    if data_range is None:
        return None
    try:
        values = np.asarray(data_range, np.float64).ravel()
        low, high = (0.0, values[0]) if values.size == 1 else values
    except (TypeError, ValueError):
        low = high = float("nan")
    if not (np.isfinite([low, high]).all() and low < high):
        raise Error(
            f"data_range: {data_range!r}; it must be (low, high) with low < high, or a positive "
            "number; for 12 bits in uint16 say 4095"
        )
    return float(low), float(high)
