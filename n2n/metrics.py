"""How good a picture is: psnr and ssim against a reference, and clean-free quality without one.

Pictures are H,W or H,W,C, numpy or jax, in units where black to white is `data_range`; None means
1 for float pictures, 255 for uint8 and 65,535 for uint16. Everything is computed in float64 on the
host, and nothing is clipped or rounded. Shapes must be equal.

Clean-free quality estimates the mean squared error of an estimate f against the expected frame
from two frames x, y of the same scene whose noise has mean zero, is independent between them and
independent of f. What is the same in all frames (fixed pattern, the bias of clipping) counts as
signal. Estimates and their standard errors are made in MSE and turned into dB last; a value that
is not positive becomes inf, "better than these frames can measure".

The standard error is that of the noise, not of the picture. With residuals rx = f-x, ry = f-y the
products rx ry have, for Gaussian noise of any covariance, the same covariances as the field
w = (rx^2 - ry^2) / 2, whose mean is known to be zero: the squares of its sums over blocks of
`block` px estimate the variance. A block should span four correlation lengths of the noise. Where
there are few blocks the variance is raised by Student's factor, so that 1.96 deviations always
stand for 95 %. Results of several disjoint pairs of frames are averaged, their variances added and
divided by the square of their number, before `to_score` or `to_gain`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import uniform_filter
from scipy.special import stdtrit

from n2n.types import Error, Score

_QUANTILE = 1.959964
"""Of the normal distribution, for an interval of 95 %."""


def psnr(image: ArrayLike, reference: ArrayLike, *, data_range: float | None = None) -> float:
    """Return 10 log10(data_range^2 / MSE) in dB, all channels jointly; inf for equal pictures.

    Error for unequal shapes, or integers against floats without a data_range.
    """
    data_range = _span(data_range, image=image, reference=reference)
    image, reference = _alike(image=image, reference=reference)
    return _decibel(float(np.mean(np.square(image - reference))), data_range)


def ssim(image: ArrayLike, reference: ArrayLike, *, data_range: float | None = None) -> float:
    """Return the structural similarity: uniform window of 7x7, mean over pixels and channels.

    The windows lie wholly inside the picture and the variances are unbiased, as by default in
    scikit-image. Error for unequal shapes or a side below 7 px.
    """
    data_range = _span(data_range, image=image, reference=reference)
    image, reference = _alike(image=image, reference=reference)
    if min(image.shape[:2]) < 7:
        raise Error(f"image has shape {image.shape}: ssim needs at least 7 px on every side")
    # Less the common mean, since E[x^2] - E[x]^2 cancels where the picture is bright and flat.
    level = reference.mean()
    x, y = image - level, reference - level
    mean_x, mean_y = _window(x), _window(y)
    variances = _window(x * x) - mean_x**2 + _window(y * y) - mean_y**2
    covariance = _window(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    structure = (2 * covariance * 49 / 48 + c2) / (variances * 49 / 48 + c2)
    mean_x, mean_y = mean_x + level, mean_y + level
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return float(np.mean(luminance * structure))


def upsnr(
    estimate: ArrayLike,
    x: ArrayLike,
    y: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    data_range: float | None = None,
    block: int = 32,
) -> Score:
    """Return the clean-free PSNR of `estimate`, which has seen neither frame x nor frame y.

    mask: H,W, True where to look. Error for unequal shapes or a mask that leaves nothing.
    """
    data_range = _span(data_range, estimate=estimate, x=x, y=y)
    mse, variance = product_mse(estimate, x, y, mask=mask, block=block)
    return to_score(mse, math.sqrt(variance), data_range=data_range)


def upsnr_pair(
    estimate_a: ArrayLike,
    a: ArrayLike,
    estimate_b: ArrayLike,
    b: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    data_range: float | None = None,
    block: int = 32,
) -> Score:
    """Return the clean-free PSNR of a denoiser of one frame: estimate_a = f(a), estimate_b = f(b).

    For bursts of two, where no third frame is left. mask: H,W, True where to look. Error for
    unequal shapes or a mask that leaves nothing.
    """
    data_range = _span(data_range, estimate_a=estimate_a, a=a, estimate_b=estimate_b, b=b)
    mse, variance = pair_mse(estimate_a, a, estimate_b, b, mask=mask, block=block)
    return to_score(mse, math.sqrt(variance), data_range=data_range)


def product_mse(
    estimate: ArrayLike,
    x: ArrayLike,
    y: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    block: int = 32,
) -> tuple[float, float]:
    """Return mean (f-x)(f-y), an unbiased estimate of f's MSE, and the estimate's variance."""
    estimate, x, y = _alike(estimate=estimate, x=x, y=y)
    rx, ry = estimate - x, estimate - y
    return _mean_and_variance(rx * ry, (rx**2 - ry**2) / 2, mask, block)


def pair_mse(
    estimate_a: ArrayLike,
    a: ArrayLike,
    estimate_b: ArrayLike,
    b: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    block: int = 32,
) -> tuple[float, float]:
    """Return an estimate of the MSE of f of one frame, and the estimate's variance.

    mean (u^2 + v^2 - (a-b)^2) / 2 with u = a-f(b), v = b-f(a). It also serves a frame itself,
    f(a) = a. The variance is too large rather than too small: by up to 4 times for weak denoisers.
    """
    fa, a, fb, b = _alike(estimate_a=estimate_a, a=a, estimate_b=estimate_b, b=b)
    u, v = a - fb, b - fa
    # For f(a) - scene = bias + L na, with L linear, the error is na (1-2L) nb - bias (na+nb).
    # (a-b)(a+b-f(a)-f(b)) / 2 has mean 0 and the variance of na (1-L) nb - bias (na+nb); the other
    # na L nb has half the variance of (a-b)(f(a)-f(b)) / 2. Simulated on two scenes, white and
    # correlated noise of 5 and 25 / 255, Gaussian blur, median, total variation and identity: the
    # standard error is 0.94 to 2.3 times the true one. (u^2-v^2) / 2 gives 0 to 2.0 times, below
    # 0.5 wherever f lets the noise pass.
    field = (a - b) * (a + b - fa - fb) / 2
    mse, variance = _mean_and_variance((u**2 + v**2 - (a - b) ** 2) / 2, field, mask, block)
    return mse, variance + _spread((a - b) * (fa - fb) / 2, mask, block) / 2


def paired_difference(
    estimate: ArrayLike,
    other: ArrayLike,
    x: ArrayLike,
    y: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    block: int = 32,
) -> tuple[float, float]:
    """Return the MSE of `estimate` less that of `other`, from frames x, y, and its variance.

    mean (f-g)(f+g-x-y) is free of the product of the two noises, the largest term of either MSE.
    What remains, (f-g)(nx+ny), has the covariances of (f-g)(x-y), whatever the law of the noise.
    """
    f, g, x, y = _alike(estimate=estimate, other=other, x=x, y=y)
    return _mean_and_variance((f - g) * (f + g - x - y), (f - g) * (x - y), mask, block)


def paired_mse(
    estimate: ArrayLike,
    other: ArrayLike,
    x: ArrayLike,
    y: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    block: int = 32,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the MSEs of `estimate` and `other`, (2,), and their covariance, (2, 2).

    Both in product form with the same frames x, y, so that most of their errors is common.
    """
    f, g, x, y = _alike(estimate=estimate, other=other, x=x, y=y)
    products = [(each - x) * (each - y) for each in (f, g)]
    fields = [((each - x) ** 2 - (each - y) ** 2) / 2 for each in (f, g)]
    size = _block_sizes(x.shape, mask, block).sum()
    mses = np.array([_block_sums(each, mask, block).sum() for each in products]) / size
    sums = np.stack([_block_sums(each, mask, block) for each in fields])
    return mses, sums @ sums.T / size**2 * _widening(sums.shape[1])


