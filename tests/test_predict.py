"""Tiled prediction against its definition: continue by reflection, apply once, crop."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from n2n import devices, networks
from n2n import predict as prediction
from n2n.predict import predict, reflect
from n2n.types import Error, Network

CANVAS = 352
"""What the reference applies the network to, always of one size: 11 cells of 32."""
RED_CANVAS = 160


@functools.cache
def unet() -> tuple[Network, dict]:
    return trained_looking(networks.UNet(1, 1, width=4))


@functools.cache
def red30() -> tuple[Network, dict]:
    return trained_looking(networks.RED30(1, 1, width=2))


def trained_looking(config) -> tuple[Network, dict]:
    """Return a network of random weights whose output really depends on its whole halo."""
    network = networks.build(config)
    rng = np.random.default_rng(5)
    shapes = jax.eval_shape(network.init, jax.random.key(0))

    def draw(leaf):
        fan = math.prod(leaf.shape[:-1]) if len(leaf.shape) == 4 else 64
        return (rng.standard_normal(leaf.shape) * 1.5 / math.sqrt(fan)).astype(np.float32)

    return network, jax.tree.map(draw, shapes)


@functools.cache
def applied(network: Network):
    return devices.jit(network.apply)


def untiled(network: Network, params, image: np.ndarray, canvas: int) -> np.ndarray:
    """Apply the definition with numpy's own reflection, before by whole cells of the lattice."""
    assert network.halo is not None
    before = -(-network.halo // network.lattice) * network.lattice
    for axis in (0, 1):
        size = image.shape[axis]
        assert before + size + network.halo <= canvas
        more = [(0, 0)] * 3
        more[axis] = (before, canvas - before - size)
        image = np.pad(image, more, mode="reflect" if size > 1 else "edge")
    whole = np.asarray(applied(network)(params, image[None]))[0]
    return whole[before:, before:]


def picture(height: int, width: int, seed: int = 0, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width, channels), np.float32)


def agree(got: np.ndarray, wanted: np.ndarray) -> None:
    wanted = wanted[: got.shape[0], : got.shape[1]]
    assert got.dtype == np.float32
    # The design's promise; what differs is the order of sums in programs of another shape.
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * max(1, np.abs(wanted).max()))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(1, 96), st.integers(1, 96), st.sampled_from([288, 352]), st.integers(0, 9))
def test_tiled_equals_untiled(height: int, width: int, tile: int, seed: int) -> None:
    network, params = unet()
    image = picture(height, width, seed)
    got = predict(network, params, image, tile=tile)
    assert got.shape == (height, width, 1)
    agree(got, untiled(network, params, image, CANVAS))


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.integers(1, 100), st.integers(1, 100), st.sampled_from([93, 124]), st.integers(0, 9))
def test_tiled_equals_untiled_without_a_lattice(
    height: int, width: int, tile: int, seed: int
) -> None:
    network, params = red30()
    image = picture(height, width, seed)
    agree(predict(network, params, image, tile=tile), untiled(network, params, image, RED_CANVAS))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (2, 2), (33, 31), (90, 7)])
def test_the_tile_chosen_for_a_picture_equals_untiled(size: tuple[int, int]) -> None:
    network, params = unet()
    image = picture(*size)
    agree(predict(network, params, image), untiled(network, params, image, CANVAS))


def test_the_comparison_would_see_a_wrong_lattice_or_border() -> None:
    network, params = unet()
    image = picture(70, 50)
    right = predict(network, params, image)
    shifted = predict(network, params, np.roll(image, -1, 0))[:-1]
    edge = np.pad(image, [(128, 154), (128, 174), (0, 0)], mode="edge")
    edge = np.asarray(applied(network)(params, edge[None]))[0, 128:198, 128:178]
    assert np.abs(shifted - right[1:]).max() > 1e-2
    assert np.abs(edge - right).max() > 1e-2


def test_the_grid_of_tiles_changes_no_bit() -> None:
    network, params = unet()
    image = picture(75, 41)
    rest = predict(network, params, image, tile=288)
    for origin in [(32, 0), (0, -32), (64, 96), (-320, 3200)]:
        assert np.array_equal(predict(network, params, image, tile=288, origin=origin), rest)


def test_four_devices_change_no_bit() -> None:
    network, params = unet()
    image = picture(75, 170)  # 3 x 6 tiles: the last of the five batches is filled up
    calls: list[tuple[int, int]] = []
    one = predict(network, params, image, tile=288)
    four = predict(
        network,
        params,
        image,
        tile=288,
        mesh=devices.mesh(4),
        progress=lambda *a: calls.append(a),
    )
    assert calls == [(done, 18) for done in range(1, 19)]
    assert np.array_equal(one, four)


