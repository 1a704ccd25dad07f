"""Registration: where each pixel of a reference picture lies in another frame of the same scene.

Arrays in, arrays out. Coordinates are (x, y) in pixels, pixel centres at integers, a 3x3 matrix
maps reference pixel (x, y, 1) to frame pixel; a field (dx, dy) in frame pixels is added to that.

The method is Gauss-Newton on tiles (Lucas and Kanade 1981; Baker and Matthews 2004): every tile
gives the 2x2 normal equations of its own shift. Weighted and summed they give one homography, its
robust weights and its standard error; smoothed over their neighbours they give the local field.
`cv2.findTransformECC` was measured first: with eight parameters it leaves low-contrast pictures by
tens of pixels, and it has neither robust weights nor a standard error.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from n2n.types import Error

try:
    import cv2
except ImportError as error:  # opencv-python removed beside headless takes the shared folder along
    raise Error(
        f"cv2 cannot be imported ({error}): registration needs it; run "
        "`pip install --force-reinstall opencv-python-headless`"
    ) from error

NEGLIGIBLE = 0.1
"""Shifts in pixels below this are none: resampling costs more than they do."""
TILE = 24
"""Side in pixels of a tile at the finest level."""
FINEST = 1440
"""Longest side in pixels that registration looks at; larger frames are reduced."""
COARSE = 512
"""Longest side in pixels at which the first guess is made."""
SMALLEST = 48
"""Shorter side in pixels below which the pyramid stops."""


class Transform(NamedTuple):
    """Hold how a reference picture's pixels are found in a frame."""

    matrix: np.ndarray
    """3,3 float64: reference pixel (x, y, 1) -> frame pixel."""
    field: np.ndarray | None = None
    """H,W,2 float32: (dx, dy) in frame pixels added to that, or None."""
    correlation: float = 1.0
    """Correlation of the two pictures' structure in [-1, 1]; unrelated pictures stay below 0.5."""
    error: float = 0.0
    """Standard error of the matrix's displacement in pixels, root mean square over the picture."""


def grey(picture: np.ndarray) -> np.ndarray:
    """Average the channels of H,W,C; H,W float32."""
    if picture.ndim == 2:
        return np.asarray(picture, np.float32)
    if picture.shape[2] == 1:
        return np.asarray(picture[..., 0], np.float32)
    return cv2.transform(
        np.ascontiguousarray(picture, np.float32),
        np.full((1, picture.shape[2]), 1 / picture.shape[2], np.float32),
    )


def displacement(matrix: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return frame minus reference coordinates (dx, dy) of reference pixels (x, y); float64."""
    depth = matrix[2, 0] * x + matrix[2, 1] * y + matrix[2, 2]
    dx = (matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2]) / depth - x
    dy = (matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2]) / depth - y
    return dx, dy


def largest(transform: Transform, shape: tuple[int, ...]) -> float:
    """Return the largest displacement in pixels anywhere in a picture of shape (H, W, ...)."""
    x, y = np.meshgrid([0.0, shape[1] - 1.0], [0.0, shape[0] - 1.0])
    size = float(np.max(np.hypot(*displacement(transform.matrix, x, y))))
    if transform.field is not None:
        size += float(np.sqrt(np.max(np.square(transform.field).sum(-1))))
    return size


# Warping -----------------------------------------------------------------------------------------


def warp(
    frame: np.ndarray, matrix: np.ndarray, field: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Resample a frame H,W,C float32 once into the reference's geometry (Lanczos, 8x8 taps).

    Returns the picture H,W,C float32 and its overlap H,W,1 float32: 1 where the whole kernel lies
    inside the frame, 0 where the mirror image of the frame was needed. The identity without a field
    returns the frame itself. cv2 rounds coordinates to 1/32 px (0.013 px root mean square in the
    plane): on photographs an error near 60 dB, far below that of a registration good to 0.1 px.
    """
    height, width = frame.shape[:2]
    if field is None and np.array_equal(matrix, np.eye(3)):
        return frame, np.ones((height, width, 1), np.float32)
    x, y = _coordinates(matrix, field, (height, width))
    picture = cv2.remap(frame, x, y, cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REFLECT_101)
    overlap = (x >= 3) & (x <= width - 5) & (y >= 3) & (y <= height - 5)
    return picture.reshape(frame.shape), overlap[..., None].astype(np.float32)


def _coordinates(
    matrix: np.ndarray, field: np.ndarray | None, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.arange(shape[1], dtype=np.float64)[None], np.arange(shape[0], dtype=np.float64)[:, None]
    dx, dy = displacement(matrix, x, y)
    dx += x
    dy += y
    if field is not None:
        dx += field[..., 0]
        dy += field[..., 1]
    return dx.astype(np.float32), dy.astype(np.float32)


# Pyramid -----------------------------------------------------------------------------------------


class _Level(NamedTuple):
    """Hold one pair of band-passed pictures and how its pixels lie in the full ones."""

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


def _structure(picture: np.ndarray, known: np.ndarray, wide: int = 25) -> np.ndarray:
    """Remove slow brightness changes, which are no evidence of movement; 0 where not known."""
    total, count = (cv2.blur(cv2.blur(one, (wide, wide)), (wide, wide)) for one in (picture * known, known))
    return (picture - total / np.maximum(count, 1e-6)) * known


def _reduce(picture: np.ndarray, side: float) -> np.ndarray:
    factor = min(1.0, side / max(picture.shape))
    size = (max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor)))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA) if factor < 1 else picture


