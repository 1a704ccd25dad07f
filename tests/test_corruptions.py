"""Corruptions by statistics: literal seeds, and bounds of five standard errors of the statistic."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import is_dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from n2n import corruptions
from n2n.corruptions import (
    JPEG,
    Bernoulli,
    Brown,
    Camera,
    Chain,
    Clean,
    Corruption,
    Gaussian,
    Impulse,
    Poisson,
    Text,
    parse,
)
from n2n.corruptions.parse import NAMES
from n2n.types import Error, Observation

pytestmark = pytest.mark.usefixtures("hasty")
SHAPE = (256, 256, 3)
N = math.prod(SHAPE)
PIXELS = SHAPE[0] * SHAPE[1]

SPECS = [
    "clean",
    "gaussian:25",
    "gaussian:0-50",
    "gaussian:12.5",
    "poisson:30",
    "poisson:0.001-50",
    "bernoulli:0.5",
    "bernoulli:0-0.95",
    "impulse:0.7",
    "text:0.25",
    "text:0-0.5",
    "jpeg:10-60",
    "jpeg:90,0.5",
    "grey+gaussian:10",
    "grey",
    "blur:1-3",
    "motion:9-25",
    "motion:15,30",
    "defocus:2-8",
    "motion:15,30+gaussian:2",
    "brown:25,4",
    "brown:0-50,1.5-4",
    "camera:0.01,0.005",
    "camera:0.001-0.04,0,1.8",
    "camera:0.01,0.005,2.2,1.5-2.4,1.2-2,0.7,70-98,0.5",
    "poisson:30+gaussian:5",
    "camera:0.01,0.005+bernoulli:0.1+text:0.2",
]


def flat(value: float, shape: tuple[int, ...] = SHAPE) -> jax.Array:
    return jnp.full(shape, value, jnp.float32)


# Without LLVM's optimisation random numbers compile three times as fast; that is most of the time.
FAST = {"xla_backend_optimization_level": 0}


# A corruption is hashable, so it can be a static argument: equal ones share one compilation.
@functools.partial(jax.jit, static_argnums=0, compiler_options=FAST)
def apply(corruption: Corruption, key: jax.Array, clean: jax.Array) -> Observation:
    """Return the observation of one picture."""
    return corruption(key, clean)


@functools.partial(jax.jit, static_argnums=0, compiler_options=FAST)
def apply_all(corruption: Corruption, keys: jax.Array, clean: jax.Array) -> Observation:
    """Return as many observations as there are keys; clean is H,W,C or a batch."""
    return jax.vmap(corruption, in_axes=(0, 0 if clean.ndim == 4 else None))(keys, clean)


def observe(corruption: Corruption, seed: int, clean: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return image and weight in float64, drawn in jit."""
    image, weight = apply(corruption, jax.random.key(seed), clean)
    assert image.dtype == weight.dtype == jnp.float32
    assert weight.shape == (*clean.shape[:2], 1)
    return np.asarray(image, np.float64), np.asarray(weight, np.float64)


def test_clean_is_the_picture() -> None:
    clean = jax.random.normal(jax.random.key(0), (5, 7, 2))
    image, weight = observe(Clean(), 1, clean)
    np.testing.assert_array_equal(image, clean)
    np.testing.assert_array_equal(weight, 1)


def test_grey_is_the_luma_in_every_channel() -> None:
    clean = jax.random.uniform(jax.random.key(30), (5, 6, 3))
    image = corruptions.Grey()(jax.random.key(0), clean).image
    wanted = np.asarray(clean) @ [0.299, 0.587, 0.114]
    for channel in range(3):
        np.testing.assert_allclose(image[..., channel], wanted, atol=1e-6)
    single = clean[..., :1]
    np.testing.assert_array_equal(corruptions.Grey()(jax.random.key(0), single).image, single)


def test_gaussian_moments() -> None:
    sigma = 25 / 255
    image, weight = observe(Gaussian(sigma), 2, flat(0.5))
    # The mean of N normals deviates by sigma / sqrt(N), their variance by sqrt(2 / N) of itself.
    assert abs(image.mean() - 0.5) < 5 * sigma / math.sqrt(N)
    assert abs(image.var() / sigma**2 - 1) < 5 * math.sqrt(2 / N)
    channels = np.corrcoef((image - 0.5).reshape(-1, 3).T)[np.triu_indices(3, 1)]
    assert np.abs(channels).max() < 5 / math.sqrt(PIXELS)
    assert (weight == 1).all()


