"""The optimizers: what a step subtracts, against formulae written down once more in numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from n2n.training.optimizer import NAMES, RMS, optimizer

RNG = np.random.default_rng(3)
GRADIENTS = {
    "kernel": RNG.normal(size=(3, 3, 4, 6)).astype(np.float32),
    "wide": RNG.normal(size=(2, 30)).astype(np.float32),
    "bias": RNG.normal(size=6).astype(np.float32),
    "gain": np.float32(-0.3),
}


def updates(name: str, gradients: list[dict]) -> list[dict]:
    """Return what an optimizer makes of gradients that follow each other."""
    rule = optimizer(name)
    params = jax.tree.map(jnp.ones_like, gradients[0])
    state, found = rule.init(params), []
    for one in gradients:
        update, state = jax.jit(rule.update)(one, state, params)
        found.append(jax.tree.map(np.asarray, update))
    return found


def adams(gradients: list[np.ndarray]) -> list[np.ndarray]:
    """Return Adam's updates by the formulae of Kingma and Ba 2015, algorithm 1."""
    first = second = np.zeros_like(gradients[0], np.float64)
    found = []
    for t, gradient in enumerate(gradients, 1):
        first = 0.9 * first + 0.1 * gradient
        second = 0.99 * second + 0.01 * gradient**2
        found.append(first / (1 - 0.9**t) / (np.sqrt(second / (1 - 0.99**t)) + 1e-8))
    return found


@pytest.fixture(scope="module")
def gradients() -> list[dict]:
    return [jax.tree.map(lambda leaf, k=k: leaf * (1 + k) + 0.1 * k, GRADIENTS) for k in range(3)]


@pytest.mark.parametrize("leaf", list(GRADIENTS))
def test_adam_is_the_papers(gradients, leaf: str) -> None:
    found = [update[leaf] for update in updates("adam", gradients)]
    expected = adams([one[leaf] for one in gradients])
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("leaf", ["bias", "gain"])
def test_muon_leaves_what_is_no_matrix_to_adam(gradients, leaf: str) -> None:
    ours, theirs = (
        [update[leaf] for update in updates(name, gradients)] for name in ("muon", "adam")
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize("leaf", ["kernel", "wide"])
def test_muon_makes_a_kernels_step_orthogonal(leaf: str) -> None:
    gradient = GRADIENTS[leaf]
    step = updates("muon", [GRADIENTS])[0][leaf]
    assert step.shape == gradient.shape
    matrix, seen = (each.reshape(-1, gradient.shape[-1]) for each in (step, gradient))
    left, _, right = np.linalg.svd(seen, full_matrices=False)
    # In the gradient's own axes the step is diagonal, and points downhill when it is subtracted.
    # Five iterations of Newton and Schulz leave singular values of 0.5 to 1.5 (optax).
    inner = left.T @ matrix @ right.T / (RMS * np.sqrt(max(matrix.shape)))
    values = np.diagonal(inner)
    assert (values > 0.5).all() and (values < 1.5).all()
    np.testing.assert_allclose(inner - np.diag(values), 0, atol=1e-4)


def test_muon_learns_weak_directions_as_fast_as_strong_ones() -> None:
    # Least squares whose inputs differ a hundredfold in strength: Adam's steps, element by
    # element, follow the strong ones once they are turned against the axes.
    turn = np.linalg.qr(RNG.normal(size=(8, 8)))[0]
    inputs = jnp.asarray(RNG.normal(size=(256, 8)) * np.logspace(0, -2, 8) @ turn, jnp.float32)
    wanted = inputs @ jnp.asarray(RNG.normal(size=(8, 8)) / 100, jnp.float32)

    def loss(params):
        return jnp.mean(jnp.square(inputs @ params["kernel"] - wanted))

    left = {}
    for name in NAMES:
        rule, params = optimizer(name), {"kernel": jnp.zeros((8, 8))}
        state = rule.init(params)

        @jax.jit
        def step(params, state, rate, rule=rule):
            update, state = rule.update(jax.grad(loss)(params), state, params)
            return jax.tree.map(lambda p, u: p - rate * u, params, update), state

        for number in range(200):
            params, state = step(params, state, 2e-3 * (1 - number / 200))
        left[name] = float(loss(params))
    assert left["muon"] < left["adam"]
