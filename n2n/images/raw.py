"""RAW files: developed by libraw (rawpy) to linear camera RGB; their EXIF, wherever it hides.

Linear and nothing else, since there the noise is what the sensor made and the mean of frames is
the mean of light: black subtracted, as-shot white balance, demosaicked (AHD; Markesteijn for
X-Trans). No tone curve, no brightness of its own, no colour matrix: the matrix goes into an ICC
profile, so that what is written looks right in every program that knows profiles.
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from n2n.images import colour, metadata, tiff
from n2n.images.quiet import check_size, photo_extra
from n2n.types import Picture

RAW = frozenset(
    ".3fr .arw .cr2 .cr3 .crw .dng .erf .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .raw .rw2"
    " .rwl .sr2 .srf .srw .x3f".split()
)
_TIFFS = (b"II*\0", b"MM\0*")
_ALMOST_TIFFS = {b"IIRO": b"II*\0", b"IIRS": b"II*\0", b"IIU\0": b"II*\0", b"MMOR": b"MM\0*"}
"""Olympus, Panasonic and Leica, which begin a TIFF by a magic number of their own."""
_HEAD = 2**21
"""Bytes of such a file in which its directories lie."""


def read(path: Path) -> Picture:
    """Develop a RAW file: H,W,3 (H,W of a monochrome camera) uint16, linear camera RGB, upright.

    White balance as shot; 65535 is where the sensor clips, in the least amplified channel, and all
    channels end there, so that what is clipped is white. meta["linear"] is the matrix to linear
    sRGB, meta["icc"] the profile of this space.
    """
    with _opened(path) as raw:
        array = _developed(path, raw)
        matrix = _matrix(raw)[:, : 1 if array.ndim == 2 else 3]
    with exif_of(path) as exif:
        name = f"{exif.get(272, 'camera')}".strip("\0 ")[:60]
        meta: dict[str, Any] = {"format": "RAW", "path": str(path)}
        meta["software"] = metadata.software_of(exif)
        meta["exif"] = metadata.packed(exif, metadata.DESCRIPTIVE)
    meta["icc"] = colour.linear_profile(matrix, f"{name}, linear")
    meta[colour.LINEAR] = tuple(map(tuple, matrix.tolist()))
    return tiff.picture(array, meta, alpha=False)


def declared_size(path: Path) -> tuple[int, int, int]:
    """Return (width, height, channels) before the orientation is applied; nothing is decoded."""
    with _opened(path) as raw:
        return raw.sizes.iwidth, raw.sizes.iheight, 1 if raw.num_colors == 1 else 3


def is_turned(path: Path) -> bool:
    """Say whether a RAW file's width and height change places when it is developed."""
    with _opened(path) as raw:
        return raw.sizes.flip in (5, 6)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open by libraw, which unpacks only when asked to; the declared size is checked first."""
    with photo_extra(path, "RAW", "rawpy").imread(str(path)) as raw:
        check_size(path, max(raw.sizes.raw_width, 1), max(raw.sizes.raw_height, 1), 3, 2)
        check_size(path, raw.sizes.iwidth, raw.sizes.iheight, 3, 2)
        yield raw


def _developed(path: Path, raw: Any) -> np.ndarray:
    rawpy = photo_extra(path, "RAW", "rawpy")
    # Four colours (RGBE, CMYG) are no RGB before their matrix: linear sRGB then.
    own = raw.num_colors <= 3
    array = raw.postprocess(
        use_camera_wb=True,
        no_auto_bright=True,
        # By default libraw takes the white level from the brightest sample of the frame where that
        # falls short of the camera's: every frame of a burst would have an exposure of its own.
        adjust_maximum_thr=0.0,
        highlight_mode=rawpy.HighlightMode.Clip,
        user_sat=_saturation(raw),
        gamma=(1, 1),
        output_bps=16,
        output_color=rawpy.ColorSpace.raw if own else rawpy.ColorSpace.sRGB,
    )
    return array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array


def _saturation(raw: Any) -> int | None:
    """Return where, above black, a channel first clips; None where it is at the white level.

    Cameras whose file names it per channel clip below the range of their converter, some channels
    before others; left at the range's end, such highlights turn pink. libraw counts these levels
    with black and `user_sat` without. Scanners' files of 8 bits, which libraw expands to 16, keep
    the white level of their bytes.
    """
    if raw.white_level <= 255 < raw.raw_image.max():
        return 65535
    levels = raw.camera_white_level_per_channel or ()
    named = [
        int(level) - int(black)
        for level, black in zip(levels, raw.black_level_per_channel, strict=False)
        if raw.white_level / 2 < level < raw.white_level
    ]
    return min(named) if named else None


def _matrix(raw: Any) -> np.ndarray:
    """Return 3,3: the picture's colours to linear sRGB; identity for a camera nobody knows."""
    xyz = np.asarray(raw.rgb_xyz_matrix, np.float64)[:3]
    if raw.num_colors == 3 and xyz.any():
        with contextlib.suppress(np.linalg.LinAlgError):
            return colour.srgb_from_camera(xyz)
    own = np.asarray(raw.color_matrix, np.float64)[:, :3]
    return own if raw.num_colors == 3 and np.isclose(own.sum(1), 1, atol=0.05).all() else np.eye(3)


@contextlib.contextmanager
def exif_of(path: Path) -> Iterator[Any]:
    """Load a RAW file's EXIF as a PIL Exif, empty where there is none; valid in the block only."""
    with path.open("rb") as file:
        start = file.read(16)
        if start[:4] in _ALMOST_TIFFS:
            yield metadata.tiff_exif(
                io.BytesIO(_ALMOST_TIFFS[start[:4]] + start[4:] + file.read(_HEAD))
            )
        elif start == b"FUJIFILMCCD-RAW ":
            yield _exif_of_preview(file)
        elif start[4:11] == b"ftypcrx":
            yield _exif_of_boxes(file)
        else:
            yield metadata.tiff_exif(file)


def _exif_of_preview(file: Any) -> Any:
    """Load the EXIF of the JPEG inside a Fujifilm RAF."""
    from PIL import Image

    file.seek(84)
    start, length = struct.unpack(">II", file.read(8).ljust(8, b"\0"))
    file.seek(start)
    with contextlib.suppress(Exception):  # damaged metadata costs itself, not the picture
        with Image.open(io.BytesIO(file.read(min(length, _HEAD))), formats=["JPEG"]) as preview:
            return preview.getexif()
    return Image.Exif()


def _exif_of_boxes(file: Any) -> Any:
    """Load the EXIF of a Canon CR3: TIFFs in the boxes CMT1 (camera) and CMT2 (exposure)."""
    file.seek(0)
    boxes = dict(_boxes(file.read(_HEAD)))
    exif = metadata.tiff_exif(io.BytesIO(boxes.get(b"CMT1", b"")))
    shot = metadata.tiff_exif(io.BytesIO(boxes.get(b"CMT2", b"")))
    exif.get_ifd(metadata.EXIF_IFD).update(dict(shot))
    return exif


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the boxes of an ISO base media file by kind, those inside moov and uuid in place."""
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        end = at + size if size else len(data)
        if size == 1 or end < at + 8:  # 64-bit sizes hold pixels, which come after the metadata
            return
        inside = {b"moov": 8, b"uuid": 24}.get(kind)
        if inside:
            yield from _boxes(data[at + inside : end])
        else:
            yield kind, data[at + 8 : end]
        at = end
