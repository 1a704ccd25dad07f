"""Where frames show something else than the reference, and where the sensor was full.

No mask looks at one sample's own noise, or input and target of a Noise2Noise pair would become
dependent: movement is judged by averages over at least 5x5 pixels, clipping by averages over all
frames as well, and both are fixed before training.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from n2n.profile import Profile
from n2n.registration.geometry import cv2, grey

WINDOWS = (5, 15)
"""Sides in pixels of the averages by which movement is judged."""
SIGMAS = 3.0
"""Standard deviations of such an average beyond which a place has moved."""
CERTAIN = 5.0
"""Standard deviations that a moved place of few pixels must reach somewhere."""
SPECK = 150
"""Pixels from which on a moved place needs no such peak."""
SLACK = 0.1
"""Pixels of misregistration that are not movement."""
LARGE = 4_000_000
"""Pixels above which movement is looked for at half the resolution: nobody looks closer there."""
ENOUGH = 1_000_000
"""Samples, evenly taken, that a median of a large picture is told from: good to 0.002 sigma."""
LEVELS = 16
"""Bins of brightness."""
SAMPLES = 300_000
"""Pixels that a curve of brightness is measured on: medians of a bin are good to 0.01 sigma."""
ODD = 1.5
"""Factor above what the noise profile lets expect beyond which a bin holds movement, not noise."""
BENT = 0.03
"""Share of the range by which a difference of tone may leave a line; what is beyond has moved."""


class Curve(NamedTuple):
    """Hold robust centre and standard deviation of a residual by brightness."""

    at: np.ndarray
    centre: np.ndarray
    sigma: np.ndarray


def brightness_curve(rest: np.ndarray, bright: np.ndarray, known: np.ndarray) -> Curve:
    """Measure a residual H,W in bins of equally many pixels; all from the picture itself.

    White-noise theory would set the sigma of an average too low where demosaicking, JPEG or
    resampling have correlated the neighbours. The centre takes up gain and tone differences.
    """
    chosen = np.flatnonzero(known.ravel() > 0)
    chosen = chosen[:: max(1, chosen.size // SAMPLES)]
    bright, rest = bright.ravel()[chosen], rest.ravel()[chosen]
    order = [one for one in _equally_full(bright) if one.size]
    if not order:
        return Curve(np.zeros(1), np.zeros(1), np.ones(1))
    at = np.array([bright[one].mean() for one in order], np.float64)
    centre = np.array([np.median(rest[one]) for one in order])
    sigma = np.array(
        [1.4826 * np.median(np.abs(rest[one] - c)) for one, c in zip(order, centre, strict=True)]
    )
    return Curve(at, centre, np.maximum(sigma, max(0.25 * float(np.median(sigma)), 1e-6)))


def _equally_full(bright: np.ndarray) -> list[np.ndarray]:
    """Return the indices of LEVELS bins of a list of values, darkest first, equally full but for
    the few samples that settle their edges."""
    edges = np.quantile(bright[:: max(1, bright.size // 20_000)], np.arange(1, LEVELS) / LEVELS)
    bins = np.searchsorted(edges.astype(bright.dtype), bright, side="right").astype(np.uint8)
    ends = np.cumsum(np.bincount(bins, minlength=LEVELS))[:-1]
    return np.split(np.argsort(bins, kind="stable"), ends)


def steadied(curve: Curve, expected: np.ndarray | None = None) -> Curve:
    """Take out of a residual's curve what large moved things have done to it.

    They may fill whole bins of brightness. The centre of such a bin leaves the line that most bins
    agree on, and is read from the others; its sigma exceeds what is `expected` of the noise, which
    need be known up to a factor only, and is limited to that.
    """
    at, centre, sigma = curve
    if len(at) < LEVELS:
        return curve
    gain, offset = agreed_line(at, centre)
    rest = centre - gain * at - offset
    steady = np.abs(rest) <= BENT * (at[-1] - at[0])
    if steady.any():
        centre = gain * at + offset + np.interp(at, at[steady], rest[steady])
    if expected is not None:
        factor = np.median(sigma / np.maximum(expected, 1e-9))
        sigma = np.minimum(sigma, ODD * factor * expected)
    return Curve(at, centre, sigma)


def agreed_line(at: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Return gain and offset of the line that more than half of the points agree on (repeated
    medians, Siegel 1982)."""
    step = at[:, None] - at[None]
    apart = np.abs(step) > 1e-9
    slopes = np.where(apart, values[:, None] - values[None], np.nan) / np.where(apart, step, 1)
    own = [np.nanmedian(row) for row in slopes if not np.isnan(row).all()]
    gain = float(np.median(own)) if own else 0.0
    return gain, float(np.median(values - gain * at))


