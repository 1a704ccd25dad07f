"""The paper's protocol: noise drawn anew on reference pictures, or real pairs, scored in dB.

Output and reference are rounded to uint8 before they are compared (reference of the original code:
`validation.py`, round half up), R, G and B jointly; a reported number is the mean over pictures.
Unlike the original, which pads at the right and the bottom to a multiple of 32, pictures go through
`predict`, which continues them by reflection on all sides.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from n2n import images, metrics
from n2n.tasks import gather, matched
from n2n.types import Error


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
        model: a `Denoiser` (see `n2n.load`), or a function of a float32 picture H,W,C.
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
