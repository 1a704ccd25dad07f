"""The score of anybody's picture: clean-free dB against noisy frames that it has not seen.

Everything happens in the picture's geometry: each frame is resampled once (Lanczos). Exposure,
white balance and black are matched by a gain and an offset per channel and not counted; what a
program does to detail is. Another tone curve is neither gain nor offset: it is refused, or told
where it is slight. Pictures are H,W,C float32 in display units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np

from n2n import metrics, registration
from n2n.bursts import checks
from n2n.bursts.masks import LEVELS, SAMPLES, agreed_line, clipping, hard_limit, motion
from n2n.bursts.tone import CHANCE, NEGLIGIBLE
from n2n.registration import Transform
from n2n.types import Error, Score

LEAST = 32 * 32
"""Pixels on which a score is measured at least: one block of its interval."""
NOTABLE = 0.001
"""Share of the picture from which on places that stand apart from all frames are told."""
BENT = 0.02
"""Root mean square that a line leaves between two tones, as a share of their range, from which on
they are two curves. On 15 photographs of 480x320 with noise of 0.02 or 0.1 an exponent of 2.2 or
1/2.2 left 0.034 to 0.084, one of 1.4 0.018 to 0.033; denoisers, blur, clipped noise 0.020 at most.
"""
STEADY = 0.75
"""Share of the bins, those that bend least, which must bend by SLIGHT too: by an exponent of 2.2 or
1/2.2 it was 0.012 to 0.036 (0.001 once), by denoisers, blur and clipped noise 0 (0.006 once), by a
thing that came and fills a tenth of the picture 0 in three photographs of four."""
SLIGHT = 0.005
"""Such a share from which on a bend is told."""
PART = 0.02
"""Part of the error that it must make to be told: a tenth of a dB."""
FEW = 4
"""Bins of brightness below which no line is fitted."""
_SIDE = 15


@dataclass(frozen=True, eq=False)
class Scored:
    """Hold the clean-free quality of a picture, and where and how it was measured."""

    score: Score
    """PSNR in dB with its 95 % interval, averaged over pairs of frames. White is that of the
    picture or of the frames, in whichever the scene is brighter: darkening flatters none."""
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
    Frames need the picture's tone curve (sRGB or linear), not its exposure, white balance or black.
    What cannot be known from frames counts for nothing (see `n2n.metrics`). What registration
    leaves over is not in the interval: a product of two frames' misplacements, of either sign. On
    12 megapixels full of edges, misplaced by about 0.04 and -0.02 px, 40.0 dB became 40.8.

    Args:
        picture: H,W,C (or H,W) float32 in display units.
        frames: two or more noisy frames of the same scene, of the same shape and range.
        names: one for the picture and one for each frame, for sentences.
        register: False where the frames are known to be aligned with the picture.

    Raises:
        Error: fewer than two frames, other sizes, another scene, the same picture twice, another
            tone curve, or nothing left to measure on.
    """
    names = tuple(names or ("picture", *(f"frame {i + 1}" for i in range(len(frames)))))
    if len(frames) < 2:
        raise Error(f"frames={len(frames)}: a score needs at least 2 that the picture has not seen")
    picture, *given = checks.usable([picture, *frames], names)
    found = [
        _found(frame, picture, (names[0], name)) if register else Transform(np.eye(3))
        for frame, name in zip(given, names[1:], strict=True)
    ]
    warped = [
        registration.warp(frame, one.matrix, one.field)
        for frame, one in zip(given, found, strict=True)
    ]
    stack, weights = (np.stack(each) for each in zip(*warped, strict=True))
    # In the frames' own tone, where what is clipped lies at their limit.
    places = _places(stack, weights, hard_limit(given), _margin(found, picture.shape))
    if places.sum() < LEAST:
        raise Error(
            f"{names[0]}: the frames leave {places.sum()} pixels to measure on, which must be at "
            f"least {LEAST}; give frames with less clipping, movement or shift"
        )
    known = _lit(picture, places)
    mean = stack.mean(0)
    tones, inverse = _relations(picture, mean, known), _relations(mean, picture, known)
    alike = [_alike(frame, picture, known, tones) for frame in stack]
    white = np.maximum(1, np.mean([one.gains for one in alike], axis=0, dtype=np.float32))
    picture, stack = picture * white, np.stack([one.frame for one in alike]) * white
    apart = places & (motion(stack.mean(0), picture, weights.min(0))[..., 0] == 0)
    share = float(apart.sum() / places.sum())
    notable = share > NOTABLE and (places & ~apart).sum() >= LEAST
    got = _score(picture, stack, places)
    bends = _bends(tones, inverse, got, names[0])
    return Scored(
        score=got,
        places=float(places.mean()),
        pairs=len(stack) // 2,
        frames=_table(found, weights, names[1:]),
        apart=share,
        still=_score(picture, stack, places & ~apart) if notable else None,
        notes=(*bends, *_notes(got, [one.change for one in alike], names)),
    )


