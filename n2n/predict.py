"""Tiled prediction, equal to the untiled one.

Defined as: the network applied to the picture continued endlessly by reflection (period 2(n-1); a
single row or column is repeated), its pooling lattice anchored at pixel (0, 0), then cropped. A
tile is what the network sees, halo included; tiles are squares that begin on the lattice and have
one of a few sizes, so that a hundred pictures of a hundred sizes are not a hundred compilations.
No statistic of a tile is ever taken. Arrays are float32 H,W,C in the network's own scale.

A picture is worked through by bands, rows of tiles. Where it comes from does not matter: `bands`
reads `source[a:b]`, of an array in memory or of a file that is larger than the memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from n2n import devices
from n2n.types import Error, Network, PyTree

# What a tile yields per side, in pixels; a larger one wastes less on the halo and takes more
# memory: 260 bytes per pixel seen for the default network, 550 for the paper's U-Net.
_YIELDS = (32, 64, 128, 256, 384, 512, 640, 768, 1024, 1280)

Progress = Callable[[int, int], None]
Tiles = Sequence[np.ndarray] | np.ndarray
Work = Callable[[Sequence[np.ndarray]], Tiles]


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
            least 2 x halo + lattice; None: chosen for the picture and the memory at hand. Where
            memory runs out it is halved.
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
    _check_origin(network, origin)
    height, width, channels = image.shape
    mesh = mesh or devices.mesh(local=True)
    side = choose(network, (height, width), channels, tile, mesh)
    work = functools.partial(apply, network, devices.copied(params, mesh), mesh)
    step = 1 if side is None else side - 2 * (network.halo or 0)
    start = (-(-origin[0] % step), -(-origin[1] % step))
    out = np.empty((height, width, network.channels[1]), np.float32)
    for y, rows in bands(
        network, image, work, side, at_once=mesh.size, start=start, progress=progress
    ):
        out[y : y + len(rows)] = rows
    return out


def bands(
    network: Network,
    source: Any,
    work: Work,
    side: int | None,
    *,
    at_once: int = 1,
    start: tuple[int, int] = (0, 0),
    progress: Progress | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield a picture's results from top to bottom: (first row, h,W,... rows).

    Args:
        network: whose halo and lattice the tiles have.
        source: anything with a shape H,W or H,W,C and `source[a:b]`, its rows as an array.
        work: maps tiles side,side[,C] to what they yield, less the halo on all sides.
        side: from `choose`; halved, as often as it can be, where `work` runs out of memory.
        at_once: most tiles that `work` is given at a time.
        start: (row, column) where the first tile's yield begins, multiples of the lattice; the
            column not above 0.
        progress: called with (tiles done, tiles in all).
    """
    if side is None:
        yield 0, _whole(network, source, work)
        return
    halo, (height, width) = network.halo or 0, source.shape[:2]
    done, y = 0, start[0]
    while y < height:
        columns = range(start[1], width, side - 2 * halo)
        total = done + len(columns) * len(range(y, height, side - 2 * halo))
        shown = progress and functools.partial(_count, progress, done, total)
        try:
            rows = _band(source, work, side, halo, y, columns, at_once, shown)
        except (MemoryError, RuntimeError) as error:
            side = _halved(network, side, error)
            continue
        yield max(y, 0), rows
        done, y = done + len(columns), y + side - 2 * halo


def choose(
    network: Network,
    size: tuple[int, int],
    channels: int,
    tile: int | None = None,
    mesh: Mesh | None = None,
) -> int | None:
    """Return the side of the tiles for a picture of this size; None: the network is never tiled.

    The one that costs least among those whose temporaries fit the memory at hand, as the compiled
    program states them; a given `tile` is halved until they do, since XLA may end the process.

    Raises:
        Error: `tile` is given and breaks the rule of `predict`.
    """
    if network.halo is None:
        return None
    if tile is not None:
        _check_tile(network, tile)
    mesh = mesh or devices.mesh(local=True)
    if tile is not None:
        return _fitting(network, tile, channels, mesh)
    sides = _sides(network, *size)
    budget = devices.memory_budget()
    while len(sides) > 1 and (need := _need(network, sides[0], channels, mesh)) > budget:
        # What a program needs goes with its area: so it takes two compilations at most, or three.
        fits = [side for side in sides[1:] if need * side**2 <= budget * sides[0] ** 2]
        sides = fits or [min(sides)]
    return sides[0]


def apply(network: Network, params: PyTree, mesh: Mesh, tiles: Sequence[np.ndarray]) -> np.ndarray:
    """Apply a network to at most as many equal tiles h,w,ci as the mesh has devices.

    `params` are copied to all of them before. Returns what each yields.
    """
    return devices.spread(functools.partial(forward(network), params), tiles, mesh)


