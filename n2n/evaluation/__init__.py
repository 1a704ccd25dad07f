"""The paper's protocol: noise drawn anew on reference pictures, or real pairs, scored in dB.

Output and reference are rounded to uint8 before they are compared (reference of the original code:
`validation.py`, round half up), R, G and B jointly; a reported number is the mean over pictures.
Unlike the original, which pads at the right and the bottom to a multiple of 32, pictures go through
`predict`, which continues them by reflection on all sides.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from n2n import images, metrics
from n2n.corruptions import Gaussian, Poisson
from n2n.evaluation.scoring import Scored as Scored
from n2n.evaluation.scoring import score as score
from n2n.tasks import gather, matched
from n2n.types import Error

METHODS = ("bm3d", "nlm", "wavelet", "mean")
"""The classical methods that `method` makes."""


def evaluate(
    model: Any,
    pictures: Any,
    *,
    corruption: Callable | None = None,
    reference: Any = None,
    seed: int = 0,
    repeat: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Score a model on pictures with known references.

    Args:
        model: a `Denoiser` (see `n2n.load`), a classical `method`, or any function of a float32
            picture H,W,C.
        pictures: a folder, or a list of paths or arrays: clean ones to be corrupted, or noisy ones
            beside `reference`.
        corruption: what to do to clean pictures.
        reference: folder or list of the (nearly) clean counterparts of noisy pictures.
        seed: with the picture's place and the repetition it decides the noise, so that every
            method sees the same draws.
        repeat: how often each picture is drawn.
        progress: called with (pictures done, in all).

    Returns:
        A row per picture and repetition: picture, repeat, seed, input_psnr, psnr, ssim.

    Raises:
        Error: neither or both of corruption and reference, or unusable pictures.
    """
    if (corruption is None) == (reference is None):
        raise Error("give either corruption= (for clean pictures) or reference= (for noisy ones)")
    if not isinstance(repeat, int) or repeat < 1:
        raise Error(f"repeat is {repeat!r}; it must be a whole number of at least 1")
    inputs = references = gather(pictures)
    if reference is not None:
        inputs, references = matched(inputs, gather(reference))
    run = getattr(model, "predict", model)
    rows = []
    for index, (noisy, clean) in enumerate(zip(inputs, references, strict=True)):
        truth = _picture(clean)
        for again in range(repeat if corruption else 1):
            if corruption:
                seen = corrupted(truth, corruption, seed=seed, index=index, repeat=again)
            else:
                seen = _picture(noisy)
            name = Path(noisy).name if isinstance(noisy, (str, Path)) else str(index)
            row = {"picture": name, "repeat": again, "seed": seed}
            rows.append(row | _scores(run, seen, truth, name))
            if progress:
                progress(len(rows), len(inputs) * (repeat if corruption else 1))
    return rows


def corrupted(
    clean: np.ndarray, corruption: Callable, *, seed: int = 0, index: int = 0, repeat: int = 0
) -> np.ndarray:
    """Return the draw that `evaluate` shows for picture `index`: float32 H,W,C, not clipped."""
    key = jax.random.key(seed)
    for number in (index, repeat):
        key = jax.random.fold_in(key, number)
    return np.asarray(jax.jit(corruption)(key, clean).image)


def rounded(image: np.ndarray) -> np.ndarray:
    """Return display values as the 256 levels of a file: clipped, rounded half up, in [0, 1]."""
    return np.floor(np.clip(image.astype(np.float64), 0, 1) * 255 + 0.5) / 255


def _scores(run: Callable, seen: np.ndarray, truth: np.ndarray, name: str) -> dict[str, float]:
    if seen.shape != truth.shape:
        raise Error(
            f"{name!r} has shape {seen.shape}, its reference {truth.shape}; give equal sizes"
        )
    clean, wanted = rounded(run(seen)), rounded(truth)
    return {
        "input_psnr": metrics.psnr(seen, truth),
        "psnr": metrics.psnr(clean, wanted),
        "ssim": metrics.ssim(clean, wanted) if min(truth.shape[:2]) >= 7 else float("nan"),
    }


def _picture(source: Any) -> np.ndarray:
    array = images.read(source).array if isinstance(source, (str, Path)) else source
    return images.to_float(array)


@dataclass(frozen=True, eq=False)
class Method:
    """Hold a classical denoiser, which `evaluate` takes in a model's place."""

    name: str
    sigma: str
    """How it learns the noise's standard deviation, in words."""
    run: Callable[[np.ndarray], np.ndarray]

    def __call__(self, noisy: np.ndarray) -> np.ndarray:
        """Denoise H,W,C float32 in display units; returns the same shape, not clipped."""
        return self.run(noisy).astype(np.float32)