def paired_gain(
    estimate: ArrayLike,
    other: ArrayLike,
    x: ArrayLike,
    y: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    block: int = 32,
) -> Score:
    """Return by how many dB `estimate` is better than `other`, with its own, paired interval.

    Neither has seen frame x or frame y. mask: H,W, True where to look. Error for unequal shapes or
    a mask that leaves nothing.
    """
    return to_gain(*paired_mse(estimate, other, x, y, mask=mask, block=block))


def pair_gain(
    estimate_a: ArrayLike,
    a: ArrayLike,
    estimate_b: ArrayLike,
    b: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    block: int = 32,
) -> Score:
    """Return by how many dB f of one frame is better than the frame, with its 95 % interval.

    The errors of the two MSEs are taken as opposed, the worst that they can be. Error for unequal
    shapes or a mask that leaves nothing.
    """
    own, own_variance = pair_mse(estimate_a, a, estimate_b, b, mask=mask, block=block)
    raw, raw_variance = pair_mse(a, a, b, b, mask=mask, block=block)
    shared = -math.sqrt(own_variance * raw_variance)
    return to_gain(np.array([own, raw]), np.array([[own_variance, shared], [shared, raw_variance]]))


def to_score(mse: float, se: float, *, data_range: float = 1.0) -> Score:
    """Return an MSE and its standard error as dB with the 95 % interval."""
    half = _QUANTILE * se
    return Score(*(_decibel(each, data_range) for each in (mse, mse + half, mse - half)))


