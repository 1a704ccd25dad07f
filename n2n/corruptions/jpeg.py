"""JPEG: what a picture is read as after it was written as a baseline JPEG file.

Contract as in `n2n.corruptions.base`. Quantisation in 8x8 blocks of the discrete cosine transform
is all that a file loses, so nothing is coded and everything runs in jit (ITU-T T.81, JFIF 1.02).
Roundings, edges and the scaling of chroma are those of libjpeg, which wrote most pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from n2n.corruptions.base import Corruption, Parameter, draw, known, limits, mixed, picture
from n2n.types import Error, Observation

_LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
"""Steps of quality 50, rows of rising vertical frequency (T.81, table K.1)."""
_CHROMINANCE = np.full((8, 8), 99)
"""The same of Cb and Cr (table K.2): 99 but for the lowest frequencies."""
_CHROMINANCE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
_YCC = np.array(
    [
        [0.299, 0.587, 0.114],
        [-0.299 / 1.772, -0.587 / 1.772, 0.5],
        [0.5, -0.587 / 1.402, -0.114 / 1.402],
    ]
)
"""RGB -> Y, Cb, Cr without their offsets (JFIF 1.02)."""
_MIDDLE = np.array([0, 128, 128], np.float32)


def _cosines() -> np.ndarray:
    """Return the orthonormal cosine transform, 8,8 float32: frequency, place (T.81, A.3.3)."""
    place = np.arange(8)
    waves = np.cos((2 * place + 1) * place[:, None] * np.pi / 16) / 2
    waves[0] /= np.sqrt(2)
    return waves.astype(np.float32)


_COSINES = _cosines()
_BETWEEN = 4 * 8**0.5
"""libjpeg transforms in whole numbers: what lies between its two passes is rounded to 1 of these.

To round there too costs little, and decides coefficients near half a step as libjpeg does: without
it the two differ by 0.1 to 0.9 levels on average, with it by 0.002 to 0.09.
"""


@dataclass(frozen=True)
class JPEG(Corruption):
    """Write the picture as an 8-bit baseline JPEG and read it again.

    The grid of blocks lies anywhere, drawn once per picture: people crop and turn their pictures,
    and a training crop has no corner of its own. Input and target have their own grids, so that
    blocking is noise to a pair and averages out. The rest is biased: what a step erases stays
    erased in every target, and the network's aim is the softened picture. The mean over noise and
    grids is 39 to 44 dB from the picture at quality 90, 27 to 31 dB at 10 (Kodak 05 and 23).
    """

    quality: Parameter = limits(1, 100)
    """libjpeg's scale of the tables of T.81, annex K, rounded to a whole number."""
    chroma: Parameter = limits(0, 1, default=1.0)
    """Share of the pictures with chroma of half the resolution (4:2:0); the others are 4:4:4."""

    def __call__(self, key: Array, clean: Array) -> Observation:
        """Return the picture read back, H,W,1 or H,W,3, multiples of 1/255 in [0, 1].

        Values are clipped to [0, 1] and rounded to 8 bits first. Error for other channels.
        """
        clean = picture(clean)
        if clean.shape[2] not in (1, 3):
            raise Error(f"clean has shape {clean.shape}: JPEG takes 1 or 3 channels; drop the rest")
        level, halved, place = jax.random.split(key, 3)
        side = 8 if clean.shape[2] == 1 or self.chroma == 0 else 16
        # Mirrored, not replicated: a border block has as much noise in it as any other.
        around = jnp.pad(clean, ((side - 1, side - 1),) * 2 + ((0, 0),), mode="symmetric")
        shift = jax.random.randint(place, (2,), 0, side)
        rows, columns = (length + side - 1 for length in clean.shape[:2])
        view = lax.dynamic_slice(around, (*shift, 0), (rows, columns, clean.shape[2]))
        levels = _nearest(255 * jnp.clip(view, 0, 1))
        read = decoded(halved, levels, draw(level, self.quality), self.chroma)
        inner = lax.dynamic_slice(read, (*(side - 1 - shift), 0), clean.shape)
        return Observation(inner / 255, known(clean))


def decoded(key: Array, levels: Array, quality: Array | float, chroma: Parameter) -> Array:
    """Return what the JPEG of H,W,1 or H,W,3 whole levels, 0 to 255, is read as; alike.

    The grid begins at the first pixel. The key decides on 4:2:0, with the probability `chroma`.
    """
    luminance, chrominance = tables(quality)
    if levels.shape[-1] == 1:
        return _coded(levels, luminance)
    # Halves down: so libjpeg keeps the chroma of pure blue, 255.5, within 8 bits.
    ycc = jnp.ceil(_recoloured(levels, _YCC) + _MIDDLE - 0.5)
    colour = mixed(
        key,
        chroma,
        lambda: _coarse(ycc[..., 1:], chrominance),
        lambda: _coded(ycc[..., 1:], chrominance),
    )
    ycc = jnp.concatenate([_coded(ycc[..., :1], luminance), colour], -1)
    back = _recoloured(ycc - _MIDDLE, np.linalg.inv(_YCC))
    return jnp.clip(_nearest(back), 0, 255)


