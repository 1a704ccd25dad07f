"""The camera's white balance, mosaic and JPEG; its noise alone is in test_corruptions."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import convolve
from skimage import data as samples

import n2n
from n2n.corruptions import Camera, parse
from n2n.corruptions.camera import _SPREAD, demosaicked
from n2n.networks import UNet
from n2n.simulate import expected_frame
from n2n.types import Error

pytestmark = pytest.mark.usefixtures("hasty")

PHASES = [(0, 0), (0, 1), (1, 0), (1, 1)]
SIDE = 512
PIXELS = SIDE**2


@functools.partial(jax.jit, static_argnums=0)
def photograph(camera: Camera, key: jax.Array, clean: jax.Array) -> jax.Array:
    """Return one photograph."""
    return camera(key, clean).image


@functools.partial(jax.jit, static_argnums=0)
def photographs(camera: Camera, keys: jax.Array, clean: jax.Array) -> jax.Array:
    """Return one photograph for each key."""
    return jax.vmap(lambda key: camera(key, clean).image)(keys)


def exposed(camera: Camera, seed: int, level: float = 0.6) -> np.ndarray:
    """Return the linear light, less its mean, that is photographed of a flat picture."""
    image = photograph(camera, jax.random.key(seed), jnp.full((SIDE, SIDE, 3), level))
    return np.asarray(image, np.float64) ** camera.gamma - level**camera.gamma


def malvar(seen: np.ndarray, phase: tuple[int, int]) -> np.ndarray:
    """Return H,W,3 by the 5x5 filters of the paper's figure 2, pixel by pixel as it says."""
    green = np.array([[0, 0, -1, 0, 0], [0, 0, 2, 0, 0], [-1, 2, 4, 2, -1]])
    row = np.array([[0, 0, 0.5, 0, 0], [0, -1, 0, -1, 0], [-1, 4, 5, 4, -1]])
    other = np.array([[0, 0, -1.5, 0, 0], [0, 2, 0, 2, 0], [-1.5, 0, 6, 0, -1.5]])
    green, row, other = (np.concatenate([half, half[1::-1]]) / 8 for half in (green, row, other))
    results = [convolve(seen, each, mode="mirror") for each in (green, row, row.T, other)]
    output = np.empty((*seen.shape, 3))
    for y, x in np.ndindex(seen.shape):
        at_green, at_row, at_column, at_other = (result[y, x] for result in results)
        output[y, x] = {
            (0, 0): (seen[y, x], at_green, at_other),
            (0, 1): (at_row, seen[y, x], at_column),
            (1, 0): (at_column, seen[y, x], at_row),
            (1, 1): (at_other, at_green, seen[y, x]),
        }[(y + phase[0]) % 2, (x + phase[1]) % 2]
    return output


def colours(shape: tuple[int, int], phase: tuple[int, int]) -> np.ndarray:
    """Return which colour each pixel of a mosaic sees, H,W: 0, 1, 2."""
    return np.add(*(np.indices(shape)[i] % 2 ^ phase[i] for i in (0, 1)))


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("shape", [(12, 17), (2, 3)])
def test_demosaicking_is_that_of_the_paper(phase: tuple[int, int], shape: tuple[int, int]) -> None:
    light = np.random.default_rng(0).random((*shape, 3), np.float32)
    seen = np.take_along_axis(light, colours(shape, phase)[..., None], 2)[..., 0]
    wanted = malvar(seen.astype(np.float64), phase)
    np.testing.assert_allclose(demosaicked(jnp.array(phase), light), wanted, atol=1e-6)


def test_demosaicking_sees_one_colour_a_pixel() -> None:
    light = np.random.default_rng(1).random((8, 8, 3), np.float32)
    blind = light.copy()
    np.put_along_axis(blind, (colours((8, 8), (0, 1))[..., None] + 1) % 3, 9.0, 2)
    phase = jnp.array((0, 1))
    np.testing.assert_array_equal(demosaicked(phase, light), demosaicked(phase, blind))


def test_demosaicking_keeps_ramps() -> None:
    y, x = np.indices((10, 10), np.float32)
    light = np.stack([0.1 + 0.02 * x + 0.01 * y, 0.3 - 0.01 * x, 0.2 + 0.03 * y], -1)
    inner = np.s_[2:-2, 2:-2]
    np.testing.assert_allclose(
        demosaicked(jnp.array((1, 0)), light)[inner], light[inner], atol=1e-6
    )