def _found(frame: np.ndarray, picture: np.ndarray, names: tuple[str, str]) -> Transform:
    """Register a frame to the picture, or refuse it."""
    found = registration.register(frame, picture)
    strange = checks.unrelated(found, picture.shape, names[1], names[0])
    if strange:
        raise Error(f"{strange}; leave it out")
    return found


class _Relation(NamedTuple):
    """Hold how values there follow from values here: a line, and what it leaves in bins."""

    gain: float
    offset: float
    at: np.ndarray
    """Values here, by bins."""
    rest: np.ndarray
    """Values there less the line: medians."""
    sigma: np.ndarray
    """Their standard deviation."""
    filled: np.ndarray
    """Independent samples in each bin."""

    @property
    def error(self) -> np.ndarray:
        """Return the standard errors of `rest`."""
        return 1.25 * self.sigma / np.sqrt(self.filled)

    @property
    def told(self) -> bool:
        """Say whether the scene varies by more than the noise, which alone tells a gain."""
        noise = max(float(np.median(self.sigma)), 3 * float(np.median(self.error)))
        return abs(self.gain) * float(np.std(self.at)) > noise

    @property
    def span(self) -> float:
        """Return how far the line rises; next to nothing where it falls."""
        return max(self.gain * float(np.ptp(self.at)), 1e-6)

    def bent(self, share: float = 1.0) -> float:
        """Return the root mean square of `rest`, less its error's, as a share of the range, in that
        share of the bins that bends least."""
        beyond = np.sort(np.square(self.rest) - np.square(self.error))
        least = float(np.mean(beyond[: math.ceil(share * len(beyond))]))
        return math.sqrt(max(least, 0.0)) / self.span if self.told else 0.0

    def mse(self) -> float:
        """Return the mean square of `rest`, less its error's, in the brighter of the two."""
        beyond = np.average(np.square(self.rest) - np.square(self.error), weights=self.filled)
        return max(float(beyond), 0.0) / min(max(self.gain, 1e-6), 1.0) ** 2


class _Alike(NamedTuple):
    """Hold a frame in the picture's tone, its gains C until then, and by how much it differed."""

    frame: np.ndarray
    gains: np.ndarray
    change: float


