"""Small differences of exposure, white balance and shading between frames, taken out.

Camera-developed values are no linear function of light, so the difference of exposure is a curve of
brightness, not a gain, measured channel by channel from medians over the whole picture. Shading (a
lens that is brighter in the middle, a hand that takes away light) is a gain that varies slowly over
the picture. Both come from thousands of pixels, so that no sample is changed by its own noise.
"""

from __future__ import annotations

import numpy as np

from n2n.bursts.masks import LEVELS, Curve, brightness_curve, some, unsaturated
from n2n.registration.geometry import cv2

NEGLIGIBLE = 0.02
"""Differences below this share of a frame's own noise are none: no mean of frames shows them."""
CHANCE = 2.0
"""Root mean square of 16 medians, in their own errors, that chance reaches once in 10 million."""
SHADED = 0.25
"""Shading is taken out where its standard deviation exceeds this share of a frame's noise."""
_SIDE = 5
_LEAST = 0.01
"""Least share of a picture that must be unclipped for clipped places to be left out."""


def matched(
    frame: np.ndarray, reference: np.ndarray, weight: np.ndarray, limit: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Bring a registered frame H,W,C float32 to the reference's exposure, colours and shading.

    `weight` H,W,1 is 0 where the frame shows something else; what is clipped at `limit` says
    nothing about exposure and is left out of every fit. What agrees as well as the noise lets one
    tell is returned as it is. Returns the frame and, C, what became of `limit` (inf for None).
    """
    known = unsaturated(frame, reference, weight, limit)
    if known.sum() < _LEAST * weight.sum():
        known = weight
    toned, ends = _toned(frame, reference, known, np.inf if limit is None else limit)
    return _shaded(toned, reference, known), ends


def _toned(
    frame: np.ndarray, reference: np.ndarray, known: np.ndarray, limit: float
) -> tuple[np.ndarray, np.ndarray]:
    result, ends = frame, np.full(frame.shape[2], limit)
    # Medians of equally full bins, whose own error is 1.25 sigma / sqrt(n).
    error = 1.25 / np.sqrt(max(1.0, float(known.sum()) / LEVELS))
    least = max(NEGLIGIBLE, CHANCE * error)
    inner = cv2.erode(known, np.ones((_SIDE, _SIDE), np.uint8))
    inner = inner if inner.any() else known[..., 0]
    for channel in range(frame.shape[2]):
        here, there = reference[..., channel], frame[..., channel]
        bright, rest = (cv2.blur(one, (_SIDE, _SIDE)) for one in ((here + there) / 2, there - here))
        curve = brightness_curve(there - here, bright, known)
        if np.sqrt(np.mean(np.square(curve.centre))) <= least * np.median(curve.sigma):
            continue
        # Averaged like the brightness: medians of a gain's own differences follow the texture.
        curve = brightness_curve(rest, bright, inner)
        result = frame.copy() if result is frame else result
        result[..., channel] = _undone(there, curve)
        ends[channel] = _undone(np.array([limit]), curve)[0] if np.isfinite(limit) else limit
    return result, ends


def _undone(there: np.ndarray, curve: Curve) -> np.ndarray:
    """Take a difference, known at the mean of two pictures, from the brighter or darker one.

    A line carries it beyond the bins, to the brightest and darkest values; what the line leaves is
    read from the curve.
    """
    gain, offset = _line(curve)
    rest = curve.centre - gain * curve.at - offset
    # there - here = gain (there + here) / 2 + offset
    here = (there * (1 - gain / 2) - offset) / (1 + gain / 2)
    return here - np.interp((there + here) / 2, curve.at, rest)


def _line(curve: Curve) -> tuple[float, float]:
    """Fit centre = gain x at + offset, by the bins' own precision; float."""
    weight = 1 / np.square(curve.sigma)
    weight = weight / weight.sum()
    at, centre = (float(weight @ one) for one in (curve.at, curve.centre))
    # Bins nearer to each other than their noise tell no gain.
    blur = float(np.median(curve.sigma)) ** 2 + 1e-12
    spread = float(weight @ np.square(curve.at - at))
    gain = float(weight @ ((curve.at - at) * (curve.centre - centre))) / (spread + blur)
    gain = min(max(gain, -0.5), 0.5)
    return gain, centre - gain * at


def _shaded(frame: np.ndarray, reference: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Multiply by the ratio of the two pictures' surroundings, a twelfth of the picture wide."""
    side = max(15, min(frame.shape[:2]) // 12 | 1)
    here, there = (_surroundings(one, known, side) for one in (reference, frame))
    places = some(np.flatnonzero(known[..., 0] > 0))
    ours, theirs = (one.reshape(-1, frame.shape[-1])[places] for one in (frame, reference))
    rest = ours - theirs
    sigma = 1.4826 * float(np.median(np.abs(rest - np.median(rest)))) if rest.size else np.inf
    seen = cv2.blur(known, (side, side)) > 0.5
    differing = (there - here).reshape(-1, frame.shape[-1])[some(np.flatnonzero(seen))]
    if not differing.size or float(np.std(differing)) <= SHADED * sigma:
        return frame
    floor = 0.02 * float(here.max())
    gain = (np.maximum(here, 0) + floor) / (np.maximum(there, 0) + floor)
    return (frame * _continued(gain, seen, side)).astype(np.float32)


def _continued(gain: np.ndarray, seen: np.ndarray, side: int) -> np.ndarray:
    """Fill a gain H,W,C that varies slowly from where it is `seen` H,W, by ever wider averages."""
    known = seen.astype(np.float32)[..., None]
    while not seen.all():
        side = 2 * side + 1
        wider = _surroundings(gain, known, side)
        reached = cv2.blur(known, (side, side)) > 0.01
        gain = np.where((reached & ~seen)[..., None], wider, gain)
        seen, known = seen | reached, np.maximum(known, reached.astype(np.float32)[..., None])
    return gain


def _surroundings(picture: np.ndarray, weight: np.ndarray, side: int) -> np.ndarray:
    """Average H,W,C over a smooth window, by weights."""
    total, count = picture * weight, weight
    for _ in range(2):
        total, count = (cv2.blur(one, (side, side)).reshape(one.shape) for one in (total, count))
    return total / np.maximum(count, 1e-3)