def test_spread_is_the_sum_of_squared_weights() -> None:
    side, phase = 12, (0, 0)
    impulses = np.eye(side**2, dtype=np.float32).reshape(-1, side, side, 1).repeat(3, -1)
    responses = np.asarray(jax.vmap(lambda one: demosaicked(jnp.array(phase), one))(impulses))
    squared = np.square(responses[:, 4:8, 4:8]).mean((1, 2))
    which = colours((side, side), phase).ravel()
    spread = np.stack([squared[which == colour].sum(0) for colour in range(3)], 1)
    np.testing.assert_allclose(spread, _SPREAD, rtol=1e-6)
    np.testing.assert_allclose(_SPREAD.sum(1), [0.984, 0.781, 0.984], atol=1e-3)


def test_defaults_photograph_as_before() -> None:
    key, clean = jax.random.key(2), 1.2 * jax.random.uniform(jax.random.key(3), (9, 11, 3)) - 0.1
    noise, gain, _, _ = jax.random.split(key, 4)
    linear = jnp.maximum(clean, 0) ** jnp.float32(2.2)
    stops = jax.random.uniform(gain, (), jnp.float32, math.log(0.01), math.log(0.02))
    variance = jnp.exp(stops) * linear + jnp.square(0.005)
    light = linear + jnp.sqrt(variance) * jax.random.normal(noise, (297,)).reshape(9, 11, 3)
    wanted = jnp.clip(light, 0, 1) ** (1 / jnp.float32(2.2))
    np.testing.assert_array_equal(Camera((0.01, 0.02), 0.005)(key, clean).image, wanted)


def test_gain_and_read_noise_are_drawn_by_stops() -> None:
    def sigmas(camera: Camera) -> np.ndarray:
        keys, clean = jax.random.split(jax.random.key(20), 400), jnp.full((2, 2, 3), 0.6)
        return np.asarray(jax.vmap(camera.noise_map, (0, None))(keys, clean)[:, 0, 0, 0])

    for camera, root in ((Camera((1e-5, 1e-2), 0), 2), (Camera(0, (1e-5, 1e-2)), 1)):
        drawn = sigmas(camera)
        place = root * np.log10(drawn / drawn.max()) / 3 + 1
        # 400 uniform numbers, the largest within 0.02 of the end with a probability of 1 - 3e-4.
        assert abs(place.mean() - 0.5) < 5 * math.sqrt(1 / 12 / 400) + 0.02
        assert abs(place.std() - math.sqrt(1 / 12)) < 0.05
    drawn = sigmas(Camera(0, (0, 1e-2)))
    assert abs(drawn.mean() / drawn.max() - 0.5) < 5 * math.sqrt(1 / 12 / 400) + 0.02


def test_a_second_photograph_differs_in_its_noise_alone() -> None:
    camera = Camera((1e-6, 1e-2), 0, (1.8, 2.4), (1, 2), (1, 2), 0.5)
    keys, clean = jax.random.split(jax.random.key(22), 60), jnp.full((32, 32, 3), 0.5)
    again = jax.jit(jax.vmap(lambda key, own: camera.again(key, own, clean).image))
    first, second = photographs(camera, keys, clean), again(keys, keys[::-1])
    noise, same = (np.asarray(each, np.float64) - 0.5 for each in (first, second))
    log = [np.log(np.square(each).mean((1, 2, 3))) for each in (noise, same, noise[::-1])]
    # Four decades of variance, each known to 5 %; of 60 pairs a correlation varies by 1 / 8.
    assert np.corrcoef(log[0], log[1])[0, 1] > 0.98
    assert abs(np.corrcoef(log[0], log[2])[0, 1]) < 5 / math.sqrt(60)
    # A demosaicked field of 3,072 has a tenth as many free values.
    pairs = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(noise, same, strict=True)]
    assert np.abs(pairs).max() < 5 / math.sqrt(307)


def test_a_second_photograph_without_noise_is_the_first() -> None:
    camera, clean = Camera(0, 0, mosaic=0.5), jax.random.uniform(jax.random.key(21), (32, 32, 3))
    keys = jax.random.split(jax.random.key(23), 20)
    again = jax.jit(jax.vmap(lambda key, own: camera.again(key, own, clean).image))
    first = photographs(camera, keys, clean)
    np.testing.assert_allclose(again(keys, keys[::-1]), first, atol=1e-6)
    assert len(np.unique(np.asarray(first).reshape(20, -1), axis=0)) > 2


