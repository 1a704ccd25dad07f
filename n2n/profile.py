"""Noise profile by photon transfer: how much noise a frame has at which brightness.

Two aligned frames of one scene differ by their noise alone, so half of the variance of the
difference, taken where the frames are equally bright, is the noise of one. A sensor's is a line:
the slope is its gain, the intercept its read noise, less what a black level that was not subtracted
adds (it may be negative). A developed picture's (display curve, JPEG) is no line; then the measured
curve is kept. Frames are H,W,C float32 in display units; arrays in, no files.

All is measured in blocks of 8x8 pixels: what differs between the frames slowly over the picture or
with brightness (light, white balance, shading) is taken off by medians of block means; blocks so
steep that 0.1 px of misregistration would show are left out, and so are those that stand out from
their equals (movement). A bin of brightness that clips is left out of the line altogether, since
choosing among its blocks would choose by their noise; at black the curve keeps it, as the noise of
shadows is what a frame has there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np

from n2n.types import Error

BLOCK = 8
"""Side in pixels of the blocks whose variances are compared."""
BINS = 32
"""Bins of equally many blocks, and of equal width: the finer of both."""
LEAST = 16
"""Blocks that make a bin."""
SLACK = 0.1
"""Pixels of misregistration that must not show."""
LEAK = 0.05
"""Share of a block's variance that its slope may add to it by such a misregistration."""
APART = 4.0
"""Standard deviations above its equals beyond which a block shows no noise but movement."""
CLIPPED = 0.002
"""Share of clipped samples from which on a bin has lost a percent of its variance."""
BEND = 0.05
"""Relative departure of the curve from a line, its own errors aside, up to which the line holds."""
_ACCURACY = 0.02
"""Relative error that no bin's weight in the line goes below: no sensor is straight to less."""
_SPECTRA = 1024


@dataclass(frozen=True)
class Curve:
    """Hold the measured noise of one channel, darkest bin first."""

    level: tuple[float, ...]
    """Mean brightness of each bin, display units."""
    variance: tuple[float, ...]
    """Variance of one frame's noise there, display units squared."""
    count: tuple[int, ...]
    """Samples that it was measured on."""
    clipped: tuple[bool, ...]
    """Whether some of these are cut off at black: the line takes no notice of this bin."""


@dataclass(frozen=True)
class Profile:
    """Hold the noise of one frame by brightness, channel by channel."""

    gain: tuple[float, ...]
    """Slope of the line: variance per display unit."""
    offset: tuple[float, ...]
    """Variance at 0 by the line; may be negative."""
    linear: tuple[bool, ...]
    """Whether the line holds; where it does not, `curves` do."""
    curves: tuple[Curve, ...]

    def variance(self, image: np.ndarray) -> np.ndarray:
        """Return the noise's variance H,W,C float32 where a frame's expected value is `image`.

        `image` is H,W,C, best a mean or smoothed: a single frame's noise would go into it. In
        shadows that clip the curve is taken, above them the line, if it holds; below the darkest
        level measured (where the line falls, above the brightest) the variance stays what it is
        there. Error where the channels are not the profile's.
        """
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[2] != len(self.gain):
            raise Error(
                f"image has shape {image.shape}: this noise profile is for H,W,{len(self.gain)}; "
                "give a picture of the camera it was measured on"
            )
        result = np.empty(image.shape, np.float32)
        for channel in range(image.shape[2]):
            result[..., channel] = self._of(channel, image[..., channel])
        return result

    def sigma(self, image: np.ndarray) -> np.ndarray:
        """Return the noise's standard deviation H,W,C float32; see `variance`."""
        return np.sqrt(self.variance(image))

    def noise_map(self, image: np.ndarray) -> np.ndarray:
        """Return the noise map H,W,1 float32 that networks read: root mean square of `sigma`.

        See `variance`.
        """
        return np.sqrt(self.variance(image).mean(-1, keepdims=True))

    def sigma_at(self, channel: int, level: Any) -> Any:
        """Return one channel's standard deviation at a brightness or many; see `variance`."""
        return np.sqrt(self._of(channel, np.asarray(level)))[()]

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as JSON knows them."""
        return dataclasses.asdict(self)

    def _of(self, channel: int, level: np.ndarray) -> np.ndarray:
        curve, line = self.curves[channel], self._line
        measured = np.interp(level, curve.level, curve.variance)
        if not self.linear[channel]:
            return measured
        whole = [at for at, clipped in zip(curve.level, curve.clipped, strict=True) if not clipped]
        dark = curve.clipped[0] or self.gain[channel] > 0
        low = whole[0] if dark else -np.inf
        high = whole[-1] if self.gain[channel] < 0 else np.inf
        straight = line(channel, np.clip(level, low, high))
        return np.where(level < low, measured, straight) if curve.clipped[0] else straight

    def _line(self, channel: int, level: np.ndarray) -> np.ndarray:
        return np.maximum(self.gain[channel] * level + self.offset[channel], 0)


class _Blocks(NamedTuple):
    """Hold one channel by blocks, all h,w, but the differences."""

    level: np.ndarray
    slope: np.ndarray
    """Mean squared gradient of the frames' mean."""
    black: np.ndarray
    """Share of samples cut off at black."""
    white: np.ndarray
    variance: np.ndarray
    """P,h,w: half of the mean squared difference of each pair of frames, evened out."""


