"""Registration: where each pixel of a reference picture lies in another frame of the same scene.

Arrays in, arrays out. Coordinates are (x, y) in pixels, pixel centres at integers, a 3x3 matrix
maps reference pixel (x, y, 1) to frame pixel; a field (dx, dy) in frame pixels is added to that.

The method is Gauss-Newton on tiles (Lucas and Kanade 1981; Baker and Matthews 2004): every tile
gives the 2x2 normal equations of its own shift. Weighted and summed they give one homography, its
robust weights and its standard error; smoothed over their neighbours they give the local field.
`cv2.findTransformECC` was measured first: with eight parameters it leaves low-contrast pictures by
tens of pixels, and it has neither robust weights nor a standard error. `cv2.DISOpticalFlow` finds
smooth fields of 1 px to 0.34 to 0.72 px by noise, the local field to 0.12 to 0.24; of 3 px to 0.43
to 0.94, and 0.38 to 0.50 (`experiments/flow.py`).
"""

from __future__ import annotations

import numpy as np

from n2n.registration.geometry import Transform as Transform
from n2n.registration.geometry import cv2, grey
from n2n.registration.geometry import displacement as displacement
from n2n.registration.geometry import largest as largest
from n2n.registration.geometry import warp as warp
from n2n.registration.guess import guess, guessing
from n2n.registration.local import compared, helps, local_field
from n2n.registration.pyramid import Level, pyramid
from n2n.registration.tiles import fit, gap, nearest
from n2n.types import Error

NEGLIGIBLE = 0.1
"""Shifts in pixels below this are none: resampling costs more than they do."""
SMALLEST = 12
"""Shortest side in pixels of a picture that can be registered."""


def _match(level: Level, matrix: np.ndarray) -> float:
    """Return the correlation under a full-size matrix."""
    return compared(level, matrix, None).correlation


def _global(levels: list[Level], shape: tuple[int, ...]) -> tuple[np.ndarray, float]:
    """Return matrix and standard error; no more parameters than the pictures can tell apart.

    A coarse level is passed over where it makes the match worse at the first guess's level: tiles
    of a few pixels are misled by a bright thing that moves.
    """
    matrix, error = guess(levels), np.inf
    first = guessing(levels)
    for level in levels:
        refined, its = fit(level, matrix, 8)
        coarse = level.reference.size < first.reference.size
        if not coarse or _match(first, refined) >= _match(first, matrix):
            matrix, error = refined, its
    for size in (4, 2):
        simpler, its = fit(levels[-1], nearest(matrix, levels[-1], size), size)
        if gap(simpler, matrix, shape) > max(2.5 * error, 0.01):
            return matrix, error
        matrix, error = simpler, its
    still = gap(matrix, np.eye(3), shape) <= 2.5 * error
    return (np.eye(3), error) if still else (matrix, error)


def register(frame: np.ndarray, reference: np.ndarray, *, local: bool = True) -> Transform:
    """Find where each pixel of the reference lies in a frame; both H,W,C (or H,W) float32.

    Values may have any unit and gain; only structure counts. First a homography, good to 0.1 px,
    from coarse to fine; with `local` then a smooth field where it lowers the residual on tiles it
    has not seen (parallax, rolling shutter). A displacement that stays below 0.1 px, or that its
    own standard error cannot tell from none, is none: the matrix is exactly the identity. The
    caller refuses a result of low `correlation` or large `error`. Error for pictures of different
    size, or with a side below 12 px.
    """
    if frame.shape[:2] != reference.shape[:2]:
        raise Error(
            f"frame is {frame.shape[1]}x{frame.shape[0]} and reference "
            f"{reference.shape[1]}x{reference.shape[0]} pixels: registration needs equal sizes"
        )
    if min(frame.shape[:2]) < SMALLEST:
        raise Error(
            f"pictures of {frame.shape[1]}x{frame.shape[0]} pixels cannot be registered: each side "
            f"must have {SMALLEST} at least; of aligned frames say so (register=False)"
        )
    here, there = grey(reference), grey(frame)
    levels = pyramid(there, here)
    matrix, error = _global(levels, here.shape)
    grid = local_field(levels, matrix) if local and helps(levels, matrix) else None
    field = None
    if grid is not None:
        field = cv2.resize(grid, here.shape[::-1], interpolation=cv2.INTER_CUBIC)
    score = max(compared(level, matrix, grid).correlation for level in levels[1:] or levels)
    found = Transform(matrix, field, score, error)
    if largest(found, here.shape) < NEGLIGIBLE:
        return Transform(np.eye(3), None, score, error)
    return found