def _lit(picture: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return H,W: the places that tell about tone; where the picture is clipped none does."""
    limit = hard_limit([picture])
    lit = places if limit is None else places & (picture.max(-1) < limit)
    return lit if lit.sum() >= LEAST else places


def _some(known: np.ndarray) -> np.ndarray:
    """Return the indices of up to twice SAMPLES known places, evenly taken."""
    chosen = np.flatnonzero(known)
    return chosen[:: max(1, chosen.size // SAMPLES)]


def _around(picture: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return C,N: means over what is known of 15x15 pixels, around some of the known places.

    Single pixels would not do: skewed noise (few photons) has another median than mean, by a
    twentieth of its deviation at ten photons.
    """
    chosen, mask = _some(known), known.astype(np.float32)
    layers = [mask, *(picture[..., channel] * mask for channel in range(picture.shape[2]))]
    count, *sums = (cv2.blur(one, (_SIDE, _SIDE)).ravel()[chosen] for one in layers)
    return np.stack(sums) / count


def _relations(here: np.ndarray, there: np.ndarray, known: np.ndarray) -> list[_Relation]:
    """Relate two pictures H,W,C channel by channel."""
    patches = float(known.sum()) / _SIDE**2
    pairs = zip(_around(here, known), _around(there, known), strict=True)
    return [_relation(*pair, patches) for pair in pairs]


def _relation(here: np.ndarray, there: np.ndarray, patches: float) -> _Relation:
    """Fit there = gain here + offset; both N, of which `patches` are independent.

    Where no gain is told, an offset alone.
    """
    bins = _bins(here, 2 / patches)
    if len(bins) >= FEW:
        found = _left(here, there, *_line(here, there, bins), bins, patches)
        if found.told:
            return found
    offset = float(np.median(there - here))
    return _left(here, there, 1.0, offset, [np.arange(here.size)], patches)


def _bins(values: np.ndarray, least: float) -> list[np.ndarray]:
    """Return the indices in equally wide bins of values, those that hold at least such a share.

    Equally full ones would all lie in a large dark background.
    """
    low, high = np.quantile(values, (0.005, 0.995))
    level = np.floor((values - low) * (LEVELS / max(high - low, 1e-9)))
    bins = (np.flatnonzero(level == index) for index in range(LEVELS))
    return [one for one in bins if one.size >= max(1, least * values.size)]


def _line(here: np.ndarray, there: np.ndarray, bins: list[np.ndarray]) -> tuple[float, float]:
    """Return gain and offset by repeated medians (Siegel 1982) of the bins' medians, which hold
    where something that only one of the pictures shows fills less than half of them."""
    gain = offset = 0.0
    # Again on what is left: the median of a slope in a bin lies beside its mean.
    for _ in range(3):
        left = _left(here, there, gain, offset, bins, 1.0)
        more, beyond = agreed_line(left.at, left.rest)
        gain, offset = gain + more, offset + beyond
    return gain, offset


def _left(
    here: np.ndarray,
    there: np.ndarray,
    gain: float,
    offset: float,
    bins: list[np.ndarray],
    patches: float,
) -> _Relation:
    """Return a line with what it leaves."""
    rest = [there[one] - np.float32(gain) * here[one] - np.float32(offset) for one in bins]
    centre = np.array([np.median(one) for one in rest], np.float64)
    sigma = [1.4826 * np.median(np.abs(one - c)) for one, c in zip(rest, centre, strict=True)]
    at = np.array([here[one].mean(dtype=np.float64) for one in bins])
    filled = np.array([patches * one.size / here.size for one in bins])
    return _Relation(gain, offset, at, centre, np.maximum(sigma, 1e-6), filled)


def _alike(
    frame: np.ndarray, picture: np.ndarray, known: np.ndarray, tones: list[_Relation]
) -> _Alike:
    """Bring a frame to the picture's exposure, white balance and black.

    `tones` are those of the mean of all frames, for one that is too noisy by itself. Each frame is
    matched by itself, so that the errors of two are independent.
    """
    result, gains, changes = frame, np.ones(frame.shape[2]), [0.0]
    chosen = _some(known)
    for channel, own in enumerate(_relations(picture, frame, known)):
        line = own if own.told or not tones[channel].told else tones[channel]
        shift = (line.gain - 1) * line.at + line.offset
        change = math.sqrt(np.mean(np.square(shift)))
        there = frame[..., channel]
        noise = 1.4826 * np.median(np.abs(there - picture[..., channel]).ravel()[chosen])
        certain = math.sqrt(np.mean(np.square(shift / line.error))) > CHANCE
        if not certain or change <= NEGLIGIBLE * noise:
            continue
        result = frame.copy() if result is frame else result
        result[..., channel] = (there - line.offset) / line.gain
        gains[channel] = line.gain
        changes.append(change)
    return _Alike(result, gains, max(changes))


def _bends(
    tones: list[_Relation], inverse: list[_Relation], got: Score, name: str
) -> tuple[str, ...]:
    """Say so where no gain and offset lead from the picture's tones to the frames'.

    A bend has to be found by brightness of either: what only one of them shows, since it moved,
    fills bins of its own brightness alone.

    Raises:
        Error: they have two tone curves.
    """
    pairs = list(zip(tones, inverse, strict=True))
    bends = [min(one.bent(), other.bent()) for one, other in pairs]
    bent, line = max(bends), tones[int(np.argmax(bends))]
    worst = int(np.argmax(np.abs(line.rest)))
    share = min(100 * abs(line.rest[worst]) / line.span, 100)
    where = f"by up to {share:.2g} % of their range (where it is {line.at[worst]:.2f})"
    steady = max(min(one.bent(STEADY), other.bent(STEADY)) for one, other in pairs)
    if bent > BENT and steady > SLIGHT:
        raise Error(
            f"{name} has another tone curve than the frames: beyond a gain and an offset they "
            f"differ {where}; export it with the frames' own tone curve, or develop the frames "
            "as it was"
        )
    mse = float(np.mean([one.mse() for one in tones]))
    if bent > BENT or (bent > SLIGHT and mse > PART * 10 ** (-got.db / 10)):
        most = metrics.to_score(mse, 0.0).db
        return (
            f"{name} departs from the frames' tones {where}, by its tone curve or because "
            f"something moved: that counts as an error, and alone keeps it below {most:.1f} dB.",
        )
    return ()


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
