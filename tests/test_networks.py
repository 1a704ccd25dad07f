"""Networks against the paper's table, an independent reference in numpy, and their own halo."""

from __future__ import annotations

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from n2n import devices, networks
from n2n.networks import RED30, Lean, UNet, layers
from n2n.types import Error

pytestmark = pytest.mark.usefixtures("hasty")
TINY = UNet(3, 3, width=3)


def count(config) -> int:
    shapes = jax.eval_shape(networks.build(config).init, jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def random_params(network, seed: int = 0, scale: float = 1.0):
    """Return parameters drawn in numpy, biases too: no layer may hide behind a zero."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(network.init, jax.random.key(0))

    def draw(leaf):
        size = scale / math.sqrt(math.prod(leaf.shape[:-1]) if len(leaf.shape) == 4 else 16)
        return (rng.standard_normal(leaf.shape) * size * 1.4).astype(np.float32)

    return jax.tree.map(draw, shapes)


def ones(network):
    """Return kernels of ones and biases of zero: what can be reached is reached, visibly."""
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return jax.tree.map(
        lambda leaf: np.full(leaf.shape, float(len(leaf.shape) == 4), np.float32), shapes
    )


# The paper's table ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "inputs, outputs, parameters", [(3, 3, 991_203), (1, 1, 988_609), (9, 3, 997_251)]
)
def test_unet_has_the_papers_parameters(inputs: int, outputs: int, parameters: int) -> None:
    assert count(UNet(inputs, outputs)) == parameters  # reference 1.1, computed from the table


def test_red30_has_its_parameters() -> None:
    # 28 inner convolutions 128 -> 128, one 3 -> 128, one 128 -> 3, with biases: 4.14 M.
    assert count(RED30()) == 28 * (9 * 128 * 128 + 128) + 9 * 3 * 128 + 128 + 9 * 128 * 3 + 3
    assert round(count(RED30()) / 1e6, 2) == 4.14


def test_initialisation_is_untruncated_he() -> None:
    params = networks.build(UNet(3, 3, width=16)).init(jax.random.key(1))
    layers = [(part, i) for part in ("encoder", "decoder", "head") for i in params[part]]
    assert len(layers) == 18
    largest = 0.0
    for part, i in layers:
        kernel, bias = (np.asarray(params[part][i][name]) for name in ("kernel", "bias"))
        gain = 1.0 if (part, i) == ("head", 2) else math.sqrt(2)
        wanted = gain / math.sqrt(9 * kernel.shape[2])
        # Standard errors over n draws: 1 / sqrt(2 n) of the deviation, 1 / sqrt(n) of the mean.
        assert abs(kernel.std() / wanted - 1) < 5 / math.sqrt(2 * kernel.size)
        assert abs(kernel.mean() / wanted) < 5 / math.sqrt(kernel.size)
        assert not bias.any()
        largest = max(largest, float(np.abs(kernel / wanted).max()))
    assert largest > 3  # of 63,000 draws 170 lie beyond 3; truncated at 2, none


@pytest.mark.parametrize("config", [UNet(3, 3, 16, residual=True), Lean(3, 3), RED30(3, 3, 16)])
def test_a_residual_network_starts_near_the_identity(config) -> None:
    network = networks.build(config)
    params = network.init(jax.random.key(2))
    head = params.get("head", {})
    last = params["layers"][29] if isinstance(config, RED30) else head.get(2, head)
    kernel = np.asarray(last["kernel"])
    kernel = in_units(kernel) if isinstance(config, Lean) else kernel
    deviation = 0.1 / math.sqrt(9 * kernel.shape[2])
    assert abs(kernel.std() / deviation - 1) < 5 / math.sqrt(2 * kernel.size)
    x = np.random.default_rng(0).random((1, 32, 32, 3), np.float32)
    many = jax.vmap(network.init)(jax.random.split(jax.random.key(2), 8))
    out = np.asarray(jax.jit(jax.vmap(network.apply, (0, None)))(many, x))
    off = np.abs(out - x).mean((1, 2, 3, 4))  # one draw's offset may be three times the mean's
    assert off.min() > 0
    assert off.mean() < 0.1


def test_init_follows_its_key() -> None:
    network = networks.build(UNet(3, 3, width=16))
    first, again, other = (network.init(jax.random.key(seed)) for seed in (3, 3, 4))
    assert all(map(np.array_equal, jax.tree.leaves(first), jax.tree.leaves(again)))
    assert not np.array_equal(first["encoder"][0]["kernel"], other["encoder"][0]["kernel"])
    assert not np.array_equal(first["encoder"][1]["kernel"], first["encoder"][2]["kernel"])


# An independent reference, from reference 1.1 alone -----------------------------------------------


def conv(x: np.ndarray, layer) -> np.ndarray:
    height, width = x.shape[:2]
    wide = np.pad(x, [(1, 1), (1, 1), (0, 0)])
    out = np.zeros((height, width, layer["kernel"].shape[-1])) + layer["bias"]
    for dy in range(3):
        for dx in range(3):
            window = wide[dy : dy + height, dx : dx + width]
            out += window @ np.asarray(layer["kernel"][dy, dx], np.float64)
    return out


def leaky(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 0.1 * x)


def pool(x: np.ndarray) -> np.ndarray:
    return np.max([x[i::2, j::2] for i in (0, 1) for j in (0, 1)], axis=0)


def nearest(x: np.ndarray) -> np.ndarray:
    return x.repeat(2, axis=0).repeat(2, axis=1)


def unet_by_the_book(x: np.ndarray, params) -> np.ndarray:
    """Return the paper's table 2 for one picture H,W,C in [-0.5, 0.5]; fewer pools if so given."""
    enc, dec, head = params["encoder"], params["decoder"], params["head"]
    pools = [pool(leaky(conv(leaky(conv(x, enc[0])), enc[1])))]
    for index in range(2, len(enc) - 1):
        pools.append(pool(leaky(conv(pools[-1], enc[index]))))
    up = nearest(leaky(conv(pools[-1], enc[len(enc) - 1])))
    for index, skip in enumerate(pools[-2::-1]):
        up = np.concatenate([up, skip], axis=-1)
        up = leaky(conv(leaky(conv(up, dec[2 * index])), dec[2 * index + 1]))
        up = nearest(up)
    up = np.concatenate([up, x], axis=-1)
    return conv(leaky(conv(leaky(conv(up, head[0])), head[1])), head[2])


def in_units(leaf: np.ndarray) -> np.ndarray:
    """Return what a stored kernel of Lean stands for: times 32 / sqrt(fan-in of 16 channels up)."""
    return leaf * 32 / (3 * max(leaf.shape[2], 16) ** 0.5) if leaf.ndim == 4 else leaf


def lean_by_the_book(x: np.ndarray, params) -> np.ndarray:
    """Return Ronneberger et al. 2015 with one convolution down and two up a level."""
    params = jax.tree.map(in_units, params)
    enc, dec = params["encoder"], params["decoder"]
    maps = [leaky(conv(x, enc[0]))]
    for index in range(1, len(enc)):
        maps.append(leaky(conv(pool(maps[-1]), enc[index])))
    x = maps.pop()
    for index, skip in enumerate(maps[::-1]):
        x = np.concatenate([nearest(x), skip], axis=-1)
        x = leaky(conv(leaky(conv(x, dec[2 * index])), dec[2 * index + 1]))
    return conv(x, params["head"])


def red30_by_the_book(x: np.ndarray, params) -> np.ndarray:
    """Return Mao et al. 2016: 15 + 15 layers, a skip every second one, less the input's skip."""
    layers = params["layers"]
    outputs = {0: x}
    for index in range(1, 16):
        outputs[index] = np.maximum(conv(outputs[index - 1], layers[index - 1]), 0)
    x = outputs[15]
    for index in range(1, 15):
        x = conv(x, layers[14 + index])
        if index % 2:  # deconvolution 1 meets convolution 14, 3 meets 12, .. 13 meets 2
            x = x + outputs[15 - index]
        x = np.maximum(x, 0)
    return conv(x, layers[29])


@pytest.mark.parametrize(
    "config", [TINY, UNet(5, 3, width=3, residual=True)], ids=["paper", "residual"]
)
def test_unet_equals_the_reference(config: UNet) -> None:
    network = networks.build(config)
    params = random_params(network)
    x = np.random.default_rng(1).random((2, 64, 32, config.inputs), np.float32)
    out = np.asarray(jax.jit(network.apply)(params, x))
    for given, got in zip(x.astype(np.float64), out, strict=True):
        shifted = given - np.where(np.arange(config.inputs) < config.outputs, 0.5, 0.0)
        wanted = unet_by_the_book(shifted, params)
        assert wanted.std() > 0.05  # the comparison is about something
        wanted = given[..., :3] - wanted if config.residual else wanted + 0.5
        # 18 layers of float32, a sum of 100 products each: far below 1e-5 of the largest value.
        np.testing.assert_allclose(got, wanted, atol=1e-5 * max(1, np.abs(wanted).max()))


def test_lean_equals_the_reference() -> None:
    network = networks.build(Lean(4, 3, (3, 5, 4)))
    params = random_params(network, scale=0.4)
    x = np.random.default_rng(1).random((1, 32, 16, 4), np.float32)
    wanted = lean_by_the_book(x[0] - np.array([0.5, 0.5, 0.5, 0]), params)
    assert wanted.std() > 0.05
    out = np.asarray(jax.jit(network.apply)(params, x))[0]
    np.testing.assert_allclose(
        out, x[0, ..., :3] - wanted, atol=1e-5 * max(1, np.abs(wanted).max())
    )


def test_red30_equals_the_reference() -> None:
    network = networks.build(RED30(3, 3, width=4))
    params = random_params(network)
    x = np.random.default_rng(1).random((1, 12, 9, 3), np.float32)
    wanted = red30_by_the_book(x[0].astype(np.float64) - 0.5, params)
    assert wanted.std() > 0.05
    out = np.asarray(jax.jit(network.apply)(params, x))[0]
    np.testing.assert_allclose(out, x[0] - wanted, atol=1e-5 * max(1, np.abs(wanted).max()))


# Enlargement folded into the convolution ---------------------------------------------------------


def expanded_plainly(x, skip, kernel, bias):
    wide = jnp.concatenate([x.repeat(2, axis=1).repeat(2, axis=2), skip], axis=-1)
    names = ("NHWC", "HWIO", "NHWC")
    return (
        jax.lax.conv_general_dilated(wide, kernel, (1, 1), "SAME", dimension_numbers=names) + bias
    )


def expanded(x, skip, kernel, bias):
    layer = layers.conv(kernel.shape[2], kernel.shape[3], 1.0, jnp.float32, nnx.Rngs(0))
    graph, _ = nnx.split(layer, nnx.Param)
    return layers.expand(nnx.merge(graph, nnx.State({"kernel": kernel, "bias": bias})), x, skip)


def expand_inputs(height=5, width=3):
    rng = np.random.default_rng(0)
    shapes = (2, height, width, 4), (2, 2 * height, 2 * width, 3), (3, 3, 7, 6), (6,)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("size", [(5, 3), (1, 1), (1, 8)])
def test_the_folded_form_equals_enlarging_and_convolving(size) -> None:
    given = expand_inputs(*size)
    # Sums of 63 products of normal numbers: float32 rounding leaves 1e-6 of their size, 8.
    np.testing.assert_allclose(expanded(*given), expanded_plainly(*given), atol=1e-5)


def test_the_folded_form_has_the_same_derivatives() -> None:
    given = expand_inputs()
    change = [value[::-1].copy() for value in given]
    weight = np.random.default_rng(1).standard_normal(expanded_plainly(*given).shape)

    def score(form):
        return lambda *given: jnp.sum(jnp.sin(form(*given)) * weight)

    every = (0, 1, 2, 3)
    ours, plain = (jax.grad(score(form), every)(*given) for form in (expanded, expanded_plainly))
    for one, other in zip(ours, plain, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * np.abs(other).max())
    ours, plain = (
        jax.jvp(lambda *a, form=form: jax.grad(score(form), 2)(*a), given, change)[1]
        for form in (expanded, expanded_plainly)
    )
    np.testing.assert_allclose(ours, plain, atol=2e-5 * np.abs(plain).max())


# Channels and precision --------------------------------------------------------------------------


def test_missing_inputs_are_zeros() -> None:
    network = networks.build(UNet(4, 3, width=3, residual=True))
    params = random_params(network)
    x = np.random.default_rng(0).random((1, 32, 32, 3), np.float32)
    zeros, ones = np.zeros((1, 32, 32, 1), np.float32), np.ones((1, 32, 32, 1), np.float32)
    run = jax.jit(network.apply)
    blind = np.asarray(run(params, x))
    told = np.asarray(run(params, np.concatenate([x, zeros], -1)))
    other = np.asarray(run(params, np.concatenate([x, ones], -1)))
    assert np.array_equal(blind, told)
    assert np.abs(blind - other).max() > 1e-3


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_channel_counts_are_refused(channels: int) -> None:
    network = networks.build(UNet(4, 3, width=3))
    params = jax.eval_shape(network.init, jax.random.key(0))
    with pytest.raises(Error, match=f"input has {channels} channels; this network reads 4"):
        jax.eval_shape(network.apply, params, jnp.zeros((1, 32, 32, channels)))


def test_bfloat16_stays_near_float32() -> None:
    config = UNet(3, 3, width=4, residual=True)
    exact, coarse = networks.build(config), networks.build(config, "bfloat16")
    params = random_params(exact, scale=0.7)
    x = np.random.default_rng(0).random((1, 32, 32, 3), np.float32)
    one, other = (np.asarray(jax.jit(n.apply)(params, x)) for n in (exact, coarse))
    assert other.dtype == np.float32
    shapes = jax.eval_shape(coarse.init, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    # 8 significant bits, 2^-9 of the value in each of 18 layers, which add up like a random walk
    # or in the worst case in line: 4e-2 of the layers' output.
    change = np.abs(one - x).max()
    assert 0 < np.abs(one - other).max() < 18 * 2**-9 * max(1, change)


def test_the_context_is_not_used() -> None:
    network = networks.build(TINY)
    params = random_params(network)
    x = np.random.default_rng(0).random((1, 32, 32, 3), np.float32)
    run = jax.jit(network.apply)
    assert np.array_equal(run(params, x), run(params, x, {"flow": x}))


# Halo and lattice --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        UNet(2, 1, width=3, residual=True),
        UNet(1, 1, width=3),
        Lean(2, 1, (3, 4, 3)),
        RED30(1, 1, width=2),
    ],
)
def test_the_inner_form_is_the_whole_one_without_its_halo(config) -> None:
    network = networks.build(config)
    assert network.inner is not None and network.halo is not None
    params = random_params(network)
    halo = network.halo
    size = (1, 2 * halo + 96, 2 * halo + 192, config.outputs)
    x = np.random.default_rng(0).random(size, np.float32)
    whole, inner = (devices.jit(form)(params, x) for form in (network.apply, network.inner))
    whole = whole[:, halo:-halo, halo:-halo]
    assert inner.shape == (1, 96, 192, config.outputs) == whole.shape
    np.testing.assert_allclose(inner, whole, atol=1e-6 * float(np.abs(whole).max()))


