"""Bursts: frames of one scene -> a Burst in the geometry of its reference frame.

Arrays in, arrays out; no files. `noise` measures how noisy the frames are, `checks` says what is
wrong with them, `masks` where they must not be used, `tone` brings them to one exposure and white
balance. Frames are moved to the reference, not predictions to the frames: in the loss both give the
same within 0.01 dB (`experiments/warping.py`), and only the first shows the mean as it is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from n2n import registration
from n2n.bursts import checks
from n2n.bursts.masks import clipping, hard_limit, motion, settled, unsaturated
from n2n.bursts.noise import noise_profile
from n2n.bursts.tone import matched
from n2n.profile import Profile
from n2n.registration import Transform, largest, warp
from n2n.registration.geometry import cv2, grey
from n2n.types import Burst, Error

_NEARLY = 0.98
"""Share of a frame in use from which on nothing is to be explained."""
_CLEARLY = 1.01
"""Factor by which another explanation must leave more of it in use."""
_LOOKS = 3
"""Times that light and movement are told from each other anew, as long as it helps."""
_TRIES = 3
"""Frames that are tried in place of a reference whose scene few others show."""
_GLANCE = 512
"""Longest side in pixels of the copies by which they are tried."""
_AT_ONCE = 4
"""Frames at most that are worked at side by side: each needs room for some copies of a frame."""


def align(
    frames: Sequence[np.ndarray],
    *,
    reference: int | None = None,
    register: bool = True,
    names: Sequence[str] | None = None,
    exposed: bool = False,
) -> Burst:
    """Bring frames H,W,C (or H,W) float32 in display units into their reference's geometry.

    `reference` is an index, by default the first, or the least blurred one if that shows 5 % more
    fine detail; if few show the first one's scene, one that more do. With `register=False` the
    frames are taken as aligned. Frames that show another scene, whose place stays in doubt, or that
    are clearly blurred, are left out with a sentence in `checks`; what makes the burst useless
    raises `Error` and names the frame. Frames brighter or darker by more than `checks.BRACKET` are
    a bracket, unless they are known to be equally `exposed`: then the light has changed, and is
    matched.
    """
    names = tuple(names or (f"frame {index + 1}" for index in range(len(frames))))
    pictures = checks.usable(frames, names)
    del frames
    first = _index(reference, len(pictures))
    given = names
    found, notes, stacked = _found(pictures, first, register), list[checks.Note](), None
    common = _common(pictures, found, first) if reference is None else first
    if common != first:
        first, found = common, _found(pictures, common, register)
    if register:
        better, notes, stacked = _less_blurred(pictures, found, names, first, reference is None)
        if better != first:
            stacked = None
            first, found = better, _found(pictures, better, register)
    kept, strange = checks.related(found, pictures[first].shape, names, first, register)
    notes += strange + checks.filled(pictures)
    pictures, found = [pictures[i] for i in kept], [found[i] for i in kept]
    names, first = tuple(names[i] for i in kept), kept.index(first)
    limit = hard_limit(pictures)
    notes += checks.placed(found, pictures[first].shape, names, first, register)
    if not register:
        found = [Transform(np.eye(3))] * len(found)
    stack, weights = _stack(pictures, found) if stacked is None else stacked
    del pictures, stacked
    if not exposed:
        checks.refuse_bracket(stack, weights, names, first, limit)
    # Before movement and tone: it must not depend on masks, nor on a gain given to a frame's noise.
    profile = noise_profile(stack, weights, found, first)
    said = _compared(stack, weights, first, names, limit, profile)
    notes += checks.correlated(stack, weights, names)
    kept, blurred = checks.sharp(stack, weights, names, first)
    notes += blurred + [note for index in kept for note in said[index]]
    if len(kept) < len(stack):
        stack, weights, found = stack[kept], weights[kept], [found[i] for i in kept]
        names, first = tuple(names[i] for i in kept), kept.index(first)
    mask = clipping(stack, weights, first, limit)
    notes += checks.clipped(mask, limit)
    shift = max(largest(one, stack.shape[1:]) for one in found)
    return Burst(
        frames=stack,
        weights=weights,
        mask=mask,
        transforms=np.stack([one.matrix for one in found]),
        reference=first,
        scale=_range(stack),
        profile=profile,
        checks=tuple(text for _, text in sorted(notes, key=lambda note: -note[0])),
        names=names,
        left_out=checks.left_out(given, names, notes),
        margin=16 + int(np.ceil(shift)),
    )


def _index(reference: int | None, count: int) -> int:
    if reference is None:
        return 0
    if not -count <= reference < count:
        raise Error(f"reference={reference}: the burst has frames 0 to {count - 1}")
    return reference % count


def _found(pictures: list[np.ndarray], first: int, local: bool) -> list[Transform]:
    """Register all frames to one of them."""

    def one(index: int) -> Transform:
        if index == first:
            return Transform(np.eye(3))
        return _register(pictures[index], pictures[first], local)

    return _each(one, range(len(pictures)))


def _each(work: Callable, indices: Iterable[int]) -> list:
    """Return what some work gives for each of several frames, a frame to a thread."""
    with ThreadPoolExecutor(min(_AT_ONCE, os.cpu_count() or 1)) as pool:
        return list(pool.map(work, indices))


def _common(pictures: list[np.ndarray], found: list[Transform], first: int) -> int:
    """Return a frame whose scene most others show: `first`, unless fewer than half of them do.

    Then small copies tell it, of the earliest frames that show none of the scenes tried before.
    """
    best, kin = first, checks.kin(found, pictures[first].shape)
    most, rest = len(kin), [index for index in range(len(found)) if index not in kin]
    if len(found) < 3 or _by_half(most, found):
        return first
    small = [_glance(one) for one in pictures]
    for _ in range(_TRIES):
        if _by_half(most, found) or not rest:
            break
        kin = checks.kin(_found(small, rest[0], False), small[0].shape)
        best, most = (rest[0], len(kin)) if len(kin) > most else (best, most)
        rest = [index for index in rest[1:] if index not in kin]
    return best


def _by_half(most: int, found: list[Transform]) -> bool:
    """Say whether so many frames, one of them the reference, are half of the others at least."""
    return 2 * (most - 1) >= len(found) - 1


def _glance(picture: np.ndarray) -> np.ndarray:
    """Average a picture H,W,C to H,W of `_GLANCE` pixels; a narrow one is left wide enough."""
    short, long = sorted(picture.shape[:2])
    factor = min(1.0, max(_GLANCE / long, 4 * registration.SMALLEST / short))
    size = [max(1, round(factor * side)) for side in picture.shape[1::-1]]
    return cv2.resize(grey(picture), size, interpolation=cv2.INTER_AREA)


def _less_blurred(
    pictures: list[np.ndarray],
    found: list[Transform],
    names: tuple[str, ...],
    first: int,
    free: bool,
) -> tuple[int, list[checks.Note], tuple[np.ndarray, np.ndarray]]:
    """Return which frame the reference should be, if one is `free` to choose, and what to say.

    Also what `_stack` makes of the related frames in the geometry of the `first`.
    """
    alike, _ = checks.related(found, pictures[first].shape, names, first)
    stack, weights = _stack([pictures[i] for i in alike], [found[i] for i in alike])
    place, share = checks.sharpest(stack, weights, alike.index(first))
    if alike[place] == first:
        return first, [], (stack, weights)
    text = f"{names[alike[place]]} shows {100 * (share - 1):.0f} % more fine detail than"
    if free:
        best, note = alike[place], (10.0, f"{text} {names[first]}: it is the reference.")
    else:
        advice = "take it for a sharper picture"
        best, note = first, (80.0, f"{text} the reference {names[first]}: {advice}.")
    return best, [note], (stack, weights)


def _register(picture: np.ndarray, reference: np.ndarray, local: bool) -> Transform:
    return registration.register(picture, reference, local=local)


def _stack(pictures: list[np.ndarray], found: list[Transform]) -> tuple[np.ndarray, np.ndarray]:
    """Return all frames in the reference's geometry and their overlap."""
    stack = np.empty((len(pictures), *pictures[0].shape), np.float32)
    weights = np.empty((*stack.shape[:3], 1), np.float32)
    for index, (picture, one) in enumerate(zip(pictures, found, strict=True)):
        stack[index], weights[index] = warp(picture, one.matrix, one.field)
    return stack, weights


