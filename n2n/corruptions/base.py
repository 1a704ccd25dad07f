"""What all corruptions share: parameters with their limits, ranges, and the text form.

A corruption is a frozen dataclass that is its own configuration. Called as `corruption(key, clean)`
it makes an `Observation` of one picture: H,W,C float32 in display units, where 0 is black and 1 is
white. It is pure, so it may be traced, jitted and vmapped over keys and pictures. A parameter is a
number, or a pair (low, high) from which every call draws one number uniformly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from n2n.types import Error, Observation

Parameter = float | tuple[float, float]
"""A number, or a range (low, high) drawn from once per picture."""


def limits(
    low: float,
    high: float = math.inf,
    *,
    strict: bool = False,
    unit: int = 1,
    default: Any = MISSING,
) -> Any:
    """Declare a parameter within [low, high]; in text it is written multiplied by `unit`.

    `strict` leaves `low` itself out.
    """
    metadata = {"low": low, "high": high, "strict": strict, "unit": unit}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Corruption:
    """Check the parameters and spell them; the base of every corruption in this package."""

    def __call__(self, key: Array, clean: Array) -> Observation:
        """Return the `Observation` of one clean picture, H,W,C."""
        raise NotImplementedError

    def __post_init__(self) -> None:
        for each in fields(self):
            value = _checked(self, each, getattr(self, each.name))
            object.__setattr__(self, each.name, value)

    def __str__(self) -> str:
        values = [(getattr(self, each.name), each) for each in fields(self)]
        while values and values[-1][0] == values[-1][1].default:
            values.pop()
        words = [_spell(value, each.metadata["unit"]) for value, each in values]
        return type(self).__name__.lower() + (":" + ",".join(words) if words else "")


def picture(clean: Array) -> Array:
    """Return the picture as H,W,C float32; Error for any other number of axes."""
    if jnp.ndim(clean) != 3:
        raise Error(
            f"clean has shape {jnp.shape(clean)}: a corruption takes one picture H,W,C; "
            "use jax.vmap for a batch and array[..., None] for a grey picture"
        )
    return jnp.asarray(clean, jnp.float32)


def known(clean: Array) -> Array:
    """Return the weight of a picture in which every pixel is known: ones, H,W,1 float32."""
    return jnp.ones((*clean.shape[:2], 1), jnp.float32)


def draw(key: Array, value: Parameter) -> Array:
    """Return a parameter's value for this call, a float32 scalar; a range draws uniformly."""
    if isinstance(value, tuple):
        return jax.random.uniform(key, (), jnp.float32, *value)
    return jnp.asarray(value, jnp.float32)


def mixed(key: Array, share: Parameter, yes: Callable[[], Array], no: Callable[[], Array]) -> Array:
    """Return `yes()` with probability `share`, else `no()`; what is certain computes one only."""
    if share in (0, 1):
        return yes() if share else no()
    level, lot = jax.random.split(key)
    return jnp.where(jax.random.uniform(lot) < draw(level, share), yes(), no())


def normal(key: Array, shape: tuple[int, ...]) -> Array:
    """Return standard normal draws; drawn flat, which compiles 4 times faster, the bits alike."""
    return jax.random.normal(key, (math.prod(shape),)).reshape(shape)


def uniform(key: Array, shape: tuple[int, ...]) -> Array:
    """Return draws from [0, 1), drawn flat as `normal` is."""
    return jax.random.uniform(key, (math.prod(shape),)).reshape(shape)


def spread(white: Array, blur: Array) -> Array:
    """Blur white noise, H,W,C, by a periodic Gaussian and bring its variance back; any `blur` in
    pixels. Two pixels d apart correlate by exp(-d^2 / (4 blur^2))."""
    rows, columns = white.shape[:2]
    squared = jnp.square(jnp.fft.fftfreq(rows))[:, None] + jnp.square(jnp.fft.rfftfreq(columns))
    gain = jnp.exp(-2 * jnp.square(jnp.pi * blur) * squared)[..., None]
    coloured = jnp.fft.irfft2(gain * jnp.fft.rfft2(white, axes=(0, 1)), (rows, columns), (0, 1))
    # By Parseval the variance left is the mean of gain^2 over all H*W frequencies; the squared
    # Gaussian is separable, so the half spectrum does not have to be completed.
    axes = [jnp.exp(-jnp.square(2 * jnp.pi * blur * jnp.fft.fftfreq(n))) for n in (rows, columns)]
    return coloured / jnp.sqrt(axes[0].mean() * axes[1].mean())


def number(text: str, unit: int) -> float:
    """Return the value that `text`, written in 1/unit, stands for; rounded once."""
    return float(Fraction(text) / unit)


def _checked(owner: Corruption, declared: Any, value: Any) -> Parameter:
    rule = declared.metadata
    pair = isinstance(value, (tuple, list))
    try:
        ends = [float(end) for end in value] if pair else [float(value)]
    except (TypeError, ValueError):
        ends = []
    inside = all(rule["low"] <= end <= rule["high"] and math.isfinite(end) for end in ends)
    excluded = rule["strict"] and rule["low"] in ends
    if len(ends) != (2 if pair else 1) or ends != sorted(ends) or not inside or excluded:
        raise Error(
            f"{type(owner).__name__}: {declared.name}={value!r} must be {_rule(rule)}, "
            "or a range (low, high) of such numbers"
        )
    return (ends[0], ends[1]) if pair else ends[0]


def _rule(rule: Any) -> str:
    words = f"a number {'above' if rule['strict'] else 'of at least'} {rule['low']:g}"
    return words + (f" and at most {rule['high']:g}" if math.isfinite(rule["high"]) else "")


def _spell(value: Parameter, unit: int) -> str:
    if isinstance(value, tuple):
        return "-".join(_spell(end, unit) for end in value)
    exact = Fraction(value) * unit
    text = ""
    # The shortest decimal that reads back as the same float, so that 25/255 is written 25; 17
    # digits tell all floats apart, a few more make up for the unit.
    for digits in range(1, 25):
        with localcontext() as context:
            context.prec = digits
            text = format((Decimal(exact.numerator) / exact.denominator).normalize(), "f")
        if number(text, unit) == value:
            break
    return text
