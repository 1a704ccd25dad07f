"""Details of several pictures side by side, as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from n2n import images
from n2n.types import Error

_GAP = 8
_PAPER, _INK = (255, 255, 255), (32, 32, 32)


def before_after(
    before: np.ndarray,
    after: np.ndarray,
    path: Path | str,
    *,
    between: Sequence[np.ndarray] = (),
    labels: Sequence[str] = (),
    zoom: int = 2,
    side: int = 192,
    centre: tuple[int, int] | None = None,
    overwrite: bool = False,
) -> None:
    """Write the same detail of several pictures side by side, each with a caption below.

    Args:
        before: H,W,C (C 1 or 3) in display units, leftmost.
        after: of the same shape, rightmost.
        path: the file to write, 8 bits.
        between: further pictures of that shape, shown in this order between the two.
        labels: a caption per picture; by default none.
        zoom: times that a pixel is magnified; 1 is the original size.
        side: of the detail in pixels, cut at the picture's own size.
        centre: (y, x) of the detail; None: where `after` has the finest structure.
        overwrite: replace the file if it exists.

    Raises:
        Error: different shapes, labels that do not match, or a zoom or side below 1.
    """
    pictures = [before, *between, after]
    _check(pictures, labels, zoom, side)
    place = detail(after, (side, side)) if centre is None else centre
    tiles = [_tile(picture, place, side, zoom) for picture in pictures]
    images.write(path, np.asarray(_strip(tiles, labels)), overwrite=overwrite)


def _check(pictures: Sequence[np.ndarray], labels: Sequence[str], zoom: int, side: int) -> None:
    shapes = {picture.shape for picture in pictures}
    if len(shapes) != 1 or pictures[0].ndim != 3 or pictures[0].shape[2] not in (1, 3):
        raise Error(f"pictures have shapes {sorted(shapes)}; give one shape H,W,1 or H,W,3")
    if labels and len(labels) != len(pictures):
        raise Error(f"labels has {len(labels)} entries for {len(pictures)} pictures; give as many")
    if zoom < 1 or side < 1:
        raise Error(f"zoom is {zoom} and side is {side}; both must be at least 1")


def detail(picture: np.ndarray, size: tuple[int, int]) -> tuple[int, int]:
    """Return the centre (y, x) of the part of H,W,C, `size` high and wide, with most structure."""
    grey = np.clip(picture, 0, 1).mean(-1)
    slope = np.zeros(np.add(grey.shape, 1))
    steps = np.hypot(*np.gradient(grey)) if min(grey.shape) > 1 else np.zeros_like(grey)
    slope[1:, 1:] = np.cumsum(np.cumsum(steps, 0), 1)
    high, wide = (min(side, length) for side, length in zip(size, grey.shape, strict=True))
    sums = slope[high:, wide:] - slope[:-high, wide:] - slope[high:, :-wide] + slope[:-high, :-wide]
    y, x = np.unravel_index(np.argmax(sums), sums.shape)
    return int(y) + high // 2, int(x) + wide // 2


def _tile(picture: np.ndarray, centre: tuple[int, int], side: int, zoom: int) -> Image.Image:
    """Cut a square around a place, moved inside the picture, and magnify its pixels."""
    corner = [
        max(0, min(c - side // 2, n - side)) for c, n in zip(centre, picture.shape, strict=False)
    ]
    cut = picture[corner[0] : corner[0] + side, corner[1] : corner[1] + side]
    pixels = images.from_float(np.repeat(cut, 3 // cut.shape[2], axis=2), "uint8")
    large = (pixels.shape[1] * zoom, pixels.shape[0] * zoom)
    return Image.fromarray(pixels).resize(large, Image.Resampling.NEAREST)


def _strip(tiles: Sequence[Image.Image], labels: Sequence[str]) -> Image.Image:
    """Lay pictures side by side, captions below."""
    width, height = tiles[0].size
    size = max(11, width // 18)
    font = ImageFont.load_default(size)
    below = 2 * size if labels else _GAP
    paper = (len(tiles) * (width + _GAP) + _GAP, _GAP + height + below)
    sheet = Image.new("RGB", paper, _PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, tile in enumerate(tiles):
        left = _GAP + index * (width + _GAP)
        sheet.paste(tile, (left, _GAP))
        if labels:
            place = (left, _GAP + height + size // 3)
            draw.text(place, labels[index], fill=_INK, font=font)
    return sheet
