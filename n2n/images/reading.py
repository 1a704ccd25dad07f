"""Files to arrays: Pillow for headers and 8 bits, cv2 for 16-bit PNG and PNM, tifffile for TIFF.

Pillow, and imageio with it, cuts 16-bit RGB to 8 without a word; tifffile alone cannot read LZW,
which Photoshop writes; cv2 reads both but knows no metadata. So each does what it does well.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from n2n.images import metadata, raw, tiff
from n2n.images.quiet import blamed, check_size, opencv, photo_extra, quiet, quoted, too_large
from n2n.types import Error, Picture

HEIF = frozenset((".heic", ".heif", ".hif", ".avif"))
DENSEST = 1100
"""Bytes of picture that a byte of file may hold: deflate reaches 1,032, a JPEG of even blocks,
which take a bit of brightness and half a bit of colour each, 1,024."""
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "PPM", "GIF", "TIFF", "AVIF", "HEIF")
_MODES = {"1": "L", "I;16": "L", "I": "L", "P": "RGB", "PA": "RGBA", "YCbCr": "RGB", "RGBX": "RGB"}
_MODES |= {mode: mode for mode in ("L", "LA", "RGB", "RGBA", "F")}
_WITH_ALPHA = {"L": "LA", "RGB": "RGBA"}


def read(path: Any) -> Picture:
    """Read one picture: H,W or H,W,C in the file's own dtype, upright, alpha in meta.

    meta holds exif (bytes, orientation 1, no thumbnail), icc (bytes or None), alpha (H,W or None),
    dtype, format, path and software. Palettes become RGB, single bits uint8 0 and 255. Raises
    Error for what is missing, too large, damaged, no picture, CMYK or LAB, for a burst (several
    pages: use `read_pages`), and for RAW and HEIC without the `photo` extra. RAW is linear camera
    RGB, uint16 (`raw.read`); `developed` makes sRGB of it.
    """
    return _read(path, several=False)[0]


def read_pages(path: Any) -> list[Picture]:
    """Read all pages of a TIFF or animation, each as `read` would; one picture is a list of one.

    Raises Error as `read` does; the size limit is for all pages together.
    """
    return _read(path, several=True)


def declared_size(path: Any) -> tuple[int, int, int]:
    """Return (width, height, channels) from the header; nothing is decoded.

    The size is the stored one, before the orientation tag; alpha counts as a channel, a palette as
    RGB. Raises Error where there is no readable header or the size is beyond the limit.
    """
    path = existing(path)
    with quiet(), blamed(path):
        kind = kind_of(path)
        if kind == "raw":
            return raw.declared_size(path)
        if kind == "tiff":
            return tiff.declared_size(path)
        with opened(path) as image:
            return *image.size, len(_mode(path, image))


def software(path: Any) -> str:
    """Return who wrote a file, '' where it does not say or cannot be opened; decodes nothing."""
    try:
        path = existing(path)
        with quiet(), blamed(path):
            kind = kind_of(path)
            if kind == "raw":
                with raw.exif_of(path) as exif:
                    return metadata.software_of(exif)
            if kind == "tiff":
                with path.open("rb") as file:
                    return metadata.software_of(metadata.tiff_exif(file))
            with opened(path) as image:
                return _software_early(image)
    except Error:
        return ""


def early_exif(image: Any) -> Any:
    """Return the EXIF of an open picture as far as its header tells; nothing is decoded."""
    # Pillow decodes a whole PNG to look for EXIF behind the pixels; n2n writes it before them.
    if image.format == "PNG" and "exif" not in image.info:
        from PIL import Image

        return Image.Exif()
    return image.getexif()


def _software_early(image: Any) -> str:
    if image.format == "PNG" and "exif" not in image.info:
        return str(image.info.get("Software", ""))
    return metadata.software_of(early_exif(image))


def _read(path: Any, several: bool) -> list[Picture]:
    path = existing(path)
    with quiet(), blamed(path):
        kind = kind_of(path)
        if kind == "raw":
            return [raw.read(path)]
        if kind == "tiff":
            return tiff.read(path, several)
        with opened(path) as image:
            return list(_pillow(path, image, several))


def existing(path: Any) -> Path:
    """Return the path of a file that is there."""
    path = Path(path)
    with blamed(path):
        if path.is_dir():
            raise Error(f"{quoted(path)}: is a folder where a picture is expected; name its files")
        if not path.is_file():  # also pipes and devices, which would never end
            raise Error(f"{quoted(path)}: no such file; check the name")
    return path


def kind_of(path: Path) -> str:
    """Say who reads a file: raw, tiff or pillow."""
    # RAW files are TIFFs inside, whose first page is the camera's thumbnail: the name decides.
    if path.suffix.lower() in raw.RAW:
        return "raw"
    with path.open("rb") as file:
        start = file.read(4)
    return "tiff" if start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+") else "pillow"


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open by Pillow, header only; the declared size is checked before anything is decoded."""
    from PIL import Image

    if path.suffix.lower() in HEIF and not _decodes_avif(path):
        photo_extra(path, "HEIC and AVIF", "pillow_heif").register_heif_opener()
    formats = [name for name in _FORMATS if _registered(name)]
    try:
        image = Image.open(path, formats=formats)
    except Image.DecompressionBombError as error:
        raise too_large(path, re.findall(r"\d+", str(error))[0] + " pixels") from error
    with image:
        check_size(path, *image.size, len(_mode(path, image)), 2 if _deep(path, image) else 1)
        yield image