def to_gain(mses: np.ndarray, covariance: np.ndarray) -> Score:
    """Return 10 log10(mses[1] / mses[0]) in dB with its 95 % interval, by Fieller's theorem.

    The interval holds every ratio r for which mses[0] - r mses[1] is within 1.96 of its standard
    errors; -inf or inf where the frames do not bound it. Two MSEs below 0 are a gain of 0.
    """
    (m1, m2), z2 = mses, _QUANTILE**2
    a = m2**2 - z2 * covariance[1, 1]
    b = m1 * m2 - z2 * covariance[0, 1]
    c = m1**2 - z2 * covariance[0, 0]
    if m2 <= 0:
        return Score(-math.inf if m1 > 0 else 0.0, -math.inf, math.inf)
    if a <= 0:
        return Score(_decibel(m1 / m2), -math.inf, math.inf)
    root = math.sqrt(max(b**2 - a * c, 0.0))
    return Score(*(_decibel(ratio) for ratio in (m1 / m2, (b + root) / a, (b - root) / a)))


def held_out(
    shape: tuple[int, ...], *, seed: int = 0, block: int = 32, one_in: int = 8, guard: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """Return the places to score and the places to train on, two boolean H,W masks.

    One block in `one_in` is scored, at least one, at random on the grid of whole blocks; the loss
    is on where no such block is nearer than `guard` px. In a picture so small that one block with
    its guard takes more than three quarters of it, nothing is held out: the first mask is empty.
    """
    if len(shape) < 2 or min(shape[:2]) < 1 or min(block, one_in) < 1 or guard < 0:
        raise Error(
            f"held_out: shape={shape}, block={block}, one_in={one_in}, guard={guard}: the shape "
            "must be H,W, the others at least 1 and the guard at least 0"
        )
    height, width = shape[:2]
    score, loss = np.zeros((height, width), bool), np.ones((height, width), bool)
    rows, columns = height // block, width // block
    if not rows * columns or (block + 2 * guard) ** 2 > 0.75 * height * width:
        return score, loss
    number = max(1, round(rows * columns / one_in))
    for place in np.random.default_rng(seed).choice(rows * columns, number, replace=False):
        top, left = (int(corner) * block for corner in divmod(place, columns))
        score[top : top + block, left : left + block] = True
        above, before = max(top - guard, 0), max(left - guard, 0)
        loss[above : top + block + guard, before : left + block + guard] = False
    return score, loss


def _alike(**pictures: ArrayLike) -> list[np.ndarray]:
    """Return pictures of one shape as H,W,C float64."""
    arrays = {name: np.asarray(each, np.float64) for name, each in pictures.items()}
    first = next(iter(arrays))
    for name, array in arrays.items():
        if array.ndim not in (2, 3) or not array.size:
            raise Error(f"{name} has shape {array.shape}: it must be a picture, H,W or H,W,C")
        if array.shape != arrays[first].shape:
            raise Error(
                f"{name} has shape {array.shape}, {first} {arrays[first].shape}: "
                "pictures are compared at equal shapes"
            )
    return [array if array.ndim == 3 else array[..., None] for array in arrays.values()]


def _span(data_range: float | None, **pictures: ArrayLike) -> float:
    """Return `data_range`, or what black to white is in the type of the pictures."""
    if data_range is not None:
        return data_range
    kinds = {name: np.asarray(each).dtype for name, each in pictures.items()}
    first = next(iter(kinds))
    for name, kind in kinds.items():
        if kind.kind not in "bf" and kind not in (np.uint8, np.uint16):
            raise Error(f"{name} is {kind}: say what black to white is with data_range=")
        if kind.kind != kinds[first].kind or (kind.kind == "u" and kind != kinds[first]):
            raise Error(
                f"{name} is {kind}, {first} {kinds[first]}: bring them to one range, or say which "
                "with data_range="
            )
    return float(np.iinfo(kinds[first]).max) if kinds[first].kind == "u" else 1.0


def _window(array: np.ndarray) -> np.ndarray:
    return uniform_filter(array, size=(7, 7, 1))[3:-3, 3:-3]


def _decibel(mse: float, data_range: float = 1.0) -> float:
    if not data_range > 0:
        raise Error(f"data_range={data_range} must be above 0: it is the span from black to white")
    return math.inf if mse <= 0 else 10 * math.log10(data_range**2 / mse)


def _mean_and_variance(
    values: np.ndarray, field: np.ndarray, mask: ArrayLike | None, block: int
) -> tuple[float, float]:
    """Return the mean of `values`, and its variance from a mean-zero field of equal covariances."""
    size = _block_sizes(values.shape, mask, block).sum()
    mean = _block_sums(values, mask, block).sum() / size
    sums = _block_sums(field, mask, block)
    return float(mean), float(np.sum(sums**2) / size**2 * _widening(len(sums)))


def _spread(values: np.ndarray, mask: ArrayLike | None, block: int) -> float:
    """Return the variance of the mean of `values` from the spread between the blocks."""
    sums, sizes = _block_sums(values, mask, block), _block_sizes(values.shape, mask, block)
    sizes = sizes[sizes > 0]
    free = max(len(sums) - 1, 1)
    deviations = sums - sums.sum() / sizes.sum() * sizes
    return float(np.sum(deviations**2) * len(sums) / free / sizes.sum() ** 2 * _widening(free))


def _block_sums(values: np.ndarray, mask: ArrayLike | None, block: int) -> np.ndarray:
    """Sum H,W,C over blocks and channels within the mask; blocks without any of it are left out."""
    inside = _inside(mask, values.shape)
    sums = _total(np.where(inside[..., None], values, 0.0).sum(-1), block)
    return sums[_block_sizes(values.shape, mask, block) > 0]


def _block_sizes(shape: tuple[int, ...], mask: ArrayLike | None, block: int) -> np.ndarray:
    """Count the values in every block, all channels, within the mask."""
    return _total(_inside(mask, shape).astype(int), block) * shape[2]


def _total(array: np.ndarray, block: int) -> np.ndarray:
    """Sum H,W over blocks, the last ones smaller."""
    if block < 1:
        raise Error(f"block={block} must be at least 1 px")
    rows, columns = (np.arange(0, side, block) for side in array.shape)
    return np.add.reduceat(np.add.reduceat(array, rows, 0), columns, 1)


def _inside(mask: ArrayLike | None, shape: tuple[int, ...]) -> np.ndarray:
    """Return the mask as booleans, H,W."""
    if mask is None:
        return np.ones(shape[:2], bool)
    array = np.asarray(mask)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.shape != shape[:2] or not np.all((array == 0) | (array == 1)) or not array.any():
        raise Error(
            f"mask has shape {array.shape}: it must be {shape[:2]}, hold True and False (or 1 and "
            "0), and be True somewhere"
        )
    return array.astype(bool)


def _widening(blocks: int) -> float:
    """Return what the variance grows by because it is itself estimated, from so many blocks."""
    return float(stdtrit(blocks, 0.975) / _QUANTILE) ** 2
