"""The library on one screen: align, fit, load, denoise, denoise_burst, and the Denoiser itself.

Pictures come in as paths or as arrays H,W or H,W,C of any integer or float dtype and go out alike;
the model's affine scale (low, high) is applied here and in the task builders, nowhere else.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from n2n import bursts, checkpoints, images, losses, metrics, networks, tasks, training
from n2n import predict as prediction
from n2n.types import Burst, Error, Fused, Network, PyTree, Score, Task

WEIGHTS = Path(__file__).with_name("weights")
BURST_STEPS = 1500
STEPS = 10_000


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params"],
    meta_fields=["network", "scale", "facts"],
)
@dataclass(frozen=True, eq=False)
class Denoiser:
    """Hold a trained network: a pytree, so that it lives in your own jit, vmap and grad."""

    params: PyTree
    network: Network
    scale: tuple[float, float] = (0.0, 1.0)
    """Values that stand for the network's 0 and 1."""
    facts: str = "{}"
    """The card as JSON."""

    @property
    def card(self) -> dict[str, Any]:
        """Say what the model is: data, noise, steps, figures, licence."""
        return json.loads(self.facts)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Denoise H,W,C or N,H,W,C float arrays in display units; pure, equal to `denoise`.

        The picture is continued by reflection, so any size goes; gradients flow through.
        """
        x = jnp.asarray(x)
        if x.ndim == 3:
            return self(x[None])[0]
        margin, lattice = self.network.halo or 0, self.network.lattice
        places = []
        for size in x.shape[1:3]:
            length = -(-size // lattice) * lattice + 2 * margin
            places.append(prediction.reflect(-margin, length, size))
        low, high = self.scale
        wide = (x[:, places[0][:, None], places[1][None, :]] - low) / (high - low)
        clean = self.network.apply(self.params, wide) * (high - low) + low
        return clean[:, margin : margin + x.shape[1], margin : margin + x.shape[2]]

    def predict(
        self,
        image: np.ndarray,
        *,
        tile: int | None = None,
        progress: prediction.Progress | None = None,
    ) -> np.ndarray:
        """Denoise H,W,C float32 in display units by tiles; returns the same shape.

        Grey pictures go through an RGB model and back; a grey model takes the channels one by one.

        Raises:
            Error: a channel count that the model cannot serve, or a bad tile.
        """
        low, high = self.scale
        given, wanted = image.shape[-1], self.network.channels[1]
        x = ((image - low) / (high - low)).astype(np.float32)
        run = functools.partial(
            prediction.predict, self.network, self.params, tile=tile, progress=progress
        )
        if given == wanted:
            clean = run(x)
        elif given == 1:
            clean = run(np.repeat(x, wanted, axis=-1)).mean(-1, keepdims=True)
        elif wanted == 1:
            clean = np.concatenate([run(x[..., c : c + 1]) for c in range(given)], axis=-1)
        else:
            raise Error(
                f"image has {given} channels, the model {wanted}; give {wanted}, or 1, "
                "and leave alpha out"
            )
        return clean * np.float32(high - low) + np.float32(low)

    def denoise(
        self,
        image: Any,
        *,
        strength: float = 1.0,
        data_range: Any = None,
        channel_axis: int | None = None,
        tile: int | None = None,
        progress: bool | prediction.Progress = False,
    ) -> Any:
        """Denoise a picture (path or array), or a list of them; see `n2n.denoise`."""
        if isinstance(image, (list, tuple)):
            again = functools.partial(
                self.denoise, strength=strength, data_range=data_range, channel_axis=channel_axis
            )
            return [again(each, tile=tile, progress=progress) for each in image]
        if not 0 <= strength <= 1:
            raise Error(f"strength is {strength!r}; it must lie between 0 and 1")
        array = images.read(image).array if isinstance(image, (str, Path)) else np.asarray(image)
        pixels = _channels_last(array, channel_axis)
        x = images.to_float(pixels, data_range)
        clean = self.predict(x, tile=tile, progress=_tiles_shown(progress))
        clean = x + np.float32(strength) * (clean - x)
        result = images.from_float(clean.reshape(pixels.shape), array.dtype, data_range)
        if channel_axis is not None and array.ndim == 3:
            result = np.moveaxis(result, -1, channel_axis)
        return result

    def fuse(
        self,
        burst: Burst,
        *,
        seed: int = 0,
        tile: int | None = None,
        progress: prediction.Progress | None = None,
    ) -> Fused:
        """Make one picture of a registered burst: the network applied to the mean of all frames.

        The score tells the quality of the network on means of N-2 frames against the expected
        frame, on places that training left out (`seed` must be the training's); of two frames, on
        single ones. The picture itself, made of all frames, is better.
        """
        run = functools.partial(self.predict, tile=tile, progress=progress)
        image = run(burst.mean())
        before, after, gain = _scores(run, burst, seed)
        equivalent = math.nan
        if gain is not None:
            equivalent = len(burst.frames) * 10 ** (gain.db / 10)
        return Fused(image, after, before, gain, equivalent, _table(burst))

    def save(self, path: Path | str) -> None:
        """Write network, weights, scale and card as one safetensors file, atomically."""
        meta = {
            "network": self.network.config,
            "scale": list(self.scale),
            "halo": self.network.halo,
            "card": self.card,
        }
        checkpoints.save(path, checkpoints.flatten(jax.device_get(self.params)), meta)


def load(model: Path | str) -> Denoiser:
    """Load a model by the name of shipped weights (`gaussian`) or from a file.

    Raises:
        Error: no such name or file, or not a model of this n2n.
    """
    shipped = {path.stem: path for path in WEIGHTS.glob("*.safetensors")}
    if str(model) in shipped:
        return _load_file(shipped[str(model)])
    path = Path(model)
    if path.suffix != ".safetensors" and not path.exists():
        raise Error(
            f"model is {str(model)!r}; it must be a .safetensors file or one of "
            f"{', '.join(sorted(shipped))}"
        )
    return _load_file(path)


def _load_file(path: Path) -> Denoiser:
    arrays, meta = checkpoints.load(path)
    try:
        config, (low, high), card = meta["network"], meta["scale"], meta["card"]
    except (KeyError, TypeError, ValueError):
        raise Error(f"{str(path)!r} is a checkpoint or a broken model, not a model file") from None
    network = networks.build(config)
    template = jax.eval_shape(network.init, jax.random.key(0))
    params = jax.tree.map(np.asarray, checkpoints.fill(template, arrays))
    return Denoiser(params, network, (float(low), float(high)), json.dumps(card, sort_keys=True))


@functools.lru_cache(maxsize=4)
def _shipped(name: str) -> Denoiser:
    return load(name)


def _model(model: Any) -> Denoiser:
    """Return a Denoiser for None (the default weights), a name, a path or a Denoiser."""
    if isinstance(model, Denoiser):
        return model
    if model is None:
        names = {path.stem for path in WEIGHTS.glob("*.safetensors")}
        return _shipped("photo" if "photo" in names else "gaussian")
    return load(model)


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
        image: path, array H,W or H,W,C (up to 4 channels last), or a list of these.
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
    return _model(model).denoise(
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
        reference: index of the frame whose geometry the result has; None: the first.
        data_range: (low, high) or high of float frames beyond [-1, 2].
        register: False where the frames are known to be aligned.

    Raises:
        Error: fewer than two frames, or frames that make no burst; says which and why.
    """
    arrays, names = _frames(frames)
    pictures = [images.to_float(array, data_range) for array in arrays]
    return bursts.align(pictures, reference=reference, register=register, names=names)


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
    precision: str = "float32",
    seed: int = 0,
    out: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool | training.Progress = False,
) -> Denoiser:
    """Train a denoiser.

    Args:
        task: a `Task`, a `Burst`, or a tuple (a, b) of noisy pictures, short for `pairs(a, b)`.
        network: a name (`default`, `unet`, `red30`), a configuration, or a `Network`; None: that
            of `init`, else `default`.
        init: weights to start from: a name, a path or a `Denoiser`; further input channels start
            at zero.
        loss: `l2`, `l1`, `l0`, `hdr` or a function; None: the task's own.
        steps: updates; without steps and minutes 1,500 for a burst, else 10,000.
        minutes: time to train for instead.
        batch: crops per step.
        crop: side of a crop, a multiple of the network's lattice.
        learning_rate: Adam's rate before it falls.
        precision: float32 or bfloat16.
        seed: everything random follows from it.
        out: model file to write; while training, the run is kept in `OUT.run/`.
        resume: continue the run in `OUT.run/`, if there is one.
        overwrite: replace `out` if it exists.
        progress: True for a line on stderr, or a function of `training.Event`.

    Raises:
        Error: something does not fit together; Failure, Interrupted: see `training.train`.
    """
    if out is not None and Path(out).exists() and not (overwrite or resume):
        raise Error(f"out {str(out)!r} exists; choose another name or say overwrite")
    task = _task(task, seed)
    if loss is not None:
        task = _with_loss(task, losses.named(loss) if isinstance(loss, str) else loss)
    default = BURST_STEPS if task.name.startswith("burst") else STEPS
    steps = default if steps is None and minutes is None else steps
    config = training.TrainConfig(
        steps, minutes, batch, crop, learning_rate, precision, seed, ramp=_ramp(task)
    )
    origin = None if init is None else _model(init)
    net = _network(network, origin, task)
    params = None if origin is None else _adopted(net, origin)
    shown = _steps_shown if progress is True else (progress or None)
    trained = training.train(
        task, net, config, params=params, out=out, resume=resume, progress=shown
    )
    card = _card(task, trained, config)
    built = networks.build(net.config) if networks.known(net.config) else net
    model = Denoiser(trained.params, built, task.scale, json.dumps(card, sort_keys=True))
    if out is not None and Path(out).suffix == ".safetensors":
        model.save(out)
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
        init: weights to start from; None: from scratch.
        align: register the frames; False where they are aligned already.
        reference: index of the frame whose geometry the result has; None: the first.
        steps: updates, 1,500 unless minutes are given.
        minutes: time to train for instead.
        data_range: (low, high) or high of float frames beyond [-1, 2].
        seed: everything random follows from it.
        progress: True for a line on stderr, or a function of `training.Event`.

    Returns:
        float32, H,W or H,W,C as the frames; in units where integer frames' maximum, or the upper
        end of data_range, is 1.

    Raises:
        Error: see `align` and `fit`.
    """
    burst = globals()["align"](
        frames, reference=reference, data_range=data_range, register=align
    )
    model = fit(burst, init=init, steps=steps, minutes=minutes, seed=seed, progress=progress)
    image = model.predict(burst.mean())
    return image[..., 0] if _is_grey(frames) else image


# -- parts ---------------------------------------------------------------------------------------


def _channels_last(array: np.ndarray, channel_axis: int | None) -> np.ndarray:
    if array.ndim == 3 and channel_axis is not None:
        if not -3 <= channel_axis < 3:
            raise Error(f"channel_axis is {channel_axis}; an array of 3 axes has 0, 1, 2 or -1")
        return np.moveaxis(array, channel_axis, -1)
    if array.ndim == 3 and array.shape[-1] > 4:
        raise Error(
            f"image has shape {array.shape}; say channel_axis=, or give a list of grey pictures"
        )
    if array.ndim not in (2, 3):
        raise Error(f"image has shape {array.shape}; it must be H,W or H,W,C (a list for several)")
    return array


def _frames(frames: Any) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Return a burst's frames as arrays, with a name for each."""
    if isinstance(frames, np.ndarray):
        if frames.ndim not in (3, 4):
            raise Error(f"frames has shape {frames.shape}; it must be N,H,W or N,H,W,C")
        return list(frames), tuple(f"frame {i}" for i in range(1, len(frames) + 1))
    if isinstance(frames, (str, Path)):
        frames = [frames]
    if any(isinstance(frame, (str, Path)) for frame in frames):
        return _frame_files(images.frames_in(frames))
    arrays = [np.asarray(frame) for frame in frames]
    return arrays, tuple(f"frame {i}" for i in range(1, len(arrays) + 1))


