"""The score of anybody's picture: clean-free dB against noisy frames that it has not seen.

Everything happens in the picture's geometry and tone: each frame is resampled once (Lanczos) and
brought to the picture's exposure and white balance, so what a program does to tone is not counted,
what it does to detail is. Pictures are H,W,C float32 in display units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from n2n import metrics, registration
from n2n.bursts import checks
from n2n.bursts.masks import LEVELS, brightness_curve, clipping, hard_limit, motion
from n2n.bursts.tone import CHANCE, NEGLIGIBLE
from n2n.registration import Transform
from n2n.types import Error, Score

LEAST = 32 * 32
"""Pixels on which a score is measured at least: one block of its interval."""
NOTABLE = 0.001
"""Share of the picture from which on places that stand apart from all frames are told."""
_SIDE = 15
_WINDOW = np.ones((_SIDE, _SIDE), np.uint8)


@dataclass(frozen=True, eq=False)
class Scored:
    """Hold the clean-free quality of a picture, and where and how it was measured."""

    score: Score
    """PSNR in dB with its 95 % interval; that of the pairs of frames averaged."""
    places: float
    """Share of the picture that it was measured on: seen, unclipped and unmoved in all frames."""
    pairs: int
    """Disjoint pairs of frames; of an odd number of frames the last is only registered."""
    frames: tuple[dict[str, Any], ...]
    """One row per frame: frame, dy and dx of its centre in pixels, used (share of the picture)."""
    apart: float
    """Share of those places where the picture differs from all frames by more than their noise."""
    still: Score | None
    """The score without these places, where they are notable: it flatters if they are faults."""
    notes: tuple[str, ...] = ()
    """Plain sentences about what does not fit together."""


def score(
    picture: np.ndarray,
    frames: Sequence[np.ndarray],
    *,
    names: Sequence[str] | None = None,
    register: bool = True,
) -> Scored:
    """Measure a picture without a clean one, whatever program made it.

    The frames need independent noise of mean zero; frames that the picture was made of flatter it.
    What cannot be known from frames counts for nothing (see `n2n.metrics`). What registration
    leaves over is not in the interval: a product of two frames' misplacements, of either sign. On
    12 megapixels full of edges, misplaced by about 0.04 and -0.02 px, 40.0 dB became 40.8.

    Args:
        picture: H,W,C (or H,W) float32 in display units.
        frames: two or more noisy frames of the same scene, of the same shape and range.
        names: one for the picture and one for each frame, for sentences.
        register: False where the frames are known to be aligned with the picture.

    Raises:
        Error: fewer than two frames, other sizes, another scene, the same picture twice, or
            nothing left to measure on.
    """
    names = tuple(names or ("picture", *(f"frame {i + 1}" for i in range(len(frames)))))
    if len(frames) < 2:
        raise Error(f"frames={len(frames)}: a score needs at least 2 that the picture has not seen")
    picture, *given = checks.usable([picture, *frames], names)
    found = [
        _found(frame, picture, (names[0], name)) if register else Transform(np.eye(3))
        for frame, name in zip(given, names[1:], strict=True)
    ]
    limit = hard_limit(given)
    warped = [
        registration.warp(frame, one.matrix, one.field)
        for frame, one in zip(given, found, strict=True)
    ]
    overlap = np.min([weight for _, weight in warped], axis=0)
    toned = [_toned(frame, picture, overlap) for frame, _ in warped]
    stack, weights = np.stack([frame for frame, _ in toned]), np.stack([w for _, w in warped])
    places = _places(stack, weights, limit, _margin(found, picture.shape))
    if places.sum() < LEAST:
        raise Error(
            f"{names[0]}: the frames leave {places.sum()} pixels to measure on, which must be at "
            f"least {LEAST}; give frames with less clipping, movement or shift"
        )
    apart = places & (motion(stack.mean(0), picture, overlap)[..., 0] == 0)
    share = float(apart.sum() / places.sum())
    notable = share > NOTABLE and (places & ~apart).sum() >= LEAST
    got = _score(picture, stack, places)
    return Scored(
        score=got,
        places=float(places.mean()),
        pairs=len(stack) // 2,
        frames=_table(found, weights, names[1:]),
        apart=share,
        still=_score(picture, stack, places & ~apart) if notable else None,
        notes=_notes(got, [change for _, change in toned], names),
    )


def _found(frame: np.ndarray, picture: np.ndarray, names: tuple[str, str]) -> Transform:
    """Register a frame to the picture, or refuse it."""
    found = registration.register(frame, picture)
    strange = checks.unrelated(found, picture.shape, names[1], names[0])
    if strange:
        raise Error(f"{strange}; leave it out")
    return found


def _toned(frame: np.ndarray, picture: np.ndarray, overlap: np.ndarray) -> tuple[np.ndarray, float]:
    """Return a frame in the picture's exposure and white balance, and by how much it differed.

    Like `n2n.bursts.tone`, but for a picture with far less noise than the frame. The brightness is
    the picture's alone, since the frame's noise in it would be found again in the difference; the
    medians are those of means over 15x15 pixels, since skewed noise (few photons) has another
    median than mean, by a twentieth of its deviation at ten photons.
    """
    least = max(NEGLIGIBLE, CHANCE * 1.25 / math.sqrt(max(1.0, float(overlap.sum()) / LEVELS)))
    result, changes = frame, []
    for channel in range(frame.shape[2]):
        here, there = picture[..., channel], frame[..., channel]
        smooth = [cv2.blur(one, (_SIDE, _SIDE)) for one in (here, there - here)]
        curve = brightness_curve(smooth[1], smooth[0], cv2.erode(overlap, _WINDOW))
        difference = float(np.sqrt(np.mean(np.square(curve.centre))))
        if difference <= least * 1.4826 * float(np.median(np.abs(there - here))):
            continue
        result = frame.copy() if result is frame else result
        near = there - np.interp(there, curve.at, curve.centre)
        result[..., channel] = there - np.interp(near, curve.at, curve.centre)
        changes.append(difference)
    return result, max(changes, default=0.0)


def _places(stack: np.ndarray, weights: np.ndarray, limit: float | None, margin: int) -> np.ndarray:
    """Return H,W: where all frames show the same, unclipped; decided without the picture."""
    known = weights.min(0)
    unclipped = clipping(stack, weights, 0, limit)
    for frame in stack[1:]:
        known = known * motion(frame, stack[0], weights.min(0))
    inside = np.zeros(known.shape[:2], bool)
    inside[margin : len(inside) - margin, margin : inside.shape[1] - margin] = True
    return inside & (known[..., 0] > 0) & (unclipped[..., 0] > 0)


def _margin(found: Sequence[Transform], shape: tuple[int, ...]) -> int:
    shift = max(registration.largest(one, shape) for one in found)
    return min(16 + math.ceil(shift), shape[0] // 8, shape[1] // 8)


def _score(picture: np.ndarray, stack: np.ndarray, places: np.ndarray) -> Score:
    """Average over disjoint pairs of frames in MSE; dB last."""
    found = [
        metrics.product_mse(picture, stack[i], stack[i + 1], mask=places)
        for i in range(0, len(stack) - 1, 2)
    ]
    mses, variances = zip(*found, strict=True)
    return metrics.to_score(float(np.mean(mses)), math.sqrt(sum(variances)) / len(found))


def _table(
    found: Sequence[Transform], weights: np.ndarray, names: Sequence[str]
) -> tuple[dict[str, Any], ...]:
    height, width = weights.shape[1:3]
    x, y = np.array([[(width - 1) / 2], [(height - 1) / 2]])
    rows = []
    for one, weight, name in zip(found, weights, names, strict=True):
        dx, dy = (float(each[0]) for each in registration.displacement(one.matrix, x, y))
        rows.append({"frame": name, "dy": dy, "dx": dx, "used": float(weight.mean())})
    return tuple(rows)


def _notes(got: Score, changes: Sequence[float], names: tuple[str, ...]) -> tuple[str, ...]:
    notes = []
    if got.low == math.inf:
        notes.append(
            f"{names[0]} agrees with the frames better than their noise allows: it was made of "
            "them, or they share noise; the score means nothing."
        )
    for name, change in zip(names[1:], changes, strict=True):
        if change:
            notes.append(
                f"{name} differs from {names[0]} in exposure or white balance by "
                f"{100 * change:.2g} % of white: it was brought to its tone, and that is not "
                "counted."
            )
    return tuple(notes)
