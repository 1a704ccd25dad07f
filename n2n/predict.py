"""Tiled prediction, equal to the untiled one.

Defined as: the network applied to the picture continued endlessly by reflection (period 2(n-1); a
single row or column is repeated), its pooling lattice anchored at pixel (0, 0), then cropped. A
tile is what the network sees, halo included; tiles begin on the lattice and have one of a few
sizes, so that a hundred pictures of a hundred sizes are not a hundred compilations. No statistic
of a tile is ever taken. Arrays are float32 H,W,C in the network's own scale.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from n2n import devices
from n2n.types import Error, Network, PyTree

# What a tile yields per side, in pixels; a larger one wastes less on the halo and takes more
# memory: about 650 bytes per pixel seen for the paper's U-Net (1280 px with its halo: 1.1 GB).
_YIELDS = (32, 64, 128, 256, 384, 512, 640, 768, 1024)

Progress = Callable[[int, int], None]


def predict(
    network: Network,
    params: PyTree,
    image: np.ndarray,
    *,
    tile: int | None = None,
    origin: tuple[int, int] = (0, 0),
    mesh: Mesh | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Apply a network to a picture of any size from 1x1.

    Args:
        network: from `networks.build`; without a halo the picture is never tiled.
        params: its parameters.
        image: H,W,ci float32; fewer channels than the network reads are completed by zeros.
        tile: side in pixels that the network sees, halo included: a multiple of the lattice, at
            least 2 x halo + lattice; None: chosen for the picture, at most 1280 px for a U-Net.
        origin: moves the grid of tiles by (dy, dx) pixels, multiples of the lattice; the result
            does not depend on it.
        mesh: the devices that take a tile each at a time; None: `devices.mesh(local=True)`.
        progress: called with (tiles done, tiles in all).

    Returns:
        H,W,co float32.

    Raises:
        Error: the picture, the tile or the origin breaks its rule.
    """
    image = _checked(image)
    height, width = image.shape[:2]
    if network.halo is None:
        return _whole(network, params, image)
    sides = _sides(network, height, width, tile)
    _check_origin(network, origin)
    inner = tuple(side - 2 * network.halo for side in sides)
    out = np.empty((height, width, network.channels[1]), np.float32)
    starts = [
        range(-(-o % i), n, i) for o, i, n in zip(origin, inner, (height, width), strict=True)
    ]
    corners = list(itertools.product(*starts))
    mesh = mesh or devices.mesh(local=True)
    run = functools.partial(forward(network), devices.copied(params, mesh))
    for first in range(0, len(corners), mesh.size):
        group = corners[first : first + mesh.size]
        seen = [_window(image, y - network.halo, x - network.halo, sides) for y, x in group]
        got = devices.spread(run, seen, mesh)
        for done, (tile_got, (y, x)) in enumerate(zip(got, group, strict=True), first + 1):
            _paste(out, tile_got[network.halo :, network.halo :], y, x, inner)
            if progress:
                progress(done, len(corners))
    return out


@functools.lru_cache(maxsize=8)
def forward(network: Network) -> Callable:
    """Return the compiled (params, n,h,w,ci) -> n,h,w,co at full float32 precision."""

    def run(params: PyTree, image: jax.Array) -> jax.Array:
        # TF32 and bfloat16, the default on accelerators, would show at the tiles' borders.
        with jax.default_matmul_precision("highest"):
            return network.apply(params, image)

    return devices.jit(run)


def reflect(start: int, length: int, size: int) -> np.ndarray:
    """Return the indices start .. start+length-1 of a line of `size` pixels mirrored endlessly."""
    if size == 1:
        return np.zeros(length, np.intp)
    index = np.arange(start, start + length) % (2 * (size - 1))
    return np.minimum(index, 2 * (size - 1) - index)


def _checked(image: np.ndarray) -> np.ndarray:
    if image.ndim != 3 or not image.size:
        raise Error(f"image has shape {image.shape}; it must be H,W,C and not empty")
    return np.asarray(image, np.float32)


def _whole(network: Network, params: PyTree, image: np.ndarray) -> np.ndarray:
    """Run on the whole picture, continued by reflection to the lattice."""
    height, width = image.shape[:2]
    sides = tuple(-(-n // network.lattice) * network.lattice for n in (height, width))
    seen = _window(image, 0, 0, sides)
    return np.asarray(forward(network)(params, seen[None]))[0, :height, :width]


def _sides(network: Network, height: int, width: int, tile: int | None) -> tuple[int, int]:
    assert network.halo is not None
    least = 2 * network.halo + network.lattice
    if tile is None:
        return _side(network, height), _side(network, width)
    if tile < least or tile % network.lattice:
        raise Error(
            f"tile is {tile}; this network needs a multiple of {network.lattice}, {least} or more"
        )
    return tile, tile


def _side(network: Network, length: int) -> int:
    """Return the tile side that costs least for a line of this length."""
    assert network.halo is not None
    lattice = network.lattice
    yields = [-(-y // lattice) * lattice for y in _YIELDS]
    cost = {y: -(-length // y) * (y + 2 * network.halo) for y in yields}
    return min(yields, key=lambda y: (cost[y], y)) + 2 * network.halo


def _check_origin(network: Network, origin: tuple[int, int]) -> None:
    if any(o % network.lattice for o in origin):
        raise Error(f"origin is {origin}; both must be multiples of the lattice, {network.lattice}")


def _window(image: np.ndarray, y: int, x: int, sides: tuple[int, ...]) -> np.ndarray:
    rows = reflect(y, sides[0], image.shape[0])
    columns = reflect(x, sides[1], image.shape[1])
    return image[rows[:, None], columns[None, :]]


def _paste(out: np.ndarray, got: np.ndarray, y: int, x: int, inner: tuple[int, ...]) -> None:
    """Copy a tile's yield into the picture; tiles may begin before it and end after it."""
    top, left = max(y, 0), max(x, 0)
    bottom, right = min(y + inner[0], out.shape[0]), min(x + inner[1], out.shape[1])
    out[top:bottom, left:right] = got[top - y : bottom - y, left - x : right - x]
