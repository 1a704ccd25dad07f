"""Gauss-Newton on tiles: normal equations of every tile's shift, and the motion they agree on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from n2n.registration.geometry import coordinates, cv2, displacement
from n2n.registration.pyramid import Level, structure

MOVED = 0.1
"""Share of the tiles, those that fit worst, which gain and correlation are not told from."""


class Equations(NamedTuple):
    """Hold the normal equations of every tile's own shift: gram @ shift = pull."""

    gram: np.ndarray
    """rows,columns,2,2 float64: mean of slope x slope, the noise's own slopes included."""
    signal: np.ndarray
    """rows,columns,2,2 float64: the same from one picture's slopes times the other's, so that the
    noise drops out on average; single tiles may be negative."""
    pull: np.ndarray
    """rows,columns,2 float64."""
    energy: np.ndarray
    """rows,columns float64: mean squared residual."""
    cover: np.ndarray
    """rows,columns float64: share of the tile that both pictures show."""
    correlation: float
    """Of the two pictures' structure, where both are known, but for what has moved."""


def _sampled(
    level: Level, matrix: np.ndarray, grid: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the frame in the reference's geometry and where both are known."""
    height, width = level.reference.shape
    field = None if grid is None else cv2.resize(grid, (width, height))
    x, y = coordinates(matrix, field, (height, width))
    picture = cv2.remap(level.frame, x, y, cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REFLECT_101)
    # Blurring has folded the border back into the picture: there it does not move with the scene.
    edge = 4
    known = (x >= edge) & (x <= width - 1 - edge) & (y >= edge) & (y <= height - 1 - edge)
    known[:edge] = known[-edge:] = False
    known[:, :edge] = known[:, -edge:] = False
    return picture, known.astype(np.float32)


def _gradient(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    slope = np.array([-0.5, 0, 0.5], np.float32)
    along = cv2.filter2D(picture, -1, slope[None], borderType=cv2.BORDER_REPLICATE)
    return along, cv2.filter2D(picture, -1, slope[:, None], borderType=cv2.BORDER_REPLICATE)


def _averaged(
    products: tuple[np.ndarray, ...], known: np.ndarray, tiles: tuple[int, int]
) -> np.ndarray:
    """Average H,W products over the known part of each tile; rows,columns,products float64."""
    means = [cv2.resize(one * known, tiles[::-1], interpolation=cv2.INTER_AREA) for one in products]
    return np.stack(means, -1).astype(np.float64)


def _related(products: np.ndarray) -> tuple[np.float32, float]:
    """Return gain and correlation of structure from the means of here^2, both, there^2 by tile.

    A thing that moves may hold most of a smooth picture's structure: the tiles that fit worst are
    left out.
    """
    here, both, there = products.reshape(-1, 3).T
    fits = np.ones(len(here), bool)
    for _ in range(3):
        gain = np.sqrt(max(here[fits].sum(), 1e-20) / max(there[fits].sum(), 1e-20))
        rest = here - 2 * gain * both + gain**2 * there
        fits = rest <= np.quantile(rest, 1 - MOVED)
    a, b, ab = (one[fits].sum() for one in (here, there, both))
    return np.float32(gain), float(ab / max(np.sqrt(a * b), 1e-20))


def equations(level: Level, matrix: np.ndarray, grid: np.ndarray | None = None) -> Equations:
    """Compare the two pictures under a matrix and a field on the tile grid, in level pixels."""
    picture, known = _sampled(level, matrix, grid)
    here, there = structure(level.reference, known), structure(picture, known)
    products = (here * here, here * there, there * there)
    gain, correlation = _related(_averaged(products, known, level.tiles))
    (ax, ay), (bx, by) = _gradient(level.reference), _gradient(gain * picture)
    # The mean of both slopes: noise then has no product with its own slope left.
    gx, gy, rest = (ax + bx) / 2, (ay + by) / 2, here - gain * there
    square = (0, 1, 1, 2)
    gram = _averaged((gx * gx, gx * gy, gy * gy), known, level.tiles)[..., square]
    signal = _averaged((ax * bx, (ax * by + ay * bx) / 2, ay * by), known, level.tiles)[..., square]
    pull = _averaged((gx * rest, gy * rest), known, level.tiles)
    energy, cover = np.moveaxis(_averaged((rest * rest, known), known, level.tiles), -1, 0)
    return Equations(
        gram=gram.reshape(*level.tiles, 2, 2),
        signal=signal.reshape(*level.tiles, 2, 2),
        pull=pull,
        energy=energy / np.maximum(cover, 1e-6),
        cover=cover,
        correlation=correlation,
    )


def correlation(level: Level, matrix: np.ndarray) -> float:
    """Return the correlation under a matrix in level pixels; -1 where hardly anything overlaps."""
    found = equations(level, matrix)
    return found.correlation if found.cover.mean() > 0.2 else -1.0


def weigh(found: Equations) -> np.ndarray:
    """Weigh the tiles: inverse to their expected residual, next to nothing where it is exceeded.

    A tile of slope G with a misregistration of e pixels has the residual noise + e^2 G.
    """
    slope = np.trace(found.gram, axis1=2, axis2=3) / np.maximum(found.cover, 1e-6)
    seen = found.cover > 0.5
    if not seen.any():
        return np.zeros_like(slope)
    steep = seen & (slope >= np.median(slope[seen]))
    flat = seen & (slope <= np.median(slope[seen]))
    noise = max(float(np.median(found.energy[flat])), 1e-12)
    drift = np.median((found.energy[steep] - noise) / np.maximum(slope[steep], 1e-12))
    expected = noise + max(float(drift), 0.0) * slope
    return seen / (expected * (1 + np.square(found.energy / (3 * expected))))


def _centres(level: Level) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return tile centres in [-1, 1] and the matrix level pixel -> these coordinates."""
    height, width = level.reference.shape
    half = max(height, width) / 2
    unit = np.array(
        [[1 / half, 0, -(width - 1) / 2 / half], [0, 1 / half, -(height - 1) / 2 / half], [0, 0, 1]]
    )
    rows, columns = level.tiles
    x = ((np.arange(columns) + 0.5) * width / columns - 0.5) * unit[0, 0] + unit[0, 2]
    y = ((np.arange(rows) + 0.5) * height / rows - 0.5) * unit[1, 1] + unit[1, 2]
    return *np.meshgrid(x, y), unit


def _basis(x: np.ndarray, y: np.ndarray, size: int) -> np.ndarray:
    """Return rows,columns,2,size: displacement per parameter; size 2, 4 or 8."""
    one, nil = np.ones_like(x), np.zeros_like(x)
    along = {
        2: (one, nil),
        4: (one, nil, x, -y),
        8: (one, nil, x, y, nil, nil, x * x, x * y),
    }[size]
    down = {
        2: (nil, one),
        4: (nil, one, y, x),
        8: (nil, one, nil, nil, x, y, x * y, y * y),
    }[size]
    return np.stack([np.stack(along, -1), np.stack(down, -1)], -2)


def _motion(step: np.ndarray) -> np.ndarray:
    """Return the homography of a small step in unit coordinates (the parameters of `_basis`)."""
    if step.size == 8:
        tx, ty, xx, xy, yx, yy, px, py = step
    elif step.size == 4:
        (tx, ty, xx, yx), px, py = step, 0, 0
        xy, yy = -yx, xx
    else:
        (tx, ty), xx, xy, yx, yy, px, py = step, 0, 0, 0, 0, 0, 0
    return np.array([[1 + xx, xy, tx], [yx, 1 + yy, ty], [-px, -py, 1.0]])


def _step(found: Equations, level: Level, size: int) -> tuple[np.ndarray, float]:
    """Return the homography of one Gauss-Newton step in level pixels, and its standard error.

    The error comes from the scatter of the tiles (sandwich estimator), so that it holds for
    correlated and signal-dependent noise as well.
    """
    x, y, unit = _centres(level)
    # A step of one in unit coordinates moves 1 / unit[0, 0] pixels.
    basis, trust = _basis(x, y, size) / unit[0, 0], weigh(found)
    gram, signal = (
        np.einsum("rc,rcip,rcij,rcjq->pq", trust, basis, one, basis)
        for one in (found.gram, found.signal)
    )
    pulls = np.einsum("rc,rcip,rci->rcp", trust, basis, found.pull).reshape(-1, size)
    step = np.linalg.pinv(gram, rcond=1e-9, hermitian=True) @ pulls.sum(0)
    # The noise's own slopes are in gram but do not hold the solution: they would flatter the error.
    inverse = np.linalg.pinv(signal, rcond=1e-6, hermitian=True)
    spread = inverse @ (pulls.T @ pulls) @ inverse
    error = np.sqrt(max(np.einsum("rcip,pq,rciq->", basis, spread, basis) / x.size, 0.0))
    # The noise's slopes also shorten the step: make up for them, with care while still far away.
    step *= np.clip(np.trace(gram) / max(np.trace(signal), 1e-20), 1.0, 3.0)
    length = np.sqrt(np.mean(np.square(basis @ step).sum(-1)))
    step *= min(1.0, 2.0 / max(length, 1e-9))
    return np.linalg.inv(unit) @ _motion(step) @ unit, float(error)


def gap(a: np.ndarray, b: np.ndarray, shape: tuple[int, ...]) -> float:
    """Return the root mean square difference of two matrices' displacements in pixels."""
    x, y = np.meshgrid(np.linspace(0, shape[1] - 1, 9), np.linspace(0, shape[0] - 1, 9))
    (ax, ay), (bx, by) = displacement(a, x, y), displacement(b, x, y)
    return float(np.sqrt(np.mean(np.square(ax - bx) + np.square(ay - by))))


def fit(level: Level, matrix: np.ndarray, size: int, steps: int = 8) -> tuple[np.ndarray, float]:
    """Refine a full-size matrix at one level; return it and its standard error in pixels."""
    scale, back = level.scale, np.linalg.inv(level.scale)
    here, error = scale @ matrix @ back, np.inf
    for _ in range(steps):
        move, error = _step(equations(level, here), level, size)
        here = here @ move
        here /= here[2, 2]
        if gap(move, np.eye(3), level.reference.shape) < max(0.003, 0.15 * error):
            break
    return back @ here @ scale, error / scale[0, 0]


def nearest(matrix: np.ndarray, level: Level, size: int) -> np.ndarray:
    """Return the motion of so few parameters that is nearest to a full-size matrix."""
    x, y, unit = _centres(level)
    unit = unit @ level.scale
    local = unit @ matrix @ np.linalg.inv(unit)
    target = np.stack(displacement(local, x, y), -1).reshape(-1)
    step = np.linalg.lstsq(_basis(x, y, size).reshape(-1, size), target, rcond=None)[0]
    return np.linalg.inv(unit) @ _motion(step) @ unit