def _frame_files(paths: Sequence[Path]) -> tuple[list[np.ndarray], tuple[str, ...]]:
    arrays, names = [], []
    for path in paths:
        pages = images.read_pages(path)
        arrays += [page.array for page in pages]
        several = len(pages) > 1
        names += [f"{path.name} {i}" if several else path.name for i in range(1, len(pages) + 1)]
    return arrays, tuple(names)


def _is_grey(frames: Any) -> bool:
    if isinstance(frames, (str, Path)):
        return _frames(frames)[0][0].ndim == 2
    first = frames[0]
    array = images.read_pages(first)[0].array if isinstance(first, (str, Path)) else first
    return np.ndim(array) == 2


def _task(task: Any, seed: int) -> Task:
    if isinstance(task, Burst):
        return tasks.bursts([task], seed=seed)
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


def _ramp(task: Task) -> float:
    return 1.0 if task.name.startswith("burst") else 0.5


def _network(network: Any, init: Denoiser | None, task: Task) -> Network:
    if isinstance(network, Network):
        return network
    if network is None and init is not None:
        return init.network
    inputs, outputs = training.channels(task)
    if network is None or isinstance(network, str):
        network = networks.named(network or "default", inputs, outputs)
    return networks.build(network)


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
        "precision": config.precision,
        "seed": config.seed,
        "n2n": __version__,
    }