def test_gaussian_does_not_clip() -> None:
    image, _ = observe(Gaussian(25 / 255), 3, flat(0.0))
    assert image.min() < -0.2


@pytest.mark.parametrize("level, rate", [(0.5, 30.0), (0.02, 30.0), (5.0, 30.0)])
def test_poisson_moments(level: float, rate: float) -> None:
    image, _ = observe(Poisson(rate), 4, flat(level))
    # Counts of mean m have variance m and fourth central moment m + 3 m^2, so that their sample
    # variance deviates by sqrt((m + 2 m^2) / N).
    mean, counts = level * rate, image * rate
    assert abs(counts.mean() - mean) < 5 * math.sqrt(mean / N)
    assert abs(counts.var() - mean) < 5 * math.sqrt((mean + 2 * mean**2) / N)
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-3)


def test_poisson_sends_no_photons_below_black() -> None:
    image, _ = observe(Poisson(30.0), 5, flat(-0.5))
    np.testing.assert_array_equal(image, 0)


def test_bernoulli_loses_pixels_in_all_channels() -> None:
    clean = 0.2 + 0.6 * jax.random.uniform(jax.random.key(0), SHAPE)
    image, weight = observe(Bernoulli(0.3), 6, clean)
    # A share p of n pixels deviates by sqrt(p (1-p) / n).
    assert set(np.unique(weight)) == {0.0, 1.0}
    assert abs(weight.mean() - 0.7) < 5 * math.sqrt(0.3 * 0.7 / PIXELS)
    np.testing.assert_array_equal(image, np.asarray(clean, np.float64) * weight)


def test_bernoulli_masks_of_input_and_target_are_independent() -> None:
    first, second = (observe(Bernoulli(0.5), seed, flat(1.0))[1] for seed in (7, 8))
    assert abs(np.mean(first * second) - 0.25) < 5 * math.sqrt(0.25 * 0.75 / PIXELS)


def test_impulse_replaces_pixels_by_uniform_colours() -> None:
    image, weight = observe(Impulse(0.7), 9, flat(0.3))
    replaced = (image != np.float32(0.3)).any(-1)
    assert (weight == 1).all()
    assert abs(replaced.mean() - 0.7) < 5 * math.sqrt(0.7 * 0.3 / PIXELS)
    colours = image[replaced]
    # Uniform: mean 1/2, variance 1/12, fourth central moment 1/80; a bin of ten holds a tenth.
    n = colours.size
    assert abs(colours.mean() - 0.5) < 5 * math.sqrt(1 / 12 / n)
    assert abs(colours.var() - 1 / 12) < 5 * math.sqrt((1 / 80 - 1 / 144) / n)
    shares = np.histogram(colours, 10, (0, 1))[0] / n
    assert np.abs(shares - 0.1).max() < 5 * math.sqrt(0.1 * 0.9 / n)
    assert np.abs(np.corrcoef(colours.T)[np.triu_indices(3, 1)]).max() < 5 / math.sqrt(n / 3)


@pytest.mark.parametrize("seed, level", [(10, 0.1), (11, 0.9)])
def test_impulse_keeps_the_mode_but_not_the_mean(seed: int, level: float) -> None:
    image, _ = observe(Impulse(0.9), seed, flat(level))
    bins = np.histogram(image, 100, (0, 1))[0]
    # The true bin holds 0.1 + 0.9 / 100 of the values, any other 0.009.
    assert bins.argmax() == int(np.float64(np.float32(level)) * 100)
    assert np.sort(bins)[-1] > 5 * np.sort(bins)[-2]
    expected = 0.1 * level + 0.9 * 0.5
    assert abs(image.mean() - expected) < 5 * math.sqrt((1 / 12 + 0.16) / PIXELS)


def test_brown_is_as_strong_and_as_correlated_as_it_says() -> None:
    sigma, blur = 25 / 255, 2.0
    image, weight = observe(Brown(sigma, blur), 12, flat(0.5, (512, 512, 3)))
    added = (image - 0.5) / sigma
    # Squares of a field of correlation rho correlate by rho^2, whose sum over the plane is
    # 2 pi blur^2: second moments deviate by at most sqrt(2 * 2 pi blur^2 / N).
    bound = 5 * math.sqrt(4 * math.pi * blur**2 / added.size)
    assert abs(np.mean(added**2) - 1) < bound
    for down, right in ((0, 1), (1, 0), (0, 2), (2, 2), (3, 1), (0, 20)):
        shifted = np.roll(added, (down, right), (0, 1))
        expected = math.exp(-(down**2 + right**2) / (4 * blur**2))
        assert abs(np.mean(added * shifted) - expected) < bound
    # The mean has the variance sum of rho / N = 4 pi blur^2 / N.
    assert abs(added.mean()) < 5 * math.sqrt(4 * math.pi * blur**2 / added.size)
    assert (weight == 1).all()


