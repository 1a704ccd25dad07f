"""Networks: a lean U-Net, the paper's at any width, RED30, and what tiling must know about them.

A network maps n,h,w,ci to n,h,w,co, h and w multiples of its lattice; values around [0, 1]. The
layers work in [-0.5, 0.5] as the paper's do; `build` wraps the shift, the residual output and the
completion of missing input channels by zeros ("unknown") around them. No statistic of a batch, of
a picture or of a tile is ever taken, so that a pixel's value depends on its surroundings alone.
Flax NNX declares the layers; everything outside this module sees pure functions and plain dicts.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from n2n.networks.layers import (
    HE,
    Reach,
    activate,
    add,
    conv,
    convolve,
    expand,
    pool,
    slide,
    trim,
    trim_to,
)
from n2n.types import Error, Network


@dataclass(frozen=True)
class UNet:
    """Configure the U-Net of Lehtinen et al. 2018, appendix table 2 (width 48: 991,203 parameters).

    `residual=True` predicts the noise, f(x) = x - net(x), with a last layer that starts near zero.
    `depth` counts the pools; the paper has 5.
    """

    inputs: int = 3
    outputs: int = 3
    width: int = 48
    residual: bool = False
    depth: int = 5


@dataclass(frozen=True)
class Lean:
    """Configure a residual U-Net with few channels where there are many pixels.

    A level has `widths[level]` channels: one convolution before the pool, two after the enlarged
    level below and the convolved maps have been put together (Ronneberger et al. 2015, with a
    third of the paper's time; `experiments/default_network.py`). Kernels are kept in units of
    `_unit`, so that all learn at one pace (Karras et al. 2018, section 4.1).
    """

    inputs: int = 4
    outputs: int = 3
    widths: tuple[int, ...] = (16, 32, 64, 64, 64)


@dataclass(frozen=True)
class RED30:
    """Configure RED30 (Mao et al. 2016): 15 + 15 convolutions, a skip every second one."""

    inputs: int = 3
    outputs: int = 3
    width: int = 128


@dataclass(frozen=True)
class Filtered:
    """Configure a network that sees a picture through a fixed linear filter, too.

    What the filter makes of the picture comes first, so that a residual network corrects it: a
    Wiener filter takes back what a blur has left, and the network its noise and its ringing. Reads
    as many channels as it writes; the halo grows by the filter.
    """

    filter: tuple[tuple[float, ...], ...]
    """Rows of a square kernel of odd side."""
    network: UNet | Lean | RED30
    """Reads twice as many channels as it writes."""

    @property
    def inputs(self) -> int:
        """Channels of the picture."""
        return self.network.outputs

    @property
    def outputs(self) -> int:
        """Channels of the picture."""
        return self.network.outputs


Config = UNet | Lean | RED30 | Filtered


def _unit(inputs: int) -> float:
    """Return what a kernel's stored numbers are multiplied by, for its input channels.

    Adam moves every stored number by its rate, so a kernel of 64 inputs moves by 1.3 rates and one
    of 16 by 2.7; with half as much again, 1e-3 diverges. Fewer than 16 inputs count as 16: a noise
    map more or less leaves the units as they are.
    """
    return 32 / math.sqrt(9 * max(inputs, 16))


class _UNet(nnx.Module):
    """Encoder of depth + 2 convolutions, decoder of two per skip, 3 to finish."""

    def __init__(self, config: UNet, dtype: Any, rngs: nnx.Rngs):
        layer = functools.partial(conv, dtype=dtype, rngs=rngs)
        w, n = config.width, config.inputs
        inner = [layer(w, w, HE) for _ in range(config.depth + 1)]
        self.encoder = nnx.List([layer(n, w, HE), *inner])
        self.decoder: nnx.List = nnx.List([])
        below = w
        for _ in range(config.depth - 1):  # skips: the pools but the deepest, the input in the head
            self.decoder.append(layer(below + w, 2 * w, HE))
            self.decoder.append(layer(2 * w, 2 * w, HE))
            below = 2 * w
        first, second = round(w * 4 / 3), round(w * 2 / 3)  # 64 and 32 at the paper's width 48
        self.head = nnx.List(
            [
                layer(below + n, first, HE),
                layer(first, second, HE),
                layer(second, config.outputs, 0.1 if config.residual else 1.0),
            ]
        )

    def __call__(self, x: Any, margin: int = 0) -> Any:
        """Map n,h,w,inputs to n,h,w,outputs, less `margin` pixels per side, whole lattice cells."""
        encoder, head = list(self.encoder), list(self.head)
        skips = [x]
        x = activate(convolve(encoder[0], x), 0.1)
        for layer in encoder[1:-1]:
            x = pool(activate(convolve(layer, x), 0.1))
            skips.append(x)  # the pooled maps, not the convolved ones
        x = activate(convolve(encoder[-1], x), 0.1)
        skips.pop()  # the deepest pool is no skip
        layers = [*self.decoder, *head[:2]]
        return _climb(x, skips, layers, head[2], margin // 2 ** (len(encoder) - 2))


class _Lean(nnx.Module):
    """One convolution per level on the way down, two on the way up, one to finish."""

    def __init__(self, config: Lean, dtype: Any, rngs: nnx.Rngs):
        layer = functools.partial(conv, dtype=dtype, rngs=rngs)
        widths = config.widths
        before = (config.inputs, *widths)
        self.encoder = nnx.List([layer(a, b, HE) for a, b in zip(before, widths, strict=False)])
        self.decoder: nnx.List = nnx.List([])
        for below, w in zip(widths[:0:-1], widths[-2::-1], strict=True):
            self.decoder.append(layer(below + w, w, HE))
            self.decoder.append(layer(w, w, HE))
        self.head = layer(widths[0], config.outputs, 0.1)

    def __call__(self, x: Any, margin: int = 0) -> Any:
        """Map n,h,w,inputs to n,h,w,outputs, less `margin` pixels per side, whole lattice cells."""
        first, *encoder = list(self.encoder)
        x = activate(convolve(first, x), 0.1)
        skips = []
        for layer in encoder:
            skips.append(x)
            x = activate(convolve(layer, pool(x)), 0.1)
        return _climb(x, skips, list(self.decoder), self.head, margin // 2 ** len(encoder))


def _climb(x: Any, skips: list, layers: list, last: Any, margin: int) -> Any:
    """Decode from the deepest level: two convolutions for each skip, and the last."""
    for first, second in zip(layers[::2], layers[1::2], strict=True):
        x, skip, margin = _shed(x, skips.pop(), margin)
        x = activate(expand(first, x, skip), 0.1)
        x = activate(convolve(second, x), 0.1)
    return trim(convolve(last, x), margin)


def _shed(x: Any, skip: Any, margin: int) -> tuple[Any, Any, int]:
    """Trim a margin that is not wanted to the two pixels that a level of the decoder looks away.

    Enlarged they are four, of which the level's two convolutions, with the last one three, take no
    more than three. So tiles pay for their halo in the encoder alone, a quarter of the work.
    """
    kept = min(margin, 2)
    x = trim(x, margin - kept)
    return x, trim_to(skip, x), 2 * kept


class _RED30(nnx.Module):
    """30 convolutions at full resolution; feature k of the first half joins its mirror image."""

    def __init__(self, config: RED30, dtype: Any, rngs: nnx.Rngs):
        layer = functools.partial(conv, dtype=dtype, rngs=rngs)
        w = config.width
        inner = [layer(w, w, HE) for _ in range(28)]
        last = layer(w, config.outputs, 0.1)  # the output is added to the input: start near it
        self.layers = nnx.List([layer(config.inputs, w, HE), *inner, last])

    def __call__(self, x: Any, margin: int = 0) -> Any:
        """Map n,h,w,inputs to n,h,w,outputs, less `margin` pixels per side."""
        layers, skips = list(self.layers), []
        for index, layer in enumerate(layers[:15], 1):
            x = activate(convolve(layer, x), 0.0)
            if index % 2 == 0:
                skips.append(x)
        for index, layer in enumerate(layers[15:29], 1):
            x = convolve(layer, x)
            x = activate(add(x, skips.pop()) if index % 2 else x, 0.0)
        return trim(convolve(layers[29], x), margin)


_KINDS: dict[str, tuple[type, type]] = {
    "lean": (Lean, _Lean),
    "unet": (UNet, _UNet),
    "red30": (RED30, _RED30),
}


_CONFIGS: dict[str, type] = {kind: config for kind, (config, _) in _KINDS.items()} | {
    "filtered": Filtered
}


def named(name: str, inputs: int, outputs: int) -> Config:
    """Return what a name stands for: `default` (`Lean`), `unet` (the paper's), `red30`.

    The default reads a noise-level map beside the picture, zeros when unknown.

    Raises:
        Error: no such name.
    """
    if name == "default":
        return Lean(inputs + (inputs == outputs), outputs)
    if name in ("unet", "red30"):
        return _KINDS[name][0](inputs, outputs)
    raise Error(f"network is {name!r}; known are default, unet, red30")


def known(config: dict[str, Any]) -> bool:
    """Say whether a network's configuration is one of this module's."""
    return config.get("kind") in _CONFIGS


def parse(config: Config | dict[str, Any]) -> Config:
    """Return the configuration that a dict (`Network.config`, a weights file) describes.

    Raises:
        Error: an unknown kind or field, or a value out of range.
    """
    if isinstance(config, dict):
        fields = {name: _fixed(value) for name, value in config.items()}
        kind = fields.pop("kind", None)
        if not isinstance(kind, str) or kind not in _CONFIGS:
            raise Error(f"network kind is {kind!r}; known are {', '.join(_CONFIGS)}")
        try:
            config = _CONFIGS[kind](**fields)
        except TypeError:
            known = ", ".join(f.name for f in dataclasses.fields(_CONFIGS[kind]))
            raise Error(f"network has fields {sorted(fields)}; {kind} knows {known}") from None
        if isinstance(config, Filtered) and isinstance(config.network, dict):
            within: Any = parse(config.network)
            config = dataclasses.replace(config, network=within)
    assert not isinstance(config, dict)
    _check(config)
    return config


def _fixed(value: Any) -> Any:
    """Return JSON's lists as the tuples that configurations have."""
    return tuple(_fixed(one) for one in value) if isinstance(value, list) else value


_SIDE = 513
"""Longest side of a filter."""
_MOST = {"inputs": 1024, "outputs": 1024, "width": 1024, "depth": 7, "widths": 1024}


def _check(config: Config) -> None:
    if isinstance(config, Filtered):
        _check_filtered(config)
        return
    if isinstance(config, Lean):
        widths = config.widths
        if not isinstance(widths, tuple) or not 2 <= len(widths) <= 8:
            raise Error(f"network widths is {widths!r}; it must be 2 to 8 numbers, one per level")
    for name, most in _MOST.items():
        value = getattr(config, name, 1)
        for one in value if name == "widths" and isinstance(value, tuple) else (value,):
            if not isinstance(one, int) or isinstance(one, bool) or not 1 <= one <= most:
                raise Error(
                    f"network {name} is {value!r}; it must be a whole number from 1 to {most}"
                )
    residual = getattr(config, "residual", True)
    if not isinstance(residual, bool):
        raise Error(f"network residual is {residual!r}; it must be true or false")
    if residual and config.inputs < config.outputs:
        raise Error(
            f"network reads {config.inputs} channels and writes {config.outputs}; a residual "
            "network must read at least as many as it writes"
        )


def _check_filtered(config: Filtered) -> None:
    if not isinstance(config.network, UNet | Lean | RED30):
        raise Error(
            f"network within filtered is {config.network!r}; it must be unet, lean or red30"
        )
    _check(config.network)
    if config.network.inputs != 2 * config.network.outputs:
        raise Error(
            f"network within filtered reads {config.network.inputs} channels and writes "
            f"{config.network.outputs}; it must read twice as many as it writes"
        )
    try:
        rows = np.asarray(config.filter, np.float64)
    except (TypeError, ValueError):
        rows = np.zeros(0)
    side = rows.shape[0] if rows.ndim else 0
    if rows.shape != (side, side) or not side % 2 or side > _SIDE or not np.isfinite(rows).all():
        raise Error(
            f"network filter has shape {rows.shape}; it must be square, of odd side up to {_SIDE}, "
            "and finite"
        )


def build(config: Config | dict[str, Any], precision: str = "float32") -> Network:
    """Make a network's pure functions; equal configurations give the identical object.

    Args:
        config: a `UNet`, `Lean`, `RED30`, `Filtered`, or the dict of a weights file.
        precision: what the layers compute in, "float32" or "bfloat16"; parameters and output
            stay float32.

    Raises:
        Error: an unknown configuration or precision.
    """
    if precision not in ("float32", "bfloat16"):
        raise Error(f"precision is {precision!r}; it must be float32 or bfloat16")
    config = parse(config)
    return (
        _filtered(config, precision) if isinstance(config, Filtered) else _build(config, precision)
    )


@functools.cache
def _filtered(config: Filtered, precision: str) -> Network:
    network = _build(config.network, precision)
    kernel = np.asarray(config.filter, np.float32)
    reach, lattice, halo = len(kernel) // 2, network.lattice, network.halo or 0
    more = -(-reach // lattice) * lattice

    def apply(params: Any, x: jax.Array, context: Any = ()) -> jax.Array:
        wide = jnp.pad(x, ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="reflect")
        return network.apply(params, jnp.concatenate([slide(wide, kernel), x], -1), context)

    def inner(params: Any, x: jax.Array) -> jax.Array:
        assert network.inner is not None
        seen = slide(trim(x, more - reach), kernel)
        return network.inner(params, jnp.concatenate([seen, trim(x, more)], -1))

    fields = {"kind": "filtered", **dataclasses.asdict(config), "network": network.config}
    channels = (config.inputs, config.outputs)
    return Network(network.init, apply, channels, halo + more, lattice, fields, inner)


@functools.cache
def _build(config: Config, precision: str) -> Network:
    kind = next(k for k, (settings, _) in _KINDS.items() if isinstance(config, settings))
    module = _KINDS[kind][1]
    residual = not isinstance(config, UNet) or config.residual
    make = functools.partial(module, config, jnp.dtype(precision))
    skeleton = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
    graph, _ = nnx.split(skeleton, nnx.Param)

    def init(key: jax.Array) -> Any:
        params = nnx.to_pure_dict(nnx.split(make(rngs=nnx.Rngs(key)), nnx.Param)[1])
        return _scaled(params, -1) if isinstance(config, Lean) else params

    def read(params: Any) -> Any:
        return nnx.merge(graph, _scaled(params, 1) if isinstance(config, Lean) else params)

    def apply(params: Any, x: jax.Array, context: Any = ()) -> jax.Array:
        del context
        net_input = _complete(x, config.inputs, config.outputs)
        out = read(params)(net_input).astype(jnp.float32)
        return x[..., : config.outputs] - out if residual else out + 0.5

    halo, lattice = _reach(skeleton)

    def inner(params: Any, x: jax.Array) -> jax.Array:
        net_input = _complete(x, config.inputs, config.outputs)
        out = read(params)(net_input, margin=halo).astype(jnp.float32)
        return trim(x[..., : config.outputs], halo) - out if residual else out + 0.5

    fields = {"kind": kind, **dataclasses.asdict(config)}
    channels = (config.inputs, config.outputs)
    return Network(init, apply, channels, halo, lattice, fields, inner)


def _scaled(params: Any, power: int) -> Any:
    """Multiply all kernels by a power of their `_unit`."""
    return jax.tree.map(
        lambda leaf: leaf * _unit(leaf.shape[2]) ** power if leaf.ndim == 4 else leaf, params
    )


def _complete(x: jax.Array, inputs: int, outputs: int) -> jax.Array:
    """Shift the picture's channels to [-0.5, 0.5] and add zeros for channels that are missing."""
    given = x.shape[-1]
    if not outputs <= given <= inputs and given != inputs:
        raise Error(f"input has {given} channels; this network reads {inputs}")
    picture = min(given, outputs)
    x = jnp.concatenate([x[..., :picture] - 0.5, x[..., picture:]], axis=-1)
    return jnp.pad(x, [(0, 0)] * 3 + [(0, inputs - given)])


def _reach(module: Any) -> tuple[int, int]:
    """Derive (halo, lattice): the farthest that a lattice cell looks, rounded up to the lattice."""
    length = 8192
    line = np.arange(length)
    reach = module(Reach(line, line, length))
    lattice = length // reach.cells
    start = length // 2
    block = slice(start, start + lattice)
    far = max(start - reach.low[block].min(), reach.high[block].max() - (start + lattice - 1))
    return -(-int(far) // lattice) * lattice, lattice
