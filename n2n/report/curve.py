"""The noise of a frame by brightness, as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

WIDTH, HEIGHT = 560, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 16, 48


class Measured(Protocol):
    """What a channel's measured noise tells: bins of brightness and the variance there."""

    @property
    def level(self) -> Sequence[float]: ...
    @property
    def variance(self) -> Sequence[float]: ...


class NoiseProfile(Protocol):
    """What is drawn of a noise profile, in display units; one entry per channel."""

    @property
    def gain(self) -> Sequence[float]: ...
    @property
    def offset(self) -> Sequence[float]: ...
    @property
    def linear(self) -> Sequence[bool]: ...
    @property
    def curves(self) -> Sequence[Measured]: ...


class _Channel(NamedTuple):
    """Hold one channel: its name, colour, and what is drawn of it, in percent of white."""

    name: str
    colour: str
    at: np.ndarray
    sigma: np.ndarray
    line: np.ndarray | None


def noise_curve(profile: NoiseProfile) -> str:
    """Draw the noise's standard deviation over brightness, both in percent of white.

    Dots are measured; a line is variance = gain x brightness + offset, where that holds.
    """
    channels = _channels(profile)
    right = max(1e-9, max(float(one.at.max(initial=0)) for one in channels))
    top = 1.1 * max(1e-9, max(float(one.sigma.max(initial=0)) for one in channels))
    parts = [_axes(right, top)]
    for index, one in enumerate(channels):
        x = _LEFT + one.at / right * (WIDTH - _LEFT - _RIGHT)
        y = HEIGHT - _BOTTOM - one.sigma / top * (HEIGHT - _TOP - _BOTTOM)
        dots = "".join(
            f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in zip(x, y, strict=True)
        )
        drawn = f'<g fill="{one.colour}" fill-opacity=".8">{dots}'
        drawn += f'<text x="{_LEFT + 12}" y="{_TOP + 14 + 18 * index}">{one.name}</text></g>'
        if one.line is not None:
            level = HEIGHT - _BOTTOM - one.line / top * (HEIGHT - _TOP - _BOTTOM)
            points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, level, strict=True))
            drawn += f'<polyline points="{points}" fill="none" stroke="{one.colour}"/>'
        parts.append(drawn)
    label = "Standard deviation of one frame's noise over brightness"
    body = "".join(parts)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" '
        f'aria-label="{label}">{body}</svg>'
    )


def fitted(profile: NoiseProfile) -> list[str]:
    """Say in a sentence per channel what the noise is."""
    sentences = []
    for name, gain, offset, linear in zip(
        _names(profile), profile.gain, profile.offset, profile.linear, strict=True
    ):
        line = f"{name}: variance = {gain:.3g} x brightness {offset:+.2g} (white is 1)"
        curved = f"{name}: no line fits (a developed picture); the measured curve is used"
        sentences.append(line if linear else curved)
    return sentences


def _names(profile: NoiseProfile) -> list[str]:
    count = len(profile.gain)
    fixed = {1: ["grey"], 3: ["red", "green", "blue"]}
    return fixed.get(count, [f"channel {index + 1}" for index in range(count)])


def _channels(profile: NoiseProfile) -> list[_Channel]:
    channels = []
    for index, name in enumerate(_names(profile)):
        curve = profile.curves[index]
        at = np.asarray(curve.level, np.float64)
        variance = np.asarray(curve.variance, np.float64)
        line = None
        if profile.linear[index]:
            line = _percent(profile.gain[index] * at + profile.offset[index])
        known = name in ("red", "green", "blue")
        colour = f"var(--{name})" if known else "currentColor"
        channels.append(_Channel(name, colour, 100 * at, _percent(variance), line))
    return channels


def _percent(variance: np.ndarray) -> np.ndarray:
    return 100 * np.sqrt(np.maximum(variance, 0))


def _axes(right: float, top: float) -> str:
    """Draw both axes with round numbers on them."""
    foot, end = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    parts = [f'<path d="M{_LEFT} {_TOP}V{foot}H{end}" fill="none" stroke="currentColor"/>']
    for value in ticks(right):
        x = _LEFT + value / right * (end - _LEFT)
        parts.append(f'<text x="{x:.1f}" y="{foot + 18}" text-anchor="middle">{value:g}</text>')
    for value in ticks(top):
        y = foot - value / top * (foot - _TOP)
        parts.append(
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
            f'<path d="M{_LEFT} {y:.1f}H{end}" stroke="currentColor" stroke-opacity=".15"/>'
        )
    middle = (_LEFT + end) / 2
    parts.append(
        f'<text x="{middle:.0f}" y="{HEIGHT - 8}" text-anchor="middle">'
        "brightness, % of white</text>"
        f'<text transform="translate(16 {(foot + _TOP) / 2:.0f}) rotate(-90)" '
        'text-anchor="middle">noise, % of white</text>'
    )
    return f'<g fill="currentColor">{"".join(parts)}</g>'


def ticks(end: float) -> list[float]:
    """Return about five round numbers from 0 up to `end`, a number above 0."""
    rough = end / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [round(step * index, 12) for index in range(int(end / step + 1e-9) + 1)]