def test_the_inner_form_of_a_tile_takes_less_work() -> None:
    network = networks.build(UNet())
    params = jax.eval_shape(network.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((1, 1280, 1280, 3), np.float32)

    def work(function) -> float:
        return jax.jit(function).lower(params, x).cost_analysis()["flops"]

    # The whole tile takes (1280 / 1024)^2 = 1.56 times what its yield does, untiled.
    assert work(network.inner) * 1.56 / work(network.apply) < 1.2


@pytest.mark.parametrize("axis", [1, 2])
def test_unet_reaches_as_far_as_its_halo_and_no_farther(axis: int) -> None:
    network = networks.build(UNet(1, 1, width=2))
    assert (network.halo, network.lattice) == (128, 32)
    # Half grey is 0 inside the network, so that what an impulse reaches is what is not half grey.
    first = 160  # the cell 160..191 of a line of 352
    distances = [127, 128, 129, 150]
    x = np.full((8, 352, 352, 1), 0.5, np.float32)
    for index, distance in enumerate(distances):
        for side, place in enumerate((first - distance, first + 31 + distance)):
            at = (place, 176) if axis == 1 else (176, place)
            x[2 * index + side][at] += 1
    out = np.asarray(jax.jit(network.apply)(ones(network), x))
    cell = np.take(out, range(first, first + 32), axis=axis)
    reached = (cell != 0.5).any(axis=(1, 2, 3)).reshape(4, 2)
    assert reached.tolist() == [[True, True], [True, True], [False, False], [False, False]]


@pytest.mark.parametrize(
    "config, lattice", [(UNet(1, 1, 2, depth=3), 8), (Lean(1, 1, (2, 3, 2)), 4)]
)
def test_the_halo_holds_for_fewer_pools(config, lattice: int) -> None:
    network = networks.build(config)
    halo, cell = network.halo, network.lattice
    assert cell == lattice and halo % cell == 0
    first, side = 2 * halo, 4 * halo + cell
    distances = [halo - cell + 1, halo + 1]
    x = np.full((2, side, side, 1), 0.5, np.float32)
    for index, distance in enumerate(distances):
        x[index, first - distance, first] += 1
    out = np.asarray(jax.jit(network.apply)(ones(network), x))
    reached = (out[:, first : first + cell] != 0.5).any(axis=(1, 2, 3))
    assert reached.tolist() == [True, False]


def test_unet_is_equivariant_by_its_lattice_alone() -> None:
    network = networks.build(UNet(1, 1, width=2))
    params = random_params(network, 3)
    x = np.random.default_rng(0).random((1, 352, 384, 1), np.float32)
    run = jax.jit(network.apply)
    # Columns 160..223 of x, two cells, have at least 128 px around them in either half of it.
    here = np.asarray(run(params, x[:, :, :352]))[:, :, 160:224]
    moved = np.asarray(run(params, x[:, :, 32:]))[:, :, 128:192]
    # Sums in another order cost 1e-7 or so; one cell less of context costs 8e-4 (measured).
    np.testing.assert_allclose(here, moved, atol=1e-6 * max(1, np.abs(here).max()))
    nearer = np.asarray(run(params, x[:, :, 32:]))[:, :, 96:128]
    whole = np.asarray(run(params, x[:, :, :352]))[:, :, 128:160]
    assert np.abs(nearer - whole).max() > 1e-5
    off = np.asarray(run(params, x[:, :, 16:368]))[:, :, 144:208]
    assert np.abs(off - here).max() > 1e-4


def test_red30_reaches_thirty_pixels() -> None:
    network = networks.build(RED30(1, 1, width=2))
    assert (network.halo, network.lattice) == (30, 1)
    x = np.full((1, 71, 71, 1), 0.5, np.float32)
    x[0, 35, 35] += 1
    # Ones would overflow 30 layers of two channels; a ninth of them keeps the sum, and the least
    # path, 9^-30 of the impulse, is seen where the skip of the input does not cover it.
    params = jax.tree.map(lambda leaf: leaf / 2, ones(network))
    out = np.asarray(jax.jit(network.apply)(params, x))[0, :, :, 0]
    rows, columns = np.nonzero(out != 0.5)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (5, 65, 5, 65)


# Configurations ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config", [TINY, UNet(4, 3, 2, True, 4), Lean(4, 3, (2, 3)), RED30(2, 1, 2)]
)
def test_configurations_go_through_json(config) -> None:
    network = networks.build(config)
    again = json.loads(json.dumps(network.config))
    assert networks.parse(again) == config
    assert networks.build(again) is network
    assert network.channels == (config.inputs, config.outputs)