def _compared(
    stack: np.ndarray,
    weights: np.ndarray,
    first: int,
    names: tuple[str, ...],
    limit: float | None,
    profile: Profile | None,
) -> list[list[checks.Note]]:
    """Take movement out of the weights and tone out of the frames, in place; say what they show."""

    def one(index: int) -> list[checks.Note]:
        name, seen = names[index], float(weights[index].mean())
        like = _likened(stack[index], stack[first], weights[index], limit, profile)
        lit = unsaturated(stack[index], stack[first], like.first, limit)
        notes = list(checks.exposure(stack[index], stack[first], lit, name, names[first]))
        stack[index], weights[index] = like.frame, like.weight
        left = float(like.still.mean())
        if seen - left > 0.2:
            text = f"{name} shows movement in {100 * (seen - left):.0f} % of the picture"
            notes.append((20 + seen - left, f"{text}: it is not used there."))
        return notes

    others = [index for index in range(len(names)) if index != first]
    found: list[list[checks.Note]] = [[] for _ in names]
    for index, notes in zip(others, _each(one, others), strict=True):
        found[index] = notes
    return found


class _Likened(NamedTuple):
    """Hold a frame brought to the reference's tone, and where it may be used."""

    frame: np.ndarray
    weight: np.ndarray
    """H,W,1: what overlaps, has not moved and is not clipped in this frame alone."""
    still: np.ndarray
    """H,W,1: what overlaps and has not moved."""
    first: np.ndarray
    """The same by the first look, from which the tone was told."""