def test_white_balance_raises_the_noise_of_red_and_blue() -> None:
    gain, read, balance = 0.002, 0.01, np.array([2.0, 1.0, 1.5])
    light = exposed(Camera(gain, read, red=2, blue=1.5), 4)
    # Linear 0.325, of which red's sigma of 0.041 is 8 to black: nothing is clipped.
    variance = gain * 0.6**2.2 * balance + np.square(read * balance)
    assert np.all(np.abs(light.mean((0, 1))) < 5 * np.sqrt(variance / PIXELS))
    assert np.abs(light.var((0, 1)) / variance - 1).max() < 5 * math.sqrt(2 / PIXELS)


def test_white_stays_the_limit_of_red() -> None:
    image = photograph(Camera(0.01, 0.0, red=2), jax.random.key(5), jnp.ones((64, 64, 3)))
    # White is half of what red can hold: half of its noise is clipped all the same.
    assert image.max() == 1
    assert abs(float(jnp.mean(image[..., 0] == 1)) - 0.5) < 5 * math.sqrt(0.25 / 64**2)


def correlations(light: np.ndarray) -> list[float]:
    """Return those of red's and green's neighbours across and down, and of red with green."""
    pairs = [(light[:, 1:], light[:, :-1]), (light[1:], light[:-1])]
    beside = [
        np.corrcoef(a[..., c].ravel(), b[..., c].ravel())[0, 1] for a, b in pairs for c in (0, 1)
    ]
    return [*beside, np.corrcoef(light[..., 0].ravel(), light[..., 1].ravel())[0, 1]]


def test_noise_is_white_without_a_mosaic_and_correlated_with_one() -> None:
    without, through = (exposed(Camera(0.002, 0.01, mosaic=share), 6) for share in (0, 1))
    assert np.abs(correlations(without)).max() < 5 / math.sqrt(PIXELS)
    assert min(correlations(through)) > 0.1


def test_noise_through_a_mosaic_is_as_strong_as_declared() -> None:
    camera = Camera(0.002, 0.01, red=2, blue=1.5, mosaic=1)
    light, balance = exposed(camera, 7), np.array([2.0, 1.0, 1.5])
    variance = _SPREAD @ (0.002 * 0.6**2.2 * balance + np.square(0.01 * balance))
    # Weights of one colour sum to at most 4 over the pixels that read a sensor pixel and 2.5 over
    # those that a pixel reads, so that squares of this noise have a deviation of at most
    # sqrt(2 * 10 / N) relative to the sensor's variance, here at most twice the channel's.
    assert np.abs(light.var((0, 1)) / variance - 1).max() < 5 * math.sqrt(40 / PIXELS)
    assert np.all(np.abs(light.mean((0, 1))) < 5 * np.sqrt(10 * variance / PIXELS))


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_noise_map_knows_balance_and_mosaic(mosaic: float) -> None:
    camera = Camera((0.0005, 0.002), 0.004, 2.2, (1.5, 2.4), (1.2, 2), mosaic)
    clean = jnp.full((SIDE, SIDE, 3), 0.6)
    for seed in (8, 9):
        image = np.asarray(photograph(camera, jax.random.key(seed), clean), np.float64)
        sigma = camera.noise_map(jax.random.key(seed), clean)
        assert sigma.shape == (SIDE, SIDE, 1) and len(np.unique(sigma)) == 1
        measured = math.sqrt(np.mean(np.square(image - 0.6)))
        # First order is good to 1 %; a deviation from squares as above.
        assert abs(float(sigma[0, 0, 0]) / measured - 1) < 0.01 + 2.5 * math.sqrt(40 / PIXELS / 3)


def test_all_phases_of_the_mosaic_occur() -> None:
    clean = jax.random.uniform(jax.random.key(10), (8, 8, 3))
    keys = jax.random.split(jax.random.key(11), 400)
    images = photographs(Camera(0, 0, mosaic=1), keys, clean)
    kept = np.abs(np.asarray(images - clean)) < 1e-5
    counts = np.zeros(4)
    for each in kept:
        found = [
            np.take_along_axis(each, colours((8, 8), phase)[..., None], 2).all() for phase in PHASES
        ]
        assert sum(found) == 1
        counts += found
    assert np.abs(counts - 100).max() < 5 * math.sqrt(400 * 3 / 16)


def test_mosaic_is_a_share_of_the_pictures() -> None:
    clean = jax.random.uniform(jax.random.key(12), (8, 8, 3))
    keys = jax.random.split(jax.random.key(13), 400)
    images = photographs(Camera(0, 0, mosaic=0.3), keys, clean)
    through = np.abs(np.asarray(images - clean)).max((1, 2, 3)) > 1e-5
    assert abs(through.mean() - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 400)


