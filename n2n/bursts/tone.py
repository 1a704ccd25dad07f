"""Small differences of exposure and white balance between frames, taken out.

Camera-developed values are no linear function of light, so the difference is a curve of brightness,
not a gain; it is measured channel by channel from medians over the whole picture, so that no sample
is changed because of its own noise.
"""

from __future__ import annotations

import numpy as np

from n2n.bursts.masks import brightness_curve
from n2n.registration.geometry import cv2

NEGLIGIBLE = 0.1
"""Differences below this share of a frame's own noise are none: the mean of frames hides them."""
_SIDE = 5


def matched(frame: np.ndarray, reference: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return a registered frame H,W,C float32 in the reference's exposure and white balance.

    `weight` H,W,1 is 0 where the frame shows something else. A frame that agrees to within a tenth
    of its noise is returned as it is.
    """
    result = frame
    for channel in range(frame.shape[2]):
        here, there = reference[..., channel], frame[..., channel]
        bright = cv2.blur((here + there) / 2, (_SIDE, _SIDE))
        curve = brightness_curve(there - here, bright, weight)
        if np.abs(curve.centre).max() <= NEGLIGIBLE * np.median(curve.sigma):
            continue
        result = frame.copy() if result is frame else result
        # The curve is one of the two frames' mean: half of the difference lies on either side.
        half = there - np.interp(there, curve.at, curve.centre) / 2
        result[..., channel] = there - np.interp(half, curve.at, curve.centre)
    return result