def _table(burst: Burst) -> tuple[dict[str, Any], ...]:
    rows = []
    for name, (dy, dx), weight in zip(burst.names, burst.shifts, burst.weights, strict=True):
        row = {"frame": name, "dy": float(dy), "dx": float(dx), "weight": float(weight.mean())}
        rows.append(row)
    return tuple(rows)


def _scores(
    run: Callable, burst: Burst, seed: int
) -> tuple[Score | None, Score | None, Score | None]:
    """Return the clean-free quality of the mean and of the result, and the gain; None: no place."""
    mask = _scored_places(burst, seed)
    if not mask.any():
        return None, None, None
    if len(burst.frames) == 2:
        return _pair_scores(run, burst, mask)
    found = [_product_mses(run, burst, i, mask) for i in range(0, len(burst.frames) - 1, 2)]
    mses = np.mean([m for m, _ in found], axis=0)
    covariance = np.sum([c for _, c in found], axis=0) / len(found) ** 2
    after, before = (
        metrics.to_score(float(mses[i]), math.sqrt(covariance[i, i])) for i in (0, 1)
    )
    return before, after, metrics.to_gain(mses, covariance)


def _scored_places(burst: Burst, seed: int) -> np.ndarray:
    """Return H,W: held out of training, off the border, and shown unclipped by every frame."""
    height, width = burst.frames.shape[1:3]
    mask, _ = metrics.held_out((height, width), seed=seed)
    margin = min(burst.margin, height // 8, width // 8)
    inside = np.zeros((height, width), bool)
    inside[margin : height - margin, margin : width - margin] = True
    everywhere = (burst.weights > 0).all(0)[..., 0] & (burst.mask[..., 0] > 0)
    return mask & inside & everywhere


def _product_mses(
    run: Callable, burst: Burst, first: int, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return MSEs of f(mean of the others) and of that mean, by frames first and first + 1."""
    others = [i for i in range(len(burst.frames)) if i not in (first, first + 1)]
    rest = dataclasses.replace(burst, frames=burst.frames[others], weights=burst.weights[others])
    mean = rest.mean()
    x, y = burst.frames[first], burst.frames[first + 1]
    return metrics.paired_mse(run(mean), mean, x, y, mask=mask)


def _pair_scores(run: Callable, burst: Burst, mask: np.ndarray) -> tuple[Score, Score, Score]:
    a, b = burst.frames
    after, variance = metrics.pair_mse(run(a), a, run(b), b, mask=mask)
    before, spread = metrics.noise_mse(a, b, mask=mask)
    covariance = np.diag([variance, spread])  # their common part left out: a wider interval
    gain = metrics.to_gain(np.array([after, before]), covariance)
    one, other = metrics.to_score(before, math.sqrt(spread)), metrics.to_score(after, math.sqrt(variance))
    return one, other, gain


def _tiles_shown(progress: bool | prediction.Progress) -> prediction.Progress | None:
    if progress is not True:
        return progress or None
    return lambda done, of: _line(f"tile {done} of {of}", done == of)


def _steps_shown(event: training.Event) -> None:
    excess = "" if event.excess is None else f", {event.excess:+.2e} over the noise"
    text = f"step {event.step} of {event.total}: loss {event.loss:.5f}{excess}, "
    _line(text + f"{event.left:.0f} s left", event.step >= event.total)


def _line(text: str, last: bool) -> None:
    print(f"\r{text:<78}", end="\n" if last else "", file=sys.stderr, flush=True)
