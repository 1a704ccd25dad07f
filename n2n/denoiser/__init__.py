"""The library on one screen: align, fit, load, denoise, denoise_burst, and the Denoiser itself.

Pictures come in as paths or as arrays H,W or H,W,C of any integer or float dtype and go out alike;
the model's affine scale (low, high) is applied here and in the task builders, nowhere else.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from n2n import bursts, checkpoints, images, losses, networks, tasks, training
from n2n import devices as hardware
from n2n import predict as prediction
from n2n.denoiser.frames import gather
from n2n.denoiser.fusing import turned as turned
from n2n.denoiser.model import Denoiser as Denoiser
from n2n.denoiser.model import fuse_best as fuse_best
from n2n.denoiser.model import load as load
from n2n.denoiser.model import load_model, show
from n2n.denoiser.model import starting as starting
from n2n.denoiser.unblurring import CROP, as_psf, noise_of, sharpener
from n2n.types import Burst, Error, Network, PyTree, Task

BURST_STEPS = 4000
BURST_BATCH = 4
"""More steps of fewer crops learn more of a burst in the same time (experiments/optimizers.py), and
are the work of one device."""
RATE, FINE_RATE = 1e-3, 6e-4
"""Learning rates from scratch and from trained weights (experiments/optimizers.py)."""
STEPS = 10_000
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


def fit(
    task: Any,
    *,
    network: Any = None,
    init: Any = None,
    loss: Any = None,
    steps: int | None = None,
    minutes: float | None = None,
    batch: int = 8,
    crop: int = 64,
    learning_rate: float = 1e-3,
    optimizer: str = "muon",
    precision: str = "float32",
    seed: int = 0,
    devices: int | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    keep: bool = False,
    progress: bool | training.Progress = False,
) -> Denoiser:
    """Train a denoiser.

    Args:
        task: a `Task`, a `Burst`, or a tuple (a, b) of noisy pictures, short for `pairs(a, b)`.
        network: a name (`default`, `unet`, `red30`), a configuration, or a `Network`;
            None: that of `init`, else `default`.
        init: weights to start from: a name, a path or a `Denoiser`; further input channels start
            at zero.
        loss: `l2`, `l1`, `l0`, `hdr` or a function; None: the task's own.
        steps: updates; without steps and minutes 4,000 for a burst, else 10,000.
        minutes: time to train for instead.
        batch: crops per step.
        crop: side of a crop, a multiple of the network's lattice.
        learning_rate: the optimizer's rate before it falls.
        optimizer: `muon`, or `adam` as in the paper.
        precision: float32 or bfloat16.
        seed: everything random follows from it.
        devices: how many devices of each process share a batch; None: one on CPU, all on an
            accelerator. The losses do not depend on it.
        out: model file to write (.safetensors); while training, the run is kept in `OUT.run/`.
            For a file of another kind, which the caller writes, only the run is kept.
        resume: continue the run in `OUT.run/`, if there is one.
        overwrite: replace `out` if it exists; resuming its own run does so too.
        keep: keep `OUT.run/` (state and log) after the end.
        progress: True for a line on stderr, or a function of `training.Event`.

    Raises:
        Error: something does not fit together; Failure, Interrupted: see `training.train`.
    """
    ours = overwrite or (resume and out is not None and checkpoints.unfinished(out))
    if out is not None and Path(out).exists() and not ours:
        raise Error(f"out {str(out)!r} exists; choose another name or say overwrite")
    default = BURST_STEPS if _is_burst(task) else STEPS
    steps = default if steps is None and minutes is None else steps
    config = training.TrainConfig(
        steps, minutes, batch, crop, learning_rate, optimizer, precision, seed
    )
    task = _task(task, seed, (batch, crop), network)
    if loss is not None:
        task = _with_loss(task, losses.named(loss) if isinstance(loss, str) else loss)
    origin = None if init is None else load_model(init)
    net = _network(network, origin, task)
    params = None if origin is None else _adopted(net, origin)
    shown = _steps_shown if progress is True else (progress or None)
    trained = training.train(
        task,
        net,
        config,
        params=params,
        out=out,
        resume=resume,
        mesh=hardware.mesh(devices),
        progress=shown,
    )
    card = _card(task, trained, config)
    built = networks.build(net.config) if networks.known(net.config) else net
    model = Denoiser(trained.params, built, task.scale, json.dumps(card, sort_keys=True))
    if out is not None and Path(out).suffix == ".safetensors" and hardware.leads():
        model.save(out)
        if not keep:
            checkpoints.remove(out)
    return model


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


def _is_burst(task: Any) -> bool:
    return isinstance(task, Burst) or isinstance(task, Task) and task.name.startswith("burst")


def _task(task: Any, seed: int, cut: tuple[int, int], network: Any) -> Task:
    if isinstance(task, Burst):
        return tasks.bursts([task], seed=seed, noise_map=not _blind(network), cut=cut)
    if isinstance(task, tuple) and not isinstance(task, Task) and len(task) == 2:
        return tasks.pairs(*task)
    if not isinstance(task, Task):
        raise Error(
            f"task is {type(task).__name__}; give a Task, a Burst (n2n.align) or a tuple (a, b)"
        )
    return task


def _with_loss(task: Task, loss: Callable) -> Task:
    """Replace the loss, also in the task as cut for another batch; its floor is unknown then."""
    arrange = task.arrange
    again = None if arrange is None else lambda *size: _with_loss(arrange(*size), loss)
    floor = task.floor if loss is task.loss else None
    return dataclasses.replace(task, loss=loss, arrange=again, floor=floor)


def _network(network: Any, init: Denoiser | None, task: Task) -> Network:
    if isinstance(network, Network):
        return network
    inputs, outputs = training.channels(task)
    if network is None and init is not None:
        known, given = networks.known(init.network.config), init.network.channels
        # A task that knows its noise: the weights start without a use for it.
        if known and given == (outputs, outputs) and inputs == outputs + 1:
            return networks.build(init.network.config | {"inputs": inputs})
        return init.network
    if network is None or isinstance(network, str):
        network = networks.named(network or "default", inputs, outputs)
    return networks.build(network)


def _blind(network: Any) -> bool:
    """Say whether a network, given as it is, has no input for a noise map."""
    if network is None or isinstance(network, str):
        return False
    built = network if isinstance(network, Network) else networks.build(network)
    return built.channels[0] == built.channels[1]


def _adopted(network: Network, init: Denoiser) -> PyTree:
    template = jax.eval_shape(network.init, jax.random.key(0))
    arrays = checkpoints.flatten(jax.device_get(init.params))
    return checkpoints.fill(template, arrays, grow=True)


def _card(task: Task, trained: training.Trained, config: training.TrainConfig) -> dict[str, Any]:
    from n2n import __version__

    return {
        "task": task.name,
        "steps": trained.steps,
        "batch": config.batch,
        "crop": config.crop,
        "learning_rate": config.learning_rate,
        "optimizer": config.optimizer,
        "precision": config.precision,
        "seed": config.seed,
        "n2n": __version__,
    }


def _steps_shown(event: training.Event) -> None:
    excess = "" if event.excess is None else f", {event.excess:+.2e} over the noise"
    left = "" if event.left is None else f", {event.left:.0f} s left"
    text = f"step {event.step} of {event.total}: loss {event.loss:.5f}{excess}{left}"
    show(text, event.step >= event.total)
