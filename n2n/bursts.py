"""Bursts: frames of one scene -> a Burst in the geometry of its reference frame.

Arrays in, arrays out; no files. No mask looks at one sample's own noise, or input and target of a
Noise2Noise pair would become dependent: movement is judged by averages over at least 5x5 pixels,
clipping by averages over all frames as well, and both are fixed before training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from n2n import registration
from n2n.registration import Transform, cv2, grey, largest, warp
from n2n.types import Burst, Error

RELATED = 0.5
"""Correlation of structure below which a frame shows another scene; strangers reach 0.3."""
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
_LEVELS = 16

Note = tuple[float, str]
"""How bad (larger is worse), and a plain sentence."""


def align(
    frames: Sequence[np.ndarray],
    *,
    reference: int | None = None,
    register: bool = True,
    names: Sequence[str] | None = None,
) -> Burst:
    """Bring frames H,W,C (or H,W) float32 in display units into their reference's geometry.

    `reference` is an index, by default the first; with `register=False` the frames are taken as
    aligned. Frames that show another scene are left out with a sentence in `checks`; what makes
    the burst useless raises `Error` and names the frame.
    """
    names = tuple(names or (f"frame {index + 1}" for index in range(len(frames))))
    pictures = _pictures(frames, names)
    first = _index(reference, len(pictures))
    found = [
        Transform(np.eye(3)) if index == first else _register(picture, pictures[first], register)
        for index, picture in enumerate(pictures)
    ]
    kept, notes = _related(found, names, first)
    pictures, found = [pictures[i] for i in kept], [found[i] for i in kept]
    names, first = tuple(names[i] for i in kept), kept.index(first)
    limit = hard_limit(pictures)
    notes += _placed(found, pictures[first].shape, names, first, register)
    if not register:
        found = [Transform(np.eye(3))] * len(found)
    stack, weights = _stack(pictures, found)
    del pictures
    notes += _compared(stack, weights, first, names)
    mask = clipping(stack, weights, first, limit)
    notes += _clipped(mask, limit)
    shift = max(largest(one, stack.shape[1:]) for one in found)
    return Burst(
        frames=stack,
        weights=weights,
        mask=mask,
        transforms=np.stack([one.matrix for one in found]),
        reference=first,
        scale=_range(stack),
        checks=tuple(text for _, text in sorted(notes, key=lambda note: -note[0])),
        names=names,
        margin=16 + int(np.ceil(shift)),
    )


# What came in ------------------------------------------------------------------------------------


def _pictures(frames: Sequence[np.ndarray], names: tuple[str, ...]) -> list[np.ndarray]:
    """Return the frames as H,W,C float32, or refuse what no burst can be made of."""
    if len(frames) < 2:
        raise Error(f"frames={len(frames)}: a burst needs at least 2 frames of one scene")
    if len(names) != len(frames):
        raise Error(f"names has {len(names)} entries for {len(frames)} frames: give one per frame")
    pictures = [np.asarray(frame, np.float32) for frame in frames]
    pictures = [one[..., None] if one.ndim == 2 else one for one in pictures]
    for name, picture in zip(names, pictures, strict=True):
        _usable(name, picture)
    for name, picture in zip(names, pictures, strict=True):
        if picture.shape != pictures[0].shape:
            raise Error(
                f"{names[0]} is {_size(pictures[0])} and {name} is {_size(picture)}: the frames of "
                "a burst have one size; leave one of them out"
            )
    _distinct(pictures, names)
    return pictures


def _size(picture: np.ndarray) -> str:
    height, width, channels = picture.shape
    return f"{width}x{height} pixels with {channels} channel{'s' * (channels != 1)}"


def _usable(name: str, picture: np.ndarray) -> None:
    if picture.ndim != 3 or min(picture.shape) < 1 or picture.shape[2] > 4:
        raise Error(f"{name} has shape {picture.shape}: a frame is H,W,C with 1 to 4 channels")
    low, high = float(picture.min()), float(picture.max())
    if not np.isfinite(low + high):
        bad = int(picture.size - np.isfinite(picture).sum())
        raise Error(f"{name} has {bad} values that are NaN or infinite: leave the frame out")
    if low == high:
        colour = "all black" if high <= 0 else f"the same value {high:.4g} everywhere"
        raise Error(f"{name} is {colour}: it shows nothing; leave the frame out")


def _distinct(pictures: list[np.ndarray], names: tuple[str, ...]) -> None:
    seen: dict[bytes, str] = {}
    for name, picture in zip(names, pictures, strict=True):
        print_ = hashlib.blake2b(np.ascontiguousarray(picture).data).digest()
        if print_ in seen:
            raise Error(
                f"{seen[print_]} and {name} are the same picture: frames need noise of their own; "
                "leave one of them out"
            )
        seen[print_] = name


def _index(reference: int | None, count: int) -> int:
    if reference is None:
        return 0
    if not -count <= reference < count:
        raise Error(f"reference={reference}: the burst has frames 0 to {count - 1}")
    return reference % count


# Registration ------------------------------------------------------------------------------------


def _register(picture: np.ndarray, reference: np.ndarray, local: bool) -> Transform:
    return registration.register(picture, reference, local=local)


def _related(
    found: list[Transform], names: tuple[str, ...], first: int
) -> tuple[list[int], list[Note]]:
    """Return the frames that show the reference's scene, and a sentence for each other one."""
    kept = [index for index, one in enumerate(found) if one.correlation >= RELATED]
    strange = [
        f"{name} does not show the scene of {names[first]} (correlation {one.correlation:.2f}, "
        f"at least {RELATED} is needed)"
        for name, one in zip(names, found, strict=True)
        if one.correlation < RELATED
    ]
    if len(kept) < 2:
        raise Error(f"{strange[0]}: fewer than two frames are left; choose frames of one scene")
    return kept, [(100.0, f"{text}: it is left out.") for text in strange]