# What needs no real network ----------------------------------------------------------------------


def copier(halo: int | None = 8, lattice: int = 4, channels=(2, 2)) -> Network:
    """Return a network that copies its input, so that every pixel marks itself."""

    def apply(params, x, context=()):
        del params, context
        assert x.shape[1] % lattice == 0 and x.shape[2] % lattice == 0
        return x

    return Network(lambda key: {}, apply, channels, halo, lattice, {})


COPIER = copier()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([20, 24, 40]), st.integers(-9, 9))
def test_every_pixel_is_covered_by_itself(height: int, width: int, tile: int, move: int) -> None:
    marks = np.stack(np.mgrid[:height, :width], axis=-1).astype(np.float32)
    got = predict(COPIER, {}, marks, tile=tile, origin=(4 * move, -4 * move))
    assert np.array_equal(got, marks)
    assert np.array_equal(predict(COPIER, {}, marks), marks)


@pytest.mark.parametrize("size", [(1, 1), (3, 9), (12, 7)])
def test_without_a_halo_the_picture_is_seen_whole(size: tuple[int, int]) -> None:
    seen = []
    network = copier(None)

    def apply(params, x, context=()):
        seen.append(x.shape)
        return x - x.mean()

    network = Network(network.init, apply, (2, 2), None, 4, {})
    image = picture(*size, channels=2)
    got = predict(network, {}, image, tile=None)
    height, width = (-(-n // 4) * 4 for n in size)
    assert seen == [(1, height, width, 2)] and got.shape == image.shape
    more = [(0, height - size[0]), (0, width - size[1]), (0, 0)]
    wide = image
    for axis in (0, 1):
        only = [more[a] if a == axis else (0, 0) for a in range(3)]
        wide = np.pad(wide, only, mode="reflect" if size[axis] > 1 else "edge")
    np.testing.assert_allclose(got, image - wide.mean(), atol=1e-6)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 12), st.integers(-60, 60), st.integers(1, 80))
def test_reflection_has_no_end(size: int, start: int, length: int) -> None:
    index = reflect(start, length, size)
    wide = np.pad(np.arange(size), 200, mode="reflect" if size > 1 else "edge")
    assert np.array_equal(index, wide[200 + start : 200 + start + length])


def programs(network: Network) -> int:
    """Return how many programs of a network have been compiled."""
    return prediction.forward(network)._cache_size()


def test_a_hundred_sizes_are_few_programs() -> None:
    traced = []

    def apply(params, x, context=()):
        traced.append(x.shape)
        return x[..., :1]

    network = Network(lambda key: {}, apply, (1, 1), 8, 4, {})
    sizes = np.random.default_rng(0).integers(1, 900, (100, 2))
    for height, width in sizes:
        predict(network, {}, picture(height, width))
    assert len(traced) == len(set(traced)) == programs(network)  # each shape is compiled once
    assert len(traced) <= 9


def test_a_hundred_photographs_are_few_programs() -> None:
    network, _ = unet()
    sizes = np.random.default_rng(1).integers(100, 8000, (100, 2))
    first = {prediction._sides(network, *size)[0] for size in sizes.tolist()}
    assert len(first) <= 7 and max(first) <= 1536 and not any(side % 32 for side in first)


def hungry(most: int, error: Exception):
    """Return `apply` of a machine whose memory holds no tile of a side above `most`."""
    sides: list[int] = []

    def apply(network: Network, params, mesh, tiles) -> np.ndarray:
        sides.append(tiles[0].shape[0])
        if tiles[0].shape[0] > most:
            raise error
        return np.asarray(prediction.forward(network)(params, np.stack(tiles)))

    return apply, sides


FULL = RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 12 bytes.")


@pytest.mark.parametrize("error", [FULL, MemoryError()])
@pytest.mark.parametrize("tile, tried", [(None, [48, 24]), (40, [40, 20]), (88, [88, 44, 20])])
def test_where_memory_runs_out_the_tile_is_halved(monkeypatch, error, tile, tried) -> None:
    marks = np.stack(np.mgrid[:60, :30], axis=-1).astype(np.float32)
    apply, sides = hungry(24, error)
    monkeypatch.setattr(prediction, "apply", apply)
    monkeypatch.setattr(prediction, "_YIELDS", (32,))
    calls: list[tuple[int, int]] = []
    got = predict(COPIER, {}, marks, tile=tile, progress=lambda *call: calls.append(call))
    assert np.array_equal(got, marks)
    assert list(dict.fromkeys(sides)) == tried
    assert calls[-1][0] == calls[-1][1] and [done for done, _ in calls] == [
        *range(1, len(calls) + 1)
    ]


