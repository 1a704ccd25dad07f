"""Linear camera colours: the ICC profile that shows them rightly, and their development to sRGB."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from n2n.images import values
from n2n.types import Picture

LINEAR = "linear"
"""Key of `Picture.meta` for linear light: its C,3 matrix to linear sRGB, as nested tuples."""
_XYZ_FROM_SRGB = np.array(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
)
"""At D65, as libraw has it."""
_D50_FROM_SRGB = np.array(
    [[0.4360, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7142]]
)
"""Adapted to the white of ICC profiles by Bradford's method (ICC's own sRGB)."""
_D50 = (0.9642, 1.0, 0.8249)


def srgb_from_camera(camera_from_xyz: np.ndarray) -> np.ndarray:
    """Return 3,3: white-balanced camera RGB to linear sRGB, from the camera's XYZ matrix 3,3.

    Rows sum to 1, so that white stays white; this is what libraw multiplies by. Raises
    numpy.linalg.LinAlgError for a singular matrix.
    """
    camera_from_srgb = camera_from_xyz @ _XYZ_FROM_SRGB
    return np.linalg.inv(camera_from_srgb / camera_from_srgb.sum(1, keepdims=True))


def linear_profile(srgb_from_linear: np.ndarray, name: str) -> bytes:
    """Return an ICC profile (2.1) of linear light whose colours the matrix 3,C takes to sRGB."""
    channels = srgb_from_linear.shape[1]
    letters = "rgb" if channels == 3 else "k"
    tags = {"desc": _description(name), "cprt": b"text\0\0\0\0No copyright\0", "wtpt": _xyz(_D50)}
    tags |= {f"{letter}TRC": b"curv\0\0\0\0" + struct.pack(">I", 0) for letter in letters}
    if channels == 3:
        columns = (_D50_FROM_SRGB @ srgb_from_linear).T
        tags |= {f"{k}XYZ": _xyz(column) for k, column in zip(letters, columns, strict=True)}
    return _assembled(tags, b"RGB " if channels == 3 else b"GRAY")


def _description(name: str) -> bytes:
    text = name.encode("ascii", "replace") + b"\0"
    return b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + b"\0" * 78


def _xyz(values: Any) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(65536 * float(one)) for one in values))


def _assembled(tags: Mapping[str, bytes], space: bytes) -> bytes:
    body, table = b"", struct.pack(">I", len(tags))
    start = 128 + 4 + 12 * len(tags)
    for tag, data in tags.items():
        table += tag.encode() + struct.pack(">II", start + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    size = start + len(body)
    header = struct.pack(">I4xI4s4s4s12x4s", size, 0x02100000, b"mntr", space, b"XYZ ", b"acsp")
    # Rendering intent: relative to the medium's white; then the light of the connection space.
    header = header.ljust(64, b"\0") + struct.pack(">I", 1) + _xyz(_D50)[8:]
    return header.ljust(128, b"\0") + table + body


def developed(picture: Picture) -> Picture:
    """Return a picture in linear light (`meta["linear"]`) as sRGB; others as they are.

    H,W or H,W,C of any dtype, shape and dtype kept; floats have white at 1. Values beyond what
    sRGB holds are clipped.
    """
    matrix = picture.meta.get(LINEAR)
    if matrix is None:
        return picture
    array = picture.array
    light = values.to_float(array, (0.0, 1.0) if array.dtype.kind == "f" else None)
    if light.shape[2] == 3:
        light = light @ np.asarray(matrix, np.float32).T
    shown = values.from_float(_encoded(np.clip(light, 0, 1)).reshape(array.shape), array.dtype)
    meta = {key: value for key, value in picture.meta.items() if key != LINEAR}
    return Picture(shown, meta | {"icc": srgb_profile() if light.shape[2] == 3 else None})


def _encoded(light: np.ndarray) -> np.ndarray:
    """Apply the sRGB curve (IEC 61966-2-1) to linear light in [0, 1]."""
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def srgb_profile() -> bytes:
    """Return the ICC profile of sRGB."""
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
