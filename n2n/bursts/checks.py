"""What is wrong with the frames of a burst: refusals as `Error`, the rest as plain sentences."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from n2n.bursts.masks import slope, some, unsaturated
from n2n.registration import Transform, largest
from n2n.registration.geometry import cv2, grey
from n2n.types import Error

RELATED = 0.5
"""Correlation of structure below which a frame shows another scene."""
SURELY = 0.7
"""Correlation from which on it shows the same; the largest of 200 pairs of strangers was 0.65."""
LOST = 0.005
"""Share of the longer side by which, below `SURELY`, a frame's place may be in doubt: pairs of
strangers start at 0.7 %, noisy frames that just correlate stay near 0.05 %."""
DOUBTFUL = 0.25
"""Standard error in pixels of a frame's place from which on it is told."""
UNPLACED = 1.0
"""That from which on a frame is not used: it would blur what the others show. Frames of the two
real bursts at hand stay below 0.1."""
SHARP = 0.7
"""Share of the reference's fine detail below which a frame was moved or defocused."""
DETAIL = (1.0, 2.0)
"""Standard deviations in pixels of the Gaussians between which fine detail lies."""
SHARPER = 1.05
"""Share of the first frame's fine detail from which on another is the better reference."""
_LEFT_OUT = ": it is left out."
_DEEP = 65535
_FEW = 10_000
"""Values of each frame, evenly taken, that tell whether all are whole parts of white."""
Shares = dict[int, tuple[np.ndarray, np.ndarray]]
"""Detail of a frame and of the reference, by blocks."""
BRACKET = 1.2
"""Factor of brightness beyond which frames were exposed differently; in a developed picture it is
some 0.6 stops. Smaller differences are matched."""
Note = tuple[float, str]
"""How bad (larger is worse), and a plain sentence."""


def usable(frames: Sequence[np.ndarray], names: tuple[str, ...]) -> list[np.ndarray]:
    """Return the frames as H,W,C float32, or refuse what no burst can be made of."""
    if len(frames) < 2:
        raise Error(f"frames={len(frames)}: a burst needs at least 2 frames of one scene")
    if len(names) != len(frames):
        raise Error(f"names has {len(names)} entries for {len(frames)} frames: give one per frame")
    pictures = [np.asarray(frame, np.float32) for frame in frames]
    pictures = [one[..., None] if one.ndim == 2 else one for one in pictures]
    for name, picture in zip(names, pictures, strict=True):
        _shown(name, picture)
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


def _shown(name: str, picture: np.ndarray) -> None:
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


def unrelated(found: Transform, shape: tuple[int, ...], name: str, reference: str) -> str | None:
    """Say why a registered frame of this shape shows another scene, or None where it does not."""
    text = f"{name} does not show the scene of {reference} (correlation {found.correlation:.2f}"
    if found.correlation < RELATED:
        return f"{text}, at least {RELATED} is needed)"
    if found.correlation < SURELY and found.error > LOST * max(shape[:2]):
        return f"{text}, its place is known to {found.error:.0f} px only)"
    return None


def kin(found: list[Transform], shape: tuple[int, ...]) -> list[int]:
    """Return which registered frames of this shape show the reference's scene, itself included."""
    return [i for i, one in enumerate(found) if unrelated(one, shape, "", "") is None]


def related(
    found: list[Transform],
    shape: tuple[int, ...],
    names: tuple[str, ...],
    first: int,
    used: bool = True,
) -> tuple[list[int], list[Note]]:
    """Return the frames that fit the reference, and a sentence for each other one.

    They show its scene and, where registration is `used`, their place is known; where that would
    leave the reference alone, frames of doubtful place are kept.
    """
    why = [
        unrelated(one, shape, name, names[first]) for one, name in zip(found, names, strict=True)
    ]
    kept = [index for index, text in enumerate(why) if text is None]
    strange = [text for text in why if text is not None]
    if len(kept) < 2:
        raise Error(f"{strange[0]}: fewer than two frames are left; choose frames of one scene")
    notes = [(100.0, f"{text}{_LEFT_OUT}") for text in strange]
    known = [index for index in kept if found[index].error <= UNPLACED]
    if not used or len(known) < 2:
        return kept, notes
    for index in sorted(set(kept) - set(known)):
        error = found[index].error
        text = f"{names[index]} has too little structure to register it well: its place is known to"
        notes.append((90.0, f"{text} {error:.1f} px only{_LEFT_OUT}"))
    return known, notes


def placed(
    found: list[Transform], shape: tuple[int, ...], names: tuple[str, ...], first: int, used: bool
) -> list[Note]:
    """Say where frames remain shifted: by how much in doubt, or unregistered."""
    notes = []
    for name, one in zip(names, found, strict=True):
        shift = largest(one, shape)
        if not used and shift > max(0.5, 3 * one.error):
            text = f"{name} is shifted by up to {shift:.1f} px against {names[first]}"
            notes.append((50 + shift, f"{text} and registration is off: the mean will be blurred."))
        if used and one.error > DOUBTFUL:
            text = f"The place of {name} is known to {one.error:.1f} px only"
            notes.append((40 + one.error, f"{text}: too little structure to register it well."))
    return notes