def _check_content(path: Path, image: Any, itemsize: int) -> None:
    """Refuse a PNG or JPEG that declares more than its bytes can hold, however well packed."""
    declared, held = image.width * image.height * itemsize, path.stat().st_size
    if image.format in ("PNG", "JPEG") and declared > DENSEST * held + 2**20:
        raise Error(
            f"{quoted(path)}: declares {image.width} x {image.height} pixels and has {held:,} "
            "bytes only; the file is damaged or truncated; get it anew"
        )


def _decodes_avif(path: Path) -> bool:
    from PIL import features

    return path.suffix.lower() == ".avif" and bool(features.check("avif"))


def _registered(name: str) -> bool:
    from PIL import Image

    Image.init()
    return name in Image.OPEN


def _mode(path: Path, image: Any) -> str:
    mode = _MODES.get(image.mode)
    if mode is None:
        raise Error(f"{quoted(path)}: is {image.mode}; n2n reads grey and RGB; convert it to RGB")
    transparent = "transparency" in image.info and not _deep(path, image)
    return _WITH_ALPHA.get(mode, mode) if transparent else mode


def count(image: Any) -> int:
    """Return how many pictures an open file holds."""
    # A phone's JPEG may carry previews and gain maps as further pictures (MPO).
    return 1 if image.format in ("MPO", "HEIF", "AVIF") else getattr(image, "n_frames", 1)


def _pages(path: Path, image: Any, several: bool) -> int:
    pages = count(image)
    if pages > 1 and not several:
        raise tiff.burst_error(path, pages)
    channels, depth = len(_mode(path, image)), 2 if _deep(path, image) else 1
    check_size(path, image.width, image.height, channels, depth, pages)
    _check_content(path, image, channels * depth)
    return pages


def _pillow(path: Path, image: Any, several: bool) -> Iterator[Picture]:
    for index in range(_pages(path, image, several)):
        if index:  # a HEIC is opened at its main picture, which need not be its first
            image.seek(index)
        image.load()  # for 16 bits too: finds truncated files, and EXIF behind the pixels
        array = _deep_pixels(path, image) if _deep(path, image) else _pixels(path, image)
        exif = image.getexif()
        orientation = metadata.orientation_of(exif)
        written_by = str(image.info.get("Software", "")) or metadata.software_of(exif)
        icc = image.info.get("icc_profile") or None
        meta = {"format": image.format, "path": str(path), "software": written_by, "icc": icc}
        meta["exif"] = metadata.packed(exif)
        yield tiff.picture(metadata.upright(array, orientation), meta, alpha=_has_alpha(array))


def _has_alpha(array: np.ndarray) -> bool:
    return array.ndim == 3 and array.shape[2] in (2, 4)


def _pixels(path: Path, image: Any) -> np.ndarray:
    mode = _mode(path, image)
    return np.asarray(image if image.mode == mode else image.convert(mode))


def _deep(path: Path, image: Any) -> bool:
    if image.format == "PNG":
        with path.open("rb") as file:
            return file.read(25)[24:] == b"\x10"
    if image.format == "HEIF":
        return image.info.get("bit_depth", 8) > 8
    return image.format == "PPM" and _white(path) > 255


def _white(path: Path) -> int:
    with path.open("rb") as file:
        fields = re.sub(rb"#[^\n]*", b"", file.read(4096)).split()[:4]
    deep = len(fields) == 4 and fields[0] in (b"P2", b"P3", b"P5", b"P6") and fields[3].isdigit()
    return int(fields[3]) if deep else 1


def _deep_pixels(path: Path, image: Any) -> np.ndarray:
    if image.format == "HEIF":
        return _deep_heif(path, image.info["bit_depth"])
    cv2 = opencv()
    data = np.fromfile(path, np.uint8)  # cv2.imread cannot open every name on Windows
    array = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    if array is None:
        raise Error(f"{quoted(path)}: cannot be decoded; the file is damaged; export it again")
    array = tiff.from_bgr(array)
    if data[:4].tobytes() == b"\x89PNG":
        return array[..., [0, 3]] if data[25] == 4 else array  # cv2 makes grey and alpha RGBA
    white = _white(path)  # as Pillow does for 8 bits: the header's white becomes the type's
    return array if white == 65535 else np.rint(array * (65535 / white)).astype(np.uint16)


def _deep_heif(path: Path, bits: int) -> np.ndarray:
    """Return the 10 or 12 bits of a HEIC, of which Pillow's plugin keeps 8, in 16."""
    heif = photo_extra(path, "HEIC and AVIF", "pillow_heif")
    array = np.asarray(heif.open_heif(path, convert_hdr_to_8bit=False))
    # They lie at the upper end: as of PNM, the format's white becomes the type's.
    return np.rint((array >> (16 - bits)) * (65535 / (2**bits - 1))).astype(np.uint16)