def _likened(
    frame: np.ndarray,
    reference: np.ndarray,
    overlap: np.ndarray,
    limit: float | None,
    profile: Profile | None,
) -> _Likened:
    """Tell what has moved from what is lit differently.

    Both look alike at first. A look that knows the noise takes another light for movement, one that
    does not takes a large moved thing for light: what leaves more of the frame in use is true.
    """
    best = _under(frame, reference, overlap, limit, profile, profile)
    if profile is None or best.still.sum() > _NEARLY * overlap.sum():
        return best
    other = _under(frame, reference, overlap, limit, profile, None)
    return other if other.still.sum() > _CLEARLY * best.still.sum() else best


def _under(
    frame: np.ndarray,
    reference: np.ndarray,
    overlap: np.ndarray,
    limit: float | None,
    profile: Profile | None,
    told: Profile | None,
) -> _Likened:
    """Return what a frame becomes if the first look at it is told a noise profile, or none."""
    alike, lost = frame, np.zeros_like(overlap)
    still = look = overlap * motion(frame, reference, overlap, told)
    for _ in range(_LOOKS):
        alike, ends = matched(frame, reference, still, limit)
        if alike is frame and told is profile:
            break
        if alike is not frame and limit is not None:
            alike, kept = settled(frame, alike, reference, np.ones_like(overlap), ends, limit)
            lost = 1 - kept
        before = still
        still = overlap * motion(np.where(lost > 0, reference, alike), reference, overlap, profile)
        if still.sum() <= _CLEARLY * before.sum():
            break
    return _Likened(alike, still * (1 - lost), still, look)


def _range(stack: np.ndarray) -> tuple[float, float]:
    """Return the robust range (0.1 %, 99.9 %) of all frames and channels together."""
    step = max(1, stack[0].size // stack.shape[-1] // 500_000)
    sample = stack.reshape(len(stack), -1, stack.shape[-1])[:, ::step]
    low, high = np.percentile(sample, (0.1, 99.9))
    return float(low), float(high)
