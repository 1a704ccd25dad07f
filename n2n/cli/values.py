"""The values of options: text to numbers; what does not fit is said by argparse in one line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence


def whole(text: str) -> int:
    """Return a whole number of at least 1."""
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def seed(text: str) -> int:
    """Return a seed, 0 to 2**32 - 1."""
    if not (text.isascii() and text.isdigit() and int(text) < 2**32):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 4294967295")
    return int(text)


def positive(text: str) -> float:
    """Return a number above 0."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def share(text: str) -> float:
    """Return a number from 0 to 1."""
    value = _number(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def data_range(text: str) -> tuple[float, float]:
    """Return (low, high) of LOW,HIGH."""
    values: Sequence[float] = [_number(word) for word in text.split(",")]
    if len(values) != 2 or not -math.inf < values[0] < values[1] < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not LOW,HIGH with LOW below HIGH")
    return values[0], values[1]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
