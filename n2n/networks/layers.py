"""What the networks are made of; every operation takes arrays n,h,w,c, or a `Reach` in their place.

So halo and lattice are read off the very code that computes the picture. The forms are those that
XLA computes fastest on two cores and equal the plain ones within float32 rounding.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

HE = 2**0.5
"""Gain of a convolution before a rectifier (He et al. 2015)."""


class Reach(NamedTuple):
    """Hold, for a line of cells, the first and last input pixel that each cell looks at."""

    low: np.ndarray
    high: np.ndarray
    cells: int  # the fewest cells on the way here: the line's length over it is the lattice


def conv(inputs: int, outputs: int, gain: float, dtype: Any, rngs: nnx.Rngs) -> nnx.Conv:
    """Make a 3x3 convolution, weights N(0, gain^2 / fan_in), untruncated, biases 0."""

    def start(key: jax.Array, shape: tuple[int, ...], kind: Any) -> jax.Array:
        # Drawn flat: the same numbers, but XLA compiles a draw of four axes seven times slower.
        drawn = jax.random.normal(key, (math.prod(shape),), kind)
        return (gain / math.sqrt(9 * inputs) * drawn).reshape(shape)

    return nnx.Conv(inputs, outputs, (3, 3), kernel_init=start, dtype=dtype, rngs=rngs)


def convolve(layer: nnx.Conv, x: Any) -> Any:
    """Apply a convolution, zeros around."""
    if not isinstance(x, Reach):
        return layer(x)
    radius = layer.kernel_size[0] // 2
    low = np.pad(x.low, radius, mode="edge")
    high = np.pad(x.high, radius, mode="edge")
    windows = functools.partial(
        np.lib.stride_tricks.sliding_window_view, window_shape=2 * radius + 1
    )
    return Reach(windows(low).min(-1), windows(high).max(-1), x.cells)


def expand(layer: nnx.Conv, x: Any, skip: Any) -> Any:
    """Apply a 3x3 convolution to `skip` behind `x` enlarged to its size by nearest neighbours."""
    if isinstance(x, Reach):
        low, high = x.low.repeat(2), x.high.repeat(2)
        return convolve(layer, _both(Reach(low, high, x.cells), skip))
    assert layer.bias is not None
    values = (x, skip, layer.kernel[...], layer.bias[...])
    x, skip, kernel, bias = (value.astype(layer.dtype) for value in values)
    deep = x.shape[-1]
    return _enlarged(x, _folded(kernel[:, :, :deep])) + _slide(skip, kernel[:, :, deep:]) + bias


def activate(x: Any, slope: float) -> Any:
    """Apply the leaky rectifier."""
    return x if isinstance(x, Reach) else jax.nn.leaky_relu(x, slope)


def pool(x: Any) -> Any:
    """Take the maximum of 2x2 cells; by reshape, whose gradient is deterministic on a GPU."""
    if isinstance(x, Reach):
        low, high = x.low.reshape(-1, 2).min(1), x.high.reshape(-1, 2).max(1)
        return Reach(low, high, min(x.cells, len(low)))
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))


def _both(x: Reach, other: Reach) -> Reach:
    low, high = np.minimum(x.low, other.low), np.maximum(x.high, other.high)
    return Reach(low, high, min(x.cells, other.cells))


def add(x: Any, skip: Any) -> Any:
    """Add two pictures."""
    return _both(x, skip) if isinstance(x, Reach) else x + skip


def trim(x: Any, margin: int) -> Any:
    """Leave out `margin` pixels on each side."""
    if isinstance(x, Reach) or not margin:
        return x
    return x[:, margin:-margin, margin:-margin]


def trim_to(skip: Any, x: Any) -> Any:
    """Leave out of `skip`, on all sides alike, what lies beyond `x` enlarged twice."""
    return skip if isinstance(x, Reach) else trim(skip, skip.shape[1] // 2 - x.shape[1])


def slide(x: jax.Array, kernel: np.ndarray) -> jax.Array:
    """Convolve each channel of n,h,w,c with a kernel of odd side; only where all of it lies in x.

    By Fourier transform: the kernels that this is for have thousands of taps.
    """
    size, edge = x.shape[1:3], kernel.shape[0] - 1
    response = jnp.fft.rfft2(jnp.asarray(kernel), size)[..., None]
    whole = jnp.fft.irfft2(jnp.fft.rfft2(x, axes=(1, 2)) * response, size, axes=(1, 2))
    return whole[:, edge:, edge:]


# Nearest-neighbour enlargement and a 3x3 convolution: each pixel of a 2x2 cell sees two rows and
# two columns of the small picture, so that the nine taps fold into four. One 2x2 convolution of
# four times the channels gives all four pixels with 4/9 of the multiplications.


def _slide(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve with a kernel of 2x2 or 3x3, one row or column of zeros on each side."""
    names = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=names)


def _folded(kernel: jax.Array) -> jax.Array:
    """Fold a kernel 3,3,ci,co to 2,2,ci,4co: taps by row and column, then pixels.

    A window of 2x2 ends in the second pixels of the cell before and begins with the first pixels
    of its own: the second come first, so that all windows in a row are the picture, one pixel off.
    """

    def fold(taps: jax.Array) -> jax.Array:
        first, middle, last = taps
        return jnp.stack([jnp.stack([first + middle, first]), jnp.stack([last, middle + last])])

    rows = fold(kernel)  # tap, pixel, 3, ci, co
    both = fold(rows.transpose(2, 0, 1, 3, 4))  # tap x, pixel x, tap y, pixel y, ci, co
    inputs, outputs = kernel.shape[2:]
    return both.transpose(2, 0, 4, 3, 1, 5).reshape(2, 2, inputs, 4 * outputs)


@jax.custom_jvp
def _corners(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve n,h,w,ci with a folded kernel: n,h+1,w+1,4co; (i, j) ends at pixel (i, j)."""
    return _slide(x, kernel)


@_corners.defjvp
def _corners_change(at: tuple, change: tuple) -> tuple:
    """Write the kernel's share as matrix products: XLA's own transpose takes 30 times as long."""
    (x, kernel), (dx, dkernel) = at, change
    n, h, w, _ = x.shape
    wide = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    share = sum(
        jnp.einsum("nhwi,io->nhwo", wide[:, a : a + h + 1, b : b + w + 1], dkernel[a, b])
        for a in range(2)
        for b in range(2)
    )
    return _slide(x, kernel), _slide(dx, kernel) + share


def _enlarged(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve n,h,w,ci, enlarged twice, with a folded kernel: n,2h,2w,co."""
    n, h, w, _ = x.shape
    corners = _corners(x, kernel).reshape(n, h + 1, w + 1, 2, 2, -1).transpose(0, 1, 3, 2, 4, 5)
    return corners.reshape(n, 2 * h + 2, 2 * w + 2, -1)[:, 1:-1, 1:-1]