@functools.lru_cache(maxsize=8)
def forward(network: Network) -> jax.stages.Wrapped:
    """Return the compiled (params, n,h,w,ci) -> n,h,w,co at full float32 precision, less the halo.

    One program for each shape that it has seen.
    """

    def run(params: PyTree, image: jax.Array) -> jax.Array:
        # TF32 and bfloat16, the default on accelerators, would show at the tiles' borders.
        with jax.default_matmul_precision("highest"):
            if network.inner is not None:
                return network.inner(params, image)
            return trim(network.apply(params, image), network.halo or 0)

    return devices.jit(run)


def trim(image: Any, halo: int, axis: int = 1) -> Any:
    """Leave out `halo` pixels on each side of two axes, the first of them `axis`."""
    inside = slice(halo, -halo or None)
    return image[(slice(None),) * axis + (inside, inside)]


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


def _whole(network: Network, source: Any, work: Work) -> np.ndarray:
    """Work on the whole picture, continued by reflection to the lattice."""
    height, width = source.shape[:2]
    rows, columns = (-(-n // network.lattice) * network.lattice for n in (height, width))
    seen = _window(source[0:height], 0, reflect(0, rows, height), 0, columns)
    return work([seen])[0][:height, :width]


def _band(
    source: Any,
    work: Work,
    side: int,
    halo: int,
    y: int,
    columns: range,
    at_once: int,
    progress: Progress | None,
) -> np.ndarray:
    """Return the rows that the tiles from row y on yield; tiles may begin or end outside."""
    height, width = source.shape[:2]
    rows = reflect(y - halo, side, height)
    first = int(rows.min())
    seen = source[first : int(rows.max()) + 1]
    top, bottom = max(y, 0), min(y + side - 2 * halo, height)
    band: np.ndarray | None = None
    for begin in range(0, len(columns), at_once):
        group = columns[begin : begin + at_once]
        tiles = [_window(seen, first, rows, x - halo, side) for x in group]
        for done, (x, got) in enumerate(zip(group, work(tiles), strict=True), begin + 1):
            if band is None:
                band = np.empty((bottom - top, width, *got.shape[2:]), got.dtype)
            left, right = max(x, 0), min(x + got.shape[1], width)
            band[:, left:right] = got[top - y : bottom - y, left - x : right - x]
            if progress:
                progress(done, len(columns))
    assert band is not None
    return band


def _window(seen: np.ndarray, first: int, rows: np.ndarray, x: int, side: int) -> np.ndarray:
    """Cut a tile out of rows that begin at row `first` of the picture."""
    columns = reflect(x, side, seen.shape[1])
    return seen[(rows - first)[:, None], columns[None, :]]


def _count(progress: Progress, before: int, total: int, done: int, of: int) -> None:
    del of
    progress(before + done, total)


def _least(network: Network) -> int:
    return 2 * (network.halo or 0) + network.lattice


def _check_tile(network: Network, tile: int) -> None:
    if tile < _least(network) or tile % network.lattice:
        raise Error(
            f"tile is {tile}; this network needs a multiple of {network.lattice}, "
            f"{_least(network)} or more"
        )


def _sides(network: Network, height: int, width: int) -> list[int]:
    """Return all sides that a tile may have, the one that costs least for this picture first."""
    lattice, halo = network.lattice, network.halo or 0
    # A network that sheds its halo on the way works on it with its encoder, a quarter of the whole.
    share = 1.0 if network.inner is None else 0.25

    def cost(side: int) -> float:
        step = side - 2 * halo
        count = -(-height // step) * -(-width // step)
        return count * (share * side**2 + (1 - share) * step**2)

    sides = {-(-y // lattice) * lattice + 2 * halo for y in _YIELDS}
    return sorted(sides, key=lambda side: (cost(side), side))


@functools.lru_cache(maxsize=64)
def _need(network: Network, side: int, channels: int, mesh: Mesh) -> int:
    """Return the bytes that a device works with for a tile; the program is compiled here, once."""
    params = jax.eval_shape(network.init, jax.random.key(0))
    tiles = jax.ShapeDtypeStruct(
        (mesh.size, side, side, channels), np.float32, sharding=devices.split(mesh)
    )
    params = jax.tree.map(lambda leaf: leaf.update(sharding=devices.replicated(mesh)), params)
    return devices.temporaries(forward(network).lower(params, tiles).compile())


def _halved(network: Network, side: int, error: Exception) -> int:
    """Return the next smaller side to try, or raise the error again."""
    smaller = max(_least(network), side // 2 // network.lattice * network.lattice)
    if not devices.out_of_memory(error) or smaller >= side:
        raise error
    return smaller


def _fitting(network: Network, side: int, channels: int, mesh: Mesh) -> int:
    """Return the side, halved until its program works in half of the memory that is free."""
    free, least = devices.free_memory(), _least(network)
    while free is not None and side > least and _need(network, side, channels, mesh) > free // 2:
        side = max(least, side // 2 // network.lattice * network.lattice)
    return side


def _check_origin(network: Network, origin: tuple[int, int]) -> None:
    if any(o % network.lattice for o in origin):
        raise Error(f"origin is {origin}; both must be multiples of the lattice, {network.lattice}")