def test_equal_configurations_are_one_object() -> None:
    assert networks.build(UNet(3, 3, width=3)) is networks.build(dataclasses.replace(TINY))
    assert networks.build(TINY) is not networks.build(UNet(3, 3, width=2))
    assert networks.build(TINY) is not networks.build(TINY, "bfloat16")
    assert networks.build(TINY).config == networks.build(TINY, "bfloat16").config


def test_another_input_channel_leaves_the_units_of_lean_alone() -> None:
    given, grown = (networks.build(Lean(inputs, 3, (4, 5))) for inputs in (3, 4))
    params = random_params(given, scale=0.4)
    more = jax.tree.map(np.copy, params)
    first = more["encoder"][0]
    first["kernel"] = np.pad(first["kernel"], ((0, 0), (0, 0), (0, 1), (0, 0)))
    x = np.random.default_rng(2).random((1, 16, 16, 4), np.float32)
    out = jax.jit(grown.apply)(more, x)
    np.testing.assert_allclose(out, jax.jit(given.apply)(params, x[..., :3]), atol=1e-6)


def test_names() -> None:
    assert networks.named("unet", 3, 3) == UNet()
    assert networks.named("red30", 1, 1) == RED30(1, 1)
    assert networks.named("default", 3, 3) == Lean(4, 3)
    assert networks.named("default", 9, 3) == Lean(9, 3)
    with pytest.raises(Error, match="network is 'vgg'; known are default, unet, red30"):
        networks.named("vgg", 3, 3)


