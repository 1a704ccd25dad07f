"""Small differences of exposure, white balance and shading between frames, taken out.

Camera-developed values are no linear function of light, so the difference of exposure is a curve of
brightness, not a gain, measured channel by channel from medians over the whole picture. Shading (a
lens that is brighter in the middle, a hand that takes away light) is a gain that varies slowly over
the picture. Both come from thousands of pixels, so that no sample is changed by its own noise.
"""

from __future__ import annotations

import numpy as np

from n2n.bursts.masks import LEVELS, brightness_curve
from n2n.registration.geometry import cv2

NEGLIGIBLE = 0.02
"""Differences below this share of a frame's own noise are none: no mean of frames shows them."""
CHANCE = 2.0
"""Root mean square of 16 medians, in their own errors, that chance reaches once in 10 million."""
SHADED = 0.25
"""Shading is taken out where its standard deviation exceeds this share of a frame's noise."""
_SIDE = 5


def matched(frame: np.ndarray, reference: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return a registered frame H,W,C float32 in the reference's exposure, colours and shading.

    `weight` H,W,1 is 0 where the frame shows something else. What agrees as well as the noise lets
    one tell is returned as it is.
    """
    return _shaded(_toned(frame, reference, weight), reference, weight)


def _toned(frame: np.ndarray, reference: np.ndarray, weight: np.ndarray) -> np.ndarray:
    result = frame
    # Medians of equally full bins, whose own error is 1.25 sigma / sqrt(n).
    error = 1.25 / np.sqrt(max(1.0, float(weight.sum()) / LEVELS))
    least = max(NEGLIGIBLE, CHANCE * error)
    for channel in range(frame.shape[2]):
        here, there = reference[..., channel], frame[..., channel]
        bright = cv2.blur((here + there) / 2, (_SIDE, _SIDE))
        curve = brightness_curve(there - here, bright, weight)
        if np.sqrt(np.mean(np.square(curve.centre))) <= least * np.median(curve.sigma):
            continue
        result = frame.copy() if result is frame else result
        # The curve is one of the two frames' mean: half of the difference lies on either side.
        half = there - np.interp(there, curve.at, curve.centre) / 2
        result[..., channel] = there - np.interp(half, curve.at, curve.centre)
    return result


def _shaded(frame: np.ndarray, reference: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Multiply by the ratio of the two pictures' surroundings, a twelfth of the picture wide."""
    side = max(15, min(frame.shape[:2]) // 12 | 1)
    here, there = (_surroundings(one, weight, side) for one in (reference, frame))
    rest = (frame - reference)[weight[..., 0] > 0]
    sigma = 1.4826 * float(np.median(np.abs(rest - np.median(rest)))) if rest.size else np.inf
    known = cv2.blur(weight, (side, side)) > 0.5
    if not known.any() or float(np.std((there - here)[known])) <= SHADED * sigma:
        return frame
    floor = 0.02 * float(here.max())
    gain = (np.maximum(here, 0) + floor) / (np.maximum(there, 0) + floor)
    return (frame * np.where(known[..., None], gain, 1.0)).astype(np.float32)


def _surroundings(picture: np.ndarray, weight: np.ndarray, side: int) -> np.ndarray:
    """Average H,W,C over a smooth window, by weights."""
    total, count = picture * weight, weight
    for _ in range(2):
        total, count = (cv2.blur(one, (side, side)).reshape(one.shape) for one in (total, count))
    return total / np.maximum(count, 1e-3)