def test_brown_is_as_strong_at_the_border_and_for_odd_sides() -> None:
    keys = jax.random.split(jax.random.key(13), 200)
    many = apply_all(Brown(0.1, 2.0), keys, flat(0.0, (33, 45, 3))).image
    border = np.asarray(many, np.float64)[:, 0]
    # Along a line the squared correlations sum to sqrt(2 pi) blur.
    bound = 5 * math.sqrt(2 * math.sqrt(2 * math.pi) * 2.0 / border.size)
    assert abs(np.mean(border**2) / 0.01 - 1) < bound


def test_brown_without_blur_is_white() -> None:
    image, _ = observe(Brown(0.1, 0.0), 14, flat(0.0))
    assert abs(image.var() / 0.01 - 1) < 5 * math.sqrt(2 / N)
    assert abs(np.mean(image[:, 1:] * image[:, :-1])) < 5 * 0.01 / math.sqrt(N)


def test_camera_moments_in_linear_light() -> None:
    gain, read = 0.004, 0.01
    image, weight = observe(Camera(gain, read), 15, flat(0.6))
    # Linear 0.6^2.2 = 0.325 with sigma 0.0374 is 8.7 sigma from black and 18 from white: nothing
    # is clipped, and undoing the display curve gives the sensor's values back.
    linear, variance = 0.6**2.2, gain * 0.6**2.2 + read**2
    exposed = image**2.2
    assert abs(exposed.mean() - linear) < 5 * math.sqrt(variance / N)
    assert abs(exposed.var() / variance - 1) < 5 * math.sqrt(2 / N)
    assert (weight == 1).all()


def test_camera_clips_like_a_sensor() -> None:
    for level, limit in ((0.0, 0.0), (1.0, 1.0)):
        image, _ = observe(Camera(0.01, 0.005), 16, flat(level))
        assert image.min() >= 0 and image.max() <= 1
        # Half of the noise lies beyond the limit.
        assert abs(np.mean(image == limit) - 0.5) < 5 * math.sqrt(0.25 / N)


@pytest.mark.parametrize("p", [0.04, 0.5])
def test_text_covers_the_share_asked_for(p: float) -> None:
    shape = (96, 128, 3)
    image, weight = observe(Text(p), 17, flat(0.5, shape))
    covered = (image != 0.5).any(-1)
    # The last string breaks off within a column of a letter, 47 px high at most; a letter as grey
    # as the picture is the rare exception.
    assert -1e-3 < covered.mean() - p < 47 / covered.size + 1e-9
    assert (weight == 1).all()
    assert 0 <= image.min() and image.max() <= 1


def test_text_reaches_every_pixel_in_many_colours() -> None:
    keys = jax.random.split(jax.random.key(18), 50)
    shape = (24, 40, 3)
    many = apply_all(Text(0.5), keys, flat(0.5, shape)).image
    shares = (np.asarray(many) != 0.5).any(-1).mean(0)
    # At 0.5 a pixel is missed 50 times with a probability of 1e-15.
    assert shares.min() > 0
    assert len(np.unique(np.asarray(many).reshape(-1, 3), axis=0)) > 1000


def test_text_leaves_the_rest_alone() -> None:
    clean = jax.random.uniform(jax.random.key(0), (64, 64, 1))
    image, _ = observe(Text(0.1), 19, clean)
    assert np.mean(image == np.asarray(clean, np.float64)) == pytest.approx(0.9, abs=0.0125)
    untouched, _ = observe(Text(0.0), 19, clean)
    np.testing.assert_array_equal(untouched, clean)


def test_chain_applies_in_order_and_multiplies_weights() -> None:
    chain = Chain((Bernoulli(0.5), Gaussian(0.1), Bernoulli(0.5)))
    image, weight = observe(chain, 20, flat(0.5))
    assert abs(weight.mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / PIXELS)
    known = np.broadcast_to(weight == 1, image.shape)
    # Pixels lost first carry noise around 0, those lost last are 0; n is a quarter of N.
    assert abs(image[known].mean() - 0.5) < 5 * 0.1 / math.sqrt(N / 4)
    assert abs(np.mean(image == 0) - 0.5) < 5 * math.sqrt(0.25 / PIXELS)
    assert Chain((Chain((Clean(), Gaussian(0.1))), Clean())) == Chain(
        (Clean(), Gaussian(0.1), Clean())
    )


