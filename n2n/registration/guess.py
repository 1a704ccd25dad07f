"""The first guess of a movement: none, a shift, or what matched features say."""

from __future__ import annotations

import numpy as np

from n2n.registration.geometry import cv2, displacement
from n2n.registration.pyramid import Level
from n2n.registration.tiles import correlation

COARSE = 512
"""Longest side in pixels at which the first guess is made."""
SURE = 0.9
"""Correlation of a guess from which on no features are sought."""


def _bytes(picture: np.ndarray) -> np.ndarray:
    low, high = np.percentile(picture, (0.5, 99.5))
    return np.clip((picture - low) * (255 / max(high - low, 1e-9)), 0, 255).astype(np.uint8)


def _features(level: Level) -> list[np.ndarray]:
    """Match SIFT features; a list of one homography, or of none."""
    sift = cv2.SIFT.create(3000)
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


def _shift(level: Level) -> np.ndarray:
    """Return the translation with the highest phase correlation."""
    window = cv2.createHanningWindow(level.reference.shape[::-1], cv2.CV_32F)
    # cv2 (4.13, 5.0) multiplies the window into its own arguments when they need no padding.
    (dx, dy), _ = cv2.phaseCorrelate(level.reference.copy(), level.frame.copy(), window)
    return np.array([[1, 0, dx], [0, 1, dy], [0, 0, 1.0]])


def _plausible(matrix: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Say whether a camera in the hand can have moved so: up to half of the picture."""
    x, y = np.meshgrid([0.0, shape[1] - 1.0], [0.0, shape[0] - 1.0])
    depth = matrix[2, 0] * x + matrix[2, 1] * y + matrix[2, 2]
    if not np.isfinite(matrix).all() or np.min(depth) < 0.5 or np.max(depth) > 2:
        return False
    return float(np.max(np.hypot(*displacement(matrix, x, y)))) < 0.5 * max(shape)


def guessing(levels: list[Level]) -> Level:
    """Return the level at which the first guess is made."""
    return min(levels, key=lambda one: abs(max(one.reference.shape) - COARSE))


def guess(levels: list[Level]) -> np.ndarray:
    """Return the candidate that correlates best at its level, in full-size pixels."""
    level = guessing(levels)
    shape = level.reference.shape
    candidates = [one for one in (np.eye(3), _shift(level)) if _plausible(one, shape)]
    scores = [correlation(level, one) for one in candidates]
    # Standing still is what a tripod does: another guess must be better, not merely as good.
    scores[0] += 0.02
    if max(scores) < SURE:
        features = [one for one in _features(level) if _plausible(one, shape)]
        candidates += features
        scores += [correlation(level, one) for one in features]
    best = candidates[int(np.argmax(scores))]
    return np.linalg.inv(level.scale) @ best @ level.scale
