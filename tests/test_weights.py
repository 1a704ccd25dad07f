"""The weights in the package: their cards, what they weigh, and the figures they promise."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from skimage import data as samples

import n2n
from n2n import cli, corruptions
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


def test_inspect_tells_the_card(capsys) -> None:
    assert cli.main(["inspect", "gaussian"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "kodak24 gaussian:25: 20.17 / 31.73;" in text and "below BM3D" in text
    assert "CC BY-SA 4.0" in text and "{" not in text


def test_photo_learns_on_from_noisy_pairs(pictures: list[np.ndarray]) -> None:
    keys = jax.random.split(jax.random.key(3), 2)
    scene = pictures[0][:96, :96] / np.float32(255)
    pair = tuple(np.asarray(Gaussian(0.1)(key, scene).image) for key in keys)
    tuned = n2n.fit(pair, init="photo", steps=3, batch=2, crop=32, learning_rate=3e-4)
    before, after = (jax.tree.leaves(jax.device_get(n.params)) for n in (n2n.load("photo"), tuned))
    moved = [float(np.abs(a - b).max()) for a, b in zip(before, after, strict=True)]
    # Three steps of a warm-up of 50 move a kernel's numbers by 1e-5 or so each: on, not anew.
    assert tuned.reads_noise_map and 0 < max(moved) < 1e-3


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
