"""Reproduce the MRI row of section 3.6: noisy targets reconstruct undersampled scans like clean.

Lehtinen et al. 2018, section 3.6; reference 1.6. A scan keeps each coefficient k of a 255x255
spectrum with probability 0.025^(|k|/127), a tenth of all, divided by it; the measured ones are put
back into the network's output, in training and in use. Expected of 300 epochs on 5,000 slices of
IXI T1, 1,000 slices of other heads: 31.74 dB with noisy targets, 31.77 with clean ones, 20.03
before; output and reference clamped to [0, 1].

    python -m experiments.mri DATA --preset cpu        (25 minutes on two cores)
    python -m experiments.mri DATA --preset paper      (hours on an accelerator)

Needs `pip install -e '.[experiments]'`. `--preset cpu` trains on slices of two heads in `mri`, one
real (`chris_t1`) and one average (the MNI template), cut along all three axes; it is tested on an
axial slice of a third, IXI002, in T1 and in T2, a contrast never trained on, 20 scans of each. The
real bar there is `unweighted`, the inverse transform of the measured coefficients as they are.
`--preset paper` wants the volumes of IXI in `IXI-T1` (brain-development.org): heads 002 to 063
train, 064 to 073 test.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import n2n
from experiments import runs
from n2n.types import Batch, Task

SIDE = 255
"""Odd, so that every frequency but zero has a mirror image of its own."""
EDGE = 0.025
"""The probability at 127, the farthest frequency along an axis."""
SHIFT = 64
"""Pixels, the largest circular shift of an example."""
NETWORK = {"kind": "lean", "inputs": 1, "outputs": 1, "widths": [16, 32, 64, 64, 64]}
RECIPES = {
    "cpu": runs.Recipe(NETWORK, steps=1500, batch=2, crop=256),
    "paper": runs.Recipe("unet", steps=93_600, batch=16, crop=256),
}
"""300 epochs of 312 steps; the rate falls over the last half, not the last tenth."""
HEADS = ("chris_t1.nii.gz", "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz")
TESTS = {"t1": "IXI002-Guys-0828-T1_slice90.nii.gz", "t2": "IXI002-Guys-0828-T2_slice90.nii.gz"}
DRAWS = 20


def main() -> None:
    """Train with noisy and with clean targets, and score both beside what needs no training."""
    experiment = runs.start(__doc__, "mri")
    recipe = RECIPES[experiment.preset]
    training, tests = (_volumes if experiment.preset == "paper" else _heads)(experiment)
    repeat = 1 if experiment.preset == "paper" else DRAWS
    data = ["IXI-T1" if experiment.preset == "paper" else "mri"]
    for row, method in (("input", weighted), ("unweighted", unweighted)):
        if not experiment.recorded(row):
            experiment.record(row, 0, None, **score(method, tests, repeat))
    for seed in experiment.seeds or recipe.seeds:
        for row in ("noisy", "clean"):
            if experiment.recorded(row, seed):
                continue
            model = experiment.train(row, task(training, row), recipe, seed=seed)
            scores = score(functools.partial(reconstruct, model), tests, repeat)
            experiment.record(row, seed, recipe, data=data, **scores)


# The scanner -------------------------------------------------------------------------------------


def law() -> np.ndarray:
    """Return the probability of keeping each coefficient, 255,255 float32, frequency 0 first."""
    line = np.fft.fftfreq(SIDE, 1 / SIDE)
    distance = np.hypot(line[:, None], line)
    return (EDGE ** (distance / (SIDE // 2))).astype(np.float32)


def draw(key: jax.Array) -> jax.Array:
    """Return which coefficients a scan keeps, 255,255 bool, equal to its own point mirror image.

    A coefficient needs its own draw and its mirror image's, each with the root of the probability:
    so the picture stays real and the law is met exactly (reference 1.6).
    """
    lucky = jax.random.uniform(key, (SIDE, SIDE)) ** 2 < law()
    return lucky & jnp.roll(jnp.flip(lucky, (0, 1)), 1, (0, 1))


def scan(key: jax.Array, picture: jax.Array) -> dict[str, jax.Array]:
    """Measure a picture 255,255,1: `samples` 255,255 complex64, 0 where `kept` is not."""
    kept = draw(key)
    return {"kept": kept, "samples": kept * jnp.fft.fft2(picture[..., 0])}


def weighted(seen: dict[str, jax.Array]) -> jax.Array:
    """Return a scan's picture 255,255,1, each sample divided by its probability: unbiased."""
    return _picture(seen["samples"] / law())


def unweighted(seen: dict[str, jax.Array]) -> jax.Array:
    """Return a scan's picture 255,255,1 of the samples as they are: blurred, much less noise."""
    return _picture(seen["samples"])


def consistent(prediction: jax.Array, seen: dict[str, jax.Array]) -> jax.Array:
    """Return the network's output 256,256,1 cut to 255,255,1, with the samples that are known."""
    spectrum = jnp.fft.fft2(prediction[:SIDE, :SIDE, 0])
    return _picture(jnp.where(seen["kept"], seen["samples"], spectrum))


def _picture(spectrum: jax.Array) -> jax.Array:
    return jnp.fft.ifft2(spectrum).real[..., None]


def _padded(picture: jax.Array) -> jax.Array:
    """Add a black row and column, for a side of 256 that the network's lattice divides."""
    return jnp.pad(picture, ((0, 1), (0, 1), (0, 0)))


