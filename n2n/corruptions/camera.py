"""A camera: photon and read noise in linear light, then what a camera makes of it.

Contract as in `n2n.corruptions.base`. This clips, as a sensor does, so that its mean is the
expected frame and not quite the scene.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from n2n.corruptions.base import (
    Corruption,
    Parameter,
    draw,
    known,
    limits,
    mixed,
    normal,
    picture,
    spread,
)
from n2n.corruptions.jpeg import JPEG
from n2n.types import Error, Observation

_SPREAD = np.array([[36, 15.75, 11.25], [5, 40, 5], [11.25, 15.75, 36]]) / 64
"""Variance of a demosaicked channel (row) for a variance of 1 in each colour of the mosaic.

The mean over the four places of the pattern of the squared weights of `_demosaicked`. Red, say: 1
where red was seen; beside it 32 of red's and 31.5 of green's in 64, at two places; 16 of red's and
45 of blue's in 64 where blue was seen.
"""


_LUMA = np.array([0.299, 0.587, 0.114])
"""Rec. 601, as in a JPEG."""


class _Shot(NamedTuple):
    """One exposure before its noise, and how it will be developed."""

    rest: Array
    """Key of the development."""
    gamma: Array
    light: Array
    """H,W,C linear: what each pixel of the sensor gets, before the white balance."""
    sigma: Array
    """H,W,C: standard deviation of the noise in it."""
    balance: Array
    """Gain of each channel; a scalar 1 where there is no balance."""


@dataclass(frozen=True)
class Camera(Corruption):
    """Photograph a display picture anew: noise of variance gain * x + read^2 in linear light x.

    A range stands for many cameras and settings, one for each picture. Gain and read noise are
    drawn by stops, uniformly in the logarithm, as ISO is stepped; from 0 on uniformly.

    The noise is Gaussian. Photon counts are skewed only where they are few, below about 10 in a
    pixel (x < 10 gain), and there read noise and clipping dominate; a Poisson draw costs 20 times
    as much (`Poisson`).

    Red and blue light is divided by its white-balance gain, exposed, clipped and multiplied again.
    A mosaic of random phase is then demosaicked, by the linear filters of Malvar, He and Cutler
    (2004), which correlates the noise of neighbours and of channels. Last come the display curve
    and a JPEG, whose grid is random too. A field that is off costs nothing.

    A share of the pictures has had its noise `reduced` by the camera. What good cameras do adapts
    to the picture and keeps its detail; modelled is what they leave: an undisturbed picture, and
    noise of the same strength that is smooth, the colour's far more than the luma's. (Between the
    frames of the hand-held JPEGs that this was measured on, the luma's noise correlates by 0.57,
    0.10 and -0.02 at 1, 2 and 3 pixels, the colour's by 0.91, 0.78, 0.61 and 0.44 at 1 to 4.)

    The mean over exposures is the expected frame. What keeps it from the scene is the same in input
    and target, and a network learns it: clipping at black and white; the display curve, which bends
    the noise's mean, most in the dark; false detail of the demosaicking, less what the four phases
    average out; and JPEG, whose large steps erase detail that the noise does not carry over them:
    the mean is 39 to 44 dB from the scene at quality 90, 27 to 31 dB at 10 (Kodak 05 and 23).
    """

    gain: Parameter = limits(0)
    """Photon noise: variance per light; 1 / gain photons make white (of green)."""
    read: Parameter = limits(0)
    """Standard deviation of the read noise, white = 1 in linear light."""
    gamma: Parameter = limits(0, strict=True, default=2.2)
    """Exponent from display values to linear light."""
    red: Parameter = limits(1, default=1.0)
    """White-balance gain of red: its photon noise grows by the root, its read noise by all of it.

    Green has 1, the least: a smaller gain would leave clipped highlights coloured. Grey pictures
    have no balance.
    """
    blue: Parameter = limits(1, default=1.0)
    """White-balance gain of blue."""
    mosaic: Parameter = limits(0, 1, default=0.0)
    """Share of the pictures seen through a Bayer mosaic; only pictures of 3 channels ever are."""
    quality: Parameter = limits(0, 100, default=0.0)
    """Quality of the JPEG (see `JPEG`); 0: none is written."""
    chroma: Parameter = limits(0, 1, default=1.0)
    """Share of the JPEGs with chroma of half the resolution."""

    reduced: Parameter = limits(0, 1, default=0.0)
    """Share of the pictures whose noise the camera has reduced."""
    grain: Parameter = limits(0, 20, default=0.6)
    """What is left of their luma's noise is blurred by a Gaussian of so many pixels."""
    blotch: Parameter = limits(0, 20, default=2.0)
    """The same of their colour's noise."""
    colour: Parameter = limits(0, 1, default=0.6)
    """Share of the colour's noise that is left."""

    def __post_init__(self) -> None:
        super().__post_init__()
        least = self.quality[0] if isinstance(self.quality, tuple) else self.quality
        if self.quality != 0 and least < 1:
            raise Error(
                f"Camera: quality={self.quality!r} must be 0 for no JPEG, or a number from 1 to "
                "100, or a range (low, high) of such numbers"
            )

    @property
    def pointwise(self) -> bool:
        """Whether every value is treated alike, whatever its channel and its neighbours."""
        return (self.red, self.blue, self.mosaic, self.quality, self.reduced) == (1, 1, 0, 0, 0)

    def __call__(self, key: Array, clean: Array) -> Observation:
        """Return the photograph in display units, H,W,C, within [0, 1].

        Error where a JPEG is to be made of other than 1 or 3 channels.
        """
        return self.again(key, key, clean)

    def again(self, settings: Array, key: Array, clean: Array) -> Observation:
        """Return what `self(settings, clean)` would be with other noise: the tripod's next frame.

        All else is shared, since the mean over noise depends on it: the target of a clean input
        must not be lifted in its shadows by the noise of another camera, and false detail of
        another phase of the mosaic would teach a network to blur.
        """
        shot = self._exposure(settings, picture(clean))
        noise = jax.random.split(key, 4)[0]
        exposed = shot.light + shot.sigma * normal(noise, shot.light.shape)
        reduced = self._reduced(shot)
        image = _display(self._developed(shot, _mix(reduced, shot.light, exposed)), shot.gamma)
        if reduced is not None:
            other = shot.light + shot.sigma * normal(jax.random.fold_in(noise, 0), exposed.shape)
            left = self._left(shot, exposed, other)
            image = jnp.clip(image + reduced * left, 0, 1)
        if self.quality != 0:
            image = JPEG(self.quality, self.chroma)(jax.random.fold_in(shot.rest, 2), image).image
        return Observation(image, known(image))

    def noise_map(self, key: Array, clean: Array) -> Array:
        """Return the noise's standard deviation in display units, H,W,1, to first order.

        Root mean square over the channels. The slope of the display curve is taken across
        linear +- sigma, so that it is finite at black and halved at the limits, where half of the
        noise is clipped.

        Of a mosaic the mean over its four places is given, 0.98, 0.78 and 0.98 of the variance for
        equal noise in red, green and blue; neighbours are taken as equally bright. Left out are
        clipping before the demosaicking, that its noise is correlated, and the JPEG.
        """
        shot = self._exposure(key, picture(clean))
        linear, variance = shot.light * shot.balance, jnp.square(shot.sigma * shot.balance)
        reduced = self._reduced(shot)
        developed = self._seen(shot, lambda: variance @ _SPREAD.T, lambda: variance)
        sigma = jnp.sqrt(_mix(reduced, variance, developed))
        half = (_display(linear + sigma, shot.gamma) - _display(linear - sigma, shot.gamma)) / 2
        seen = jnp.square(half)
        if reduced is not None and seen.shape[2] == 3:
            share = self._share(shot)
            kept = share * jnp.eye(3) + (1 - share) * jnp.broadcast_to(_LUMA, (3, 3))
            seen = _mix(reduced, seen @ jnp.square(kept).T, seen)
        return jnp.sqrt(seen.mean(-1, keepdims=True))

    def _exposure(self, key: Array, clean: Array) -> _Shot:
        # The first keys are those of a camera without development, whose draws they keep; split
        # and fold_in give the same keys for the same numbers, so the next number follows.
        _, *keys = jax.random.split(key, 4)
        gain, read = _by_stops(keys[0], self.gain), _by_stops(keys[1], self.read)
        gamma = draw(keys[2], self.gamma)
        rest = jax.random.fold_in(key, 4)
        balance = self._balance(rest, clean.shape[2])
        light = jnp.maximum(clean, 0) ** gamma / balance
        sigma = jnp.sqrt(gain * light + jnp.square(read))
        return _Shot(rest, gamma, light, sigma, balance)

    def _balance(self, rest: Array, channels: int) -> Array:
        if channels != 3:
            return jnp.float32(1)
        keys = (jax.random.fold_in(rest, number) for number in (3, 4))
        red, blue = map(draw, keys, (self.red, self.blue))
        return jnp.stack([red, jnp.float32(1), blue])

    def _developed(self, shot: _Shot, exposed: Array) -> Array:
        """Return linear light, H,W,C, after balance and mosaic; the display curve clips it."""
        # Balanced before it is demosaicked, as raw converters do: the filters carry the detail of
        # one colour into another, and 1.2 to 3.7 dB are lost where red has half of green's scale
        # (four Kodak pictures, gains 2 and 1.6). What the sensor clips lies above 1 here, as the
        # gains are at least 1, so that one clipping stands for both.
        balanced = exposed * shot.balance
        return self._seen(
            shot,
            lambda: demosaicked(_phase(shot.rest), jnp.clip(balanced, 0, 1)),
            lambda: balanced,
        )

    def _reduced(self, shot: _Shot) -> Array | None:
        """Return 1 where the camera has reduced the noise of this shot, else 0; None: it never
        does."""
        if self.reduced == 0:
            return None
        return mixed(
            jax.random.fold_in(shot.rest, 5),
            self.reduced,
            lambda: jnp.float32(1),
            lambda: jnp.float32(0),
        )

    def _left(self, shot: _Shot, exposed: Array, other: Array) -> Array:
        """Return what is left, H,W,C, of the noise of two shots of one scene: its mean is 0."""
        shown = [_display(each * shot.balance, shot.gamma) for each in (exposed, other)]
        noise = (shown[0] - shown[1]) / math.sqrt(2)
        grain, blotch = (
            draw(jax.random.fold_in(shot.rest, 6 + place), value)
            for place, value in enumerate((self.grain, self.blotch))
        )
        if noise.shape[2] != 3:
            return spread(noise, grain)
        luma = (noise * _LUMA).sum(-1, keepdims=True)
        return spread(luma, grain) + self._share(shot) * spread(noise - luma, blotch)

    def _share(self, shot: _Shot) -> Array:
        return draw(jax.random.fold_in(shot.rest, 8), self.colour)

    def _seen(self, shot: _Shot, yes: Callable[[], Array], no: Callable[[], Array]) -> Array:
        """Return `yes()` where this shot is taken through a mosaic, else `no()`."""
        if shot.light.shape[2] != 3:
            return no()
        return mixed(jax.random.fold_in(shot.rest, 0), self.mosaic, yes, no)


def _mix(share: Array | None, yes: Array, no: Array) -> Array:
    """Return `yes` where share is 1 and `no` where it is 0 or None."""
    return no if share is None else share * yes + (1 - share) * no


def demosaicked(phase: Array, light: Array) -> Array:
    """Return H,W,3 of which each pixel's own colour was seen, the others interpolated.

    Row 0 of the mosaic is red, green, red, ... and row 1 green, blue, ... at phase (0, 0); phase
    (y, x) begins y rows and x columns later. Malvar, He and Cutler (2004), figure 2: the mean of
    the neighbours of one colour plus a share of the curvature of the colour that was seen. The
    border is mirrored.
    """
    rows, columns = (jnp.arange(n) for n in light.shape[:2])
    red_row, red_column = (rows + phase[0])[:, None] % 2 == 0, (columns + phase[1]) % 2 == 0
    is_green = red_row != red_column
    red, green, blue = jnp.moveaxis(light, -1, 0)
    seen = jnp.where(is_green, green, jnp.where(red_row, red, blue))
    green, across, down, slant = _interpolated(seen)
    # At a green pixel red lies across in red's rows and down in blue's; blue the other way round.
    beside, above = jnp.where(red_row, across, down), jnp.where(red_row, down, across)
    red = jnp.where(is_green, beside, jnp.where(red_row, seen, slant))
    blue = jnp.where(is_green, above, jnp.where(red_row, slant, seen))
    return jnp.stack([red, jnp.where(is_green, seen, green), blue], -1)


def _interpolated(seen: Array) -> tuple[Array, Array, Array, Array]:
    """Return, H,W each: green at red or blue, a colour beside it, above it, at the corners."""
    rows, columns = seen.shape
    around = jnp.pad(seen, 2, mode="reflect")

    def at(down: int, right: int) -> Array:
        return around[2 + down : 2 + down + rows, 2 + right : 2 + right + columns]

    near_x, near_y = at(0, -1) + at(0, 1), at(-1, 0) + at(1, 0)
    far_x, far_y = at(0, -2) + at(0, 2), at(-2, 0) + at(2, 0)
    corners = at(-1, -1) + at(-1, 1) + at(1, -1) + at(1, 1)
    green = (4 * seen + 2 * (near_x + near_y) - far_x - far_y) / 8
    across = (5 * seen + 4 * near_x - far_x - corners + far_y / 2) / 8
    down = (5 * seen + 4 * near_y - far_y - corners + far_x / 2) / 8
    slant = (6 * seen + 2 * corners - 1.5 * (far_x + far_y)) / 8
    return green, across, down, slant


def _phase(rest: Array) -> Array:
    return jax.random.randint(jax.random.fold_in(rest, 1), (2,), 0, 2)


def _by_stops(key: Array, value: Parameter) -> Array:
    if not isinstance(value, tuple) or value[0] == 0:
        return draw(key, value)
    return jnp.exp(draw(key, (math.log(value[0]), math.log(value[1]))))


def _display(linear: Array, gamma: Array) -> Array:
    return jnp.clip(linear, 0, 1) ** (1 / gamma)
