"""What a file says about how it was taken, as far as bursts are told apart by it."""

from __future__ import annotations

import contextlib
import datetime
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from n2n.images import metadata, raw, reading, tiff
from n2n.images.quiet import blamed, quiet

_TIME, _FRACTION, _SERIAL = 36867, 37521, 42033
_SECONDS, _APERTURE, _ISO, _LARGE_ISO = 33434, 33437, 34855, 34866


@dataclass(frozen=True)
class Shot:
    """Hold one picture's name and circumstances; None or '' where the file does not say."""

    path: Path
    size: tuple[int, int]
    """Width and height in pixels, upright."""
    camera: str = ""
    """Make, model and serial number."""
    time: float | None = None
    """When the shutter opened: seconds since 1970 on the camera's own clock, from EXIF alone. The
    file's date is that of the last copy or edit."""
    seconds: float = 0.0
    """How long the shutter was open."""
    stops: float | None = None
    """log2 of exposure time x ISO / f-number^2: brightness for the same scene, one more is twice
    as bright; lenses that tell no f-number count as f/1."""
    pages: int = 1
    """Pictures in the file."""


def shot(path: Any) -> Shot:
    """Read a file's header; no pixel is decoded. Raises Error where `declared_size` would."""
    path = reading.existing(path)
    width, height, _ = reading.declared_size(path)
    with quiet(), blamed(path):
        with _opened(path) as (exif, turned, pages):
            ifd = exif.get_ifd(metadata.EXIF_IFD)
            seconds = _positive(ifd.get(_SECONDS))
            make, model = _text(exif.get(271)), _text(exif.get(272))
            names = ("" if model.startswith(make) else make, model, _text(ifd.get(_SERIAL)))
            return Shot(
                path,
                (height, width) if turned else (width, height),
                " ".join(filter(None, names)),
                _time(_text(ifd.get(_TIME)), _text(ifd.get(_FRACTION))),
                seconds or 0.0,
                _stops(seconds, _iso(ifd), _positive(ifd.get(_APERTURE))),
                pages,
            )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, bool, int]]:
    """Give a file's EXIF, whether it stands on its side, and how many pictures it holds."""
    kind = reading.kind_of(path)
    if kind == "raw":
        with raw.exif_of(path) as exif:
            yield exif, raw.is_turned(path), 1
    elif kind == "tiff":
        with path.open("rb") as file:
            exif = metadata.tiff_exif(file)
            yield exif, metadata.orientation_of(exif) >= 5, tiff.count(path)
    else:
        with reading.opened(path) as image:
            exif = reading.early_exif(image)
            yield exif, metadata.orientation_of(exif) >= 5, reading.count(image)


def _text(value: Any) -> str:
    return value.strip("\0 ") if isinstance(value, str) else ""


def _positive(value: Any) -> float | None:
    if isinstance(value, tuple | list) and value:
        value = value[0]
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if 0 < number < math.inf else None


def _iso(ifd: Any) -> float | None:
    # 16 bits end at 65535, which then means: see the larger field.
    iso = _positive(ifd.get(_ISO))
    return _positive(ifd.get(_LARGE_ISO)) or iso if iso is None or iso >= 65535 else iso


def _stops(seconds: float | None, iso: float | None, aperture: float | None) -> float | None:
    return (
        None if seconds is None or iso is None else math.log2(seconds * iso / (aperture or 1) ** 2)
    )


def _time(text: str, fraction: str) -> float | None:
    """Parse EXIF's `2026:01:02 03:04:05` and the digits behind its point."""
    try:
        moment = datetime.datetime.strptime(text[:19], "%Y:%m:%d %H:%M:%S")
    except ValueError:
        return None
    part = float(f"0.{fraction}") if fraction.isascii() and fraction.isdigit() else 0.0
    return moment.replace(tzinfo=datetime.UTC).timestamp() + part