@pytest.mark.parametrize("name", list(NAMES))
def test_keys_decide_and_jit_and_vmap_agree(name: str) -> None:
    corruption = parse(next(spec for spec in SPECS if spec.startswith(name)))
    keys = jax.random.split(jax.random.key(21), 3)
    clean = jax.random.uniform(jax.random.key(22), (3, 12, 10, 3))
    batch = apply_all(corruption, keys, clean)
    assert batch.image.shape == (3, 12, 10, 3) and batch.weight.shape == (3, 12, 10, 1)
    # Poisson's loops and JPEG's many steps take seconds to compile piece by piece.
    alone = functools.partial(apply, corruption) if name in ("poisson", "jpeg") else corruption
    again = alone(keys[0], clean[0])
    assert isinstance(again, Observation)
    # Eager and fused differ by roundings; a camera's display curve is steep near black.
    for one, eager in zip(jax.tree.map(lambda leaf: leaf[0], batch), again, strict=True):
        np.testing.assert_allclose(one, eager, rtol=1e-5, atol=1e-4)
    if name != "clean":
        other = apply_all(corruption, keys[::-1], clean).image
        assert not np.array_equal(other[0], batch.image[0])


@pytest.mark.parametrize(
    "corruption, level, most",
    [
        (Gaussian((0, 50 / 255)), lambda seen: seen.image.std((1, 2, 3)), 50 / 255),
        (Brown((0, 50 / 255), 0.0), lambda seen: seen.image.std((1, 2, 3)), 50 / 255),
        (Bernoulli((0, 0.95)), lambda seen: 1 - seen.weight.mean((1, 2, 3)), 0.95),
        (Impulse((0, 0.95)), lambda seen: (seen.image != 0.5).any(-1).mean((1, 2)), 0.95),
        (Text((0, 0.5)), lambda seen: (seen.image != 0.5).any(-1).mean((1, 2)), 0.5),
    ],
)
def test_ranges_are_drawn_uniformly_per_picture(
    corruption: Corruption, level: Callable[[Observation], np.ndarray], most: float
) -> None:
    keys = jax.random.split(jax.random.key(23), 200)
    clean = flat(0.5, (24, 24, 3))
    drawn = level(Observation(*map(np.asarray, apply_all(corruption, keys, clean)))) / most
    # 200 uniform numbers: mean 1/2 +- sqrt(1 / 12 / 200); beyond 0.05 of an end with a probability
    # of 4e-5. Measured on 576 pixels each deviates by up to 0.021 more, Text's by a column.
    assert abs(drawn.mean() - 0.5) < 5 * math.sqrt(1 / 12 / 200)
    assert drawn.min() < 0.09 and drawn.max() > 0.91
    assert abs(drawn.std() - math.sqrt(1 / 12)) < 0.05


@pytest.mark.parametrize(
    "corruption",
    [
        Gaussian((5 / 255, 50 / 255)),
        Brown((5 / 255, 50 / 255), 1.0),
        Poisson(30.0),
        Camera((0.0005, 0.002), (0.002, 0.004)),
    ],
)
@pytest.mark.parametrize("level", [0.45, 0.9])
def test_noise_map_is_the_deviation_measured(corruption: Corruption, level: float) -> None:
    clean = flat(level)
    image, _ = observe(corruption, 24, clean)
    sigma = corruption.noise_map(jax.random.key(24), clean)
    assert sigma.shape == (*SHAPE[:2], 1) and sigma.dtype == jnp.float32
    assert len(np.unique(sigma)) == 1
    measured = np.sqrt(np.mean((image - level) ** 2))
    # A deviation from N values deviates by 1 / sqrt(2 N) of itself, times sqrt(4 pi) where Brown
    # correlates them; first order is good to 1 % for the camera at these levels.
    bound = 5 * math.sqrt(4 * math.pi / (2 * N)) + (0.01 if isinstance(corruption, Camera) else 0)
    assert abs(float(sigma[0, 0, 0]) / measured - 1) < bound


