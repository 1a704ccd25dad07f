"""Losses by hand, their limits and gradients, and the one weighted mean."""

from __future__ import annotations

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from n2n import losses
from n2n.types import Error

PREDICTION = jnp.array([0.5, 0.25, 1.0, -0.5])
TARGET = jnp.array([0.25, 0.25, -1.0, 0.5])


def gradient(loss: losses.Loss, prediction: jax.Array, target: jax.Array, progress: float):
    return jax.grad(lambda f: loss(f, target, jnp.float32(progress)).sum())(prediction)


def test_values_by_hand() -> None:
    np.testing.assert_allclose(losses.l2(PREDICTION, TARGET, 0.5), [0.0625, 0, 4, 1])
    np.testing.assert_allclose(losses.l1(PREDICTION, TARGET, 0.5), [0.25, 0, 2, 1])
    # (f-y)^2 / (|f|+0.01)^2
    expected = [0.0625 / 0.51**2, 0, 4 / 1.01**2, 1 / 0.51**2]
    np.testing.assert_allclose(losses.hdr(PREDICTION, TARGET, 0.5), expected, rtol=1e-6)
    # Half way gamma is 1: |f-y| + 1e-8.
    np.testing.assert_allclose(losses.l0(PREDICTION, TARGET, 0.5), [0.25, 1e-8, 2, 1], rtol=1e-6)


def test_l0_begins_as_l2_and_ends_as_a_count() -> None:
    at_zero = losses.l0(PREDICTION, TARGET, jnp.float32(0))
    np.testing.assert_allclose(at_zero, losses.l2(PREDICTION, TARGET), rtol=1e-6, atol=1e-15)
    np.testing.assert_array_equal(losses.l0(PREDICTION, TARGET, jnp.float32(1)), 1.0)
    # Just before the end a difference counts 1, whatever its size, and none counts less:
    # (1e-8)^0.1 = 0.158.
    late = losses.l0(PREDICTION, TARGET, jnp.float32(0.95))
    np.testing.assert_allclose(late, [0.25**0.1, 10**-0.8, 2**0.1, 1], rtol=1e-5)


@pytest.mark.parametrize("progress", [0.0, 0.25, 0.5, 0.9, 0.95, 1.0])
def test_l0_gradient_is_finite_and_zero_where_equal(progress: float) -> None:
    slope = gradient(losses.l0, PREDICTION, TARGET, progress)
    assert np.isfinite(slope).all()
    assert slope[1] == 0
    gamma = 2 * (1 - progress)
    expected = [gamma * 0.25 ** (gamma - 1), 0, gamma * 2 ** (gamma - 1), -gamma]
    np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-6)
    close = gradient(losses.l0, TARGET + 1e-7, TARGET, progress)
    assert np.isfinite(close).all()


def test_l0_seeks_the_mode_and_l1_the_median_and_l2_the_mean() -> None:
    # Targets: 0.2 in four of ten, the rest scattered above; median 0.61, mean 0.524.
    targets = jnp.array([0.2] * 4 + [0.61, 0.61, 0.7, 0.75, 0.8, 0.97])
    grid = jnp.linspace(0, 1, 1001)

    def lowest(loss: losses.Loss, progress: float) -> float:
        shape = (len(grid), len(targets))
        predictions = jnp.broadcast_to(grid[:, None], shape)
        values = loss(predictions, jnp.broadcast_to(targets, shape), jnp.float32(progress))
        return float(grid[values.mean(1).argmin()])

    assert lowest(losses.l2, 0) == pytest.approx(0.524, abs=1e-3)
    assert lowest(losses.l1, 0) == pytest.approx(0.61, abs=1e-3)
    assert lowest(losses.l0, 0.95) == pytest.approx(0.2, abs=1e-3)


def test_hdr_holds_its_denominator_constant() -> None:
    slope = gradient(losses.hdr, PREDICTION, TARGET, 0.0)
    expected = 2 * (PREDICTION - TARGET) / (jnp.abs(PREDICTION) + 0.01) ** 2
    np.testing.assert_allclose(slope, expected, rtol=1e-5)


def test_hdr_has_no_pole_below_black() -> None:
    below = jnp.array([-0.011, -0.01, -0.0099])
    slope = gradient(losses.hdr, below, jnp.zeros(3), 0.0)
    np.testing.assert_allclose(slope, 2 * below / 0.02**2, rtol=0.1)


def test_losses_are_found_by_name() -> None:
    for name in ("l2", "l1", "l0", "hdr"):
        loss = losses.named(name)
        assert loss is getattr(losses, name)
        assert loss.__doc__
        assert list(inspect.signature(loss).parameters) == ["prediction", "target", "progress"]
        assert jax.jit(loss)(PREDICTION, TARGET, jnp.float32(0.3)).shape == (4,)
    with pytest.raises(Error, match="loss='huber'.*l2, l1, l0, hdr"):
        losses.named("huber")


@pytest.mark.parametrize("name", ["l2", "l1", "l0", "hdr"])
def test_shapes_that_would_broadcast_are_refused(name: str) -> None:
    with pytest.raises(Error, match=r"\(2, 4, 4, 3\).*\(2, 4, 4, 1\)"):
        losses.named(name)(jnp.zeros((2, 4, 4, 3)), jnp.zeros((2, 4, 4, 1)), jnp.float32(0))


def test_weighted_mean_is_the_mean_of_what_has_weight() -> None:
    generator = np.random.default_rng(0)
    values = generator.random((2, 5, 6, 3)).astype(np.float32)
    kept = generator.random((2, 5, 6, 1)) < 0.4
    subset = values[kept[..., 0]].mean(dtype=np.float64)
    mean = losses.weighted_mean(jnp.asarray(values), jnp.asarray(kept, jnp.float32))
    assert mean.shape == () and mean.dtype == jnp.float32
    # Sums of 72 float32 numbers below 1.
    assert float(mean) == pytest.approx(subset, rel=1e-5)
    plain = losses.weighted_mean(jnp.asarray(values), jnp.ones((2, 5, 6, 1)))
    assert float(plain) == pytest.approx(values.mean(dtype=np.float64), rel=1e-5)
    # 1 * 2 + 3 * 4 over (1 + 3): fractions weigh in proportion.
    pair = losses.weighted_mean(jnp.array([[[[2.0], [4.0]]]]), jnp.array([[[[1.0], [3.0]]]]))
    assert float(pair) == pytest.approx(3.5)


def test_weighted_mean_of_nothing_is_zero_with_a_finite_gradient() -> None:
    def mean(values: jax.Array, weight: jax.Array) -> jax.Array:
        return losses.weighted_mean(jnp.square(values), weight)

    values, weight = jnp.ones((1, 2, 2, 3)), jnp.zeros((1, 2, 2, 1))
    assert mean(values, weight) == 0
    slopes = jax.grad(mean, argnums=(0, 1))(values, weight)
    assert all(math.isfinite(float(slope.sum())) for slope in slopes)
    np.testing.assert_array_equal(slopes[0], 0)


@pytest.mark.parametrize("shape", [(1, 2, 2, 3), (1, 2, 2), (2, 2, 1)])
def test_weighted_mean_refuses_other_weights(shape: tuple[int, ...]) -> None:
    with pytest.raises(Error, match=r"weight has shape.*must be \(1, 2, 2, 1\)"):
        losses.weighted_mean(jnp.zeros((1, 2, 2, 3)), jnp.zeros(shape))