def method(name: str, corruption: Callable | None = None) -> Method:
    """Make a classical denoiser for pictures that `corruption` has made noisy.

    Gaussian noise of one sigma: the method is told it. Poisson noise of one rate: it works on
    `anscombe`, where sigma is 1, and `anscombe_inverse` leads back. All else (ranges, other
    corruptions, real pairs): `skimage.restoration.estimate_sigma` of each picture, mean of the
    channels, which takes the noise for white and Gaussian.

    Args:
        name: bm3d: Dabov et al. 2007 by its authors' package, colour in their opponent space, not
            for commercial use. nlm: non-local means, `skimage.restoration.denoise_nl_means`, fast,
            patches of 5 px, distance 6 px, h = 0.8 sigma. wavelet: `denoise_wavelet` of the same,
            BayesShrink, colour in YCbCr. mean: of 3x3 pixels, the floor to beat; needs no sigma.
        corruption: what the pictures have suffered; None: nobody knows.

    Raises:
        Error: another name, or a package that is not installed.
    """
    if name not in METHODS:
        raise Error(f"method is {name!r}; it must be one of {', '.join(METHODS)}")
    if name == "mean":
        return Method(name, "not needed", _mean)
    run = {"bm3d": _bm3d, "nlm": _nlm, "wavelet": _wavelet}[name]
    match corruption:
        case Gaussian(sigma=float(sigma)):
            rule = f"known, {255 * sigma:g}/255"
            made = Method(name, rule, functools.partial(_known, run, sigma))
        case Poisson(rate=float(rate)):
            made = Method(name, "1 by Anscombe", functools.partial(_stabilised, run, rate))
        case _:
            made = Method(name, "estimated", functools.partial(_estimated, run))
    if name == "bm3d":
        _require(name, "bm3d")
    if name == "wavelet" or made.sigma == "estimated":
        _require(name, "pywt")
    return made


def anscombe(counts: np.ndarray) -> np.ndarray:
    """Return 2 sqrt(counts + 3/8): Poisson counts become values of standard deviation about 1."""
    return 2 * np.sqrt(np.maximum(counts, 0) + 3 / 8)


def anscombe_inverse(values: np.ndarray) -> np.ndarray:
    """Return the mean count behind the mean of `anscombe` values; at least 0.

    The square alone would be biased, as the mean of a root is not the root of the mean. This is
    the closed form of Makitalo and Foi (2011, IEEE Trans. Image Processing 20, 2697), within 0.04
    of the exact unbiased inverse.
    """
    d = np.maximum(values, 2 * np.sqrt(3 / 8))
    root = np.sqrt(3 / 2)
    return d**2 / 4 - 1 / 8 + root / (4 * d) - 11 / (8 * d**2) + 5 * root / (8 * d**3)


def _require(name: str, package: str) -> None:
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise Error(
            f"method is {name!r}, which needs the package {package}; pip install 'n2n[bench]'"
        ) from error


def _known(run: Callable, sigma: float, noisy: np.ndarray) -> np.ndarray:
    return run(noisy, sigma) if sigma > 0 else noisy


def _estimated(run: Callable, noisy: np.ndarray) -> np.ndarray:
    from skimage.restoration import estimate_sigma

    with warnings.catch_warnings():  # a flat picture has no details, and their median is nan
        warnings.simplefilter("ignore")
        sigma = float(estimate_sigma(noisy, average_sigmas=True, channel_axis=-1))
    return _known(run, sigma, noisy)


def _stabilised(run: Callable, rate: float, noisy: np.ndarray) -> np.ndarray:
    """Denoise photon counts over `rate`, on the Anscombe values scaled to [0, 1]."""
    black = anscombe(np.zeros(()))
    values = anscombe(noisy.astype(np.float64) * rate) - black
    span = values.max()
    if span == 0:  # not one photon
        return noisy
    return anscombe_inverse(run(values / span, 1 / span) * span + black) / rate


def _bm3d(noisy: np.ndarray, sigma: float) -> np.ndarray:
    import bm3d

    height, width = noisy.shape[:2]
    # Its blocks have 8 px; it refuses pictures below that, and crashes on 8 x 8 (bm3d 4.0.3).
    wide = np.pad(noisy, ((0, max(0, 16 - height)), (0, max(0, 16 - width)), (0, 0)), "reflect")
    # More threads give other bits each time, no speed, and wait for each other where cores are few.
    single = bm3d.BM3DProfile()
    single.num_threads = 1
    if _coloured(wide):
        clean = bm3d.bm3d_rgb(wide, sigma, profile=single)
    else:
        planes = np.moveaxis(wide, -1, 0)
        clean = np.stack([bm3d.bm3d(plane, sigma, profile=single) for plane in planes], -1)
    return clean[:height, :width]


def _coloured(noisy: np.ndarray) -> bool:
    """Say whether all of BM3D's opponent channels vary: it divides by their ranges."""
    if noisy.shape[-1] != 3:
        return False
    r, g, b = np.moveaxis(noisy, -1, 0)
    return all(np.ptp(channel) > 0 for channel in (r + g + b, r - b, r - 2 * g + b))


def _nlm(noisy: np.ndarray, sigma: float) -> np.ndarray:
    from skimage.restoration import denoise_nl_means

    size = {"patch_size": 5, "patch_distance": 6}
    got = denoise_nl_means(
        noisy, **size, h=0.8 * sigma, sigma=sigma, fast_mode=True, channel_axis=-1
    )
    return got.reshape(noisy.shape)  # a single channel loses its axis


def _wavelet(noisy: np.ndarray, sigma: float) -> np.ndarray:
    from skimage.restoration import denoise_wavelet

    colour = noisy.shape[-1] == 3
    return denoise_wavelet(noisy, sigma=sigma, convert2ycbcr=colour, channel_axis=-1)


def _mean(noisy: np.ndarray) -> np.ndarray:
    height, width = noisy.shape[:2]
    wide = np.pad(noisy, ((1, 1), (1, 1), (0, 0)), "reflect")
    shifts = [(y, x) for y in range(3) for x in range(3)]
    return np.mean([wide[y : y + height, x : x + width] for y, x in shifts], axis=0)