# Learning ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scans:
    """Draw an example: a slice, shifted in a circle, scanned twice or once and clean."""

    clean: bool = False

    def __call__(self, key: jax.Array, slices: jax.Array, progress: jax.Array) -> Batch:
        """Return input 256,256,1, target and weight 255,255,1; context is the input's scan."""
        del progress
        which, where, first, second = jax.random.split(key, 4)
        picture = slices[jax.random.randint(which, (), 0, slices.shape[0])] / 255.0
        picture = jnp.roll(picture, jax.random.randint(where, (2,), -SHIFT, SHIFT + 1), (0, 1))
        seen = scan(first, picture)
        target = picture if self.clean else weighted(scan(second, picture))
        return Batch(_padded(weighted(seen)), target, jnp.ones((SIDE, SIDE, 1)), seen)


def task(slices: Any, targets: str) -> Task:
    """Return the task of slices n,255,255,1 uint8, its `targets` noisy or clean."""
    return Task(
        pool=np.asarray(slices)[None],
        sample=Scans(targets == "clean"),
        loss=squared,
        measure=consistent,
        name=f"MRI, {targets} targets",
    )


def reconstruct(model: n2n.Denoiser, seen: dict[str, jax.Array]) -> jax.Array:
    """Return the picture 255,255,1 that a model makes of a scan, with the samples that are known.

    In display units; not clamped.
    """
    prediction = _apply(model.network.apply)(model.params, _padded(weighted(seen))[None])
    return consistent(prediction[0], seen)


@functools.cache
def _apply(apply: Callable) -> Callable:
    return jax.jit(apply)


def squared(prediction: jax.Array, target: jax.Array, progress: jax.Array) -> jax.Array:
    """Return (f - y)^2, whose minimiser is the mean of the targets."""
    del progress
    return (prediction - target) ** 2


def score(method: Callable, tests: dict[str, np.ndarray], repeat: int) -> dict[str, float]:
    """Return the mean PSNR of a method (scan -> picture) over each set's slices, dB.

    Every slice n,255,255,1 uint8 is scanned `repeat` times, with the same masks for every method;
    output and reference are clamped to [0, 1].
    """
    means = {}
    for name, slices in tests.items():
        found = []
        for index in range(repeat * len(slices)):
            clean = slices[index % len(slices)] / np.float32(255)
            seen = scan(jax.random.fold_in(jax.random.key(0), index), clean)
            found.append(n2n.psnr(np.clip(method(seen), 0, 1), clean))
        means[name] = round(float(np.mean(found)), 3)
    return means


# Slices ------------------------------------------------------------------------------------------


def volume(path: Path) -> np.ndarray:
    """Read a NIfTI file: all its voxels divided by the largest, float32 in [0, 1].

    Raises:
        Error: nibabel is missing.
    """
    try:
        import nibabel
    except ImportError:
        raise n2n.Error(
            f"{path.name!r} is NIfTI, which nibabel reads: pip install 'n2n[experiments]'"
        ) from None
    loaded: Any = nibabel.load(path)
    voxels = np.squeeze(np.asarray(loaded.dataobj, np.float32))
    return np.clip(voxels / voxels.max(), 0, 1)


def framed(plane: np.ndarray) -> np.ndarray:
    """Centre a plane of at most 256x256 in black, round to 8 bits: 255,255,1 uint8.

    Larger ones lose their borders. The last row and column of the 256 go, as in the original.
    """
    canvas = np.zeros((256, 256), np.float32)
    inside, taken = zip(*(_centred(side) for side in plane.shape), strict=True)
    canvas[inside] = plane[taken]
    return np.rint(canvas * 255).astype(np.uint8)[:SIDE, :SIDE, None]


def _centred(side: int, room: int = 256) -> tuple[slice, slice]:
    """Return where `side` pixels lie in `room`, and which of them."""
    size, start, skip = min(side, room), max(room - side, 0) // 2, max(side - room, 0) // 2
    return slice(start, start + size), slice(skip, skip + size)


def ixi_slices(paths: Iterable[Path]) -> np.ndarray:
    """Return slices 25 to 124 along the last axis of each volume, n,255,255,1 uint8.

    Slices that are black are left out (reference 1.6).
    """
    planes = (
        framed(v[..., z]) for v in map(volume, paths) for z in range(25, min(125, v.shape[2]))
    )
    return np.stack([plane for plane in planes if plane.max() > 1])


def head_slices(path: Path) -> np.ndarray:
    """Return every second slice along all three axes of a head, n,255,255,1 uint8.

    Slices with less than a tenth of their pixels above a tenth of white are left out.
    """
    voxels = volume(path)
    planes = [framed(np.take(voxels, i, a)) for a in range(3) for i in range(0, voxels.shape[a], 2)]
    return np.stack([plane for plane in planes if (plane > 25).mean() > 0.1])


def _heads(experiment: runs.Experiment) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    folder = experiment.pictures("mri")
    training = np.concatenate([head_slices(folder / name) for name in HEADS])
    return training, {k: framed(volume(folder / name))[None] for k, name in TESTS.items()}


def _volumes(experiment: runs.Experiment) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    training, tests = ixi_heads(experiment.pictures("IXI-T1"))
    return ixi_slices(training), {"t1": ixi_slices(tests)}


def ixi_heads(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the files of IXI's heads 002 to 063, and of 064 to 073.

    Raises:
        Error: the folder lacks either.
    """
    numbers = {path: re.match(r"IXI(\d{3})-", path.name) for path in sorted(folder.glob("*.nii*"))}
    heads = {path: int(found[1]) for path, found in numbers.items() if found}
    training = [path for path, number in heads.items() if number <= 63]
    tests = [path for path, number in heads.items() if 63 < number <= 73]
    if not training or not tests:
        raise n2n.Error(
            f"{str(folder)!r} has {len(training)} volumes of IXI002 to IXI063 and {len(tests)} of "
            "IXI064 to IXI073; put both there, named as in IXI-T1.tar"
        )
    return training, tests


if __name__ == "__main__":
    main()
