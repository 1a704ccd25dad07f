"""A task that n2n has never heard of, made of public names alone: trained, scored and used.

Two cameras see a scene: the network reads the first one's picture and a noise map and gives the
picture; the target is what a second camera saw, the horizontal gradient times a gain of its own.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import n2n
from n2n.types import Batch, Network, Task

pytestmark = pytest.mark.usefixtures("hasty")

SIGMA = 0.05


def gradient(picture):
    return picture - jnp.roll(picture, 1, axis=-2)


def scene() -> np.ndarray:
    down, right = np.mgrid[:48, :48] / 48
    return (0.5 + 0.3 * np.sin(9 * right + 4 * down))[..., None].astype(np.float32)


def task(**fields) -> Task:
    def sample(key, stripe, progress) -> Batch:
        del progress
        keys = jax.random.split(key, 4)
        y, x = jax.random.randint(keys[0], (2,), 0, 17)
        clean = jax.lax.dynamic_slice(stripe["scene"], (y, x, 0), (32, 32, 1))
        gain = jax.random.uniform(keys[1], (), jnp.float32, 0.5, 2.0)
        noise = SIGMA * jax.random.normal(keys[2], (2 * 1024,)).reshape(2, 32, 32, 1)
        seen = jnp.concatenate([clean + noise[0], jnp.full((32, 32, 1), SIGMA)], -1)
        inside = jnp.ones((32, 32, 1)).at[:, 0].set(0)  # the gradient's first column wraps
        return Batch(seen, gain * gradient(clean) + noise[1], inside, {"gain": gain})

    def measure(prediction, context):
        assert prediction.shape == (32, 32, 1)  # of one example
        return context["gain"] * gradient(prediction)

    made = {
        "pool": {"scene": scene()[None]},
        "sample": sample,
        "loss": lambda prediction, target, progress: jnp.abs(prediction - target),
        "measure": measure,
        "penalty": lambda clean: 0.1 * (clean - 0.5) ** 2,  # gradients say nothing of the mean
        "scale": (0.0, 1.0),
        "name": "gradients",
    }
    return Task(**(made | fields))


def test_a_strange_task_is_learnt_and_its_model_used(tmp_path) -> None:
    rng = np.random.default_rng(0)
    noisy = scene() + SIGMA * rng.standard_normal(scene().shape).astype(np.float32)

    def score(predict) -> float:
        padded = np.pad(noisy, [(0, 16), (0, 16), (0, 0)], mode="reflect")[None]
        wide = np.concatenate([padded, np.full_like(padded, SIGMA)], -1)
        return n2n.psnr(np.asarray(predict(wide))[0, :48, :48], scene())

    events: list = []
    out = tmp_path / "gradients.safetensors"
    model = n2n.fit(
        task(score=score),
        network={
            "kind": "unet",
            "inputs": 2,
            "outputs": 1,
            "width": 4,
            "depth": 1,
            "residual": True,
        },
        steps=200,
        batch=4,
        crop=32,
        learning_rate=1e-2,
        out=out,
        progress=events.append,
    )
    assert model.card["task"] == "gradients" and model.card["steps"] == 200
    best = max(event.score for event in events if event.score is not None)
    assert best == pytest.approx(score(lambda x: model.network.apply(model.params, x)), abs=1e-3)
    clean = n2n.load(out).denoise(noisy)
    assert clean.shape == noisy.shape and clean.dtype == np.float32
    # The sum of two pictures' noise tells more than one: 26 dB are the input's.
    assert n2n.psnr(clean, scene()) > n2n.psnr(noisy, scene())


def test_a_network_of_ones_own() -> None:
    def init(key):
        return {"kernel": 0.1 * jax.random.normal(key, (18,)).reshape(3, 3, 2, 1)}

    def apply(params, x, context=()):
        del context
        x = jnp.concatenate([x, jnp.zeros((*x.shape[:3], 2 - x.shape[-1]))], -1)
        return jax.lax.conv_general_dilated(
            x, params["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    network = Network(init, apply, (2, 1), 1, 1, {"kind": "mine", "taps": 9})
    model = n2n.fit(task(), network=network, steps=5, batch=2, crop=32)
    picture = np.random.default_rng(1).random((21, 13)).astype(np.float32)
    clean = model.denoise(picture)
    assert clean.shape == picture.shape and np.isfinite(clean).all()
    np.testing.assert_allclose(clean, model(jnp.asarray(picture)[..., None])[..., 0], atol=1e-6)
    moved = n2n.fit(task(), init=model, steps=1, batch=2, crop=32)
    assert moved.network is network


def test_channels_that_do_not_fit_are_named() -> None:
    network = {"kind": "unet", "inputs": 1, "outputs": 1, "width": 2, "depth": 2}
    with pytest.raises(n2n.Error, match="2 channels in"):
        n2n.fit(task(), network=network, steps=1, batch=2, crop=32)
