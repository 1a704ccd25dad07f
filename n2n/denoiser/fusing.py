"""A burst and a denoiser make one picture, with its clean-free quality.

`run` maps a picture H,W,C float32 in display units, and its noise map H,W,1 or None, to the
denoised one.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from n2n import metrics, tasks
from n2n.registration.geometry import cv2
from n2n.types import Burst, Fused, Score

Scores = tuple[Score | None, Score | None, Score | None]
"""Of the mean, of the result, and the gain."""
SIDE = 1024
"""Pixels of a burst's middle on which weights to start from are compared."""
LARGE = 4_000_000
"""Pixels of a picture from which on each pair of frames scores a band of it, not all, and it is
turned but not mirrored: four ways cost 0.03 dB where one costs 0.2 to 0.5."""
CONTEXT = 64
"""Pixels around a part of a picture that the network sees, too."""
_SPECK = 9
"""Side in pixels of what is too small to be a thing of its own."""


def passes(burst: Burst, models: int) -> int:
    """Return how often some network is applied where a burst's picture is made of the best."""
    ways = len(_ways(burst.mask))
    again = ways if models > 1 and lone(burst).any() else 0
    return models * max(2, len(burst.frames) // 2) + ways + again


def fuse(run: Callable, burst: Burst, seed: int) -> Fused:
    """Apply `run`, `turned`, to the mean of all frames; score it on the held-out places.

    The score is that of `run` alone, not turned, which costs an eighth.
    """
    return _fused(run, burst, _scores(run, burst, seed))


def best(learnt: Callable, start: Callable | None, burst: Burst, seed: int) -> tuple[str, Fused]:
    """Return the picture by what was `learnt`, or by its `start`, or the mean, and which it is.

    The clean-free score decides between `burst`, `start` and `mean`. Where nothing can be scored
    what was learnt is taken. What only the reference shows (`lone`) is never a target: there the
    picture is the start's, which has seen more of the world than this scene.
    """
    runs = {"burst": learnt} if start is None else {"burst": learnt, "start": start}
    name, scores = _best(runs, burst, seed)
    if _gain(scores) < 0:
        before, _, _ = scores
        as_it_is = (before, before, Score(0.0, 0.0, 0.0))
        return "mean", _fused(lambda image, _: image, burst, as_it_is)
    fused = _fused(runs[name], burst, scores)
    if start is not None and name == "burst":
        fused = _relieved(fused, start, burst)
    return name, fused


def lone(burst: Burst) -> np.ndarray:
    """Return H,W bool: what the reference alone shows although others looked there; no specks."""
    kernel = np.ones((_SPECK, _SPECK), np.uint8)
    alone = (burst.weights.sum(0)[..., 0] < 1.5).astype(np.uint8)
    rows, columns = np.nonzero(alone)
    alone[rows, columns] = _seen(burst, columns, rows)
    return cv2.morphologyEx(alone, cv2.MORPH_OPEN, kernel) > 0


def _seen(burst: Burst, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return which places x, y of the reference lie within any other frame."""
    height, width = burst.frames.shape[1:3]
    seen = np.zeros(len(x), bool)
    for index, matrix in enumerate(burst.transforms):
        if index != burst.reference:
            across, down, depth = matrix @ np.stack([x, y, np.ones(len(x))])
            across, down = across / depth, down / depth
            inside = (across >= 0) & (across <= width - 1) & (down >= 0) & (down <= height - 1)
            seen |= inside
    return seen


def _relieved(fused: Fused, run: Callable, burst: Burst) -> Fused:
    """Take `run`'s picture where the reference is alone, fading over 8 pixels."""
    places = lone(burst)
    if not places.any():
        return fused
    kernel = np.ones((_SPECK, _SPECK), np.uint8)
    share = cv2.blur(cv2.dilate(places.astype(np.float32), kernel), kernel.shape)[..., None]
    rows, columns = (_span(np.any(places, axis=axis)) for axis in (1, 0))
    part = _part(burst, rows, columns)
    there = turned(run, part.mean(), tasks.noise_map(part))
    image = fused.image.copy()
    image[rows, columns] += share[rows, columns] * (there - image[rows, columns])
    return dataclasses.replace(fused, image=image, borrowed=float(places.mean()))


def _span(places: Any) -> slice:
    """Return the part of a line that holds all places, and CONTEXT pixels more at both ends."""
    at = np.flatnonzero(places)
    return slice(max(0, at[0] - CONTEXT), at[-1] + 1 + CONTEXT)


def preferred(runs: Mapping[str, Callable], burst: Burst) -> str:
    """Return the name of the best of several `runs` by the clean-free score, or of the first one.

    Judged in the middle of the picture, up to SIDE px square, which is enough to tell weights
    apart that have not seen the burst.
    """
    height, width = burst.frames.shape[1:3]
    y, x = (max(0, size - SIDE) // 2 for size in (height, width))
    return _best(runs, _part(burst, slice(y, y + SIDE), slice(x, x + SIDE)), 0)[0]


def _part(burst: Burst, rows: slice, columns: slice) -> Burst:
    return dataclasses.replace(
        burst,
        frames=burst.frames[:, rows, columns],
        weights=burst.weights[:, rows, columns],
        mask=burst.mask[rows, columns],
    )


def _best(runs: Mapping[str, Callable], burst: Burst, seed: int) -> tuple[str, Scores]:
    scores = {name: _scores(run, burst, seed) for name, run in runs.items()}
    name = max(scores, key=lambda each: _gain(scores[each]))
    return name, scores[name]


def turned(run: Callable, image: np.ndarray, noise_map: np.ndarray | None) -> np.ndarray:
    """Return the mean of `run` on a picture turned and mirrored in all eight ways, turned back.

    A network that has learnt from crops in all these ways errs differently in each (the enhanced
    prediction, or self-ensemble, of Timofte, Rothe and Van Gool, CVPR 2016). A picture from LARGE
    on is turned only.
    """
    total, ways = np.zeros(image.shape, np.float64), _ways(image)
    for mirror, quarter in ways:
        seen = [None if each is None else _turn(each, mirror, quarter)
                for each in (image, noise_map)]  # fmt: skip
        back = np.rot90(run(*seen), -quarter)
        total += back.swapaxes(0, 1) if mirror else back
    return (total / len(ways)).astype(np.float32)


def _ways(image: np.ndarray) -> list[tuple[bool, int]]:
    """Return whether a picture H,W,C is mirrored and by how many quarters it is turned, by way."""
    mirrors = (False, True) if image.shape[0] * image.shape[1] < LARGE else (False,)
    return list(itertools.product(mirrors, range(4)))


def _turn(array: np.ndarray, mirror: bool, quarter: int) -> np.ndarray:
    return np.ascontiguousarray(np.rot90(array.swapaxes(0, 1) if mirror else array, quarter))


def _gain(scores: Scores) -> float:
    return 0.0 if scores[2] is None else scores[2].db


def _fused(run: Callable, burst: Burst, scores: Scores) -> Fused:
    before, after, gain = scores
    image = turned(run, burst.mean(), tasks.noise_map(burst))
    equivalent = math.nan if gain is None else len(burst.frames) * 10 ** (gain.db / 10)
    return Fused(image, after, before, gain, equivalent, _table(burst))


def _scores(run: Callable, burst: Burst, seed: int) -> Scores:
    """Return the clean-free quality of the mean and of the result, and the gain; None: no place."""
    mask = _scored_places(burst, seed)
    if not mask.any():
        return None, None, None
    if len(burst.frames) == 2:
        return _pair_scores(run, burst, mask)
    found = [_product_mses(run, *share) for share in _shares(burst, mask)]
    counts = np.array([count for count, _, _ in found])
    weights = counts / counts.sum()
    mses = sum(weight * one for weight, (_, one, _) in zip(weights, found, strict=True))
    covariance = sum(w**2 * one for w, (_, _, one) in zip(weights, found, strict=True))
    after, before = (metrics.to_score(float(mses[i]), math.sqrt(covariance[i, i])) for i in (0, 1))
    return before, after, metrics.to_gain(mses, covariance)


def _shares(burst: Burst, mask: np.ndarray) -> Iterator[tuple[Burst, int, np.ndarray]]:
    """Yield for each pair of frames the part of a burst that it scores, its first, and the places.

    That is everything; of a large picture, whose places are more than enough, a band of rows each,
    so that the network passes over the picture once.
    """
    firsts = range(0, len(burst.frames) - 1, 2)
    if mask.size < LARGE:
        for first in firsts:
            yield burst, first, mask
        return
    # At whole blocks, by which the variance of the score is told.
    edges = [32 * (len(mask) * i // (32 * len(firsts))) for i in range(len(firsts))] + [len(mask)]
    for first, top, bottom in zip(firsts, edges, edges[1:], strict=False):
        rows = slice(max(0, top - CONTEXT), bottom + CONTEXT)
        places = mask[rows].copy()
        places[: top - rows.start] = places[bottom - rows.start :] = False
        if places.any():
            yield _part(burst, rows, slice(None)), first, places


def _scored_places(burst: Burst, seed: int) -> np.ndarray:
    """Return H,W: held out of training, off the border, and shown unclipped by every frame."""
    height, width = burst.frames.shape[1:3]
    mask, _ = metrics.held_out((height, width), seed=seed)
    margin = min(burst.margin, height // 8, width // 8)
    inside = np.zeros((height, width), bool)
    inside[margin : height - margin, margin : width - margin] = True
    everywhere = np.all(burst.weights > 0, axis=(0, -1)) & (burst.mask[..., 0] > 0)
    return mask & inside & everywhere


def _product_mses(
    run: Callable, burst: Burst, first: int, mask: np.ndarray
) -> tuple[int, np.ndarray, np.ndarray]:
    """Compare f(mean of the others) and that mean with frames first and first + 1.

    Returns the number of places, both MSEs, and their covariance.
    """
    others = [i for i in range(len(burst.frames)) if i not in (first, first + 1)]
    rest = dataclasses.replace(burst, frames=burst.frames[others], weights=burst.weights[others])
    mean = rest.mean()
    x, y = burst.frames[first], burst.frames[first + 1]
    return (
        int(np.count_nonzero(mask)),
        *metrics.paired_mse(run(mean, tasks.noise_map(rest)), mean, x, y, mask=mask),
    )


def _pair_scores(run: Callable, burst: Burst, mask: np.ndarray) -> tuple[Score, Score, Score]:
    a, b = burst.frames
    single = [dataclasses.replace(burst, frames=burst.frames[i : i + 1],
                                  weights=burst.weights[i : i + 1]) for i in range(2)]  # fmt: skip
    fa, fb = (run(one.frames[0], tasks.noise_map(one)) for one in single)
    before, after = (
        metrics.upsnr_pair(a, a, b, b, mask=mask),
        metrics.upsnr_pair(fa, a, fb, b, mask=mask),
    )
    return before, after, metrics.pair_gain(fa, a, fb, b, mask=mask)


def _table(burst: Burst) -> tuple[dict[str, Any], ...]:
    rows = []
    for name, (dy, dx), weight in zip(burst.names, burst.shifts, burst.weights, strict=True):
        row = {"frame": name, "dy": float(dy), "dx": float(dx), "weight": float(weight.mean())}
        rows.append(row)
    return tuple(rows)
