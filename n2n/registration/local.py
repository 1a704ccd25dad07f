"""The local field: tile shifts smoothed by their information, kept where they help."""

from __future__ import annotations

import numpy as np

from n2n.registration.geometry import cv2
from n2n.registration.pyramid import Level
from n2n.registration.tiles import Equations, equations, weigh

_SPREAD = 8.0
"""Pixels that share one independent value of noise in a band-passed picture."""
_REACH = 4.0
"""Expected size in pixels of a local displacement (the prior's standard deviation)."""
_WIDTHS = (3.0, 2.2, 1.6, 1.2)
"""Smoothing in tiles at the last levels, coarse to fine."""


def _relax(found: Equations, level: Level, grid: np.ndarray, width: float) -> np.ndarray:
    """Return the field after one step: tile shifts, smoothed by their information."""
    rows, columns = level.tiles
    pixels = level.reference.size / (rows * columns) / _SPREAD
    scale = level.scale[0, 0]
    trust = (weigh(found) * pixels)[..., None]
    gram = cv2.GaussianBlur(found.gram.reshape(rows, columns, 4) * trust, (0, 0), width)
    pull = cv2.GaussianBlur(found.pull * trust, (0, 0), width)
    prior = 1 / (_REACH * scale) ** 2
    step = np.linalg.solve(
        gram.reshape(rows, columns, 2, 2) + prior * np.eye(2),
        (pull - prior * scale * grid.astype(np.float64))[..., None],
    )[..., 0]
    size = np.sqrt(np.square(step).sum(-1, keepdims=True))
    step *= np.minimum(1, 1.5 / np.maximum(size, 1e-9))
    return (grid + cv2.GaussianBlur(step, (0, 0), 0.7) / scale).astype(np.float32)


def local_field(
    levels: list[Level], matrix: np.ndarray, keep: np.ndarray | None = None
) -> np.ndarray:
    """Return local displacements on the tile grid, rows,columns,2 float32 in full-size pixels."""
    grid = np.zeros((*levels[-1].tiles, 2), np.float32)
    used = levels[-4:]
    for level, width in zip(used, _WIDTHS[-len(used) :], strict=True):
        for _ in range(2 if level is levels[-1] else 4):
            found = compared(level, matrix, grid)
            if keep is not None:
                found = found._replace(cover=found.cover * keep)
            grid = _relax(found, level, grid, width)
    return grid


def compared(level: Level, matrix: np.ndarray, grid: np.ndarray | None) -> Equations:
    """Compare a level's two pictures under a matrix and a field in full-size pixels."""
    here = level.scale @ matrix @ np.linalg.inv(level.scale)
    return equations(level, here, None if grid is None else grid * np.float32(level.scale[0, 0]))


def helps(levels: list[Level], matrix: np.ndarray) -> bool:
    """Say whether a field made from half of the tiles clearly lowers the other half's residual."""
    rows, columns = levels[-1].tiles
    half = np.add.outer(np.arange(rows) // 2, np.arange(columns) // 2) % 2 == 0
    grid = local_field(levels, matrix, half)
    before = compared(levels[-1], matrix, None)
    after = compared(levels[-1], matrix, grid)
    judged = ~half & (before.cover > 0.9) & (after.cover > 0.9)
    if judged.sum() < 8:
        return False
    cap = 4 * np.median(before.energy[judged])
    old, new = (np.minimum(one.energy[judged], cap) for one in (before, after))
    gain = old - new
    return bool(gain.mean() > max(0.03 * old.mean(), 3 * gain.std() / np.sqrt(gain.size)))