def refuse_bracket(
    stack: np.ndarray,
    weights: np.ndarray,
    names: tuple[str, ...],
    first: int,
    limit: float | None,
) -> None:
    """Refuse registered frames N,H,W,C of clearly different brightness, or say nothing.

    Raises:
        Error: names the frames.
    """
    factors = [
        1.0 if index == first else brightness(frame, stack[first], weight, limit)
        for index, (frame, weight) in enumerate(zip(stack, weights, strict=True))
    ]
    odd = [index for index, factor in enumerate(factors) if abs(np.log(factor)) > np.log(BRACKET)]
    if not odd:
        return
    told = ", ".join(f"{names[index]} ({factors[index]:.2f} x)" for index in odd[:3])
    more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
    raise Error(
        f"{told}{more} against {names[first]}: frames of different exposure are a bracket, not a "
        "burst; leave them out, or merge them in a program for HDR"
    )


def brightness(
    frame: np.ndarray, reference: np.ndarray, weight: np.ndarray, limit: float | None
) -> float:
    """Return how much brighter a frame H,W,C is: the median ratio in the picture's brighter half.

    1 where nothing is bright enough to tell. Movement in less than half of it changes little.
    """
    lit = unsaturated(frame, reference, weight, limit)[..., 0] > 0
    ours, theirs = (cv2.blur(grey(one), (15, 15)) for one in (frame, reference))
    if not lit.any():
        return 1.0
    bright = lit & (theirs >= np.median(some(theirs[lit]))) & (np.minimum(ours, theirs) > 0)
    ours, theirs = some(ours[bright]), some(theirs[bright])
    return float(np.median(ours / theirs)) if len(ours) else 1.0