def tables(quality: Array | float) -> tuple[Array, Array]:
    """Return the steps of luminance and chrominance, 8,8 int32 in 1 to 255, as libjpeg scales."""
    whole = jnp.clip(jnp.round(quality), 1, 100).astype(jnp.int32)
    percent = jnp.where(whole < 50, 5000 // whole, 200 - 2 * whole)
    luminance, chrominance = (
        jnp.clip((table * percent + 50) // 100, 1, 255) for table in (_LUMINANCE, _CHROMINANCE)
    )
    return luminance, chrominance


def _coded(levels: Array, table: Array) -> Array:
    """Quantise H,W,C levels in blocks; the last row and column fill blocks that are not whole."""
    rows, columns, channels = levels.shape
    levels = jnp.pad(levels, ((0, -rows % 8), (0, -columns % 8), (0, 0)), mode="edge")
    blocks = (levels - 128).reshape(levels.shape[0] // 8, 8, levels.shape[1] // 8, 8, channels)
    steps = table[:, None, :, None].astype(jnp.float32)
    whole = _pixels(_nearest(_spectrum(blocks) / steps) * steps).reshape(levels.shape)
    return jnp.clip(whole + 128, 0, 255)[:rows, :columns]


def _spectrum(blocks: Array) -> Array:
    """Return the cosine transform of h,8,w,8,C, as exact as libjpeg's: to 1/8."""
    across = _rounded(_turned("vx,hywxc->hywvc", blocks), _BETWEEN)
    return _rounded(_turned("uy,hywvc->huwvc", across), 8)


def _pixels(spectrum: Array) -> Array:
    """Return the pixels of h,8,w,8,C coefficients, rounded to whole levels."""
    down = _rounded(_turned("uy,huwvc->hywvc", spectrum), _BETWEEN)
    return _rounded(_turned("vx,hywvc->hywxc", down), 1)


def _turned(along: str, values: Array) -> Array:
    return jnp.einsum(along, _COSINES, values, precision="highest")


def _rounded(values: Array, unit: float) -> Array:
    return jnp.floor(unit * values + 0.5) / unit


def _coarse(fine: Array, table: Array) -> Array:
    """Quantise H,W,C levels at half the resolution."""
    rows, columns, _ = fine.shape
    coarse = _coded(_halved(fine), table)[:, : (columns + 1) // 2]
    return _doubled(coarse)[:rows, :columns]


def _halved(fine: Array) -> Array:
    """Average 2x2 levels to half the sides, rounded up and down by turns as libjpeg does."""
    # Columns are filled up before the averaging, rows after it, in `_coded`.
    rows, columns, _ = fine.shape
    fine = jnp.pad(fine, ((0, rows % 2), (0, -columns % 16), (0, 0)), mode="edge")
    total = fine[::2, ::2] + fine[1::2, ::2] + fine[::2, 1::2] + fine[1::2, 1::2]
    turns = 1 + np.arange(total.shape[1], dtype=np.float32) % 2
    return jnp.floor((total + turns[:, None]) / 4)


def _doubled(coarse: Array) -> Array:
    """Interpolate to twice the sides, 3/4 of the near and 1/4 of the far: libjpeg's "fancy"."""
    rows, columns, channels = coarse.shape
    total = jnp.stack(_between(coarse, 0), 1).reshape(2 * rows, columns, channels)
    even, odd = _between(total, 1)
    both = jnp.stack([jnp.floor((even + 8) / 16), jnp.floor((odd + 7) / 16)], 2)
    return both.reshape(2 * rows, 2 * columns, channels)


def _between(values: Array, axis: int) -> tuple[Array, Array]:
    """Return four times the values a quarter before and a quarter behind each along an axis."""
    width = [(0, 0)] * 3
    width[axis] = (1, 1)
    around = jnp.pad(values, width, mode="edge")
    length = values.shape[axis]
    before, behind = (lax.slice_in_dim(around, at, at + length, axis=axis) for at in (0, 2))
    return 3 * values + before, 3 * values + behind


def _recoloured(values: Array, matrix: np.ndarray) -> Array:
    return jnp.matmul(values, matrix.T.astype(np.float32), precision="highest")


def _nearest(values: Array) -> Array:
    """Round halves away from zero, as libjpeg does."""
    return jnp.sign(values) * jnp.floor(jnp.abs(values) + 0.5)
