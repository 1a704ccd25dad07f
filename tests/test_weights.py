"""The weights in the package: their cards, what they weigh, and the figures they promise."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from skimage import data as samples

import n2n
from n2n import corruptions
from n2n.corruptions import Camera, Gaussian
from n2n.corruptions.base import Corruption
from n2n.denoiser import starting
from n2n.denoiser.model import WEIGHTS, load_model

NAMES = ("gaussian", "photo", "text")
CARD = ("batch", "crop", "data", "device", "learning_rate", "licence", "limits", "loss", "n2n",
        "name", "noise", "precision", "psnr", "purpose", "sample_noise", "seed", "steps",
        "task")  # fmt: skip


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """Two photographs that come with scikit-image and that no training has seen."""
    return [samples.astronaut(), samples.coffee()]


def test_these_and_no_others_are_shipped() -> None:
    assert sorted(path.stem for path in WEIGHTS.glob("*.safetensors")) == sorted(NAMES)
    assert load_model(None).card["name"] == "photo"


@pytest.mark.parametrize("name", NAMES)
def test_the_card_is_complete_and_the_file_small(name: str) -> None:
    card = n2n.load(name).card
    assert tuple(sorted(set(card) - {"optimizer"})) == CARD and card["name"] == name
    assert all(card[field] for field in CARD if field not in ("seed",))
    assert "CC BY-SA" in card["licence"] and "noisy pairs only" in card["data"]
    assert (WEIGHTS / f"{name}.safetensors").stat().st_size < 5e6


@pytest.mark.parametrize("name", NAMES)
def test_the_figure_on_the_card_is_reached(name: str, pictures: list[np.ndarray]) -> None:
    model = n2n.load(name)
    noise = corruptions.parse(model.card["sample_noise"])
    rows = n2n.evaluate(model, pictures, corruption=noise)
    # Other versions round otherwise; a hundredth of a dB is a hundredth of a level.
    np.testing.assert_allclose(
        [row["psnr"] for row in rows], model.card["psnr"]["samples"], atol=0.01
    )
    assert all(row["psnr"] > row["input_psnr"] + 3 for row in rows)


@pytest.mark.parametrize("name", ["gaussian", "photo"])
def test_the_colour_of_a_picture_is_kept(name: str, pictures: list[np.ndarray]) -> None:
    noise = corruptions.parse(n2n.load(name).card["sample_noise"])
    for index, picture in enumerate(pictures):
        seen = np.asarray(noise(jax.random.key(index), picture / np.float32(255)).image)
        clean = n2n.denoise(seen, name)
        np.testing.assert_allclose(clean.mean((0, 1)), seen.mean((0, 1)), atol=0.002)


def test_the_colour_that_writing_has_changed_comes_back(pictures: list[np.ndarray]) -> None:
    writing = corruptions.parse(n2n.load("text").card["sample_noise"])
    for index, picture in enumerate(pictures):
        scene = picture / np.float32(255)
        seen = np.asarray(writing(jax.random.key(index), scene).image)
        before, after = (
            np.abs((each - scene).mean((0, 1))).max() for each in (seen, n2n.denoise(seen, "text"))
        )
        assert before > 0.03 and after < before / 5


@pytest.mark.parametrize(
    "name, noise",
    [("gaussian", Gaussian(0.06)), ("photo", Camera(0.01, 0.005, 2.0, 1.6, mosaic=1, quality=95))],
)
def test_a_burst_starts_from_what_knows_its_noise(name: str, noise: Corruption) -> None:
    scene = samples.astronaut()[100:340, 100:340] / np.float32(255)
    keys = jax.random.split(jax.random.key(5), 4)
    frames = np.stack([np.asarray(noise(key, scene).image) for key in keys])
    burst = n2n.align(frames, register=False)
    assert starting(burst) == name
    assert starting(burst, "text") == "text" and starting(burst, False) is None
    grey = n2n.align(frames.mean(-1), register=False)
    assert starting(grey) is None
