"""Overlaid text (Lehtinen et al. 2018, section 3.3).

Contract as in `n2n.corruptions.base`. Letters are drawn once on the host with Pillow's own font;
in jit they are cut from that atlas and laid over the picture one string at a time.
"""

from __future__ import annotations

import functools
import string
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from PIL import Image, ImageDraw, ImageFont

from n2n.corruptions.base import Corruption, Parameter, draw, known, limits, picture
from n2n.types import Observation

_LETTERS = string.ascii_letters + string.digits
_SIZES = (10, 13, 16, 20, 25, 31, 39)
"""Heights of the font in px, in equal ratios, since the paper does not say."""
_SHORTEST, _LONGEST = 3, 12
"""Letters in a string."""
_COLUMNS = 256
"""Widest string in px; letters that do not fit are dropped."""


class Atlas(NamedTuple):
    """Hold all letters in all sizes, side by side."""

    alpha: np.ndarray
    """sizes,rows,columns uint8: 255 where the letter is solid."""
    starts: np.ndarray
    """sizes,letters int32: first column of a letter."""
    widths: np.ndarray
    """sizes,letters int32: its columns."""
    heights: np.ndarray
    """sizes int32: rows of a line."""


@dataclass(frozen=True)
class Text(Corruption):
    """Write random strings of random size and colour at random places, until they cover p.

    A pixel is covered where a letter is not wholly transparent. The last string breaks off as soon
    as the share p of all pixels is covered, within a column of a letter.
    """

    p: Parameter = limits(0, 0.9)
    """Share of the pixels that text covers."""

    def __call__(self, key: Array, clean: Array) -> Observation:
        """Return the picture under text, H,W,C; nobody knows where the text is: all weigh 1."""
        clean = picture(clean)
        level, strings = jax.random.split(key)
        wanted = draw(level, self.p) * (clean.shape[0] * clean.shape[1])
        return Observation(_overlay(strings, clean, wanted), known(clean))


@functools.cache
def atlas() -> Atlas:
    """Return the letters, drawn on the first call."""
    fonts = [ImageFont.load_default(size) for size in _SIZES]
    drawn = [[_letter(font, letter) for letter in _LETTERS] for font in fonts]
    widths = np.array([[each.shape[1] for each in row] for row in drawn], np.int32)
    heights = np.array([row[0].shape[0] for row in drawn], np.int32)
    alpha = np.zeros((len(_SIZES), heights.max(), widths.sum(1).max()), np.uint8)
    for sheet, row in zip(alpha, drawn, strict=True):
        line = np.concatenate(row, axis=1)
        sheet[: line.shape[0], : line.shape[1]] = line
    return Atlas(alpha, (np.cumsum(widths, 1) - widths).astype(np.int32), widths, heights)


def _letter(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, letter: str) -> np.ndarray:
    assert isinstance(font, ImageFont.FreeTypeFont)
    size = (int(np.ceil(font.getlength(letter))), sum(font.getmetrics()))
    image = Image.new("L", size)
    ImageDraw.Draw(image).text((0, 0), letter, fill=255, font=font)
    return np.asarray(image)


def _overlay(key: Array, clean: Array, wanted: Array) -> Array:
    """Write strings over the picture until `wanted` pixels are covered."""
    letters = atlas()
    channels = clean.shape[2]
    area = jnp.array(clean.shape[:2])
    # The window that is worked on: as large as a string, or as the picture if that is smaller.
    window = (min(letters.alpha.shape[1], clean.shape[0]), min(_COLUMNS, clean.shape[1]))

    def write(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        number, canvas, covered = state
        # One draw for all: every call of jax.random costs half a second of compilation.
        chance = jax.random.uniform(jax.random.fold_in(key, number), (4 + _LONGEST + channels,))
        text = _string(chance[2 : 4 + _LONGEST], letters)
        # Uniform over all places that touch the picture, so that no pixel is favoured.
        corner = _pick(chance[:2], 1 - text.area, area)
        start = jnp.clip(corner, 0, area - jnp.array(window))
        alpha = _opacity(text, letters, start - corner, window)
        below = lax.dynamic_slice(canvas, (*start, 0), (*window, channels + 1))
        gained = ((alpha > 0) & (below[..., -1] == 0)).sum(0)
        enough = covered + jnp.cumsum(gained) - gained >= wanted
        alpha = jnp.where(enough, 0.0, alpha)[..., None]
        mixed = below[..., :-1] + alpha * (chance[-channels:] - below[..., :-1])
        above = jnp.concatenate([mixed, jnp.maximum(below[..., -1:], alpha > 0)], -1)
        covered = covered + jnp.where(enough, 0, gained).sum()
        return number + 1, lax.dynamic_update_slice(canvas, above, (*start, 0)), covered

    # The last channel of the canvas says what is covered.
    state = (jnp.int32(0), jnp.pad(clean, ((0, 0), (0, 0), (0, 1))), jnp.int32(0))
    _, canvas, _ = lax.while_loop(lambda state: state[2] < wanted, write, state)
    return canvas[..., :-1]


class _String(NamedTuple):
    size: Array
    """Which of the atlas's sizes."""
    letters: Array
    """Which letters; only those that fit have a width."""
    widths: Array
    """Columns of each letter."""
    area: Array
    """Rows and columns of the whole."""


def _string(chance: Array, letters: Atlas) -> _String:
    """Return the string that 2 + _LONGEST uniform numbers stand for."""
    size = _pick(chance[0], 0, len(_SIZES))
    length = _pick(chance[1], _SHORTEST, _LONGEST + 1)
    chosen = _pick(chance[2:], 0, len(_LETTERS))
    widths = jnp.asarray(letters.widths)[size, chosen]
    fits = (jnp.arange(_LONGEST) < length) & (jnp.cumsum(widths) <= _COLUMNS)
    widths = jnp.where(fits, widths, 0)
    area = jnp.stack([jnp.asarray(letters.heights)[size], widths.sum()])
    return _String(size, chosen, widths, area)


def _opacity(text: _String, letters: Atlas, start: Array, window: tuple[int, int]) -> Array:
    """Return the string's opacity in [0, 1] in a window whose corner is at `start` within it."""
    down, right = (at + jnp.arange(side) for at, side in zip(start, window, strict=True))
    ends = jnp.cumsum(text.widths)
    nth = jnp.minimum(jnp.searchsorted(ends, right, side="right"), _LONGEST - 1)
    first = jnp.asarray(letters.starts)[text.size, text.letters[nth]]
    column = first + right - (ends - text.widths)[nth]
    lines = jnp.take(jnp.asarray(letters.alpha)[text.size], down, axis=0, mode="clip")
    alpha = jnp.take(lines, column, axis=1, mode="clip").astype(jnp.float32) / 255
    outside = ((down < 0) | (down >= text.area[0]))[:, None] | (right < 0) | (right >= ends[-1])
    return jnp.where(outside, 0.0, alpha)


def _pick(chance: Array, low: Array | int, high: Array | int) -> Array:
    """Return the integer in [low, high) that a uniform number in [0, 1) stands for."""
    # Float32 may round the product up to high - low.
    return low + jnp.minimum(jnp.floor(chance * (high - low)).astype(jnp.int32), high - low - 1)