def exposure(
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
        notes.append((30 + abs(total - 1), f"{text}: it is matched."))
    tint = float(np.max(np.abs(ours / theirs / total - 1)))
    if tint > 0.03:
        text = f"The colours of {name} differ from those of {other} by {100 * tint:.1f} %"
        notes.append((30 + tint, f"{text}: they are matched."))
    return notes


def sharp(
    stack: np.ndarray, weights: np.ndarray, names: tuple[str, ...], first: int
) -> tuple[list[int], list[Note]]:
    """Return the frames N,H,W,C that are not blurred against the reference, and what to say.

    It needs three frames; at least half of them are kept, and at least three. The most blurred one
    goes first, and the others are judged anew without it.
    """
    kept, notes = list(range(len(stack))), list[Note]()
    least = max(3, (len(stack) + 1) // 2)
    while True:
        blurred = _blurred(_shares(stack, weights, kept, first))
        if not blurred or len(kept) <= least:
            break
        worst = min(blurred, key=lambda index: blurred[index])
        kept.remove(worst)
        text = f"{names[worst]} shows {100 * blurred[worst]:.0f} % of the fine detail of"
        text = f"{text} {names[first]}, as if moved while exposed{_LEFT_OUT}"
        notes.append((70 - blurred[worst], text))
    return kept, notes


def sharpest(stack: np.ndarray, weights: np.ndarray, first: int) -> tuple[int, float]:
    """Return the frame with the most fine detail, and its share of the first one's detail.

    It is `first`, with a share of 1, unless another certainly shows 5 % more. Two frames cannot be
    told apart.
    """
    best, most = first, 1.0
    for index, (ours, theirs) in _shares(stack, weights, list(range(len(stack))), first).items():
        share = float(ours.sum() / theirs.sum())
        if share > most and _certain(ours - SHARPER * theirs):
            best, most = index, share
    return best, most


def sharpness(stack: np.ndarray, weights: np.ndarray, first: int) -> list[float]:
    """Return each frame's share of the reference's fine detail; nan where noise hides it."""
    shares = _shares(stack, weights, list(range(len(stack))), first)
    found = {index: float(ours.sum() / theirs.sum()) for index, (ours, theirs) in shares.items()}
    if found:
        found[first] = 1.0
    return [found.get(index, np.nan) for index in range(len(stack))]


def left_out(
    given: Sequence[str], kept: Sequence[str], notes: Sequence[Note]
) -> tuple[tuple[str, str], ...]:
    """Return the name of each given frame that was not kept, and why: the end of its sentence."""
    rest, reasons = list(given), []
    for name in kept:
        rest.remove(name)
    said = [text.removesuffix(_LEFT_OUT) for _, text in notes if text.endswith(_LEFT_OUT)]
    for name in rest:
        found = (text for text in said if text.startswith(f"{name} "))
        reasons.append((name, next(found, "").removeprefix(f"{name} ")))
    return tuple(reasons)


def _blurred(shares: Shares) -> dict[int, float]:
    """Return the frames that are certainly blurred: share of the reference's detail."""
    return {
        index: float(ours.sum() / theirs.sum())
        for index, (ours, theirs) in shares.items()
        if _certain(SHARP * theirs - ours)
    }


def _shares(stack: np.ndarray, weights: np.ndarray, kept: list[int], first: int) -> Shares:
    """Compare the detail of each frame with the reference's: sums over 32 blocks of both.

    Detail is the band of 1 to 2 px, at the reference's brightness. Its product with the other
    frames' holds no noise, so that a noisy frame is not taken for a sharp one. Nothing is returned
    of two frames, or of flat pictures.
    """
    known = np.flatnonzero(cv2.erode(weights[kept].min(0), np.ones((9, 9), np.uint8)).ravel() > 0)
    known = known[:: max(1, known.size // 300_000)]
    if len(kept) < 3 or known.size < 1000:
        return {}
    bright = {index: float(grey(stack[index]).ravel()[known].mean()) for index in kept}
    bands = {index: _band(stack[index], *DETAIL).ravel()[known] for index in kept}
    total = np.sum(list(bands.values()), axis=0)
    shares = {}
    for index in kept:
        rest = total - bands[index] - bands[first]
        ours, theirs = (
            np.array([block.sum() for block in np.array_split(rest * bands[i], 32)])
            for i in (index, first)
        )
        if index != first and _certain(theirs):
            alike = bright[first] / bright[index] if min(bright.values()) > 0 else 1.0
            shares[index] = (ours * alike, theirs)
    return shares


def _certain(blocks: np.ndarray) -> bool:
    """Say whether the sum of independent blocks is positive by 3 of its standard errors."""
    return bool(blocks.sum() > 3 * np.sqrt(len(blocks)) * blocks.std(ddof=1))


def _band(frame: np.ndarray, fine: float, coarse: float) -> np.ndarray:
    picture = grey(frame)
    return cv2.GaussianBlur(picture, (0, 0), fine) - cv2.GaussianBlur(picture, (0, 0), coarse)


def correlated(stack: np.ndarray, weights: np.ndarray, names: tuple[str, ...]) -> list[Note]:
    """Say so where two frames share noise that the others do not have (needs four frames).

    Independent noise makes the variance of every difference a sum of two frames' own variances; a
    pair that shares noise falls below the sum that the other pairs predict.
    """
    if len(stack) < 4:
        return []
    bands = [_noise(frame) for frame in stack[:8]]
    known = cv2.erode(weights[:8].min(0), np.ones((5, 5), np.uint8)) > 0
    steep = slope(cv2.GaussianBlur(grey(stack[0]), (0, 0), 2.0))
    if known.sum() < 1000:
        return []
    known &= steep <= np.median(steep[known])
    pairs = list(combinations(range(len(bands)), 2))
    spread = np.array([np.var((bands[i] - bands[j])[known]) for i, j in pairs], np.float64)
    design = np.zeros((len(pairs), len(bands)))
    for row, pair in enumerate(pairs):
        design[row, list(pair)] = 1
    worst = int(np.argmin(spread - design @ np.linalg.lstsq(design, spread, rcond=None)[0]))
    others = np.arange(len(pairs)) != worst
    alone = design[worst] @ np.linalg.lstsq(design[others], spread[others], rcond=None)[0]
    shared = float(1 - spread[worst] / max(alone, 1e-20))
    if shared < 0.1:
        return []
    i, j = pairs[worst]
    text = f"The noise of {names[i]} and {names[j]} is alike (correlation {shared:.2f})"
    return [(60 + shared, f"{text}: frames need noise of their own; it will not go away.")]


def _noise(frame: np.ndarray) -> np.ndarray:
    picture = grey(frame)
    return picture - cv2.blur(picture, (3, 3))


def filled(pictures: Sequence[np.ndarray]) -> list[Note]:
    """Say so where frames fill less than a quarter of the 16 bits that they were read from.

    Their numbers tell: whole 65,535ths, but not all of them whole 255ths, as of 8 bits. With the
    white of their sensor given they would be others.
    """
    top = max(float(one.max()) for one in pictures)
    sample = np.concatenate([one.ravel()[:: max(1, one.size // _FEW)] for one in pictures])
    if not 0 < top < 0.25 or _whole(sample, 255) or not _whole(sample, _DEEP):
        return []
    most = round(top * _DEEP)
    bits = most.bit_length()
    text = f"The frames fill {100 * top:.2g} % of 16 bits (their largest value is {most:,})"
    text = f"{text}: figures in dB are against {_DEEP:,}, {-20 * np.log10(top):.0f} dB more than"
    advice = f"if their white is that of {bits} bits, say --data-range 0,{2**bits - 1}"
    return [(15.0, f"{text} against that; {advice}.")]


def _whole(values: np.ndarray, white: int) -> bool:
    """Say whether float32 values are integers divided by their white, as `images.to_float` does."""
    return bool((np.rint(values * white).astype(np.float32) / np.float32(white) == values).all())


def clipped(mask: np.ndarray, limit: float | None) -> list[Note]:
    """Say so where over 1 % of the picture, `mask` H,W,1 being 0 there, reaches `limit`."""
    share = 1 - float(mask.mean())
    if share <= 0.01:
        return []
    text = f"{100 * share:.1f} % of the picture is clipped at {limit:.4g}"
    return [(10 + share, f"{text}: nothing is learnt there.")]
