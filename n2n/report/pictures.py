"""Pictures inside a page: cut, mapped to 8 bits, encoded as data.

Arrays are H,W,C float32 in display units, C 1 or 3; a `Box` is in pixels.
"""

from __future__ import annotations

import base64
import io
import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from n2n.report.strip import detail
from n2n.types import Burst

WHOLE = 4_000_000
"""Pixels up to which a picture is shown whole at 100 %."""
CROP = (1600, 1200)
"""Longer and shorter side in pixels of the detail that is shown of a larger one."""
SMALL, OVERVIEW = 280, 1000
"""Longest side in pixels of a map and of an overview."""
QUALITY = 92
"""Of the JPEGs, with full colour resolution."""
_MARK = np.array([235, 120, 0], np.float32)


class Box(NamedTuple):
    """Hold a rectangle: rows top to bottom, columns left to right."""

    top: int
    bottom: int
    left: int
    right: int

    def cut(self, array: np.ndarray) -> np.ndarray:
        """Return this part of H,W,..."""
        return array[self.top : self.bottom, self.left : self.right]


def shown_part(image: np.ndarray) -> Box:
    """Return what is shown at 100 %: the whole, or the detail with the finest structure."""
    height, width = image.shape[:2]
    if height * width <= WHOLE:
        return Box(0, height, 0, width)
    longer, shorter = CROP
    high, wide = (shorter, longer) if width >= height else (longer, shorter)
    high, wide = min(high, height), min(wide, width)
    y, x = detail(image, (high, wide))
    top, left = (
        max(0, min(middle - size // 2, full - size))
        for middle, size, full in ((y, high, height), (x, wide, width))
    )
    return Box(top, top + high, left, left + wide)


def window(scale: tuple[float, float]) -> tuple[float, float]:
    """Return the values shown as black and white: 0 and 1, unless the burst fills another range.

    A sensor's 12 bits in a 16-bit file would be black on a screen.
    """
    low, high = scale
    return (0.0, 1.0) if 0.25 <= high <= 1.5 or not low < high else (low, high)


def pixels(image: np.ndarray, ends: tuple[float, float] = (0.0, 1.0)) -> Image.Image:
    """Map black and white to 0 and 255, clip and round."""
    low, high = ends
    values = np.clip((image - low) / (high - low), 0, 1) * 255 + 0.5
    levels = values.astype(np.uint8)
    return Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels)


def data_uri(picture: Image.Image, *, icc: bytes | None = None, quality: int = QUALITY) -> str:
    """Encode a picture as JPEG inside an address, with its colour profile."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality, subsampling=0, icc_profile=icc)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def amplification(removed: np.ndarray) -> int:
    """Return the power of two by which a difference in display units becomes well visible."""
    spread = float(np.std(removed))
    return 1 if spread <= 0 else int(2 ** np.clip(np.floor(np.log2(0.25 / spread)), 0, 8))


def overview(image: np.ndarray, box: Box, ends: tuple[float, float]) -> Image.Image:
    """Return the whole picture, reduced, with the box drawn on it."""
    factor = _factor(image.shape, OVERVIEW)
    small = pixels(image, ends).reduce(factor).convert("RGB")
    corners = [each // factor for each in (box.left, box.top, box.right - 1, box.bottom - 1)]
    ImageDraw.Draw(small).rectangle(corners, outline=tuple(map(int, _MARK)), width=3)
    return small


def marked(image: np.ndarray, weight: np.ndarray, ends: tuple[float, float]) -> Image.Image:
    """Return a picture small and grey, in orange where its weight H,W,1 is 0."""
    factor = _factor(image.shape, SMALL)
    grey = np.asarray(pixels(image, ends).convert("L").reduce(factor), np.float32)
    lost = 1 - np.asarray(pixels(weight).reduce(factor), np.float32) / 255
    # Paler, so that the mark stands out on any picture.
    pale = 96 + 0.55 * grey[..., None]
    mixed = pale + (0.35 * grey[..., None] + 0.65 * _MARK - pale) * lost[..., None]
    return Image.fromarray(np.clip(mixed + 0.5, 0, 255).astype(np.uint8))


def unused(burst: Burst) -> list[int]:
    """Return the frames that are not used everywhere."""
    return [i for i, weight in enumerate(burst.weights) if float(weight.mean()) < 1]


def _factor(shape: tuple[int, ...], longest: int) -> int:
    return max(1, math.ceil(max(shape[:2]) / longest))
