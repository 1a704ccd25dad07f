"""Reproduce Fig. 1c: of a fixed budget of captures, many scenes of two captures each learn most.

Lehtinen et al. 2018, section 3.1; reference 2.2. A unit is one capture of one scene at sigma 25;
here a scene is 224 x 224 px of a picture. Case 1: N scenes of M captures, pairs of the first and
the mean of the others, as people made "clean" targets. Case 2: the same captures, all ordered pairs
of two noisy ones. Case 3: ten times the scenes, two captures each. Nothing is drawn anew while
training, so what is few is learnt by heart. Expected on Kodak at sigma 25: case 2 several tenths of
a dB above case 1, case 3 as much again.

    python -m experiments.budget DATA --preset cpu     (22 minutes on two cores)
    python -m experiments.budget DATA --preset paper   (4 hours a model on a Titan V)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import n2n
from experiments import runs
from n2n.corruptions import Gaussian
from n2n.types import Batch, Task

NOISE = Gaussian(25 / 255)
PROBLEM = runs.Problem(input=NOISE, test=NOISE, sets=("kodak24",))
SIDE = 224
UNITS = {"cpu": (10, 20), "paper": (100, 20)}
"""N scenes, M captures of cases 1 and 2."""
RECIPES = {
    "cpu": runs.Recipe(runs.LEAN, steps=2500),
    "paper": runs.Recipe("unet", steps=300_000, batch=4, crop=224, learning_rate=3e-4),
}


@dataclass(frozen=True)
class Captures:
    """Draw a pair of one scene's captures, and one crop of both; (key, stripe) -> one example."""

    crop: int
    average: bool
    """The target is the mean of the other captures of the first one."""

    def __call__(self, key: jax.Array, stripe: Mapping[str, jax.Array], progress) -> Batch:
        """Return the example; `stripe["captures"]` is N,M,H,W,C in display units."""
        del progress
        pair_key, place_key = jax.random.split(key)
        captures = stripe["captures"]
        scenes, count, height, width, channels = captures.shape
        free = jnp.array([scenes, count, count - 1])
        scene, first, second = jax.random.randint(pair_key, (3,), 0, free)
        room = jnp.array([height, width]) - self.crop + 1
        y, x = jax.random.randint(place_key, (2,), 0, room)
        size = (1, count, self.crop, self.crop, channels)
        view = jax.lax.dynamic_slice(captures, (scene, 0, y, x, 0), size)[0].astype(jnp.float32)
        if self.average:
            seen, wanted = view[0], view[1:].mean(0)
        else:
            seen, wanted = view[first], view[second + (second >= first)]
        return Batch(seen, wanted, jnp.ones((self.crop, self.crop, 1)))


def scenes(files: list[Path], count: int) -> np.ndarray:
    """Return count,224,224,3 uint8: the first tile of every picture, then their second ones."""
    tiles = [_tiles(n2n.read(path).array) for path in files]
    most = max(len(each) for each in tiles)
    order = [each[turn] for turn in range(most) for each in tiles if turn < len(each)]
    if len(order) < count:
        raise n2n.Error(f"the pictures hold {len(order)} scenes of {SIDE} px; {count} are needed")
    return np.stack(order[:count])


def _tiles(picture: np.ndarray) -> list[np.ndarray]:
    rows, columns = (size // SIDE for size in picture.shape[:2])
    corners = [(SIDE * y, SIDE * x) for y in range(rows) for x in range(columns)]
    return [picture[y : y + SIDE, x : x + SIDE] for y, x in corners]


def captures(clean: np.ndarray, count: int) -> np.ndarray:
    """Return N,M,H,W,C float16, whose steps of 0.1 (of 255) are far below the noise."""
    observe = jax.jit(jax.vmap(NOISE, (0, None)))
    keys = [jax.random.split(jax.random.fold_in(jax.random.key(0), i), count)
            for i in range(len(clean))]  # fmt: skip
    seen = [observe(*pair).image for pair in zip(keys, clean / np.float32(255), strict=True)]
    return np.stack([np.asarray(each, np.float16) for each in seen])


def squared(prediction: jax.Array, target: jax.Array, progress: jax.Array) -> jax.Array:
    """Return (f - y)^2."""
    del progress
    return jnp.square(prediction - target)


def cases(clean: np.ndarray, scenes: int, count: int, crop: int) -> dict[str, Task]:
    """Return the three tasks, which spend equally many captures: scenes x count."""
    many, wide = captures(clean[:scenes], count), captures(clean, 2)
    laws = {"case1": (many, True), "case2": (many, False), "case3": (wide, False)}
    return {
        name: Task(
            {"captures": taken[None]}, Captures(crop, average), squared, name=f"budget, {name}"
        )
        for name, (taken, average) in laws.items()
    }


def main() -> None:
    """Train all cases and record their curves on Kodak."""
    experiment = runs.start(__doc__, "budget")
    recipe, (count, captured) = RECIPES[experiment.preset], UNITS[experiment.preset]
    files = experiment.files(runs.TRAINING[experiment.preset])
    tasks = cases(scenes(files, count * captured // 2), count, captured, recipe.crop)
    for seed in experiment.seeds or recipe.seeds:
        for row, task in tasks.items():
            runs.learn(experiment, PROBLEM, row, recipe, task=task, seed=seed,
                       marks=runs.marks(recipe.steps))  # fmt: skip


if __name__ == "__main__":
    main()
