"""Noise-suppressed pictures from coarse to fine, and the first guess of a movement."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from n2n.registration.geometry import cv2

TILE = 24
"""Side in pixels of a tile at the finest level."""
FINEST = 1440
"""Longest side in pixels that registration looks at; larger frames are reduced."""
SMALLEST = 48
"""Shorter side in pixels below which the pyramid stops."""


class Level(NamedTuple):
    """Hold one pair of noise-suppressed pictures and how its pixels lie in the full ones."""

    reference: np.ndarray
    frame: np.ndarray
    scale: np.ndarray
    """3,3: full-size pixel -> pixel of this level."""
    tiles: tuple[int, int]
    """Rows and columns of the tile grid, the same at every level."""


def _scaling(full: tuple[int, int], small: tuple[int, int]) -> np.ndarray:
    sy, sx = small[0] / full[0], small[1] / full[1]
    return np.array([[sx, 0, (sx - 1) / 2], [0, sy, (sy - 1) / 2], [0, 0, 1.0]])


def _smooth(picture: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(picture, (0, 0), 1.2)


def structure(picture: np.ndarray, known: np.ndarray, wide: int = 25) -> np.ndarray:
    """Remove slow brightness changes, which are no evidence of movement; 0 where not known."""
    side = (wide, wide)
    total, count = (cv2.blur(cv2.blur(one, side), side) for one in (picture * known, known))
    return (picture - total / np.maximum(count, 1e-6)) * known


def _reduce(picture: np.ndarray, side: float) -> np.ndarray:
    factor = min(1.0, side / max(picture.shape))
    size = (max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor)))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA) if factor < 1 else picture


def pyramid(frame: np.ndarray, reference: np.ndarray) -> list[Level]:
    """Return levels from coarse to fine, each twice as large as the one before."""
    full, side = reference.shape, min(FINEST, max(reference.shape))
    fine = _reduce(reference, side).shape
    tiles = (max(2, round(fine[0] / TILE)), max(2, round(fine[1] / TILE)))
    levels: list[Level] = []
    while not levels or min(levels[-1].reference.shape) >= 2 * SMALLEST:
        reference, frame = _reduce(reference, side), _reduce(frame, side)
        scale = _scaling(full, reference.shape)
        levels.append(Level(_smooth(reference), _smooth(frame), scale, tiles))
        side /= 2
    return levels[::-1]
