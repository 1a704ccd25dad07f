"""The paper's pixel noises (Lehtinen et al. 2018, sections 3.1 to 3.4), and chains of corruptions.

Contract as in `n2n.corruptions.base`: (key, clean H,W,C float32) -> Observation. Nothing here
clips: a clipped noise has another mean, and Noise2Noise learns the mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from n2n.corruptions.base import (
    Corruption,
    Parameter,
    draw,
    known,
    limits,
    normal,
    picture,
    spread,
    uniform,
)
from n2n.types import Error, Observation


@dataclass(frozen=True)
class Clean(Corruption):
    """Return the picture itself; as a target it makes ordinary supervised training."""

    def __call__(self, key: Array, clean: Array) -> Observation:
        """Return the picture unchanged, all of it known; the key is not used."""
        del key
        clean = picture(clean)
        return Observation(clean, known(clean))


@dataclass(frozen=True)
class Gaussian(Corruption):
    """Add white Gaussian noise, independent in every pixel and channel (section 3.1)."""

    sigma: Parameter = limits(0, unit=255)
    """Standard deviation in display units; written in 1/255."""

    def __call__(self, key: Array, clean: Array) -> Observation:
        """Return clean + sigma * N(0, 1), H,W,C."""
        clean = picture(clean)
        level, noise = jax.random.split(key)
        added = draw(level, self.sigma) * normal(noise, clean.shape)
        return Observation(clean + added, known(clean))

    def noise_map(self, key: Array, clean: Array) -> Array:
        """Return the standard deviation of the noise that the same key adds, H,W,1."""
        level, _ = jax.random.split(key)
        return draw(level, self.sigma) * known(picture(clean))


@dataclass(frozen=True)
class Poisson(Corruption):
    """Count photons: Poisson(rate * x) / rate, of mean x and variance x / rate (section 3.2)."""

    rate: Parameter = limits(0, strict=True)
    """Photons expected from white."""

    def __call__(self, key: Array, clean: Array) -> Observation:
        """Return the counts over the rate, H,W,C; values below 0 send no photons."""
        clean = picture(clean)
        level, noise = jax.random.split(key)
        rate = draw(level, self.rate)
        # Exact, and dear: 98,304 counts of mean 15 take 30 ms where normal draws take 1.7 ms, and
        # a batch of ranges 100 ms (2 CPU cores, jax 0.10.2); inversion in a loop is no faster. A
        # normal of the same variance would be cheap, but it has no skew and goes below 0, which
        # is what makes few photons hard.
        counts = jax.random.poisson(noise, rate * jnp.maximum(clean, 0))
        return Observation(counts / rate, known(clean))

    def noise_map(self, key: Array, clean: Array) -> Array:
        """Return the noise's standard deviation, H,W,1: over the channels, root mean square."""
        clean = picture(clean)
        level, _ = jax.random.split(key)
        variance = jnp.maximum(clean, 0) / draw(level, self.rate)
        return jnp.sqrt(variance.mean(-1, keepdims=True))


@dataclass(frozen=True)
class Bernoulli(Corruption):
    """Lose pixels: a share p of them is 0 in all channels and has weight 0 (section 3.2)."""

    p: Parameter = limits(0, 1)
    """Probability that a pixel is lost."""

    def __call__(self, key: Array, clean: Array) -> Observation:
        """Return the picture with its holes, H,W,C, and the weight that marks them, H,W,1."""
        clean = picture(clean)
        level, noise = jax.random.split(key)
        kept = _uniform_mask(noise, clean) >= draw(level, self.p)
        return Observation(jnp.where(kept, clean, 0.0), kept.astype(jnp.float32))


@dataclass(frozen=True)
class Impulse(Corruption):
    """Replace pixels, each with probability p, by a uniform random colour (section 3.4)."""

    p: Parameter = limits(0, 1)
    """Probability that a pixel is replaced."""

    def __call__(self, key: Array, clean: Array) -> Observation:
        """Return the picture, H,W,C; nobody knows which pixels were replaced: all weigh 1."""
        return self.again(key, key, clean)

    def again(self, settings: Array, key: Array, clean: Array) -> Observation:
        """Return what `self(settings, clean)` would be with other pixels replaced, as many.

        The paper draws p once for a pair. Drawn anew, a target would show the picture in more than
        half of its pixels whatever its input shows, and L1 would do where it must turn grey.
        """
        clean = picture(clean)
        level = jax.random.split(settings, 3)[0]
        _, place, colour = jax.random.split(key, 3)
        replaced = _uniform_mask(place, clean) < draw(level, self.p)
        colours = uniform(colour, clean.shape)
        return Observation(jnp.where(replaced, colours, clean), known(clean))


@dataclass(frozen=True)
class Brown(Corruption):
    """Add noise correlated in space: white, blurred by a Gaussian, rescaled (section 3.1, fig. 1b).

    The blur is periodic, so that the noise is equally strong up to the border. Two pixels d apart
    correlate by exp(-d^2 / (4 blur^2)); channels are independent.
    """

    sigma: Parameter = limits(0, unit=255)
    """Standard deviation of the noise in display units; written in 1/255."""
    blur: Parameter = limits(0)
    """Standard deviation of the spatial Gaussian in pixels; 0: white."""

    def __call__(self, key: Array, clean: Array) -> Observation:
        """Return clean + the noise, H,W,C."""
        clean = picture(clean)
        level, width, noise = jax.random.split(key, 3)
        white = normal(noise, clean.shape)
        added = draw(level, self.sigma) * spread(white, draw(width, self.blur))
        return Observation(clean + added, known(clean))

    def noise_map(self, key: Array, clean: Array) -> Array:
        """Return the standard deviation of the noise that the same key adds, H,W,1."""
        level, _, _ = jax.random.split(key, 3)
        return draw(level, self.sigma) * known(picture(clean))


@dataclass(frozen=True)
class Grey(Corruption):
    """Take the colour away: every channel becomes the luma of the three (Rec. 601)."""

    def __call__(self, key: Array, clean: Array) -> Observation:
        """Return H,W,3 of equal channels; other numbers of channels stay. The key is not used."""
        del key
        clean = picture(clean)
        if clean.shape[2] == 3:
            luma = jnp.matmul(clean, jnp.array([0.299, 0.587, 0.114]), precision="highest")
            clean = jnp.repeat(luma[..., None], 3, axis=-1)
        return Observation(clean, known(clean))


@dataclass(frozen=True)
class Chain(Corruption):
    """Apply corruptions one after the other; their weights are multiplied."""

    parts: tuple[Callable[[Array, Array], Observation], ...]
    """Two or more, the first one first; a chain within a chain is laid flat."""

    def __post_init__(self) -> None:
        flat: list[Callable[[Array, Array], Observation]] = []
        for part in self.parts:
            flat.extend(part.parts if isinstance(part, Chain) else (part,))
        if len(flat) < 2:
            raise Error(f"Chain: parts={self.parts!r} must hold two or more corruptions")
        object.__setattr__(self, "parts", tuple(flat))

    def __call__(self, key: Array, clean: Array) -> Observation:
        """Return what the last part makes of what the parts before it made."""
        image = picture(clean)
        weight = known(image)
        for part, part_key in zip(self.parts, jax.random.split(key, len(self.parts)), strict=True):
            image, factor = part(part_key, image)
            weight = weight * factor
        return Observation(image, weight)

    def __str__(self) -> str:
        return "+".join(str(part) for part in self.parts)


def _uniform_mask(key: Array, clean: Array) -> Array:
    return uniform(key, (*clean.shape[:2], 1))
