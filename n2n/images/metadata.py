"""EXIF, ICC and orientation. Pictures in memory are upright, so the orientation tag is 1; the
embedded thumbnail is dropped, because it shows the noisy picture."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np

ORIENTATION, SOFTWARE, EXIF_IFD, GPS_IFD, MAKER_NOTE = 274, 305, 34665, 34853, 37500
DESCRIPTIVE = (271, 272, 282, 283, 296, SOFTWARE, 306, 315, 33432, EXIF_IFD, GPS_IFD)
"""Tags kept of a TIFF, whose first directory also says how the pixels are laid out."""
_THUMBNAIL = (513, 514)
_WIDTH, _HEIGHT = 40962, 40963
_PREFIX = b"Exif\0\0"


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turn H,W or H,W,C of any dtype by an EXIF orientation (1 to 8); others count as 1."""
    if orientation in (5, 6, 7, 8):
        array = np.swapaxes(array, 0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


def orientation_of(exif: Any) -> int:
    """Return the orientation tag of a PIL Exif, 1 where it is missing or senseless."""
    value = exif.get(ORIENTATION)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def software_of(exif: Any) -> str:
    """Return the Software tag of a PIL Exif, '' where there is none."""
    value = exif.get(SOFTWARE)
    return value.strip("\0 ") if isinstance(value, str) else ""


def tiff_exif(file: Any) -> Any:
    """Load the descriptive tags of an open TIFF, also of one whose pixels Pillow cannot read."""
    from PIL import Image

    exif = Image.Exif()
    with contextlib.suppress(Exception):  # a damaged directory costs the metadata, not the picture
        file.seek(0)
        exif.load_from_fp(file)
    return exif


def packed(exif: Any, keep: tuple[int, ...] | None = None) -> bytes:
    """Serialise a PIL Exif as of an upright picture without thumbnail; b'' if nothing is left."""
    turned = orientation_of(exif) >= 5
    for tag in list(exif):
        if tag in (ORIENTATION, *_THUMBNAIL) or (keep is not None and tag not in keep):
            del exif[tag]
    try:
        if not len(exif):
            return b""
        if turned:
            _swap_sides(exif.get_ifd(EXIF_IFD))
        exif[ORIENTATION] = 1
        return _serialised(exif)
    except Exception:  # damaged EXIF costs itself, not the picture
        return b""


def _serialised(exif: Any) -> bytes:
    """Serialise a PIL Exif without the tags that Pillow can read but not write."""
    from PIL import Image

    with contextlib.suppress(Exception):
        return exif.tobytes()
    sound = Image.Exif()
    for tag in exif:
        alone = Image.Exif()
        alone[tag] = exif.get_ifd(tag) if tag in (EXIF_IFD, GPS_IFD) else exif[tag]
        with contextlib.suppress(Exception):
            alone.tobytes()
            sound[tag] = alone[tag]
    return sound.tobytes()


def stamped(exif: bytes) -> bytes:
    """Return EXIF bytes whose Software is this n2n and whose orientation is 1."""
    loaded = loads(exif)
    loaded[ORIENTATION] = 1
    loaded[SOFTWARE] = signature()
    try:
        return loaded.tobytes()
    except Exception:  # bytes of a caller's own
        return stamped(b"") if exif else b""


def without_maker_note(exif: bytes) -> bytes:
    """Drop the maker's private block, the only large one, for formats with room for 64 KB."""
    loaded = loads(exif)
    loaded.get_ifd(EXIF_IFD).pop(MAKER_NOTE, None)
    return loaded.tobytes()


def loads(exif: bytes) -> Any:
    """Parse EXIF bytes, with or without the prefix that JPEG puts before them."""
    from PIL import Image

    loaded = Image.Exif()
    with contextlib.suppress(Exception):
        loaded.load(exif if not exif or exif.startswith(_PREFIX) else _PREFIX + exif)
    return loaded


def bare(exif: bytes) -> bytes:
    """Strip the prefix that JPEG needs and PNG refuses."""
    return exif.removeprefix(_PREFIX)


def fitting_icc(icc: bytes | None, channels: int) -> bytes | None:
    """Return the profile if it describes as many channels; encoders refuse a grey one on RGB."""
    space = {1: b"GRAY", 3: b"RGB "}.get(channels)
    return icc if icc and len(icc) >= 128 and icc[16:20] == space else None


def signature() -> str:
    """Return the Software tag by which n2n knows its own results."""
    from n2n import __version__

    return f"n2n {__version__}"


def is_ours(software: str) -> bool:
    """Say whether a Software tag is n2n's."""
    return software.lower().startswith("n2n")


def mapping_of(like: Any) -> Mapping[str, Any]:
    """Return the meta of a Picture, or the mapping itself; empty for None."""
    return {} if like is None else getattr(like, "meta", like)


def _swap_sides(ifd: dict[int, Any]) -> None:
    if _WIDTH in ifd and _HEIGHT in ifd:
        ifd[_WIDTH], ifd[_HEIGHT] = ifd[_HEIGHT], ifd[_WIDTH]
