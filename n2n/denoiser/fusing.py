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
from n2n.types import Burst, Fused, Score

Scores = tuple[Score | None, Score | None, Score | None]
"""Of the mean, of the result, and the gain."""
MEAN = "mean"
"""What `best` calls the plain mean of the frames."""
_WAYS = 8
"""In which a picture can be turned and mirrored."""
SIDE = 1024
"""Pixels of a burst's middle on which weights to start from are compared."""
LARGE = 4_000_000
"""Pixels of a picture from which on each pair of frames scores a band of it, not all."""
CONTEXT = 64
"""Rows above and below a band that the network sees, too."""


def passes(burst: Burst, models: int) -> int:
    """Return how often some network is applied where a burst's picture is made of the best."""
    return models * max(2, len(burst.frames) // 2) + _WAYS


def fuse(run: Callable, burst: Burst, seed: int) -> Fused:
    """Apply `run`, turned in all ways, to the mean of all frames; score it on the held-out places.

    The score is that of `run` alone, not turned, which costs an eighth.
    """
    return _fused(run, burst, _scores(run, burst, seed))


def best(runs: Mapping[str, Callable], burst: Burst, seed: int) -> tuple[str, Fused]:
    """Return the picture of the best of several `runs` by the clean-free score, and its name.

    The plain mean (`MEAN`) is written where no run is better. Where nothing can be scored the
    first one is taken.
    """
    name, scores = _best(runs, burst, seed)
    if _gain(scores) >= 0:
        return name, _fused(runs[name], burst, scores)
    before, _, _ = scores
    return MEAN, _fused(lambda image, _: image, burst, (before, before, Score(0.0, 0.0, 0.0)))


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
    prediction, or self-ensemble, of Timofte, Rothe and Van Gool, CVPR 2016).
    """
    total = np.zeros(image.shape, np.float64)
    for mirror, quarter in itertools.product((False, True), range(4)):
        seen = [None if each is None else _turn(each, mirror, quarter)
                for each in (image, noise_map)]  # fmt: skip
        back = np.rot90(run(*seen), -quarter)
        total += back.swapaxes(0, 1) if mirror else back
    return (total / _WAYS).astype(np.float32)


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