def slope(picture: np.ndarray) -> np.ndarray:
    """Return the length of the gradient per pixel of a picture H,W float32."""
    return np.hypot(
        cv2.Sobel(picture, -1, 1, 0, ksize=3, scale=0.125),
        cv2.Sobel(picture, -1, 0, 1, ksize=3, scale=0.125),
    )


def _deviation(
    frame: np.ndarray,
    reference: np.ndarray,
    overlap: np.ndarray,
    side: int,
    slack: float,
    profile: Profile | None,
) -> np.ndarray:
    """Return H,W: the averaged residual in its own standard deviations, all channels together."""
    total = np.zeros(frame.shape[:2], np.float32)
    for channel in range(frame.shape[2]):
        here, there = (cv2.blur(one[..., channel], (side, side)) for one in (reference, frame))
        bright = (here + there) / 2
        curve = brightness_curve(there - here, bright, overlap)
        curve = steadied(curve, None if profile is None else profile.sigma_at(channel, curve.at))
        rest = there - here - np.interp(bright, curve.at, curve.centre)
        spread = np.hypot(np.interp(bright, curve.at, curve.sigma), slack * slope(bright))
        total += np.square(rest / spread)
    return np.sqrt(total / frame.shape[2])


def _clean(deviation: np.ndarray) -> np.ndarray:
    """Return where a deviation map means movement: large or certain places, slightly widened."""
    moved = deviation > SIGMAS
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        moved.astype(np.uint8), connectivity=8
    )
    peak = np.zeros(count)
    np.maximum.at(peak, np.asarray(labels[moved], np.int64), deviation[moved])
    real = (peak >= CERTAIN) | (stats[:, cv2.CC_STAT_AREA] >= SPECK)
    real[0] = False
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))
    whole = cv2.morphologyEx(real[labels].astype(np.uint8), cv2.MORPH_CLOSE, disc)
    return cv2.dilate(whole, disc) > 0


