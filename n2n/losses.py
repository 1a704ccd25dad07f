"""Elementwise losses (prediction, target, progress) -> array, and the one way to average them.

`progress` runs from 0 to 1 over training; losses that do not anneal ignore it. Prediction and
target have equal shapes, n,h,w,c as a rule: broadcasting is refused, since it is always a mistake
here. Sources: Lehtinen et al. 2018, section 3.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from n2n.types import Error

Loss = Callable[[Array, Array, Array], Array]


def l2(prediction: Array, target: Array, progress: Array | float = 0.0) -> Array:
    """Return (f - y)^2, whose minimiser is the mean of the targets; Error for unequal shapes."""
    del progress
    return jnp.square(_difference(prediction, target))


def l1(prediction: Array, target: Array, progress: Array | float = 0.0) -> Array:
    """Return |f - y|, whose minimiser is the median (section 3.3); Error for unequal shapes."""
    del progress
    return _magnitude(_difference(prediction, target))


def l0(prediction: Array, target: Array, progress: Array | float) -> Array:
    """Return (|f - y| + 1e-8)^gamma, gamma from 2 down to 0, which seeks the mode (section 3.4).

    The gradient is finite everywhere, and 0 where f = y. Error for unequal shapes.
    """
    gamma = 2.0 * (1.0 - progress)
    return (_magnitude(_difference(prediction, target)) + 1e-8) ** gamma


def hdr(prediction: Array, target: Array, progress: Array | float = 0.0) -> Array:
    """Return (f - y)^2 / (f + 0.01)^2, the denominator held constant in the gradient (section 3.5).

    For linear light without an upper limit. The denominator takes |f|: light is never below 0, but
    predictions are, and at -0.01 there would be a pole. Error for unequal shapes.
    """
    del progress
    difference = _difference(prediction, target)
    return jnp.square(difference / (jnp.abs(jax.lax.stop_gradient(prediction)) + 0.01))


_LOSSES: dict[str, Loss] = {"l2": l2, "l1": l1, "l0": l0, "hdr": hdr}


def named(name: str) -> Loss:
    """Return the loss called l2, l1, l0 or hdr; Error for any other name."""
    if name not in _LOSSES:
        raise Error(f"loss={name!r} is not known: choose one of {', '.join(_LOSSES)}")
    return _LOSSES[name]


def weighted_mean(values: Array, weight: Array) -> Array:
    """Return sum(w v) / (C sum(w)), a float32 scalar; 0 where nothing has weight.

    values: n,h,w,c; weight: n,h,w,1, 0 = ignore. Error for other shapes.
    """
    if weight.shape != (*values.shape[:-1], 1):
        raise Error(
            f"weight has shape {weight.shape}, values {values.shape}: "
            f"the weight must be {(*values.shape[:-1], 1)}"
        )
    count = weight.sum(dtype=jnp.float32) * values.shape[-1]
    # The inner `where` keeps the unused branch, and so its gradient, finite.
    return (values * weight).sum(dtype=jnp.float32) / jnp.where(count > 0, count, 1.0)


def _difference(prediction: Array, target: Array) -> Array:
    if jnp.shape(prediction) != jnp.shape(target):
        raise Error(
            f"prediction has shape {jnp.shape(prediction)}, target {jnp.shape(target)}: "
            "a loss compares equal shapes"
        )
    return jnp.subtract(prediction, target)


def _magnitude(difference: Array) -> Array:
    # The gradient of jnp.abs at 0 is 1, which l0 multiplies by up to 2e6: where f = y it is 0 here.
    return jnp.where(difference == 0, 0.0, jnp.abs(difference))