def _pyramid(frame: np.ndarray, reference: np.ndarray) -> list[_Level]:
    """Return levels from coarse to fine, each twice as large as the one before."""
    full, side = reference.shape, min(FINEST, max(reference.shape))
    fine = _reduce(reference, side).shape
    tiles = (max(2, round(fine[0] / TILE)), max(2, round(fine[1] / TILE)))
    levels: list[_Level] = []
    while not levels or min(levels[-1].reference.shape) >= 2 * SMALLEST:
        reference, frame = _reduce(reference, side), _reduce(frame, side)
        scale = _scaling(full, reference.shape)
        levels.append(_Level(_smooth(reference), _smooth(frame), scale, tiles))
        side /= 2
    return levels[::-1]


# First guess -------------------------------------------------------------------------------------


def _bytes(picture: np.ndarray) -> np.ndarray:
    low, high = np.percentile(picture, (0.5, 99.5))
    return np.clip((picture - low) * (255 / max(high - low, 1e-9)), 0, 255).astype(np.uint8)


def _features(level: _Level) -> list[np.ndarray]:
    """Match SIFT features; a list of one homography, or of none."""
    sift = cv2.SIFT_create(3000)
    found = [
        sift.detectAndCompute(_bytes(picture), None) for picture in (level.reference, level.frame)
    ]
    if any(len(points) < 8 for points, _ in found):
        return []
    (points, words), (others, theirs) = found
    matches = cv2.BFMatcher().knnMatch(words, theirs, k=2)
    good = [first for first, second in matches if first.distance < 0.8 * second.distance]
    if len(good) < 8:
        return []
    here = np.array([points[match.queryIdx].pt for match in good], np.float32)
    there = np.array([others[match.trainIdx].pt for match in good], np.float32)
    matrix, _ = cv2.findHomography(here, there, cv2.USAC_MAGSAC, 2.0, maxIters=5000)
    return [] if matrix is None else [matrix]


def _shift(level: _Level) -> np.ndarray:
    """Return the translation with the highest phase correlation."""
    window = cv2.createHanningWindow(level.reference.shape[::-1], cv2.CV_32F)
    # cv2 5.0 multiplies the window into its own arguments when their size suits the transform.
    (dx, dy), _ = cv2.phaseCorrelate(level.reference.copy(), level.frame.copy(), window)
    return np.array([[1, 0, dx], [0, 1, dy], [0, 0, 1.0]])