def test_known_tells_foreign_configurations() -> None:
    assert networks.known({"kind": "unet"})
    assert not networks.known({"kind": "mine"}) and not networks.known({})


@pytest.mark.parametrize(
    "config, message",
    [
        ({"kind": "vgg"}, "network kind is 'vgg'; known are lean, unet, red30"),
        ({}, "network kind is None"),
        ({"kind": "unet", "pools": 3}, "fields \\['pools'\\]; unet knows inputs, outputs, width"),
        (Lean(widths=(16,)), "network widths is \\(16,\\); it must be 2 to 8 numbers"),
        (Lean(widths=(4, 0)), "network widths is \\(4, 0\\); it must be a whole number"),
        ({"kind": "lean", "widths": 16}, "network widths is 16; it must be 2 to 8 numbers"),
        (UNet(depth=0), "network depth is 0"),
        (UNet(width=0), "network width is 0; it must be a whole number from 1 to 1024"),
        (UNet(width=2.5), "network width is 2.5"),  # type: ignore[arg-type]
        (UNet(width=True), "network width is True"),
        (RED30(inputs=-1), "network inputs is -1"),
        ({"kind": "unet", "outputs": 2000}, "network outputs is 2000"),
        (UNet(1, 3, residual=True), "network reads 1 channels and writes 3"),
        (RED30(1, 3), "at least as many as it writes"),
    ],
)
def test_bad_configurations_are_refused(config, message: str) -> None:
    with pytest.raises(Error, match=message):
        networks.build(config)


def test_bad_precision_is_refused() -> None:
    with pytest.raises(Error, match="precision is 'half'; it must be float32 or bfloat16"):
        networks.build(TINY, "half")
