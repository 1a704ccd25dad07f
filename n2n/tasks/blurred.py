"""The task of unblurring from noisy blurred pictures alone: the blur stands in the measurement.

A target x2 shows B s + n, the scene through the PSF, so the prediction f is blurred, too, before
the two are compared. Plainly compared, errors at a frequency count |B|^2 and nothing above the
PSF's band is ever learnt. So both go through one fixed whitening first, W = conj(B) / (|B|^2 + e),
e the noise-to-signal ratio: || W (B f(x1) - x2) ||^2, on the pixels whose blur needs nothing from
beyond the crop. What the PSF shows nothing of is kept small: energy outside the visible band costs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from n2n import losses
from n2n.corruptions.blur import PSF, Measured, convolve, noise_to_signal, response, whitening
from n2n.tasks.pool import Crops
from n2n.types import Batch, Error, Task

UNSEEN = 1e-3
"""Weight of the energy outside the visible band."""


def deblurring(task: Task, psf: PSF, *, sigma: float) -> Task:
    """Turn a task of noisy pictures, all blurred by one PSF, into that of their sharp scene.

    Args:
        task: noisy inputs and targets of blurred scenes: `pairs`, `bursts`, `simulated`; or one
            of your own, whose sampler leaves the scenes as they lie.
        psf: what has blurred them; its parameters are numbers, not ranges.
        sigma: standard deviation of a target's noise, in the task's units (its scale).

    Raises:
        Error: the PSF is a family, or sigma is not above 0.
    """
    psf = single(psf)
    if not 0 < sigma < np.inf:
        raise Error(f"sigma is {sigma!r}; it must be a number above 0")
    seen, sample, arrange = Blurred(psf, sigma), task.sample, task.arrange
    if isinstance(sample, Crops) and not seen.even:  # captures turned would have another PSF
        sample = dataclasses.replace(sample, turned=False)
    return dataclasses.replace(
        task,
        sample=_Whitened(sample, seen),
        loss=losses.l2,
        measure=seen.measured,
        penalty=seen.unseen,
        arrange=arrange and (lambda *size: deblurring(arrange(*size), psf, sigma=sigma)),
        floor=None,
        score=None,
        patience=None,
        name=f"{task.name} unblurred {psf}",
    )


def single(psf: PSF) -> PSF:
    """Return the PSF; Error if it is a family, of which each picture has another one."""
    values = [getattr(psf, each.name) for each in dataclasses.fields(psf)]
    if not isinstance(psf, Measured) and any(isinstance(value, tuple) for value in values):
        raise Error(f"psf is {psf}; to unblur it must be one PSF, without ranges")
    return psf


@dataclass(frozen=True)
class Blurred:
    """Hold the operators of one PSF on crops H,W,C."""

    psf: PSF
    sigma: float

    @property
    def _kernel(self) -> jax.Array:
        return self.psf.kernel(jax.random.key(0))

    @property
    def even(self) -> bool:
        """Whether the PSF looks the same flipped and transposed."""
        kernel = np.asarray(self._kernel)
        turned = (kernel[::-1], kernel[:, ::-1], kernel.T)
        return all(np.allclose(kernel, other, atol=1e-4 * kernel.max()) for other in turned)

    def inside(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return H,W,1: 1 where the blur needs nothing from beyond the crop."""
        height, width = shape[:2]
        reach = self.psf.reach
        mask = np.zeros((height, width, 1), np.float32)
        mask[reach : height - reach, reach : width - reach] = 1
        return mask

    def whitened(self, picture: jax.Array) -> jax.Array:
        """Apply W, periodic."""
        return _filtered(picture, whitening(self._kernel, self.sigma, _size(picture)))

    def measured(self, prediction: jax.Array, weight: jax.Array) -> jax.Array:
        """Return W (weight B f): what the target's camera saw, whitened."""
        return self.whitened(weight * convolve(prediction, self._kernel))

    def unseen(self, prediction: jax.Array) -> jax.Array:
        """Return what the PSF shows nothing of, squared and weighted; n,h,w,c, elementwise."""
        size = _size(prediction[0])
        window = np.outer(np.hanning(size[0] + 2)[1:-1], np.hanning(size[1] + 2)[1:-1])
        power = jnp.square(jnp.abs(response(self._kernel, size)))
        ratio = noise_to_signal(size, self.sigma)
        hidden = jnp.asarray(ratio / (power + ratio + 1e-12))
        windowed = (prediction - 0.5) * window.astype(np.float32)[..., None]
        return UNSEEN * jnp.square(jax.vmap(lambda one: _filtered(one, hidden))(windowed))


@dataclass(frozen=True)
class _Whitened:
    """Draw what the task draws, and whiten the target where it counts."""

    sample: Callable
    seen: Blurred

    def __call__(self, key: jax.Array, stripe: Any, progress: jax.Array) -> Batch:
        drawn = self.sample(key, stripe, progress)
        weight = jnp.sqrt(drawn.weight) * self.seen.inside(drawn.target.shape)
        target = self.seen.whitened(weight * drawn.target)
        return Batch(drawn.input, target, jnp.ones_like(drawn.weight), weight)


def _size(picture: jax.Array) -> tuple[int, int]:
    height, width = picture.shape[:2]
    return height, width


def _filtered(picture: jax.Array, gain: jax.Array) -> jax.Array:
    """Multiply the spectrum of H,W,C by a gain on its rfft2 grid."""
    spectrum = jnp.fft.rfft2(picture, axes=(0, 1)) * gain[..., None]
    return jnp.fft.irfft2(spectrum, picture.shape[:2], axes=(0, 1))
