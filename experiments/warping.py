"""Measure where a burst's movement belongs: in its targets, or between prediction and target.

n2n resamples every frame once into the reference's geometry (Lanczos4) and compares the network's
picture with these frames, which Lanczos4 has softened a little and whose noise it has changed. The
alternative leaves the target as it was taken and moves the prediction to it, in the loss
(`Task.measure`). Eight frames of pictures of `cid22_val`, shifts of up to 12 px that are told, no
turn, gain 0.01 and 0.04, read noise 0.005. Input is the mean of a random subset of the registered
frames, target one other frame. Rows: `targets`, `prediction`; the same network on the same draws.
Figures: dB against the expected frame, mean of three pictures, of the network on the mean of all
frames; `mean`: of that mean itself.

    python -m experiments.warping DATA     (15 minutes on two cores)
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import cv2
import jax
import jax.numpy as jnp
import numpy as np

import n2n
from experiments import runs
from n2n import simulate
from n2n.corruptions import Camera
from n2n.types import Batch, Task

GAINS, READ, FRAMES, SHIFT = (0.01, 0.04), 0.005, 8, 12.0
PICTURES = (0, 1, 2)
MARGIN = 32
"""Pixels at the border that no crop and no figure has."""
TAPS = 4
RECIPE = runs.Recipe(runs.LEAN, steps=1500)


@dataclass(frozen=True)
class Subsets:
    """Draw a crop: the mean of some registered frames against one of the others."""

    moved: bool
    """Whether the target is the frame as it was taken, and the prediction is moved to it."""

    def __call__(self, key: jax.Array, stripe: dict[str, jax.Array], progress: jax.Array) -> Batch:
        """Return one example of RECIPE.crop pixels."""
        order, many, place = jax.random.split(key, 3)
        frames, side = stripe["registered"], RECIPE.crop
        rank = jax.random.permutation(order, FRAMES)
        size = jax.random.randint(many, (), FRAMES // 2, FRAMES)
        share = (rank < size) / size
        target = jnp.argmax(rank)
        free = jnp.array([n - 2 * MARGIN - side for n in frames.shape[1:3]])
        y, x = MARGIN + (jax.random.uniform(place, (2,)) * free).astype(int)
        seen = jax.lax.dynamic_slice(frames, (0, y, x, 0), (FRAMES, side, side, 3))
        whole = jnp.round(stripe["shifts"][target]).astype(int) if self.moved else jnp.zeros(2, int)
        rest = stripe["shifts"][target] - whole if self.moved else jnp.zeros(2)
        source = stripe["taken"] if self.moved else frames
        corner = (target, y + whole[0], x + whole[1], 0)
        wanted = jax.lax.dynamic_slice(source, corner, (1, side, side, 3))[0]
        inner = jnp.zeros((side, side, 1)).at[TAPS:-TAPS, TAPS:-TAPS].set(1.0)
        return Batch(jnp.tensordot(share, seen, 1), wanted, inner, rest)


def moved(picture: jax.Array, shift: jax.Array) -> jax.Array:
    """Return H,W,C as it is seen `shift` (dy, dx) of less than a pixel later, by Lanczos4."""
    for axis in (0, 1):
        taps = jnp.arange(-TAPS + 1, TAPS + 1)
        base = jnp.floor(-shift[axis])
        away = -shift[axis] - base - taps
        weights = jnp.sinc(away) * jnp.sinc(away / TAPS) * (jnp.abs(away) < TAPS)
        weights /= weights.sum()
        first = base.astype(int) - TAPS + 1
        rolled = [jnp.roll(picture, -(first + number), axis) for number in range(2 * TAPS)]
        picture = jnp.tensordot(weights, jnp.stack(rolled), 1)
    return picture


def squared(prediction: jax.Array, target: jax.Array, progress: jax.Array) -> jax.Array:
    """Return the squared difference."""
    return jnp.square(prediction - target)


def main() -> None:
    """Train both ways on every burst, and record the means."""
    experiment = runs.start(__doc__, "warping")
    paths = experiment.files(["cid22_val"])
    for gain in GAINS:
        if experiment.recorded(f"gain {gain}"):
            continue
        found = [scores(experiment, n2n.read(paths[i]).array, gain, i) for i in PICTURES]
        figures = {way: round(statistics.mean(each[way] for each in found), 3) for way in found[0]}
        experiment.record(f"gain {gain}", 0, RECIPE, data=["cid22_val"], **figures)


def scores(
    experiment: runs.Experiment, picture: np.ndarray, gain: float, number: int
) -> dict[str, float]:
    """Return the figures of one burst."""
    shots = simulate.hand_held(
        picture / np.float32(255),
        frames=FRAMES,
        shift=SHIFT,
        rotation=0.0,
        corruption=Camera(gain, READ),
        seed=number,
        margin=MARGIN,
    )
    shifts = shots.transforms[:, 1::-1, 2]  # (dy, dx)
    registered = np.stack([unmoved(*each) for each in zip(shots.frames, shifts, strict=True)])
    pool = {"registered": registered, "taken": shots.frames, "shifts": shifts.astype(np.float32)}
    inner = (slice(MARGIN, -MARGIN),) * 2
    mean, truth = registered.mean(0), shots.expected[inner]
    figures = {"mean": n2n.psnr(mean[inner], truth)}
    for way in ("targets", "prediction"):
        law = Subsets(moved=way == "prediction")
        task = Task(
            {name: each[None] for name, each in pool.items()}, law, squared, measure=moved, name=way
        )
        model = experiment.train(f"{way}-{gain}", task, RECIPE, seed=number)
        figures[way] = n2n.psnr(model.predict(mean)[inner], truth)
    return figures


def unmoved(frame: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Return a frame in the geometry of the reference, by Lanczos4."""
    if not np.any(shift):
        return frame
    matrix = np.array([[1, 0, shift[1]], [0, 1, shift[0]]], np.float64)
    flags = cv2.INTER_LANCZOS4 | cv2.WARP_INVERSE_MAP
    size = frame.shape[1::-1]
    return cv2.warpAffine(frame, matrix, size, flags=flags, borderMode=cv2.BORDER_REFLECT_101)


if __name__ == "__main__":
    main()
