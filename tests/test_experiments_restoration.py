"""The experiments beyond noise: their laws, their figures, and the methods beside them."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from skimage import data

from experiments import colour, jpeg, unblur
from n2n import networks
from n2n.corruptions import Blur, Clean, Grey

pytestmark = pytest.mark.usefixtures("hasty")
PICTURE = np.asarray(data.astronaut())[100:260, 150:310] / np.float32(255)


@pytest.mark.parametrize("name", unblur.PSFS)
def test_the_network_before_and_after_its_filter(name) -> None:
    config = {"kind": "filtered", "filter": unblur.filter_of(unblur.PSFS[name])}
    network = networks.build(config | {"network": unblur.runs.LEAN | {"inputs": 6}})
    assert network.channels == (3, 3) and network.halo is not None
    assert all(recipe.crop % network.lattice == 0 for recipe in unblur.RECIPES.values())


def test_either_is_each_of_its_parts() -> None:
    law = unblur.Either((Clean(), Grey(), Blur(2.0)))
    kinds = []
    for seed in range(30):
        image = np.asarray(law(jax.random.key(seed), PICTURE).image)
        kinds.append(
            0 if np.allclose(image, PICTURE) else 1 if np.ptp(image, -1).max() < 1e-6 else 2
        )
    # Each is missed by 30 draws with a probability of 5e-6.
    assert set(kinds) == {0, 1, 2} and str(law) == "clean|grey|blur:2"


def test_the_band_is_where_the_psf_lets_light_through() -> None:
    x = np.arange(128)
    waves = [np.tile(np.cos(2 * np.pi * f * x), (128, 1))[..., None] for f in (8 / 128, 60 / 128)]
    seen, hidden = (unblur.band_error(0.1 * wave, Blur(1.6)) for wave in waves)
    assert seen == pytest.approx(10 * np.log10(0.01 / 2), abs=0.1)
    assert hidden < seen - 20


@pytest.mark.parametrize("kind", unblur.CLASSICAL)
def test_a_classical_method_sharpens(kind) -> None:
    psf = unblur.PSFS["gaussian"]
    blurred = np.asarray(psf(jax.random.key(0), PICTURE).image)
    rng = np.random.default_rng(0)
    seen = blurred + unblur.SIGMA * rng.standard_normal(blurred.shape).astype("f4")
    cut = slice(16, -16)

    def error(picture):
        return float(np.square(picture - PICTURE)[cut, cut].mean())

    methods = unblur.tuned(kind, psf)
    first = list(methods.values())[: 8 if kind != "lucy" else 1]
    assert min(error(run(seen)) for run in first) < error(seen)
    assert len(methods) == {"unsharp": 12, "wiener": 11, "unsupervised": 1, "lucy": 7}[kind]


def test_the_share_of_colour() -> None:
    grey = np.asarray(Grey()(jax.random.key(0), PICTURE).image)
    np.testing.assert_allclose(colour.colours(grey), 0, atol=1e-6)
    half = (PICTURE + grey) / 2
    share = np.std(colour.colours(half)) / np.std(colour.colours(PICTURE))
    assert share == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("module", [colour, jpeg, unblur])
def test_they_say_how_long_they_take(module) -> None:
    name = module.__name__.rpartition(".")[2]
    for preset in ("cpu", "paper"):
        assert f"    python -m experiments.{name} DATA --preset {preset} " in module.__doc__
    assert set(module.RECIPES) == {"cpu", "paper"} and "minutes on two cores" in module.__doc__
