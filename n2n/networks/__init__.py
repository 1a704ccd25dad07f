"""Networks: a lean U-Net, the paper's at any width, RED30, and what tiling must know about them.

A network maps n,h,w,ci to n,h,w,co, h and w multiples of its lattice; values around [0, 1]. The
layers work in [-0.5, 0.5] as the paper's do; `build` wraps the shift, the residual output and the
completion of missing input channels by zeros ("unknown") around them. No statistic of a batch, of
a picture or of a tile is ever taken, so that a pixel's value depends on its surroundings alone.
Flax NNX declares the layers; everything outside this folder sees pure functions and plain dicts.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from n2n.networks import configs
from n2n.networks.configs import RED30, Config, Filtered, Lean, UNet, known, named, parse
from n2n.networks.layers import Reach, slide, trim
from n2n.networks.modules import LeanLayers, RED30Layers, UNetLayers
from n2n.types import Error, Network

__all__ = ["RED30", "Config", "Filtered", "Lean", "UNet", "build", "known", "named", "parse"]

_LAYERS: dict[type, type] = {Lean: LeanLayers, UNet: UNetLayers, RED30: RED30Layers}


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

    fields = {"kind": configs.kind(config), **dataclasses.asdict(config), "network": network.config}
    channels = (config.inputs, config.outputs)
    return Network(network.init, apply, channels, halo + more, lattice, fields, inner)


@functools.cache
def _build(config: Config, precision: str) -> Network:
    module = _LAYERS[type(config)]
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

    fields = {"kind": configs.kind(config), **dataclasses.asdict(config)}
    channels = (config.inputs, config.outputs)
    return Network(init, apply, channels, halo, lattice, fields, inner)


def _unit(inputs: int) -> float:
    """Return what a kernel's stored numbers are multiplied by, for its input channels.

    Adam moves every stored number by its rate, so a kernel of 64 inputs moves by 1.3 rates and one
    of 16 by 2.7; with half as much again, 1e-3 diverges. Fewer than 16 inputs count as 16: a noise
    map more or less leaves the units as they are.
    """
    return 32 / math.sqrt(9 * max(inputs, 16))


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