def test_grey_pictures_have_neither_balance_nor_mosaic() -> None:
    key, clean = jax.random.key(14), jax.random.uniform(jax.random.key(15), (8, 9, 1))
    plain, colour = Camera(0.01, 0.005), Camera(0.01, 0.005, red=2, blue=1.5, mosaic=1)
    np.testing.assert_array_equal(plain(key, clean).image, colour(key, clean).image)
    np.testing.assert_array_equal(plain.noise_map(key, clean), colour.noise_map(key, clean))


def test_jpeg_comes_last() -> None:
    clean = jnp.asarray(samples.astronaut()[180:260, 150:246], jnp.float32) / 255
    keys = jax.random.split(jax.random.key(16), 40)
    images = photographs(Camera(0, 0, quality=(10, 90)), keys, clean)
    images = np.asarray(images, np.float64)
    np.testing.assert_allclose(255 * images, np.round(255 * images), atol=1e-4)
    errors = np.square(images - clean).mean((1, 2, 3))
    # The best of 40 qualities is above 70, the worst below 30; their errors differ by 2.4.
    assert errors.max() > 2 * errors.min()


@pytest.mark.parametrize("field", ["mosaic", "quality"])
def test_developments_of_one_scene_are_independent(field: str) -> None:
    clean = jnp.asarray(samples.astronaut()[180:212, 150:182], jnp.float32) / 255
    keys = jax.random.split(jax.random.key(17), 16)
    images = photographs(Camera(0, 0, **{field: 1.0 if field == "mosaic" else 30}), keys, clean)
    assert len(np.unique(np.asarray(images).reshape(16, -1), axis=0)) > 1


def test_what_is_off_is_not_computed() -> None:
    def program(camera: Camera) -> str:
        return str(jax.make_jaxpr(camera)(jax.random.key(0), jnp.zeros((16, 16, 3))))

    plain = program(Camera(0.01, 0.005))
    # The cosine transform is made of products, the demosaicking of choices.
    assert "dot_general" not in plain and "select_n" not in plain
    assert "dot_general" in program(Camera(0.01, 0.005, quality=90))
    assert "select_n" in program(Camera(0.01, 0.005, mosaic=1))


@pytest.mark.slow
def test_a_training_step_runs() -> None:
    pictures = [samples.astronaut()[:96, 150:246]]
    camera = parse("camera:0.001-0.02,0.001-0.01,2.2,1.5-2.4,1.2-2,0.7,70-98,0.5")
    task = n2n.simulated(pictures, input=camera, target=camera, noise_map=True)
    network = UNet(4, 3, width=4, residual=True, depth=1)
    model = n2n.fit(task, network=network, steps=2, batch=2, crop=32)
    assert np.isfinite(model.denoise(pictures[0][:32, :32] / 255.0)).all()


@pytest.mark.parametrize(
    "spec, camera",
    [
        ("camera:0.01,0.005", Camera(0.01, 0.005)),
        ("camera:0.01,0,2.2,2,1.5", Camera(0.01, 0, red=2, blue=1.5)),
        ("camera:0.01,0,2.2,1,1,0.7", Camera(0.01, 0, mosaic=0.7)),
        ("camera:0.01,0,2.2,1,1,0,70-98", Camera(0.01, 0, quality=(70, 98))),
        (
            "camera:0.001-0.02,0.005,2.2,1.5-2.4,1.2-2,0.7,70-98,0.5",
            Camera((0.001, 0.02), 0.005, 2.2, (1.5, 2.4), (1.2, 2), 0.7, (70, 98), 0.5),
        ),
    ],
)
def test_text_form(spec: str, camera: Camera) -> None:
    assert parse(spec) == camera
    assert str(camera) == spec


@pytest.mark.parametrize(
    "values, words",
    [
        ({"red": 0.5}, "red=0.5 must be a number of at least 1"),
        ({"blue": (0.5, 2)}, "blue=.* must be a number of at least 1"),
        ({"mosaic": 1.5}, "mosaic=1.5 must be a number of at least 0 and at most 1"),
        ({"quality": 0.5}, "quality=0.5 must be 0 for no JPEG, or a number from 1 to 100"),
        ({"quality": (0, 90)}, r"quality=\(0.0, 90.0\) must be 0 for no JPEG"),
        ({"chroma": -1}, "chroma=-1 must be a number of at least 0"),
    ],
)
def test_values_are_checked(values: dict, words: str) -> None:
    with pytest.raises(Error, match=words) as caught:
        Camera(0.01, 0.005, **values)
    assert "\n" not in str(caught.value)


