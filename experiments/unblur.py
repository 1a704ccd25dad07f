"""Unblur with a known point spread function, from noisy blurred pictures alone.

Three PSFs (Gaussian 1.6 px, motion of 15 px at 30 degrees, defocus of 4 px), noise of sigma 2 (of
255) after them; tested on Kodak, clipped, without 32 px of border, where no method sees enough.
Rows of each PSF, the same network (a Wiener filter, then the default) on the same crops:
- `operator`: two noisy blurred captures of each scene; the blur stands in the loss
  (`n2n.deblurring`), nothing sharp is ever seen;
- `sharp`: the target is another capture, sharp and noisy; `clean`: sharp and clean;
- `blind`: as `sharp`, but one plain network for PSFs of all three families, which it is not told;
- `input`, and scikit-image's unsharp mask, Wiener, unsupervised Wiener and Richardson-Lucy, which
  are told the PSF, on pictures continued by reflection, each with the setting that is best on six
  of these very pictures.
`band` is the error, in dB, at frequencies where the PSF leaves a tenth or more of the amplitude.

    python -m experiments.unblur DATA --preset cpu     (25 minutes on two cores, baselines 20 more)
    python -m experiments.unblur DATA --preset paper   (50 times as long)
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
from skimage import filters, restoration

import n2n
from experiments import runs
from n2n import evaluation
from n2n.corruptions import PSF, Blur, Chain, Clean, Defocus, Gaussian, Motion
from n2n.corruptions.blur import wiener
from n2n.types import Observation

PSFS: dict[str, PSF] = {
    "gaussian": Blur(1.6),
    "motion": Motion(15.0, 30.0),
    "defocus": Defocus(4.0),
}
FAMILIES = (Blur((1.0, 3.0)), Motion((9.0, 25.0)), Defocus((2.0, 8.0)))
SIGMA = 2 / 255
BORDER = 32
BAND = 0.1
RECIPES = {
    "cpu": runs.Recipe("filtered", steps=1500, batch=4, crop=96),
    "paper": runs.Recipe("filtered", steps=75_000, batch=4, crop=96),
}
LEARNT = ("operator", "sharp", "clean")
CLASSICAL = ("unsharp", "wiener", "unsupervised", "lucy")


@dataclass(frozen=True)
class Either:
    """See the picture through one of several corruptions, each as likely."""

    parts: tuple[Callable, ...]

    def __call__(self, key: jax.Array, clean: jax.Array) -> Observation:
        """Return what the chosen one shows, H,W,C."""
        which, rest = jax.random.split(key)
        number = jax.random.randint(which, (), 0, len(self.parts))
        return jax.lax.switch(number, self.parts, rest, clean)

    def __str__(self) -> str:
        return "|".join(map(str, self.parts))


def main() -> None:
    """Train, measure beside the classical methods, and record a line for each."""
    rows = [f"{name}-{kind}" for name in PSFS for kind in ("input", *LEARNT, *CLASSICAL)]
    experiment = runs.start(__doc__, "unblur", rows=(*rows, "blind"))
    for row in experiment.rows:
        if experiment.recorded(row):
            continue
        if row == "blind":
            blind(experiment)
            continue
        name, kind = row.split("-")
        if kind in LEARNT:
            learn(experiment, row, PSFS[name], kind)
        else:
            classical(experiment, row, kind, PSFS[name])


def classical(experiment: runs.Experiment, row: str, kind: str, psf: PSF) -> None:
    """Try a method's settings on six pictures, and record the best one's figures on all."""
    methods = {"input": np.asarray} if kind == "input" else tuned(kind, psf)
    found = {name: scores(experiment, run, psf, few=True) for name, run in methods.items()}
    best = max(found, key=lambda name: found[name]["kodak24"])
    experiment.record(row, 0, None, **scores(experiment, methods[best], psf), setting=best)


def learn(experiment: runs.Experiment, row: str, psf: PSF, kind: str) -> None:
    """Train the row's network, score it, and record the line."""
    recipe, data = RECIPES[experiment.preset], runs.TRAINING[experiment.preset]
    seen = Chain((psf, Gaussian(SIGMA)))
    targets = {"operator": seen, "sharp": Gaussian(SIGMA), "clean": Clean()}
    task = n2n.simulated(experiment.files(data), input=seen, target=targets[kind])
    if kind == "operator":
        task = n2n.deblurring(task, psf, sigma=SIGMA)
    network = {"kind": "filtered", "filter": filter_of(psf), "network": runs.LEAN | {"inputs": 6}}
    model = experiment.train(row, task, dataclasses.replace(recipe, network=network))
    experiment.record(row, 0, recipe_told(recipe, network), data=data,
                      **scores(experiment, model.predict, psf))  # fmt: skip