def _placed(
    found: list[Transform], shape: tuple[int, ...], names: tuple[str, ...], first: int, used: bool
) -> list[Note]:
    """Say where frames remain shifted: by how much in doubt, or unregistered."""
    notes = []
    for name, one in zip(names, found, strict=True):
        shift = largest(one, shape)
        if not used and shift > max(0.5, 3 * one.error):
            text = f"{name} is shifted by up to {shift:.1f} px against {names[first]}"
            notes.append((50 + shift, f"{text} and registration is off: the mean will be blurred."))
        if used and one.error > 0.25:
            text = f"The place of {name} is known to {one.error:.1f} px only"
            notes.append((40 + one.error, f"{text}: too little structure to register it well."))
    return notes


def _stack(
    pictures: list[np.ndarray], found: list[Transform]
) -> tuple[np.ndarray, np.ndarray]:
    """Return all frames in the reference's geometry and their overlap."""
    stack = np.empty((len(pictures), *pictures[0].shape), np.float32)
    weights = np.empty((*stack.shape[:3], 1), np.float32)
    for index, (picture, one) in enumerate(zip(pictures, found, strict=True)):
        stack[index], weights[index] = warp(picture, one.matrix, one.field)
    return stack, weights


# Movement ----------------------------------------------------------------------------------------


class _Curve(NamedTuple):
    """Hold robust centre and standard deviation of a residual by brightness."""

    at: np.ndarray
    centre: np.ndarray
    sigma: np.ndarray