def test_expected_frame_of_a_balanced_camera() -> None:
    assert Camera(0.01, 0.005).pointwise
    assert not any(
        Camera(0.01, 0.005, **{field: value}).pointwise
        for field, value in (("red", 2), ("blue", 2), ("mosaic", 0.1), ("quality", 90))
    )
    camera, draws = Camera(0.04, 0.02, red=2), 256
    frame = expected_frame(camera, np.full((16, 16, 3), 0.1, np.float32), draws=draws)
    # In the dark the curve's bias depends on the noise, and red has twice green's.
    means, deviation = frame.mean((0, 1)), frame[..., 1:].std()
    assert abs(means[1] - means[2]) < 5 * deviation * math.sqrt(2) / 16
    assert abs(means[0] - means[1]) > 20 * deviation * math.sqrt(2) / 16


# Noise reduction ---------------------------------------------------------------------------------


def test_reduced_noise_is_smooth_and_as_strong_as_told() -> None:
    camera = Camera(1e-3, 5e-3, reduced=1, grain=0.8, blotch=2.0, colour=0.5)
    keys, clean = jax.random.split(jax.random.key(30), 40), jnp.full((64, 64, 3), 0.6)
    noise = np.asarray(photographs(camera, keys, clean), np.float64) - 0.6
    luma = noise @ [0.299, 0.587, 0.114]
    for part, blur in ((luma, 0.8), (noise[..., 2] - luma, 2.0)):
        for apart in (1, 2, 4):
            found = np.mean(part * np.roll(part, apart, 2)) / np.mean(part**2)
            # 40 pictures of 64 x 64 / (4 pi blur^2) independent places each: 3,200 at the widest.
            assert abs(found - math.exp(-(apart**2) / (4 * blur**2))) < 4 / math.sqrt(3200)
    told = np.asarray(camera.noise_map(keys[0], clean))
    # The variance of 3,200 independent places is good to sqrt(2 / 3200), its root to half of that.
    np.testing.assert_allclose(np.sqrt(np.mean(noise**2)), told.mean(), rtol=4 * 0.0125)
    colour = camera.noise_map(keys[0], clean) / Camera(1e-3, 5e-3).noise_map(keys[0], clean)
    assert 0.5 < colour.mean() < 1


def test_reduced_noise_has_no_mean() -> None:
    """Nothing is clipped before it is made smooth, or its bias would grow by the smoothing."""
    camera = Camera(0.02, 0.03, 2.2, 2.0, 1.6, mosaic=1, reduced=1, grain=1, blotch=3)
    clean = jnp.full((48, 48, 3), 0.35)
    keys = jax.random.split(jax.random.key(31), 200)
    shots = np.asarray(photographs(camera, keys, clean), np.float64)
    error = shots.mean((1, 2)).std(0) / math.sqrt(len(keys))
    assert (np.abs(shots.mean((0, 1, 2)) - 0.35) < 4 * error + 1e-3).all()


def test_a_second_reduced_photograph_is_independent() -> None:
    camera = Camera((1e-4, 1e-2), 0.01, 2.2, (1, 2), (1, 2), 0.5, reduced=0.5)
    keys, clean = jax.random.split(jax.random.key(32), 60), jnp.full((48, 48, 3), 0.5)
    again = jax.jit(jax.vmap(lambda key, own: camera.again(key, own, clean).image))
    one, two = photographs(camera, keys, clean), again(keys, keys[::-1])
    one, two = (np.asarray(each, np.float64) - 0.5 for each in (one, two))
    products = (one * two).mean((1, 2, 3)) / np.sqrt(
        (one**2).mean((1, 2, 3)) * (two**2).mean((1, 2, 3))
    )
    # 60 pictures of at least 48 x 48 / 50 independent places.
    assert abs(products.mean()) < 4 / math.sqrt(60 * 46)


def test_grey_pictures_have_luma_alone() -> None:
    camera = Camera(0.01, 0.01, reduced=1, grain=1.5)
    noise = (
        photographs(camera, jax.random.split(jax.random.key(33), 20), jnp.full((48, 48, 1), 0.5))
        - 0.5
    )
    near = float(jnp.mean(noise * jnp.roll(noise, 1, 2)) / jnp.mean(noise**2))
    assert abs(near - math.exp(-1 / 9)) < 0.03