class _Bin(NamedTuple):
    """Hold blocks of like brightness."""

    level: float
    values: np.ndarray
    """Their variances, of all pairs, sorted."""
    black: bool
    """Whether some samples are cut off at black."""


def measure(
    frames: Sequence[np.ndarray] | np.ndarray,
    *,
    weights: Sequence[np.ndarray] | np.ndarray | None = None,
    reference: int | None = None,
    spectra: np.ndarray | None = None,
) -> Profile | None:
    """Measure the noise of aligned frames N,H,W,C; None where they show too little (8 blocks).

    Args:
        frames: at least two, as alike in exposure as they were taken.
        weights: N,H,W,1; 0 where a frame shows nothing of this place.
        reference: the frame that all others are compared with; None: each with the next one.
        spectra: N,8,8, what resampling has left of each frame's noise (`spectrum` of resampled
            white noise of variance 1); then the profile is that of a frame not resampled, and
            `reference` should name one. None: no frame was resampled.

    Raises:
        Error: fewer than two frames, or not of one shape H,W,C.
    """
    _check(frames)
    pairs = _pairs(len(frames), reference)
    known = _known(frames, weights)
    if known.sum() < 8:
        return None
    mean = _mean(frames, weights)
    first = np.asarray(frames[reference or 0])
    found = []
    for channel in range(mean.shape[2]):
        planes = [np.asarray(frame[..., channel], np.float32) for frame in frames]
        blocks = _blocks(planes, mean[..., channel], first[..., channel], known, pairs, spectra)
        found.append(_fitted(*_curve(_gathered(blocks, known))))
    gain, offset, linear, curves = zip(*found, strict=True)
    return Profile(gain, offset, linear, curves)


def spectrum(noise: np.ndarray) -> np.ndarray:
    """Return the mean power spectrum 8,8 of noise H,W in blocks; 1 where it is white of variance 1.

    Error where it is smaller than a block.
    """
    tiles = _tiles(np.asarray(noise))
    if not tiles.size:
        raise Error(f"noise has shape {np.shape(noise)}: give at least {BLOCK} x {BLOCK} pixels")
    return np.square(np.abs(np.fft.fft2(tiles))).mean((0, 1)) / BLOCK**2


def _check(frames: Sequence[np.ndarray] | np.ndarray) -> None:
    if len(frames) < 2:
        raise Error(f"frames={len(frames)}: a noise profile needs at least 2 of one scene")
    shapes = sorted({np.shape(frame) for frame in frames})
    if len(shapes) > 1 or len(shapes[0]) != 3:
        raise Error(f"frames have the shapes {shapes}: a noise profile needs one shape H,W,C")


def _pairs(count: int, reference: int | None) -> list[tuple[int, int]]:
    if reference is None:
        return [(index, index + 1) for index in range(count - 1)]
    return [(reference % count, index) for index in range(count) if index != reference % count]