def test_camera_noise_map_stays_useful_at_the_limits() -> None:
    for level in (0.0, 1.0):
        image, _ = observe(Camera(0.01, 0.005), 25, flat(level))
        sigma = Camera(0.01, 0.005).noise_map(jax.random.key(25), flat(level, (2, 2, 3)))
        # Half of a clipped normal: 0.58 sigma at white, where the secant says 0.5.
        assert 0.75 < float(sigma.mean()) / image.std() < 1.33


def test_noise_map_averages_the_channels() -> None:
    clean = jnp.array([0.1, 0.4, 0.7]) * jnp.ones((2, 2, 1))
    sigma = Poisson(10.0).noise_map(jax.random.key(0), clean)
    np.testing.assert_allclose(sigma, math.sqrt(0.4 / 10), rtol=1e-6)


@pytest.mark.parametrize("spec", SPECS)
def test_str_and_parse_are_inverse(spec: str) -> None:
    corruption = parse(spec)
    assert str(corruption) == spec
    assert parse(str(corruption)) == corruption
    assert hash(parse(spec)) == hash(corruption)


def test_every_float_survives_its_text() -> None:
    generator = np.random.default_rng(26)
    for scale in (1e-9, 1e-3, 0.1, 1.0, 1e4):
        for sigma, blur in generator.random((50, 2)) * scale:
            corruption = Brown((sigma / 2, sigma), blur)
            assert parse(str(corruption)) == corruption


def test_specs_are_in_units_of_255() -> None:
    assert parse("gaussian:25") == Gaussian(25 / 255)
    assert parse(" brown: 0-50 , 4 ") == Brown((0.0, 50 / 255), 4.0)
    assert parse("camera:0.01,0.005") == Camera(gain=0.01, read=0.005, gamma=2.2)
    assert parse("clean + gaussian:25") == Chain((Clean(), Gaussian(25 / 255)))
    assert str(Gaussian(0.1)) == "gaussian:25.5"


@pytest.mark.parametrize(
    "spec, words",
    [
        ("gausian:25", "no corruption is named 'gausian'"),
        ("", "no corruption is named ''"),
        ("gaussian", "'gaussian' is written gaussian:sigma"),
        ("gaussian:25,3", "'gaussian' is written gaussian:sigma"),
        ("brown:25", "'brown' is written brown:sigma,blur"),
        ("clean:1", "'clean' alone"),
        ("gaussian:-3", "'-3' is neither a number nor a range"),
        ("gaussian:1e3", "'1e3' is neither a number nor a range"),
        ("gaussian:50-0", "sigma=.* must be a number of at least 0"),
        ("bernoulli:1.5", "p=1.5 must be a number of at least 0 and at most 1"),
        ("poisson:0", "rate=0.0 must be a number above 0"),
        ("clean+", "no corruption is named ''"),
    ],
)
def test_wrong_specs_say_what_is_wrong(spec: str, words: str) -> None:
    with pytest.raises(Error, match=words) as caught:
        parse(spec)
    text = str(caught.value)
    assert repr(spec) in text and "\n" not in text
    assert all(name in text for name in (*NAMES, "gaussian:25"))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Gaussian(-0.1),
        lambda: Gaussian(math.nan),
        lambda: Gaussian(math.inf),
        lambda: Gaussian("much"),
        lambda: Gaussian((0.2, 0.1)),
        lambda: Gaussian((0.1, 0.2, 0.3)),
        lambda: Poisson((0, 50)),
        lambda: Bernoulli(1.01),
        lambda: Impulse((0, 1.2)),
        lambda: Text(0.95),
        lambda: Brown(0.1, -1),
        lambda: Camera(0.01, 0.0, gamma=0),
        lambda: JPEG(0),
        lambda: Chain((Clean(),)),
    ],
)
def test_parameters_are_checked_at_construction(make: Callable[[], Corruption]) -> None:
    with pytest.raises(Error, match="must") as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", list(NAMES))
def test_public_surface(name: str) -> None:
    kind = NAMES[name]
    assert getattr(corruptions, kind.__name__) is kind
    assert is_dataclass(kind) and kind.__doc__ and kind.__call__.__doc__
    assert kind.__dataclass_params__.frozen
    for method in ("__call__", "noise_map"):
        if hasattr(kind, method):
            found = list(inspect.signature(getattr(kind, method)).parameters)
            assert found == ["self", "key", "clean"]
    example = next(each for each in map(parse, SPECS) if each.__class__ is kind)
    with pytest.raises(Error, match="H,W,C"):
        example(jax.random.key(0), jnp.zeros((4, 4)))
