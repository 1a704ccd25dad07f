"""Blur: a picture seen through a point spread function (PSF), without noise of its own.

Contract as in `n2n.corruptions.base`. A PSF is a square kernel of odd side, not negative, of sum 1,
its middle pixel the origin; beyond its border a picture is continued by reflection, the border
pixel not repeated. The noise of a photograph comes after its blur: `motion:15,30+gaussian:2`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from n2n.corruptions.base import Corruption, Parameter, draw, known, limits, picture
from n2n.types import Error, Observation

_RATIO = 1000.0
_FINE = 8
"""Parts of a pixel in which lines and discs are drawn."""


@dataclass(frozen=True)
class PSF(Corruption):
    """See the picture through a point spread function; the base of the four below."""

    @property
    def reach(self) -> int:
        """How many pixels the kernel reaches from its middle; its side is 2 reach + 1."""
        raise NotImplementedError

    def kernel(self, key: Array) -> Array:
        """Return the kernel that a key draws, side,side float32 of sum 1."""
        raise NotImplementedError

    def __call__(self, key: Array, clean: Array) -> Observation:
        """Return the blurred picture, H,W,C; all of it is known."""
        clean = picture(clean)
        return Observation(convolve(clean, self.kernel(key)), known(clean))


@dataclass(frozen=True)
class Blur(PSF):
    """Blur by a Gaussian: optics, an anti-aliasing filter, haze."""

    sigma: Parameter = limits(0, 20)
    """Standard deviation in pixels."""

    @property
    def reach(self) -> int:
        """Four standard deviations, of the widest."""
        return max(1, math.ceil(4 * _most(self.sigma)))

    def kernel(self, key: Array) -> Array:
        """Return the Gaussian at whole pixels, sum 1."""
        sigma = jnp.maximum(draw(key, self.sigma), 1e-3)
        line = jnp.exp(-jnp.square(jnp.arange(-self.reach, self.reach + 1) / sigma) / 2)
        return _whole(jnp.outer(line, line))


@dataclass(frozen=True)
class Motion(PSF):
    """Blur by a movement along a straight line, at one speed, while the shutter is open."""

    length: Parameter = limits(0, 100)
    """Pixels from one end to the other."""
    angle: Parameter = limits(0, 180, default=(0.0, 180.0))
    """Degrees from the rows, counter-clockwise as one looks at the picture."""

    @property
    def reach(self) -> int:
        """Half of the longest line, and a pixel for its width."""
        return math.ceil(_most(self.length) / 2) + 1

    def kernel(self, key: Array) -> Array:
        """Return the line, each of its points shared by the four pixels around it (bilinear)."""
        size, turn = jax.random.split(key)
        length, angle = draw(size, self.length), jnp.deg2rad(draw(turn, self.angle))
        count = _FINE * (2 * self.reach + 1)
        along = length * ((jnp.arange(count) + 0.5) / count - 0.5)
        places = jnp.arange(-self.reach, self.reach + 1)[:, None]
        columns = _tent(places - along * jnp.cos(angle))
        rows = _tent(places + along * jnp.sin(angle))
        return _whole(jnp.matmul(rows, columns.T, precision="highest"))


@dataclass(frozen=True)
class Defocus(PSF):
    """Blur by a lens that is out of focus, its aperture wide open: a disc."""

    radius: Parameter = limits(0, 50)
    """Pixels."""

    @property
    def reach(self) -> int:
        """The largest radius, and a pixel for its edge."""
        return math.ceil(_most(self.radius)) + 1

    def kernel(self, key: Array) -> Array:
        """Return the share of each pixel that lies in the disc, sum 1; radius 0 blurs nothing."""
        radius = jnp.maximum(draw(key, self.radius), 1 / _FINE)
        side = 2 * self.reach + 1
        line = (jnp.arange(_FINE * side) + 0.5) / _FINE - side / 2
        inside = jnp.square(line)[:, None] + jnp.square(line) <= jnp.square(radius)
        parts = inside.astype(jnp.float32).reshape(side, _FINE, side, _FINE)
        return _whole(parts.sum((1, 3)))


@dataclass(frozen=True)
class Measured(PSF):
    """Blur by a kernel that was measured. It has no text form but its size."""

    values: tuple[tuple[float, ...], ...]
    """Rows of a square kernel of odd side; divided by their sum."""

    def __post_init__(self) -> None:
        rows = np.asarray(self.values, np.float64)
        if rows.ndim != 2 or rows.shape[0] != rows.shape[1] or rows.shape[0] % 2 == 0:
            raise Error(f"Measured: the kernel has shape {rows.shape}; it must be square and odd")
        if not np.isfinite(rows).all() or rows.min() < 0 or rows.sum() <= 0:
            raise Error(
                f"Measured: the kernel's values lie in {rows.min():g} to {rows.max():g}; they must "
                "be finite, not negative, and not all 0"
            )
        object.__setattr__(self, "values", tuple(map(tuple, (rows / rows.sum()).tolist())))

    def __str__(self) -> str:
        side = len(self.values)
        return f"psf of {side}x{side}"

    @property
    def reach(self) -> int:
        """Half of the side, rounded down."""
        return len(self.values) // 2

    def kernel(self, key: Array) -> Array:
        """Return the kernel; the key is not used."""
        del key
        return jnp.asarray(self.values, jnp.float32)


def convolve(image: Array, kernel: Array) -> Array:
    """Convolve H,W,C with a kernel of odd side, the picture continued by reflection; H,W,C.

    By Fourier transform, so that the cost hardly depends on the kernel.
    """
    height, width = image.shape[:2]
    reach = kernel.shape[0] // 2
    rows, columns = (_mirrored(length, reach) for length in (height, width))
    wide = image[rows][:, columns]
    size = wide.shape[:2]
    response = jnp.fft.rfft2(jnp.zeros(size).at[: kernel.shape[0], : kernel.shape[1]].set(kernel))
    spectrum = jnp.fft.rfft2(wide, axes=(0, 1)) * response[..., None]
    result = jnp.fft.irfft2(spectrum, s=size, axes=(0, 1))
    return result[2 * reach :, 2 * reach :].astype(image.dtype)


def response(kernel: Array, size: tuple[int, int]) -> Array:
    """Return the transfer function of a kernel on a grid, an rfft2; its middle is the origin.

    A grid that is smaller than the kernel sees it wrapped.
    """
    reach = kernel.shape[0] // 2
    rows, columns = (np.arange(-reach, reach + 1) % length for length in size)
    return jnp.fft.rfft2(jnp.zeros(size).at[rows[:, None], columns].add(kernel))


def noise_to_signal(size: tuple[int, int], sigma: float) -> np.ndarray:
    """Return the noise-to-signal ratio of photographs on an rfft2 grid, for white noise of sigma.

    It rises with the frequency f, in cycles per pixel: 1,000 sigma^2 f. Of exponents from 0.5 to 2
    and factors this restores the training pictures of BSD300 best, or within 0.1 dB of it, after a
    Gaussian, a motion and a defocus; one spectrum for edges and for skies is a compromise.
    """
    rows, columns = np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1])
    return _RATIO * np.square(sigma) * np.hypot(rows, columns)


def whitening(kernel: Array, sigma: float, size: tuple[int, int]) -> Array:
    """Return the Wiener filter of a PSF on an rfft2 grid: conj(B) / (|B|^2 + noise to signal)."""
    seen = response(kernel, size)
    return jnp.conj(seen) / (jnp.square(jnp.abs(seen)) + noise_to_signal(size, sigma))


def wiener(kernel: Array, sigma: float, reach: int) -> np.ndarray:
    """Return the Wiener filter of a PSF, cut to side 2 reach + 1 by a Hann window; sum 1.

    Cut off without a window it brings back copies of the picture. Four times the reach of the PSF
    are within 0.4 dB of the whole filter.
    """
    side = 8 * (2 * reach + 1)
    taps = np.fft.irfft2(np.asarray(whitening(kernel, sigma, (side, side))), (side, side))
    near, window = np.arange(-reach, reach + 1), np.hanning(2 * reach + 3)[1:-1]
    taps = taps[near[:, None], near] * np.outer(window, window)
    return (taps / taps.sum()).astype(np.float32)


def _most(value: Parameter) -> float:
    return value[1] if isinstance(value, tuple) else value


def _whole(kernel: Array) -> Array:
    return (kernel / kernel.sum()).astype(jnp.float32)


def _tent(distance: Array) -> Array:
    return jnp.maximum(1 - jnp.abs(distance), 0)


def _mirrored(length: int, reach: int) -> np.ndarray:
    """Return the indices of a line continued by reflection at both ends, endlessly if need be."""
    if length == 1:
        return np.zeros(1 + 2 * reach, np.intp)
    place = np.arange(-reach, length + reach) % (2 * (length - 1))
    return np.minimum(place, 2 * (length - 1) - place)
