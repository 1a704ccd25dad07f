"""The networks' layers, declared by Flax NNX; what they map is said in `n2n.networks`."""

from __future__ import annotations

import functools
from typing import Any

from flax import nnx

from n2n.networks.configs import RED30, Lean, UNet
from n2n.networks.layers import HE, activate, add, conv, convolve, expand, pool, trim, trim_to


class UNetLayers(nnx.Module):
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


class LeanLayers(nnx.Module):
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


class RED30Layers(nnx.Module):
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