def test_memory_that_runs_out_on_the_way_changes_nothing(monkeypatch) -> None:
    network, params = unet()
    image = picture(150, 110)
    rest = predict(network, params, image, tile=288)
    count = []

    def apply(network: Network, params, mesh, tiles) -> np.ndarray:
        count.append(tiles[0].shape[0])
        if len(count) == 3:
            raise FULL
        return np.asarray(prediction.forward(network)(params, np.stack(tiles)))

    monkeypatch.setattr(prediction, "apply", apply)
    got = predict(network, params, image, tile=352)
    assert count == [352] * 3 + [288] * 8  # one row of tiles is done, the second is narrower
    agree(got, rest)


def test_the_smallest_tile_is_not_halved_and_other_faults_pass(monkeypatch) -> None:
    for error, tile in [(FULL, 20), (MemoryError(), 20), (RuntimeError("a fault"), 40)]:
        monkeypatch.setattr(prediction, "apply", hungry(0, error)[0])
        with pytest.raises(type(error)):
            predict(COPIER, {}, picture(10, 10, channels=2), tile=tile)


def test_the_tile_fits_the_memory_at_hand(monkeypatch) -> None:
    network, _ = unet()
    sides = []
    for budget in (1e9, 100e6, 10e6, 5e6, 1):
        monkeypatch.setattr(devices, "memory_budget", lambda budget=budget: int(budget))
        sides.append(prediction.choose(network, (6000, 4000), 1))
        if budget > 1:
            assert prediction._need(network, sides[-1], 1, devices.mesh()) <= budget
    assert sides == sorted(sides, reverse=True) and sides[0] == 1280 and sides[-1] == 288


def test_bands_may_begin_below_the_top() -> None:
    marks = np.stack(np.mgrid[:50, :30], axis=-1).astype(np.float32)
    work = functools.partial(prediction.apply, COPIER, {}, devices.mesh())
    rows = dict(prediction.bands(COPIER, marks, work, 28, start=(24, 0)))
    assert [*rows] == [24, 36, 48]
    assert np.array_equal(np.concatenate([*rows.values()]), marks[24:])


def test_a_source_is_read_by_rows_it_has() -> None:
    class Source:
        shape, asked = (50, 30, 2), []

        def __getitem__(self, rows: slice) -> np.ndarray:
            assert 0 <= rows.start < rows.stop <= 50
            self.asked.append(rows.stop - rows.start)
            return np.zeros((rows.stop - rows.start, 30, 2), np.float32)

    work = functools.partial(prediction.apply, COPIER, {}, devices.mesh())
    assert len([*prediction.bands(COPIER, Source(), work, 28)]) == 5
    assert max(Source.asked) <= 28


def test_progress_counts_the_tiles() -> None:
    calls: list[tuple[int, int]] = []
    predict(COPIER, {}, picture(10, 30, channels=2), tile=24, progress=lambda *a: calls.append(a))
    assert calls == [(done, 8) for done in range(1, 9)]


def test_numpy_and_jax_and_other_dtypes_go_in() -> None:
    image = picture(6, 5, channels=2)
    assert np.array_equal(predict(COPIER, {}, image.astype(np.float64)), image)
    assert np.array_equal(predict(COPIER, {}, np.asarray(jnp.asarray(image))), image)


@pytest.mark.parametrize("tile", [0, 256, 287, 300, -288])
def test_wrong_tiles_are_refused(tile: int) -> None:
    network, params = unet()
    with pytest.raises(Error, match=f"tile is {tile}; this network needs a multiple of 32.* 288"):
        predict(network, params, picture(8, 8), tile=tile)


def test_wrong_origins_are_refused() -> None:
    with pytest.raises(Error, match="origin is \\(4, 2\\); both must be multiples .* 4"):
        predict(COPIER, {}, picture(8, 8, channels=2), origin=(4, 2))


@pytest.mark.parametrize("shape", [(4, 4), (0, 4, 2), (1, 4, 4, 2)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(Error, match="it must be H,W,C and not empty"):
        predict(COPIER, {}, np.zeros(shape, np.float32))
