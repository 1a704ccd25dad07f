"""A camera: photon and read noise in linear light, under the display curve.

Contract as in `n2n.corruptions.base`. This is the one corruption that clips, as a sensor does, so
that its mean is the expected frame and not quite the scene.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from n2n.corruptions.base import Corruption, Parameter, draw, known, limits, normal, picture
from n2n.types import Observation


@dataclass(frozen=True)
class Camera(Corruption):
    """Photograph a display picture anew: noise of variance gain * x + read^2 in linear light x.

    The noise is Gaussian. Photon counts are skewed only where they are few, below about 10 in a
    pixel (x < 10 gain), and there read noise and clipping dominate; a Poisson draw costs 20 times
    as much (`Poisson`).
    """

    gain: Parameter = limits(0)
    """Photon noise: variance per light; 1 / gain photons make white."""
    read: Parameter = limits(0)
    """Standard deviation of the read noise, white = 1 in linear light."""
    gamma: Parameter = limits(0, strict=True, default=2.2)
    """Exponent from display values to linear light."""

    def __call__(self, key: Array, clean: Array) -> Observation:
        """Return the photograph in display units, H,W,C, within [0, 1]."""
        clean = picture(clean)
        noise, gamma, linear, sigma = self._exposure(key, clean)
        exposed = linear + sigma * normal(noise, clean.shape)
        return Observation(_display(exposed, gamma), known(clean))

    def noise_map(self, key: Array, clean: Array) -> Array:
        """Return the noise's standard deviation in display units, H,W,1, to first order.

        Root mean square over the channels. The slope of the display curve is taken across
        linear +- sigma, so that it is finite at black and halved at the limits, where half of the
        noise is clipped.
        """
        _, gamma, linear, sigma = self._exposure(key, picture(clean))
        half = (_display(linear + sigma, gamma) - _display(linear - sigma, gamma)) / 2
        return jnp.sqrt(jnp.square(half).mean(-1, keepdims=True))

    def _exposure(self, key: Array, clean: Array) -> tuple[Array, Array, Array, Array]:
        """Return the key of the noise, gamma, the linear light and the noise's deviation in it."""
        noise, *keys = jax.random.split(key, 4)
        gain, read, gamma = (
            draw(each, value)
            for each, value in zip(keys, (self.gain, self.read, self.gamma), strict=True)
        )
        linear = jnp.maximum(clean, 0) ** gamma
        return noise, gamma, linear, jnp.sqrt(gain * linear + jnp.square(read))


def _display(linear: Array, gamma: Array) -> Array:
    return jnp.clip(linear, 0, 1) ** (1 / gamma)