def _means(plane: np.ndarray) -> np.ndarray:
    """Average H,W over blocks; h,w float32, what is left over at the right and below dropped."""
    height, width = (size // BLOCK for size in plane.shape)
    inner = np.asarray(plane[: height * BLOCK, : width * BLOCK], np.float32)
    return cv2.resize(inner, (width, height), interpolation=cv2.INTER_AREA)


def _tiles(plane: np.ndarray) -> np.ndarray:
    """Return H,W as blocks h,w,8,8."""
    height, width = (size // BLOCK for size in plane.shape)
    inner = plane[: height * BLOCK, : width * BLOCK]
    return inner.reshape(height, BLOCK, width, BLOCK).swapaxes(1, 2)


def _known(frames: Any, weights: Any) -> np.ndarray:
    """Return h,w: blocks that every frame shows in full."""
    height, width = (size // BLOCK for size in np.shape(frames[0])[:2])
    known = np.ones((height, width), bool)
    for weight in () if weights is None or not known.size else weights:
        known &= _means(np.asarray(weight)[..., 0] > 0) == 1
    return known


def _mean(frames: Any, weights: Any) -> np.ndarray:
    """Average the frames, H,W,C float32; anything where no frame is known."""
    total = np.zeros(np.shape(frames[0]), np.float32)
    count = np.zeros((*total.shape[:2], 1), np.float32)
    for index, frame in enumerate(frames):
        weight = np.float32(1) if weights is None else np.asarray(weights[index], np.float32)
        total += frame * weight
        count += weight
    return total / np.maximum(count, 1e-6)


def _blocks(
    planes: list[np.ndarray],
    mean: np.ndarray,
    first: np.ndarray,
    known: np.ndarray,
    pairs: list[tuple[int, int]],
    spectra: np.ndarray | None,
) -> _Blocks:
    # cv2's filters want the memory of one plane.
    mean, level = np.ascontiguousarray(mean), _means(mean)
    slope = _means(
        cv2.Sobel(mean, -1, 1, 0, ksize=3, scale=0.125) ** 2
        + cv2.Sobel(mean, -1, 0, 1, ksize=3, scale=0.125) ** 2
    )
    halves = []
    for i, j in pairs:
        difference = planes[j] - planes[i]
        even = _evened(difference, level, known)
        rest = _means(np.square(difference)) - 2 * even * _means(difference) + np.square(even)
        if spectra is not None:
            calm = known & (slope <= np.median(slope[known]))
            rest *= _lost(_tiles(difference)[calm], (spectra[i] + spectra[j]) / 2)
        halves.append(np.maximum(rest, 0) / 2)
    black, white = _means(_piled(-first)), _means(_piled(first))
    return _Blocks(level, slope, black, white, np.stack(halves))


def _evened(difference: np.ndarray, level: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return h,w: what of a difference H,W is no noise, by brightness and then by place."""
    means = _means(difference)
    groups = np.array_split(np.argsort(level[known]), min(BINS // 2, max(1, known.sum() // LEAST)))
    at = [float(level[known][group].mean()) for group in groups]
    centre = [float(np.median(means[known][group])) for group in groups]
    even = np.interp(level, at, centre).astype(np.float32)
    # 25 blocks of 64 pixels: the median takes next to none of the noise along.
    return even + cv2.medianBlur(np.where(known, means - even, 0).astype(np.float32), 5)


def _lost(tiles: np.ndarray, kept: np.ndarray) -> float:
    """Return the variance of noise n,8,8 before it was resampled over that after.

    `kept` is the mean spectrum that resampling leaves of white noise; the noise's own spectrum
    decides how much of it that concerned: demosaicked noise loses less than white.
    """
    tiles = tiles[:: max(1, len(tiles) // _SPECTRA)]
    power = np.square(np.abs(np.fft.fft2(tiles - tiles.mean((1, 2), keepdims=True))))
    shape = (power / np.maximum(power.sum((1, 2), keepdims=True), 1e-30)).mean(0)
    return float((shape / np.maximum(kept, 0.1)).sum() / max(float(shape.sum()), 1e-30))


def _piled(plane: np.ndarray) -> np.ndarray:
    """Return where a frame's plane H,W has its greatest value, float32, if samples pile up there.

    More than one in 20,000, and at least half as many as in the rest of the hundredth of the range
    below it.
    """
    high = float(plane.max())
    at = plane == high
    here = int(at.sum())
    near = int((plane >= high - 0.01 * (high - float(plane.min()))).sum()) - here
    return np.asarray(
        at if here > max(8, plane.size / 20_000) and here >= near / 2 else 0 * at, np.float32
    )


def _bins(level: np.ndarray) -> Iterator[np.ndarray]:
    """Yield indices of blocks, n levels, bin by bin, darkest first."""
    quantiles = np.quantile(level, np.linspace(0, 1, BINS + 1)[1:-1])
    widths = np.linspace(level.min(), level.max(), BINS + 1)[1:-1]
    number = np.searchsorted(np.unique(np.concatenate([quantiles, widths])), level)
    order, sizes = np.argsort(number, kind="stable"), np.bincount(number)
    begin = end = 0
    for size in sizes:
        end += size
        if end - begin >= LEAST and len(order) - end >= LEAST:
            yield order[begin:end]
            begin = end
    yield order[begin:]


def _gathered(blocks: _Blocks, known: np.ndarray) -> list[_Bin]:
    """Return a channel's bins, darkest first: the flat ones that are not white, if any."""
    level, slope, black, white = (one[known] for one in blocks[:4])
    variance, good, spare = blocks.variance[:, known], list[_Bin](), list[_Bin]()
    for chosen in _bins(level):
        flat, enough = _flat(slope[chosen], variance[:, chosen])
        one = chosen[flat]
        values = np.sort(variance[:, one].ravel())
        found = _Bin(float(level[one].mean()), values, bool(black[chosen].mean() > CLIPPED))
        (good if enough and white[chosen].mean() <= CLIPPED else spare).append(found)
    return sorted(good or spare, key=lambda one: one.level)


def _flat(slope: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return which blocks of a bin are flat, and whether they are enough; if not, the flattest."""
    flattest = np.argsort(slope)[: -(-len(slope) // 4)]
    noise = float(np.quantile(variance[:, flattest], 0.25))
    flat = np.flatnonzero(slope * SLACK**2 / 2 <= LEAK * noise)
    enough = len(flat) >= min(LEAST // 2, len(flattest))
    return (flat, True) if enough else (flattest, False)


def _curve(bins: list[_Bin]) -> tuple[Curve, np.ndarray]:
    """Return a channel's curve and the standard error of each variance, relative to it.

    How the variances of equal blocks scatter is the same in all bins, and is taken from all, so
    that a bin full of movement is judged by the others; movement only adds.
    """
    low, middle = (np.array([np.quantile(one.values, q) for one in bins]) for q in (0.25, 0.5))
    spread = float(np.median((middle - low) / np.maximum(low, 1e-30)))
    # Normal: a quartile lies 0.674 sigma off. Where a quarter of the blocks has no noise at all
    # (JPEG of a flat picture) none stands out.
    limits = np.where(low > 0, low * (1 + (1 + APART / 0.674) * spread), np.inf)
    alike = [one.values[one.values <= max(x, 0)] for one, x in zip(bins, limits, strict=True)]
    variance = [float(one.mean()) for one in alike]
    scatter = np.median([one.std() / max(one.mean(), 1e-30) for one in alike])
    curve = Curve(
        tuple(one.level for one in bins),
        tuple(variance),
        tuple(one.size * BLOCK**2 for one in alike),
        tuple(one.black for one in bins),
    )
    return curve, scatter / np.sqrt([one.size for one in alike])


def _fitted(curve: Curve, error: np.ndarray) -> tuple[float, float, bool, Curve]:
    """Return gain, offset, whether this line holds, and the curve."""
    whole = ~np.array(curve.clipped)
    if not whole.any():
        return 0.0, float(np.median(curve.variance)), False, curve
    level, variance, error = (np.array(one)[whole] for one in (curve.level, curve.variance, error))
    floor = 1e-3 * float(variance.max()) + 1e-30
    accuracy = np.hypot(error, _ACCURACY)
    gain, offset = 0.0, float(np.average(variance, weights=1 / accuracy**2))
    if np.ptp(level) > 0:
        line = variance
        for _ in range(10):  # weights by the line itself, which single bins do not pull
            sigma = accuracy * np.maximum(line, floor)
            gain, offset = (float(x) for x in np.polyfit(level, variance, 1, w=1 / sigma))
            line = gain * level + offset
    line = np.maximum(gain * level + offset, floor)
    bend = np.average(np.square(variance / line - 1) - np.square(error), weights=1 / accuracy**2)
    return gain, offset, bool(bend <= BEND**2), curve
