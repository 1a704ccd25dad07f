"""JPEG against Pillow's libjpeg, and what is drawn by chance."""

from __future__ import annotations

import functools
import io
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from skimage import data as samples

from n2n.corruptions import JPEG, parse
from n2n.corruptions.jpeg import decoded, tables
from n2n.types import Error, Observation

pytestmark = pytest.mark.usefixtures("hasty")

read_back = jax.jit(decoded, static_argnums=3)


@functools.partial(jax.jit, static_argnums=0)
def observe(corruption: JPEG, key: jax.Array, clean: jax.Array) -> Observation:
    """Return the picture read back."""
    return corruption(key, clean)


@functools.partial(jax.jit, static_argnums=0)
def draws(corruption: JPEG, keys: jax.Array, clean: jax.Array) -> jax.Array:
    """Return one picture read back for each key."""
    return jax.vmap(lambda key: corruption(key, clean).image)(keys)


def written(levels: np.ndarray, quality: int, chroma: float = 0.0) -> Image.Image:
    """Return Pillow's JPEG of H,W,1 or H,W,3 uint8, opened."""
    file = io.BytesIO()
    subsampling = {"subsampling": "4:2:0" if chroma else "4:4:4"} if levels.shape[2] == 3 else {}
    picture = Image.fromarray(levels if levels.shape[2] == 3 else levels[..., 0])
    picture.save(file, "JPEG", quality=quality, **subsampling)
    return Image.open(io.BytesIO(file.getvalue()))


def photograph(rows: int, columns: int, channels: int = 3) -> np.ndarray:
    """Return a detailed place of a photograph, uint8."""
    return samples.astronaut()[180 : 180 + rows, 150 : 150 + columns, :channels]


def assert_alike(levels: np.ndarray, quality: int, chroma: float) -> None:
    """Compare with Pillow: 50 dB, and a tenth of a level on average."""
    picture = written(levels, quality, chroma)
    wanted = np.asarray(picture, np.float64).reshape(levels.shape)
    read = read_back(jax.random.key(0), jnp.float32(levels), float(quality), chroma)
    error = np.asarray(read, np.float64) - wanted
    # libjpeg's cosines have 13 bits: now and then a coefficient near half a step goes the other
    # way, which moves one block by a fraction of a step.
    assert 10 * math.log10(255**2 / max(np.mean(error**2), 1e-9)) > 50
    assert np.abs(error).mean() < 0.1


@pytest.mark.parametrize("chroma", [0.0, 1.0])
@pytest.mark.parametrize("quality", [1, 10, 50, 90, 95, 100])
def test_agrees_with_pillow(quality: int, chroma: float) -> None:
    assert_alike(photograph(144, 160), quality, chroma)


@pytest.mark.parametrize("quality", [10, 50, 90])
def test_grey_agrees_with_pillow(quality: int) -> None:
    assert_alike(photograph(144, 160, 1), quality, 0.0)


@pytest.mark.parametrize("chroma", [0.0, 1.0])
@pytest.mark.parametrize("rows, columns", [(101, 77), (23, 38), (9, 12), (40, 5)])
def test_any_size_agrees_with_pillow(rows: int, columns: int, chroma: float) -> None:
    assert_alike(photograph(rows, columns), 75, chroma)


def test_noise_agrees_with_pillow() -> None:
    noise = np.random.default_rng(1).normal(0, 15, (144, 160, 3))
    levels = np.clip(photograph(144, 160) + noise, 0, 255).round().astype(np.uint8)
    assert_alike(levels, 90, 0.0)
    assert_alike(levels, 90, 1.0)


def test_primaries_stay_within_8_bits() -> None:
    corners = np.array(np.meshgrid([0, 255], [0, 255], [0, 255])).reshape(3, 8).T
    levels = np.repeat(np.repeat(corners[None], 16, 0), 16, 1).astype(np.uint8)
    assert_alike(levels, 100, 0.0)


def test_tables_are_those_of_libjpeg() -> None:
    grey = np.zeros((8, 8, 3), np.uint8)
    for quality in range(1, 101):
        found = written(grey, quality).quantization
        for number, table in enumerate(tables(quality)):
            np.testing.assert_array_equal(np.ravel(table), found[number], err_msg=str(quality))


@pytest.mark.parametrize("shape, chroma", [((1, 1, 3), 1.0), ((5, 7, 3), 0.5), ((17, 16, 1), 0.0)])
def test_levels_are_whole_whatever_the_size(shape: tuple[int, ...], chroma: float) -> None:
    clean = jax.random.uniform(jax.random.key(2), shape)
    image, weight = observe(JPEG((10, 95), chroma), jax.random.key(3), clean)
    assert image.shape == shape and image.dtype == weight.dtype == jnp.float32
    assert weight.shape == (*shape[:2], 1) and np.all(weight == 1)
    levels = 255 * np.asarray(image, np.float64)
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-4)
    assert levels.min() >= 0 and levels.max() <= 255