def _plausible(matrix: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Say whether a hand-held camera can have moved so: half the picture, 30 degrees, 30 %."""
    x, y = np.meshgrid([0.0, shape[1] - 1.0], [0.0, shape[0] - 1.0])
    depth = matrix[2, 0] * x + matrix[2, 1] * y + matrix[2, 2]
    if not np.isfinite(matrix).all() or np.min(depth) < 0.5 or np.max(depth) > 2:
        return False
    return float(np.max(np.hypot(*displacement(matrix, x, y)))) < 0.5 * max(shape)


def _guess(levels: list[_Level]) -> np.ndarray:
    """Return the candidate that correlates best at a coarse level, in full-size pixels."""
    level = min(levels, key=lambda one: abs(max(one.reference.shape) - COARSE))
    candidates = [np.eye(3), _shift(level), *_features(level)]
    candidates = [one for one in candidates if _plausible(one, level.reference.shape)]
    scores = [_correlation(level, one) for one in candidates]
    # Standing still is what a tripod does: another guess must be better, not merely as good.
    scores[0] += 0.02
    best = candidates[int(np.argmax(scores))]
    return np.linalg.inv(level.scale) @ best @ level.scale


# Gauss-Newton on tiles -----------------------------------------------------------------------------


class _Normal(NamedTuple):
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


def _sampled(
    level: _Level, matrix: np.ndarray, grid: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the frame in the reference's geometry and where both are known."""
    height, width = level.reference.shape
    field = None if grid is None else cv2.resize(grid, (width, height))
    x, y = _coordinates(matrix, field, (height, width))
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


def _normal(level: _Level, matrix: np.ndarray, grid: np.ndarray | None = None) -> _Normal:
    picture, known = _sampled(level, matrix, grid)
    here, there = _structure(level.reference, known), _structure(picture, known)
    a, b, both = (float(np.vdot(*pair)) for pair in ((here, here), (there, there), (here, there)))
    gain = np.float32(np.sqrt(max(a, 1e-20) / max(b, 1e-20)))
    (ax, ay), (bx, by) = _gradient(level.reference), _gradient(gain * picture)
    # The mean of both slopes: noise then has no product with its own slope left.
    gx, gy = (ax + bx) / 2, (ay + by) / 2
    rest = here - gain * there

    def mean(*pictures: np.ndarray) -> np.ndarray:
        tiles = [cv2.resize(one * known, level.tiles[::-1], interpolation=cv2.INTER_AREA) for one in pictures]
        return np.stack(tiles, -1).astype(np.float64)

    gram = mean(gx * gx, gx * gy, gy * gy)
    signal = mean(ax * bx, (ax * by + ay * bx) / 2, ay * by)
    cover = mean(np.ones_like(known))[..., 0]
    return _Normal(
        gram[..., (0, 1, 1, 2)].reshape(*level.tiles, 2, 2),
        signal[..., (0, 1, 1, 2)].reshape(*level.tiles, 2, 2),
        mean(gx * rest, gy * rest),
        mean(rest * rest)[..., 0] / np.maximum(cover, 1e-6),
        cover,
        both / max(np.sqrt(a * b), 1e-20),
    )


def _correlation(level: _Level, matrix: np.ndarray) -> float:
    normal = _normal(level, matrix)
    return normal.correlation if normal.cover.mean() > 0.2 else -1.0


def _trust(normal: _Normal) -> np.ndarray:
    """Weigh the tiles: inverse to their expected residual, next to nothing where it is exceeded.

    A tile of slope G with a misregistration of e pixels has the residual noise + e^2 G.
    """
    slope = np.trace(normal.gram, axis1=2, axis2=3) / np.maximum(normal.cover, 1e-6)
    seen = normal.cover > 0.5
    if not seen.any():
        return np.zeros_like(slope)
    steep = seen & (slope >= np.median(slope[seen]))
    flat = seen & (slope <= np.median(slope[seen]))
    noise = max(float(np.median(normal.energy[flat])), 1e-12)
    drift = np.median((normal.energy[steep] - noise) / np.maximum(slope[steep], 1e-12))
    expected = noise + max(float(drift), 0.0) * slope
    return seen / (expected * (1 + np.square(normal.energy / (3 * expected))))


def _centres(level: _Level) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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
    """Return rows,columns,2,size: displacement per parameter of a motion of 2, 4 or 8 parameters."""
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
    """Return the homography of a small step in unit coordinates."""
    if step.size == 2:
        return np.array([[1, 0, step[0]], [0, 1, step[1]], [0, 0, 1.0]])
    if step.size == 4:
        return np.array(
            [[1 + step[2], -step[3], step[0]], [step[3], 1 + step[2], step[1]], [0, 0, 1]]
        )
    return np.array(
        [
            [1 + step[2], step[3], step[0]],
            [step[4], 1 + step[5], step[1]],
            [-step[6], -step[7], 1],
        ]
    )


def _step(normal: _Normal, level: _Level, size: int) -> tuple[np.ndarray, float]:
    """Return the homography of one Gauss-Newton step in level pixels, and its standard error.

    The error comes from the scatter of the tiles (sandwich estimator), so that it holds for
    correlated and signal-dependent noise as well.
    """
    x, y, unit = _centres(level)
    basis, trust = _basis(x, y, size), _trust(normal)
    # A step in unit coordinates moves 1 / unit[0, 0] pixels.
    jacobian = basis / unit[0, 0]
    left, slope = (
        np.einsum("rc,rcip,rcij,rcjq->pq", trust, jacobian, one, jacobian)
        for one in (normal.gram, normal.signal)
    )
    pulls = np.einsum("rc,rcip,rci->rcp", trust, jacobian, normal.pull).reshape(-1, size)
    inverse = np.linalg.pinv(left, rcond=1e-9, hermitian=True)
    steep = np.linalg.pinv(slope, rcond=1e-6, hermitian=True)
    spread = steep @ (pulls.T @ pulls) @ steep
    error = np.sqrt(np.einsum("rcip,pq,rciq->", jacobian, spread, jacobian) / x.size)
    step = inverse @ pulls.sum(0)
    size_px = np.sqrt(np.mean(np.square(jacobian @ step).sum(-1)))
    step *= min(1.0, 2.0 / max(size_px, 1e-9))
    return np.linalg.inv(unit) @ _motion(step) @ unit, float(error)


def _gap(a: np.ndarray, b: np.ndarray, shape: tuple[int, ...]) -> float:
    """Return the root mean square difference of two matrices' displacements in pixels."""
    x, y = np.meshgrid(np.linspace(0, shape[1] - 1, 9), np.linspace(0, shape[0] - 1, 9))
    (ax, ay), (bx, by) = displacement(a, x, y), displacement(b, x, y)
    return float(np.sqrt(np.mean(np.square(ax - bx) + np.square(ay - by))))


def _fit(level: _Level, matrix: np.ndarray, size: int, steps: int = 12) -> tuple[np.ndarray, float]:
    """Refine a full-size matrix at one level; return it and its standard error in pixels."""
    scale, back = level.scale, np.linalg.inv(level.scale)
    here, error = scale @ matrix @ back, np.inf
    for _ in range(steps):
        move, error = _step(_normal(level, here), level, size)
        here = here @ move
        here /= here[2, 2]
        if _gap(move, np.eye(3), level.reference.shape) < 0.003:
            break
    return back @ here @ scale, error / scale[0, 0]


def _nearest(matrix: np.ndarray, level: _Level, size: int) -> np.ndarray:
    """Return the motion of so few parameters that is nearest to a full-size matrix."""
    x, y, unit = _centres(level)
    unit = unit @ level.scale
    local = unit @ matrix @ np.linalg.inv(unit)
    target = np.stack(displacement(local, x, y), -1).reshape(-1)
    step = np.linalg.lstsq(_basis(x, y, size).reshape(-1, size), target, rcond=None)[0]
    return np.linalg.inv(unit) @ _motion(step) @ unit


def _global(levels: list[_Level], shape: tuple[int, ...]) -> tuple[np.ndarray, float]:
    """Return matrix and standard error; no more parameters than the pictures can tell apart."""
    matrix, error = _guess(levels), np.inf
    for level in levels:
        matrix, error = _fit(level, matrix, 8)
    for size in (4, 2):
        simpler, its = _fit(levels[-1], _nearest(matrix, levels[-1], size), size)
        if _gap(simpler, matrix, shape) > max(2.5 * error, 0.01):
            return matrix, error
        matrix, error = simpler, its
    still = _gap(matrix, np.eye(3), shape) <= 2.5 * error
    return (np.eye(3), error) if still else (matrix, error)


# Local field -------------------------------------------------------------------------------------

_SPREAD = 8.0
"""Pixels that share one independent value of noise in a band-passed picture."""
_REACH = 4.0
"""Expected size in pixels of a local displacement (the prior's standard deviation)."""


def _relax(normal: _Normal, level: _Level, grid: np.ndarray, width: float) -> np.ndarray:
    """Return the field after one step: tile shifts, smoothed by their information."""
    rows, columns = level.tiles
    pixels = level.reference.size / (rows * columns) / _SPREAD
    scale = level.scale[0, 0]
    trust = (_trust(normal) * pixels)[..., None]
    gram = normal.gram.reshape(rows, columns, 4) * trust
    gram = cv2.GaussianBlur(gram, (0, 0), width).reshape(rows, columns, 2, 2)
    pull = cv2.GaussianBlur(normal.pull * trust, (0, 0), width)
    prior = 1 / (_REACH * scale) ** 2
    step = np.linalg.solve(
        gram + prior * np.eye(2), (pull - prior * scale * grid.astype(np.float64))[..., None]
    )[..., 0]
    size = np.sqrt(np.square(step).sum(-1, keepdims=True))
    step *= np.minimum(1, 1.5 / np.maximum(size, 1e-9))
    return (grid + cv2.GaussianBlur(step, (0, 0), 0.7) / scale).astype(np.float32)


def _field(levels: list[_Level], matrix: np.ndarray, keep: np.ndarray | None = None) -> np.ndarray:
    """Return local displacements on the tile grid, rows,columns,2 float32 in full-size pixels."""
    grid = np.zeros((*levels[-1].tiles, 2), np.float32)
    used = levels[-4:]
    for level, width in zip(used, (3.0, 2.2, 1.6, 1.2)[-len(used) :], strict=True):
        here = level.scale @ matrix @ np.linalg.inv(level.scale)
        for _ in range(4):
            normal = _normal(level, here, grid * np.float32(level.scale[0, 0]))
            if keep is not None:
                normal = normal._replace(cover=normal.cover * keep)
            grid = _relax(normal, level, grid, width)
    return grid


def _residual(level: _Level, matrix: np.ndarray, grid: np.ndarray | None) -> _Normal:
    here = level.scale @ matrix @ np.linalg.inv(level.scale)
    return _normal(level, here, None if grid is None else grid * np.float32(level.scale[0, 0]))


def _helps(levels: list[_Level], matrix: np.ndarray) -> bool:
    """Say whether a field made from half of the tiles clearly lowers the other half's residual."""
    rows, columns = levels[-1].tiles
    half = np.add.outer(np.arange(rows) // 2, np.arange(columns) // 2) % 2 == 0
    grid = _field(levels, matrix, half)
    before = _residual(levels[-1], matrix, None)
    after = _residual(levels[-1], matrix, grid)
    judged = ~half & (before.cover > 0.9) & (after.cover > 0.9)
    if judged.sum() < 8:
        return False
    cap = 4 * np.median(before.energy[judged])
    old, new = (np.minimum(one.energy[judged], cap) for one in (before, after))
    gain = old - new
    return bool(gain.mean() > max(0.03 * old.mean(), 3 * gain.std() / np.sqrt(gain.size)))


def register(frame: np.ndarray, reference: np.ndarray, *, local: bool = True) -> Transform:
    """Find where each pixel of the reference lies in a frame; both H,W,C (or H,W) float32.

    Values may have any unit and gain; only structure counts. A homography good to 0.1 px from coarse to fine, then with
    `local` a smooth field where it lowers the residual on tiles it has not seen (parallax, rolling
    shutter). A displacement that stays below 0.1 px or below its own standard error is none: the
    matrix is then exactly the identity. Refuse a result whose `correlation` is low.
    """
    if frame.shape[:2] != reference.shape[:2]:
        raise Error(
            f"frame is {frame.shape[1]}x{frame.shape[0]} and reference "
            f"{reference.shape[1]}x{reference.shape[0]} pixels: registration needs equal sizes"
        )
    here, there = grey(reference), grey(frame)
    levels = _pyramid(there, here)
    matrix, error = _global(levels, here.shape)
    grid = _field(levels, matrix) if local and _helps(levels, matrix) else None
    field = None if grid is None else cv2.resize(grid, here.shape[::-1], interpolation=cv2.INTER_CUBIC)
    score = max(_residual(level, matrix, grid).correlation for level in levels[1:] or levels)
    found = Transform(matrix, field, score, error)
    if largest(found, here.shape) < NEGLIGIBLE:
        return Transform(np.eye(3), None, score, error)
    return found