def _curve(rest: np.ndarray, bright: np.ndarray, known: np.ndarray) -> _Curve:
    """Measure a residual H,W in bins of equally many pixels; all from the picture itself.

    White-noise theory would set the sigma of an average too low where demosaicking, JPEG or
    resampling have correlated the neighbours. The centre takes up gain and tone differences.
    """
    chosen = np.flatnonzero(known.ravel() > 0)
    chosen = chosen[:: max(1, chosen.size // 300_000)]
    bright, rest = bright.ravel()[chosen], rest.ravel()[chosen]
    order = np.array_split(np.argsort(bright, kind="stable"), _LEVELS)
    order = [one for one in order if one.size]
    if not order:
        return _Curve(np.zeros(1), np.zeros(1), np.ones(1))
    at = np.array([bright[one].mean() for one in order], np.float64)
    centre = np.array([np.median(rest[one]) for one in order])
    sigma = np.array(
        [1.4826 * np.median(np.abs(rest[one] - c)) for one, c in zip(order, centre, strict=True)]
    )
    return _Curve(at, centre, np.maximum(sigma, max(0.25 * float(np.median(sigma)), 1e-6)))


def _slope(picture: np.ndarray) -> np.ndarray:
    return np.hypot(
        cv2.Sobel(picture, -1, 1, 0, ksize=3, scale=0.125),
        cv2.Sobel(picture, -1, 0, 1, ksize=3, scale=0.125),
    )


def _deviation(
    frame: np.ndarray, reference: np.ndarray, overlap: np.ndarray, side: int
) -> np.ndarray:
    """Return H,W: the averaged residual in its own standard deviations, all channels together."""
    total = np.zeros(frame.shape[:2], np.float32)
    for here, there in zip(np.moveaxis(reference, -1, 0), np.moveaxis(frame, -1, 0), strict=True):
        here, there = cv2.blur(here, (side, side)), cv2.blur(there, (side, side))
        bright = (here + there) / 2
        curve = _curve(there - here, bright, overlap)
        rest = there - here - np.interp(bright, curve.at, curve.centre)
        spread = np.hypot(np.interp(bright, curve.at, curve.sigma), SLACK * _slope(bright))
        total += np.square(rest / spread)
    return np.sqrt(total / frame.shape[2])


def _clean(deviation: np.ndarray) -> np.ndarray:
    """Return where a deviation map means movement: large or certain places, slightly widened."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        (deviation > SIGMAS).astype(np.uint8), connectivity=8
    )
    peak = np.zeros(count)
    np.maximum.at(peak, labels.ravel(), deviation.ravel())
    real = (peak >= CERTAIN) | (stats[:, cv2.CC_STAT_AREA] >= SPECK)
    real[0] = False
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))
    moved = cv2.morphologyEx(real[labels].astype(np.uint8), cv2.MORPH_CLOSE, disc)
    return cv2.dilate(moved, disc) > 0


def motion(frame: np.ndarray, reference: np.ndarray, overlap: np.ndarray) -> np.ndarray:
    """Return H,W,1 float32: 0 where a registered frame H,W,C shows something else, 1 elsewhere.

    The residual to the reference, averaged over 5x5 and 15x15 pixels, beyond 3 sigma of these
    averages at that brightness; a misregistration of 0.1 px is allowed for. `overlap` H,W,1.
    """
    deviation = np.zeros(frame.shape[:2], np.float32)
    for side in WINDOWS:
        np.maximum(deviation, _deviation(frame, reference, overlap, side), out=deviation)
    deviation *= overlap[..., 0] > 0
    return (~_clean(deviation))[..., None].astype(np.float32)


def _compared(
    stack: np.ndarray, weights: np.ndarray, first: int, names: tuple[str, ...]
) -> list[Note]:
    """Take movement out of the weights, in place; say what the comparison shows."""
    notes: list[Note] = []
    for index, name in enumerate(names):
        if index == first:
            continue
        seen = float(weights[index].mean())
        weights[index] *= motion(stack[index], stack[first], weights[index])
        left = float(weights[index].mean())
        if seen - left > 0.2:
            text = f"{name} shows movement in {100 * (seen - left):.0f} % of the picture"
            notes.append((20 + seen - left, f"{text}: it is not used there."))
        notes += _exposure(stack[index], stack[first], weights[index], name, names[first])
    return notes + _correlated(stack, weights, names)


def _exposure(
    frame: np.ndarray, reference: np.ndarray, weight: np.ndarray, name: str, other: str
) -> list[Note]:
    """Say so where a frame is brighter, darker or of another colour by more than 3 %."""
    ours, theirs = ((one * weight).sum((0, 1), np.float64) for one in (frame, reference))
    if not (theirs > 0).all() or not (ours > 0).all():
        return []
    total = float(ours.sum() / theirs.sum())
    notes = []
    if abs(total - 1) > 0.03:
        word = "brighter" if total > 1 else "darker"
        text = f"{name} is {100 * abs(total - 1):.1f} % {word} than {other}"
        notes.append((30 + abs(total - 1), f"{text}: their exposures differ."))
    tint = float(np.max(np.abs(ours / theirs / total - 1)))
    if tint > 0.03:
        text = f"The colours of {name} differ from those of {other} by {100 * tint:.1f} %"
        notes.append((30 + tint, f"{text}: their white balance differs."))
    return notes


def _correlated(stack: np.ndarray, weights: np.ndarray, names: tuple[str, ...]) -> list[Note]:
    """Say so where two frames share noise that the others do not have (needs four frames).

    Independent noise makes the variance of every difference a sum of two frames' own variances; a
    pair that shares noise falls below the sum that the other pairs predict.
    """
    if len(stack) < 4:
        return []
    bands = [_noise(frame) for frame in stack[:8]]
    known = cv2.erode(weights[:8].min(0), np.ones((5, 5), np.uint8)) > 0
    slope = _slope(cv2.GaussianBlur(grey(stack[0]), (0, 0), 2.0))
    if known.sum() < 1000:
        return []
    known &= slope <= np.median(slope[known])
    pairs = list(combinations(range(len(bands)), 2))
    spread = np.array([np.var((bands[i] - bands[j])[known]) for i, j in pairs], np.float64)
    design = np.zeros((len(pairs), len(bands)))
    for row, pair in enumerate(pairs):
        design[row, list(pair)] = 1
    sums = design @ np.linalg.lstsq(design, spread, rcond=None)[0]
    shared = 1 - spread / np.maximum(sums, 1e-20)
    worst = int(np.argmax(shared))
    if shared[worst] < 0.1:
        return []
    i, j = pairs[worst]
    text = f"The noise of {names[i]} and {names[j]} is alike (correlation {shared[worst]:.2f})"
    return [(60 + shared[worst], f"{text}: frames need noise of their own; it will not go away.")]


def _noise(frame: np.ndarray) -> np.ndarray:
    picture = grey(frame)
    return picture - cv2.blur(picture, (3, 3))


# Clipping ----------------------------------------------------------------------------------------


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


def _sigma(stack: np.ndarray, weights: np.ndarray, first: int) -> tuple[np.ndarray, _Curve]:
    """Return the weighted mean H,W,C and one frame's noise by brightness (both float)."""
    count = np.maximum(weights.sum(0), 1e-6)
    mean = np.zeros(stack.shape[1:], np.float32)
    for frame, weight in zip(stack, weights, strict=True):
        mean += frame * weight
    mean /= count
    other = 1 if first == 0 else 0
    bright = cv2.blur(grey(mean), (5, 5))
    rest = (stack[other] - stack[first]) / np.sqrt(np.float32(2))
    curves = [_curve(one, bright, weights[other]) for one in np.moveaxis(rest, -1, 0)]
    sigma = np.max([curve.sigma for curve in curves], axis=0)
    # A clipped sample has lost half its noise: towards the limit the curve may not fall.
    return mean, _Curve(curves[0].at, curves[0].centre, np.maximum.accumulate(sigma))


def clipping(
    stack: np.ndarray, weights: np.ndarray, first: int, limit: float | None
) -> np.ndarray:
    """Return H,W,1 float32: 0 where the mean over frames and 5x5 pixels lies 2 sigma below the limit.

    One decision per place for all frames; shadows stay: the expected frame is the target there.
    """
    if limit is None:
        return np.ones((*stack.shape[1:3], 1), np.float32)
    mean, curve = _sigma(stack, weights, first)
    highest = cv2.blur(mean, (5, 5)).reshape(mean.shape).max(-1)
    sigma = np.interp(highest, curve.at, curve.sigma)
    return (highest <= limit - 2 * sigma)[..., None].astype(np.float32)


def _clipped(mask: np.ndarray, limit: float | None) -> list[Note]:
    share = 1 - float(mask.mean())
    if share <= 0.01:
        return []
    text = f"{100 * share:.1f} % of the picture is clipped at {limit:.4g}"
    return [(10 + share, f"{text}: there the plain mean stays.")]


def _range(stack: np.ndarray) -> tuple[float, float]:
    """Return the robust range (0.1 %, 99.9 %) of all frames and channels together."""
    step = max(1, stack[0].size // stack.shape[-1] // 500_000)
    sample = stack.reshape(len(stack), -1, stack.shape[-1])[:, ::step]
    low, high = np.percentile(sample, (0.1, 99.9))
    return float(low), float(high)