def test_values_are_clipped_first() -> None:
    clean = 2 * jax.random.uniform(jax.random.key(4), (24, 24, 3)) - 0.5
    image, clipped, other = (
        observe(JPEG(80), jax.random.key(5), each).image
        for each in (clean, jnp.clip(clean, 0, 1), 0.5 * clean)
    )
    np.testing.assert_array_equal(image, clipped)
    assert not np.array_equal(image, other)


def test_a_flat_picture_stays() -> None:
    clean = jnp.full((20, 30, 3), 128 / 255)
    image = observe(JPEG(10), jax.random.key(6), clean).image
    np.testing.assert_allclose(image, clean, atol=1e-6)


def test_the_grid_lies_anywhere() -> None:
    # At quality 1 a ramp of 3 levels a pixel keeps the mean of a block alone: steps show the grid.
    ramp = 3 * np.arange(64, dtype=np.float32) / 255
    clean = jnp.asarray((ramp[:, None] + ramp) / 2)[..., None]
    images = np.asarray(draws(JPEG(1), jax.random.split(jax.random.key(7), 400), clean))
    phases = []
    for image in images[..., 0]:
        down, right = (np.abs(np.diff(image, axis=axis)).sum(1 - axis) > 0 for axis in (0, 1))
        found = [set((np.flatnonzero(steps) + 1) % 8) for steps in (down, right)]
        assert all(len(each) == 1 for each in found)
        phases.append([each.pop() for each in found])
    # A share of 1/8 of 400 deviates by sqrt(400 * 7) / 8.
    for axis in np.transpose(phases):
        assert np.abs(np.bincount(axis, minlength=8) - 50).max() < 5 * math.sqrt(400 * 7) / 8
    assert abs(np.corrcoef(np.transpose(phases))[0, 1]) < 5 / math.sqrt(400)


def test_quality_is_drawn_per_picture() -> None:
    clean = jnp.asarray(photograph(48, 48), jnp.float32) / 255
    keys = jax.random.split(jax.random.key(8), 100)
    errors = [
        np.square(np.asarray(draws(JPEG(quality), keys, clean)) - clean).mean((1, 2, 3))
        for quality in ((10, 90), 20, 50, 80)
    ]
    mixed, worse, middle, better = errors
    # All of 100 draws miss an end's eighth with a probability of 2e-6.
    assert mixed.min() < better.min() and worse.max() < mixed.max()
    # Half of them lie on either side of quality 50; the grid alone moves an error by 10 %.
    assert abs(np.mean(mixed > middle.mean()) - 0.5) < 5 * math.sqrt(0.25 / 100)


def test_chroma_is_a_share_of_the_pictures() -> None:
    # Red and green of one luminance by turns: averaged, they are all lost.
    colours = np.array([[0.8, 0.2, 0.4], [0.3, 0.454, 0.4]], np.float32)
    clean = jnp.asarray(colours[np.indices((16, 16)).sum(0) % 2])
    images = np.asarray(draws(JPEG(95, 0.3), jax.random.split(jax.random.key(9), 400), clean))
    contrast = images.std((1, 2))[:, 0]
    lost = contrast < 0.12
    assert np.all((contrast < 0.05) | (contrast > 0.2))
    assert abs(lost.mean() - 0.3) < 5 * math.sqrt(0.3 * 0.7 / 400)


def test_only_one_chroma_is_computed_where_the_share_is_certain() -> None:
    key, clean = jax.random.key(0), jnp.zeros((16, 16, 3))
    products = [
        str(jax.make_jaxpr(JPEG(90, chroma))(key, clean)).count("dot_general")
        for chroma in (0, 1, 0.5)
    ]
    assert products[0] == products[1] < products[2]


def test_text_form_and_errors() -> None:
    assert parse("jpeg:10-60") == JPEG((10, 60), 1)
    assert str(JPEG((70, 98), 0.5)) == "jpeg:70-98,0.5"
    assert str(JPEG(90, 1)) == "jpeg:90"
    for spec, words in (
        ("jpeg", "'jpeg' is written jpeg:quality,chroma"),
        ("jpeg:0", "quality=0.0 must be a number of at least 1 and at most 100"),
        ("jpeg:90-101", "quality=.* must be a number of at least 1 and at most 100"),
        ("jpeg:90,2", "chroma=2.0 must be a number of at least 0 and at most 1"),
    ):
        with pytest.raises(Error, match=words):
            parse(spec)
    with pytest.raises(Error, match="JPEG takes 1 or 3 channels"):
        JPEG(90)(jax.random.key(0), jnp.zeros((8, 8, 4)))
