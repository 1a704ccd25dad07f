"""The text form of corruptions, for the command line, JSON and the weights' metadata.

`name:value[,value]`, a range written low-high, a chain joined by `+`: `gaussian:25`,
`bernoulli:0-0.95`, `brown:25,4`, `motion:15,30+gaussian:2`. Sigmas of display values are written in
1/255, everything else as it is. `str(corruption)` is the inverse.
"""

from __future__ import annotations

import re
from dataclasses import MISSING, fields

from n2n.corruptions.base import Corruption, Parameter, number
from n2n.corruptions.basic import Bernoulli, Brown, Chain, Clean, Gaussian, Grey, Impulse, Poisson
from n2n.corruptions.blur import Blur, Defocus, Motion
from n2n.corruptions.camera import Camera
from n2n.corruptions.jpeg import JPEG
from n2n.corruptions.text import Text
from n2n.types import Error

_CLASSES: tuple[type[Corruption], ...] = (
    Clean,
    Gaussian,
    Poisson,
    Bernoulli,
    Impulse,
    Text,
    Brown,
    Camera,
    JPEG,
    Blur,
    Motion,
    Defocus,
    Grey,
)
NAMES: dict[str, type[Corruption]] = {each.__name__.lower(): each for each in _CLASSES}
"""The class behind each name."""

_DECIMAL = r"(?:\d+\.?\d*|\.\d+)"
_VALUE = re.compile(rf"({_DECIMAL})(?:-({_DECIMAL}))?")


def parse(text: str) -> Corruption:
    """Return the corruption that `text` names, such as `gaussian:25`; the inverse of `str`.

    Error: an unknown name, a wrong number of values, or a value out of its range.
    """
    parts = tuple(_single(part.strip(), text) for part in text.split("+"))
    return parts[0] if len(parts) == 1 else Chain(parts)


def _single(part: str, text: str) -> Corruption:
    name, colon, rest = part.partition(":")
    if name not in NAMES:
        raise _error(text, f"no corruption is named {name!r}")
    declared = fields(NAMES[name])
    words = rest.split(",") if colon else []
    needed = sum(each.default is MISSING for each in declared)
    if not needed <= len(words) <= len(declared):
        wanted = ",".join(each.name for each in declared)
        raise _error(text, f"{name!r} is written {name}:{wanted}" if wanted else f"{name!r} alone")
    pairs = zip(words, declared, strict=False)
    values = [_value(word.strip(), each.metadata["unit"], text) for word, each in pairs]
    try:
        return NAMES[name](*values)
    except Error as error:
        raise _error(text, str(error)) from None


def _value(word: str, unit: int, text: str) -> Parameter:
    match = _VALUE.fullmatch(word)
    if match is None:
        raise _error(text, f"{word!r} is neither a number nor a range low-high")
    low, high = match.groups()
    return number(low, unit) if high is None else (number(low, unit), number(high, unit))


def _error(text: str, rule: str) -> Error:
    return Error(
        f"corruption {text!r}: {rule}; write it like gaussian:25, gaussian:0-50 or "
        f"poisson:30+gaussian:5; the names are {', '.join(NAMES)}"
    )
