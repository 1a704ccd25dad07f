"""The Denoiser: a trained network as a pytree, its file, and what it does to one picture."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from n2n import checkpoints, devices, images, networks
from n2n import predict as prediction
from n2n.denoiser.fusing import best, fuse, passes, preferred
from n2n.types import Burst, Error, Fused, Network, PyTree

WEIGHTS = Path(__file__).parent.with_name("weights")
STARTS = ("photo", "gaussian")
"""Weights that a burst may start from: for a camera's pictures, and for white noise."""


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
        noise_map: np.ndarray | None = None,
        tile: int | None = None,
        progress: prediction.Progress | None = None,
    ) -> np.ndarray:
        """Denoise H,W,C float32 in display units by tiles; returns the same shape.

        Grey pictures go through an RGB model and back; a grey model takes the channels one by one.

        Args:
            image: the picture.
            noise_map: H,W,1, standard deviation of its noise; a model that cannot read one is
                blind to it.
            tile: side in pixels that the network sees at once, halo included.
            progress: called with (tiles done, tiles in all).

        Raises:
            Error: a channel count that the model cannot serve, a map of another size, a bad tile.
        """
        side, mesh = self.side(image.shape, tile), devices.mesh(local=True)
        out, work, source = np.empty(image.shape, np.float32), self._clean(mesh), image
        if noise_map is not None and self.reads_noise_map:
            if noise_map.shape != (*image.shape[:2], 1):
                raise Error(
                    f"noise_map has shape {noise_map.shape}; for this image it must be "
                    f"{(*image.shape[:2], 1)}"
                )
            source = np.concatenate([image, noise_map.astype(np.float32)], -1)
            work = self._clean(mesh, informed=True)
        for y, rows in prediction.bands(
            self.network, source, work, side, at_once=mesh.size, progress=progress
        ):
            out[y : y + len(rows)] = rows
        return out

    def bands(
        self,
        source: Any,
        *,
        strength: float = 1.0,
        data_range: Any = None,
        tile: int | None = None,
        start: int = 0,
        progress: prediction.Progress | None = None,
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Denoise a picture from top to bottom, whatever its size: yields (first row, rows).

        Only a row of tiles is in memory. Other arguments: see `n2n.denoise`.

        Args:
            source: anything with dtype, a shape H,W or H,W,C, and `source[a:b]`: an array, a file.
            tile: from `side`, or None.
            start: first row wanted, a multiple of the network's lattice.
        """
        low_high = images.settle(source, data_range)
        side, mesh = self.side(source.shape, tile), devices.mesh(local=True)
        clean = self._clean(mesh)

        def finish(x: np.ndarray, got: np.ndarray, ndim: int) -> np.ndarray:
            x = prediction.trim(x, self.network.halo or 0, 0)
            got = x + np.float32(strength) * (got - x)
            return images.from_float(got if ndim == 3 else got[..., 0], source.dtype, low_high)

        def work(tiles: Sequence[np.ndarray]) -> prediction.Tiles:
            shown = [images.to_float(tile, low_high) for tile in tiles]
            return [
                finish(x, got, tile.ndim)
                for x, got, tile in zip(shown, clean(shown), tiles, strict=True)
            ]

        yield from prediction.bands(
            self.network, source, work, side, at_once=mesh.size, start=(start, 0), progress=progress
        )

    def side(self, shape: tuple[int, ...], tile: int | None = None) -> int | None:
        """Return the side of the tiles for a picture of this shape; None: it is seen whole.

        Raises:
            Error: a channel count that the model cannot serve, or a bad tile.
        """
        given, wanted = shape[2] if len(shape) == 3 else 1, self.network.channels[1]
        if given not in (1, wanted) and wanted != 1:
            raise Error(
                f"image has {given} channels, the model {wanted}; give {wanted}, or 1, "
                "and leave alpha out"
            )
        return prediction.choose(self.network, (shape[0], shape[1]), wanted, tile)

    @property
    def reads_noise_map(self) -> bool:
        """Whether the network reads a noise map beside the picture."""
        inputs, outputs = self.network.channels
        return inputs == outputs + 1

    def _clean(self, mesh: Mesh, *, informed: bool = False) -> prediction.Work:
        """Return the function that denoises tiles H,W,C float32 in display units.

        With `informed` a tile's last channel is its noise map.
        """
        low, high = self.scale
        wanted = self.network.channels[1]
        run = functools.partial(
            prediction.apply, self.network, devices.copied(self.params, mesh), mesh
        )

        def work(tiles: Sequence[np.ndarray]) -> prediction.Tiles:
            given = tiles[0].shape[-1] - informed
            xs = [((tile[..., :given] - low) / (high - low)).astype(np.float32) for tile in tiles]
            maps = [tile[..., given:] / np.float32(high - low) for tile in tiles]

            def seen(pictures: list[np.ndarray]) -> list[np.ndarray]:
                return [np.concatenate(each, -1) for each in zip(pictures, maps, strict=True)]

            clean: prediction.Tiles
            if given == wanted:
                clean = run(seen(xs))
            elif given == 1:
                wide = run(seen([np.repeat(x, wanted, axis=-1) for x in xs]))
                clean = [each.mean(-1, keepdims=True) for each in wide]
            else:  # the model is grey
                planes = [run(seen([x[..., c : c + 1] for x in xs])) for c in range(given)]
                clean = [np.concatenate(each, axis=-1) for each in zip(*planes, strict=True)]
            return [each * np.float32(high - low) + np.float32(low) for each in clean]

        return work

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
        if isinstance(image, (str, Path)):
            image = images.developed(images.read(image)).array
        array = np.asarray(image)
        pixels = _channels_last(array, channel_axis)
        result = np.empty(pixels.shape, array.dtype)
        for y, rows in self.bands(
            pixels,
            strength=strength,
            data_range=data_range,
            tile=tile,
            progress=_tiles_shown(progress),
        ):
            result[y : y + len(rows)] = rows
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
        """Make one picture of a registered burst: the network applied to the mean of all frames,
        turned and mirrored in eight ways, from 4 megapixels on turned in four, averaged.

        The score tells the quality of the network, applied once, to means of N-2 frames against
        the expected frame, on places that training left out (`seed` must be the training's); of
        two frames, to single ones. The picture itself is better. `progress` is called with
        (percent done, 100).
        """
        return fuse(self._run(tile, _in_all(progress, passes(burst, 1))), burst, seed)

    def _run(self, tile: int | None, progress: prediction.Progress | None) -> Callable:
        def run(image: np.ndarray, noise_map: np.ndarray | None) -> np.ndarray:
            return self.predict(image, noise_map=noise_map, tile=tile, progress=progress)

        return run

    def save(self, path: Path | str, *, half: bool = False) -> None:
        """Write network, weights, scale and card as one safetensors file, atomically.

        `half` stores 16 bits for each weight; they are loaded as float32 all the same.
        """
        meta = {
            "network": self.network.config,
            "scale": list(self.scale),
            "halo": self.network.halo,
            "card": self.card,
        }
        arrays = checkpoints.flatten(jax.device_get(self.params))
        if half:
            arrays = {name: value.astype(np.float16) for name, value in arrays.items()}
        checkpoints.save(path, arrays, meta)


def fuse_best(
    learnt: Denoiser,
    start: Denoiser | None,
    burst: Burst,
    *,
    seed: int = 0,
    tile: int | None = None,
    progress: prediction.Progress | None = None,
) -> tuple[str, Fused]:
    """Make one picture of a burst by what was learnt on it, or by what this started from, or by
    none: (`burst`, `start` or `mean`, and `fuse`'s).

    The clean-free score decides. What moved and the reference alone shows is never a target, and
    colours of its own are lost to what was learnt: there the picture is the start's.
    """
    models = [learnt] if start is None else [learnt, start]
    shown = _in_all(progress, passes(burst, len(models)))
    runs = [model._run(tile, shown) for model in models]
    return best(runs[0], runs[1] if start is not None else None, burst, seed)


def _in_all(progress: prediction.Progress | None, count: int) -> prediction.Progress | None:
    """Return what so many passes over a picture report to, for `progress` to see one job of 100."""
    if progress is None:
        return None
    finished = 0

    def report(done: int, tiles: int) -> None:
        nonlocal finished
        progress(min(100, round(100 * (finished + done / tiles) / count)), 100)
        finished += done == tiles

    return report


def starting(burst: Burst, init: Any = None) -> Any:
    """Return what training on a burst starts from, as `fit` takes it; None: from scratch.

    `init` is a name, a path or a `Denoiser`; None: of the package's weights for noise (STARTS)
    the name of those with the best clean-free score on this burst, for colour, and nothing for
    others; False: nothing.
    """
    if init is not None:
        return None if init is False else init
    if burst.frames.shape[-1] != 3:
        return None
    models = {name: _shipped(name) for name in STARTS if (WEIGHTS / f"{name}.safetensors").exists()}
    if len(models) < 2:
        return next(iter(models), None)
    return preferred({name: model._run(None, None) for name, model in models.items()}, burst)


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
            f"model is {str(model)!r}; it must be a .safetensors file or the name of weights in "
            f"the package: {', '.join(sorted(shipped)) or 'there are none'}"
        )
    return _load_file(path)


def _load_file(path: Path) -> Denoiser:
    arrays, meta = checkpoints.load(path)
    config, card, scale = meta.get("network"), meta.get("card"), meta.get("scale", ())
    if not isinstance(config, dict) or not isinstance(card, dict) or not _is_scale(scale):
        raise Error(
            f"{str(path)!r} is a checkpoint or a broken model, not a model file; give the file "
            "that n2n train -o names"
        )
    try:
        network = networks.build(config)
        template = jax.eval_shape(network.init, jax.random.key(0))
        params = jax.tree.map(np.asarray, checkpoints.fill(template, arrays))
    except Error as error:
        raise Error(f"{str(path)!r}: {error}") from None
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
        raise Error(f"{str(path)!r} holds weights that are NaN or infinite; train it anew")
    return Denoiser(params, network, (scale[0], scale[1]), json.dumps(card, sort_keys=True))


def _is_scale(scale: Any) -> bool:
    """Say whether a value read from JSON is (low, high)."""
    if not isinstance(scale, list) or len(scale) != 2:
        return False
    numbers = all(isinstance(end, (int, float)) and abs(end) < 1e30 for end in scale)
    return numbers and scale[0] < scale[1]


@functools.lru_cache(maxsize=4)
def _shipped(name: str) -> Denoiser:
    return load(name)


def load_model(model: Any) -> Denoiser:
    """Return a Denoiser for None (the default weights), a name, a path or a Denoiser."""
    if isinstance(model, Denoiser):
        return model
    if model is None:
        names = {path.stem for path in WEIGHTS.glob("*.safetensors")}
        return _shipped("photo" if "photo" in names else "gaussian")
    return load(model)


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


def _tiles_shown(progress: bool | prediction.Progress) -> prediction.Progress | None:
    if progress is not True:
        return progress or None
    return lambda done, of: show(f"tile {done} of {of}", done == of)


def show(text: str, last: bool) -> None:
    """Write a line on stderr over the one before; `last` ends it."""
    print(f"\r{text:<78}", end="\n" if last else "", file=sys.stderr, flush=True)