def motion(
    frame: np.ndarray,
    reference: np.ndarray,
    overlap: np.ndarray,
    profile: Profile | None = None,
) -> np.ndarray:
    """Return H,W,1 float32: 0 where a registered frame H,W,C shows something else, 1 elsewhere.

    The residual to the reference, averaged over 5x5 and 15x15 pixels (of half the resolution in
    large frames), beyond 3 sigma of these averages at that brightness; a misregistration of 0.1 px
    is allowed for. `overlap` H,W,1. With the frames' noise profile a thing that fills whole
    ranges of brightness is not taken for noise.
    """
    height, width = frame.shape[:2]
    halved = height * width > LARGE
    slack = SLACK / 2 if halved else SLACK
    pictures = [frame, reference, overlap]
    if halved:
        size = ((width + 1) // 2, (height + 1) // 2)
        small = (cv2.resize(one, size, interpolation=cv2.INTER_AREA) for one in pictures)
        pictures = [one.reshape(*size[::-1], -1) for one in small]
    here, there, known = pictures
    deviation = np.zeros(here.shape[:2], np.float32)
    for side in WINDOWS:
        np.maximum(deviation, _deviation(here, there, known, side, slack, profile), out=deviation)
    deviation *= known[..., 0] > 0
    still = (~_clean(deviation)).astype(np.float32)
    if halved:
        wide = cv2.resize(still, (width, height), interpolation=cv2.INTER_NEAREST)
        return np.asarray(wide[..., None], np.float32)
    return still[..., None]


def some(values: np.ndarray) -> np.ndarray:
    """Return up to twice ENOUGH of many values, evenly taken."""
    return values[:: max(1, len(values) // ENOUGH)]


def hard_limit(pictures: Sequence[np.ndarray]) -> float | None:
    """Return the value at which frames H,W,C are cut off, or None where they are not.

    A limit is the largest value where samples pile up: more than one in 20,000 and at least half
    as many as in the whole hundredth of the range below it.
    """
    top = max(float(one.max()) for one in pictures)
    low = min(float(one.min()) for one in pictures)
    below = top - 0.01 * (top - low)
    at = sum(int((one == top).sum()) for one in pictures)
    near = sum(int((one >= below).sum()) for one in pictures) - at
    size = sum(one.size for one in pictures)
    return top if at > max(8, size / 20_000) and at >= near / 2 else None


def _sigma(stack: np.ndarray, weights: np.ndarray, first: int) -> tuple[np.ndarray, Curve]:
    """Return the weighted mean H,W,C and one frame's noise by brightness (both float)."""
    count = np.maximum(weights.sum(0), 1e-6)
    mean = np.zeros(stack.shape[1:], np.float32)
    for frame, weight in zip(stack, weights, strict=True):
        mean += frame * weight
    mean /= count
    other = 1 if first == 0 else 0
    bright = cv2.blur(grey(mean), (5, 5))
    rest = (stack[other] - stack[first]) / np.sqrt(np.float32(2))
    curves = [brightness_curve(one, bright, weights[other]) for one in np.moveaxis(rest, -1, 0)]
    sigma = np.max([curve.sigma for curve in curves], axis=0)
    # A clipped sample has lost half its noise: towards the limit the curve may not fall.
    return mean, Curve(curves[0].at, curves[0].centre, np.maximum.accumulate(sigma))


def _highest(picture: np.ndarray) -> np.ndarray:
    """Return the largest channel, H,W; eight times faster than a maximum along the short axis."""
    return functools.reduce(np.maximum, np.moveaxis(picture, -1, 0))


def clipping(stack: np.ndarray, weights: np.ndarray, first: int, limit: float | None) -> np.ndarray:
    """Return H,W,1 float32: 0 where the mean over frames and 5x5 pixels is near `limit`: 1 sigma.

    One decision per place for all frames; shadows stay: the expected frame is the target there.
    """
    if limit is None:
        return np.ones((*stack.shape[1:3], 1), np.float32)
    mean, curve = _sigma(stack, weights, first)
    highest = _highest(cv2.blur(mean, (5, 5)).reshape(mean.shape))
    sigma = np.interp(highest, curve.at, curve.sigma)
    return (highest <= limit - sigma)[..., None].astype(np.float32)


def highlight_noise(
    frame: np.ndarray, reference: np.ndarray, weight: np.ndarray, limit: float
) -> float:
    """Return the standard deviation of a frame's noise in the brighter half of what is unclipped.

    Frame and reference H,W,C, weight H,W,1.
    """
    known = (weight[..., 0] > 0) & (_highest(np.maximum(frame, reference)) < limit)
    if not known.any():
        return 0.0
    bright = cv2.blur(grey(frame) + grey(reference), (5, 5))
    places = some(np.flatnonzero(known & (bright >= np.median(some(bright[known])))))
    ours, theirs = (one.reshape(-1, frame.shape[-1])[places] for one in (frame, reference))
    rest = ours - theirs
    return 1.4826 * float(np.median(np.abs(rest - np.median(rest, axis=0)))) / 2**0.5


def unsaturated(
    frame: np.ndarray, reference: np.ndarray, weight: np.ndarray, limit: float | None
) -> np.ndarray:
    """Return `weight` H,W,1 less the places where a channel of either picture H,W,C nears `limit`.

    By the mean over 5x5 pixels and 2 sigma, beyond which clipping moves a mean by 0.01 sigma.
    """
    if limit is None:
        return weight
    end = limit - 2 * highlight_noise(frame, reference, weight, limit)
    tops = [_highest(cv2.blur(one, (5, 5)).reshape(one.shape)) for one in (frame, reference)]
    return weight * (np.maximum(*tops) <= end)[..., None].astype(np.float32)


def settled(
    frame: np.ndarray,
    alike: np.ndarray,
    reference: np.ndarray,
    weight: np.ndarray,
    ends: np.ndarray,
    limit: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Settle the highlights of a frame H,W,C after it was brought to the reference's exposure.

    Its clipped samples lie at `ends` (C) there. Where the reference is clipped too, white stays
    white; where it is not, samples beyond the end are no measurements and the weight is 0; what now
    lies beyond `limit` the reference's camera would have clipped. Decided once per place, by the
    mean of both pictures over 5x5 pixels. Returns `alike` and `weight` H,W,1.
    """
    sigma = highlight_noise(alike, reference, weight, limit)
    alike, lost = np.minimum(alike, np.float32(limit)), np.zeros(frame.shape[:2], bool)
    for channel in np.flatnonzero(ends < limit - sigma / 4):
        ours, clipped, theirs = (one[..., channel] for one in (alike, frame, reference))
        white = cv2.blur((clipped + theirs) / 2, (5, 5)) > limit - sigma
        lost |= ~white & (cv2.blur((ours + theirs) / 2, (5, 5)) > ends[channel])
        alike[..., channel] = np.where(white, clipped, ours)
    return alike, weight * ~lost[..., None]
