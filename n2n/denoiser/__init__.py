"""The library on one screen: align, fit, load, denoise, denoise_burst, and the Denoiser itself.

Pictures come in as paths or as arrays H,W or H,W,C of any integer or float dtype and go out alike;
the model's affine scale (low, high) is applied here and in the task builders, nowhere else.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from n2n import bursts, images, tasks, training
from n2n import predict as prediction
from n2n.denoiser.fitting import BURST_STEPS as BURST_STEPS
from n2n.denoiser.fitting import STEPS as STEPS
from n2n.denoiser.fitting import fit as fit
from n2n.denoiser.frames import gather
from n2n.denoiser.fusing import turned as turned
from n2n.denoiser.model import Denoiser as Denoiser
from n2n.denoiser.model import fuse_best as fuse_best
from n2n.denoiser.model import load as load
from n2n.denoiser.model import load_model as load_model
from n2n.denoiser.model import starting as starting
from n2n.denoiser.unblurring import CROP, noise_of, sharpener
from n2n.denoiser.unblurring import as_psf as as_psf
from n2n.types import Burst, Error

BURST_BATCH = 4
"""More steps of fewer crops learn more of a burst in the same time (experiments/optimizers.py), and
are the work of one device."""
RATE, FINE_RATE = 1e-3, 6e-4
"""Learning rates from scratch and from trained weights (experiments/optimizers.py)."""
UNBLUR_STEPS = 1500


def denoise(
    image: Any,
    model: Any = None,
    *,
    strength: float = 1.0,
    data_range: Any = None,
    channel_axis: int | None = None,
    tile: int | None = None,
    progress: bool | prediction.Progress = False,
) -> Any:
    """Denoise a picture with trained weights.

    Args:
        image: path, array H,W or H,W,C (up to 4 channels last), or a list of these. A RAW file is
            developed to sRGB, which the weights in the package know.
        model: None for the weights in the package, a name, a path, or a `Denoiser`.
        strength: share of what the network removes that is really removed, 0 to 1.
        data_range: (low, high) or high of float pictures beyond [-1, 2].
        channel_axis: where the channels are, if not last.
        tile: side in pixels that the network sees at once, halo included.
        progress: True for a line on stderr, or a function of (tiles done, tiles in all).

    Returns:
        An array of the same shape, dtype and range (alpha of a file left out), or a list of them.

    Raises:
        Error: the picture, the model or an option breaks its rule.
    """
    return load_model(model).denoise(
        image,
        strength=strength,
        data_range=data_range,
        channel_axis=channel_axis,
        tile=tile,
        progress=progress,
    )


def align(
    frames: Any, *, reference: int | None = None, data_range: Any = None, register: bool = True
) -> Burst:
    """Register the frames of a burst to one of them and weigh what each shows.

    Args:
        frames: list of paths or arrays, an array N,H,W or N,H,W,C, a folder, or a multi-page TIFF.
        reference: index of the frame whose geometry the result has; None: the first, unless another
            shows 5 % more fine detail, or few show the scene of the first.
        data_range: (low, high) or high of float frames beyond [-1, 2].
        register: False where the frames are known to be aligned.

    Raises:
        Error: fewer than two frames, or frames that make no burst; says which and why.
    """
    return _burst(*gather(frames), reference, data_range, register)


def denoise_burst(
    frames: Any,
    *,
    init: Any = None,
    align: bool = True,
    reference: int | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    data_range: Any = None,
    seed: int = 0,
    progress: bool | training.Progress = False,
) -> np.ndarray:
    """Make one clean picture of several noisy ones, learnt from these alone.

    Args:
        frames: list of paths or arrays, an array N,H,W or N,H,W,C, a folder, or a multi-page TIFF.
        init: weights to start from: a name, a path or a `Denoiser`; None: `photo` or `gaussian`,
            whichever does better on these frames (colour only); False: from scratch.
        align: register the frames; False where they are aligned already.
        reference: index of the frame whose geometry the result has; None: the first, unless another
            shows 5 % more fine detail, or few show the scene of the first.
        steps: updates of 4 crops, 4,000 unless minutes are given.
        minutes: time to train for instead.
        data_range: (low, high) or high of float frames beyond [-1, 2].
        seed: everything random follows from it.
        progress: True for a line on stderr, or a function of `training.Event`.

    The weights it started from, or the mean of the frames, are used instead of what was learnt if
    the clean-free score says that they are better; these weights, too, for what moved and the
    reference alone shows.

    Returns:
        float32, H,W or H,W,C as the frames; in units where integer frames' maximum, or the upper
        end of data_range, is 1.

    Raises:
        Error: see `align` and `fit`.
    """
    arrays, names, exposed = gather(frames)
    burst = _burst(arrays, names, exposed, reference, data_range, align)
    origin = starting(burst, init)
    model = fit(
        burst,
        init=origin,
        steps=steps,
        minutes=minutes,
        batch=BURST_BATCH,
        learning_rate=RATE if origin is None else FINE_RATE,
        seed=seed,
        devices=1,
        progress=progress,
    )
    start = None if origin is None else load_model(origin)
    _, fused = fuse_best(model, start, burst, seed=seed)
    return fused.image[..., 0] if arrays[0].ndim == 2 else fused.image


def unblur(
    frames: Any,
    psf: Any = None,
    *,
    model: Any = None,
    sigma: float | None = None,
    align: bool = True,
    reference: int | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    data_range: Any = None,
    seed: int = 0,
    progress: bool | training.Progress = False,
) -> np.ndarray:
    """Make one sharp picture of several noisy ones that are blurred alike, learnt from these alone.

    Args:
        frames: list of paths or arrays, an array N,H,W or N,H,W,C, a folder, or a multi-page TIFF;
            with `model` a single picture, too.
        psf: the point spread function that all have: `gaussian:1.6`, `motion:15,30`, `defocus:4`,
            a `corruptions.PSF`, an array, or the name of a file that holds a kernel.
        model: weights that unblur, in place of learning: a path or a `Denoiser` (`n2n train --clean
            DIR --corrupt motion:9-25+gaussian:2 --target gaussian:2`); no psf is needed then.
        sigma: standard deviation of a frame's noise, where 1 is white; None: measured.
        align: register the frames; False where they are aligned already.
        reference: index of the frame whose geometry the result has; None: the sharpest or first.
        steps: updates, 1,500 unless minutes are given.
        minutes: time to train for instead.
        data_range: (low, high) or high of float frames beyond [-1, 2].
        seed: everything random follows from it.
        progress: True for a line on stderr, or a function of `training.Event`.

    Returns:
        float32, H,W or H,W,C as the frames; in units where integer frames' maximum, or the upper
        end of data_range, is 1.

    Raises:
        Error: no psf and no model, a single frame without a model, and as `align` and `fit`.
    """
    arrays, names, exposed = gather(frames)
    grey = arrays[0].ndim == 2
    if len(arrays) == 1 and model is not None:
        image = load_model(model).predict(_float(arrays[0], names[0], data_range))
        return image[..., 0] if grey else image
    burst = _burst(arrays, names, exposed, reference, data_range, align)
    if model is None:
        model = fit_psf(burst, psf, sigma=sigma, steps=steps, minutes=minutes, seed=seed,
                        progress=progress)  # fmt: skip
    image = load_model(model).predict(burst.mean())
    return image[..., 0] if grey else image


def fit_psf(
    burst: Burst,
    psf: Any,
    *,
    sigma: float | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    **options: Any,
) -> Denoiser:
    """Train what takes a PSF out of the mean of a burst; arguments as of `unblur` and `fit`."""
    if psf is None:
        raise Error("psf is None; say what has blurred the frames: gaussian:1.6, motion:15,30, "
                    "defocus:4, or the file of a kernel")  # fmt: skip
    psf, span = as_psf(psf), burst.scale[1] - burst.scale[0]
    noise = noise_of(burst, sigma) / span
    count, *_, channels = burst.frames.shape
    task = tasks.bursts([burst], seed=options.get("seed", 0), noise_map=False)
    return fit(
        tasks.deblurring(task, psf, sigma=noise),
        network=sharpener(psf, noise / count**0.5, channels),
        steps=UNBLUR_STEPS if steps is None and minutes is None else steps,
        minutes=minutes,
        batch=4,
        crop=CROP,
        optimizer="adam",  # by which experiments/unblur.py was measured
        devices=1,
        **options,
    )


def _burst(
    arrays: list[np.ndarray],
    names: tuple[str, ...],
    exposed: bool,
    reference: int | None,
    data_range: Any,
    register: bool,
) -> Burst:
    return bursts.align(
        # Held by nothing else, so that they go once they lie in the stack.
        [_float(*frame, data_range) for frame in zip(arrays, names, strict=True)],
        reference=reference,
        register=register,
        names=names,
        exposed=exposed,
    )


def _float(array: np.ndarray, name: str, data_range: Any) -> np.ndarray:
    try:
        return images.to_float(array, data_range)
    except Error as error:
        raise Error(f"{name!r}: {error}") from None