def blind(experiment: runs.Experiment) -> None:
    """Train one network for all families, and record a figure for each PSF."""
    recipe, data = RECIPES[experiment.preset], runs.TRAINING[experiment.preset]
    recipe = dataclasses.replace(recipe, network=runs.LEAN)
    seen = Either(tuple(Chain((family, Gaussian(SIGMA))) for family in FAMILIES))
    task = n2n.simulated(experiment.files(data), input=seen, target=Gaussian(SIGMA))
    model = experiment.train("blind", task, recipe)
    figures = {
        name: scores(experiment, model.predict, psf)["kodak24"] for name, psf in PSFS.items()
    }
    experiment.record("blind", 0, recipe, data=data, **figures)


def recipe_told(recipe: runs.Recipe, network: dict) -> runs.Recipe:
    """Return the recipe with the network's kind, which is all that a line tells of it."""
    return dataclasses.replace(recipe, network=network["kind"])


def filter_of(psf: PSF) -> list[list[float]]:
    """Return the Wiener filter that stands before the network, as rows."""
    return wiener(psf.kernel(jax.random.key(0)), SIGMA, 4 * psf.reach).tolist()


def scores(
    experiment: runs.Experiment, run: Callable, psf: PSF, few: bool = False
) -> dict[str, float]:
    """Return the mean PSNR on Kodak and the error inside the visible band, dB; `few`: of six."""
    files = sorted(experiment.pictures("kodak24").iterdir())
    seen = Chain((psf, Gaussian(SIGMA)))
    found, inside = [], []
    for index, path in list(enumerate(files))[:: 4 if few else 1]:
        clean = n2n.read(path).array.astype(np.float32) / 255
        made = run(evaluation.corrupted(clean, seen, index=index))
        found.append(n2n.psnr(cut(made), cut(clean)))
        inside.append(band_error(cut(made) - cut(clean), psf))
    return {"kodak24": round(statistics.mean(found), 3), "band": round(statistics.mean(inside), 3)}


def cut(picture: np.ndarray) -> np.ndarray:
    """Return a picture clipped, less its border."""
    return np.clip(picture, 0, 1)[BORDER:-BORDER, BORDER:-BORDER]


def band_error(error: np.ndarray, psf: PSF) -> float:
    """Return 10 log10 of the error's power where the PSF leaves BAND of the amplitude or more."""
    size = error.shape[:2]
    window = np.outer(*(np.hanning(side) for side in size))[..., None]
    power = np.square(np.abs(np.fft.fft2(error * window, axes=(0, 1)))) / np.square(window).sum()
    kernel = np.asarray(psf.kernel(jax.random.key(0)))
    seen = np.abs(np.fft.fft2(kernel, size)) >= BAND
    return float(10 * np.log10(power[seen].sum() / power[..., 0].size / error.shape[2]))


def tuned(kind: str, psf: PSF) -> dict[str, Callable]:
    """Return a classical method with all settings that are tried, by their names."""
    kernel = np.asarray(psf.kernel(jax.random.key(0)), np.float64)

    def lucy(plane: np.ndarray, count: int) -> np.ndarray:
        return restoration.richardson_lucy(np.clip(plane, 0, 1), kernel, num_iter=count)

    methods: dict[str, dict[str, Callable]] = {
        "unsharp": {
            f"radius {r}, amount {a}": functools.partial(filters.unsharp_mask, radius=r, amount=a)
            for r in (1, 2, 4)
            for a in (0.5, 1, 2, 4)
        },
        "wiener": {
            f"balance {b:.0e}": lambda x, b=b: restoration.wiener(x, kernel, b, clip=False)
            for b in 10.0 ** np.arange(-5, 0.5, 0.5)
        },
        "unsupervised": {
            "": lambda x: restoration.unsupervised_wiener(x, kernel, clip=False, rng=0)[0]
        },
        "lucy": {
            f"{n} iterations": functools.partial(lucy, count=n)
            for n in (10, 20, 30, 50, 100, 200, 300)
        },
    }
    reach = 2 * len(kernel)
    each = methods[kind].items()
    return {name: functools.partial(by_channel, run, reach=reach) for name, run in each}


def by_channel(run: Callable, picture: np.ndarray, *, reach: int) -> np.ndarray:
    """Apply a method of planes to each channel, continued by reflection and cut again."""
    wide = np.pad(picture.astype(np.float64), ((reach, reach), (reach, reach), (0, 0)), "reflect")
    planes = [run(wide[..., c]) for c in range(wide.shape[2])]
    return np.stack(planes, -1)[reach:-reach, reach:-reach]


if __name__ == "__main__":
    main()
