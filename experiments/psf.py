"""Measure how well the blur of a photograph is found from the photograph alone.

`kodak24`, each picture blurred `DRAWS` times by each kind with parameters drawn uniformly: none, a
Gaussian (sigma 1 to 3 px), a motion (9 to 25 px, any angle), a defocus (radius 2 to 8 px). White
noise of 2/255 comes after the blur, and 32 px are cut off each side, so that the border at which
the blur reflects the picture gives nothing away. Kind and noise are not told. Nothing was tuned on
these pictures. `kind` is the share of right kinds; the others are the shares within 15 % of sigma,
within 1 px of the length and 3 degrees of the angle, and within 0.3 px of the radius, a wrong kind
counting as missed. Expected: at least 0.85, 0.8, 0.9 and 0.9.

    python -m experiments.psf DATA        (7 minutes on two cores)
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import n2n
from experiments import runs
from n2n import psf
from n2n.corruptions import PSF, Blur, Defocus, Gaussian, Motion

DRAWS = 4
EDGE = 32
"""Pixels that are cut off each side."""
NOISE = Gaussian(2 / 255)
KINDS = ("none", "gaussian", "motion", "defocus")


def main() -> None:
    """Measure the shares and record the line."""
    experiment = runs.start(__doc__, "psf")
    trials = list(shares(experiment.files(("kodak24",)), np.random.default_rng(0)))
    figures = {kind: [good for each, _, good, _ in trials if each == kind] for kind in KINDS}
    experiment.record(
        "kodak24", 0, None,
        count=len(trials),
        kind=round(statistics.mean(right for _, right, _, _ in trials), 4),
        **{name: round(statistics.mean(good), 4) for name, good in figures.items()},
        median_seconds=round(statistics.median(seconds for *_, seconds in trials), 2),
    )  # fmt: skip


def shares(files: list[Path], rng: np.random.Generator) -> Iterator[tuple[str, bool, bool, float]]:
    """Yield (kind, whether it was found, whether all was within tolerance, seconds) per trial."""
    for path in files:
        clean = n2n.read(path).array / np.float32(255)
        for kind in KINDS * DRAWS:
            truth = draw(kind, rng)
            seen = blurred(clean, truth, int(rng.integers(2**31)))
            start = time.perf_counter()
            found = psf.estimate(seen)
            seconds = time.perf_counter() - start
            right = found.kind == kind
            yield kind, right, within(found.psf, truth), seconds


def draw(kind: str, rng: np.random.Generator) -> PSF | None:
    """Return a blur of a kind, its parameters drawn uniformly."""
    match kind:
        case "gaussian":
            return Blur(rng.uniform(1, 3))
        case "motion":
            return Motion(rng.uniform(9, 25), rng.uniform(0, 180))
        case "defocus":
            return Defocus(rng.uniform(2, 8))
    return None


def blurred(clean: np.ndarray, truth: PSF | None, seed: int) -> np.ndarray:
    """Return the picture blurred, noisy, and without its border."""
    blur, noise = jax.random.split(jax.random.key(seed))
    scene = jnp.asarray(clean)
    seen = truth(blur, scene).image if truth else scene
    return np.asarray(NOISE(noise, seen).image)[EDGE:-EDGE, EDGE:-EDGE]


def within(found: PSF | None, truth: PSF | None) -> bool:
    """Say whether the blur that was found is of the true one's kind, and near it."""
    if found is None or truth is None or type(found) is not type(truth):
        return found is truth
    (size, *angles), (true, *directions) = dataclasses.astuple(found), dataclasses.astuple(truth)
    tolerance = {Blur: 0.15 * true, Motion: 1, Defocus: 0.3}[type(truth)]
    turns = [(a - b + 90) % 180 - 90 for a, b in zip(angles, directions, strict=True)]
    return abs(size - true) <= tolerance and all(abs(turn) <= 3 for turn in turns)


if __name__ == "__main__":
    main()
