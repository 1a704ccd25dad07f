"""TIFF to arrays and back: tifffile, with Pillow and cv2 for the compressions it lacks."""

from __future__ import annotations

import io
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np

from n2n.images import metadata
from n2n.images.quiet import check_size, opencv, quoted
from n2n.types import Error, Picture

_REFUSED = {5: "CMYK", 8: "LAB", 9: "LAB", 10: "LAB", 32844: "LogL", 32845: "LogLuv"}
_MINISWHITE, _MINISBLACK, _RGB, _PALETTE, _CFA, _LINEAR_RAW = 0, 1, 2, 3, 32803, 34892
_PREMULTIPLIED = 1
_MASK = 4
_ASCII, _SHORT, _LONG = 2, 3, 4
_DENSEST = {1: 1, 5: 3000, 7: 1100, 8: 1100, 32946: 1100, 32773: 64}
"""Bytes of picture that a stored byte may hold, by compression: none, LZW, JPEG, deflate (its old
number, too), PackBits."""


def read(path: Path, several: bool) -> list[Picture]:
    """Read the pages of a TIFF; a single picture unless several."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        pages = pages_of(path, file)
        if len(pages) > 1 and not several:
            raise burst_error(path, len(pages))
        for page in pages:
            check(path, page, len(pages))
        return [_read_page(path, file, page) for page in pages]


def declared_size(path: Path) -> tuple[int, int, int]:
    """Return (width, height, channels) of the first page."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        page = pages_of(path, file)[0]
        check(path, page, 1)
        channels = 3 if page.photometric == _PALETTE else page.samplesperpixel
        return page.imagewidth, page.imagelength, channels


def count(path: Path) -> int:
    """Return how many pictures a TIFF holds."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        return len(pages_of(path, file))


def burst_error(path: Path, count: int) -> Error:
    """Say that a file holds several pictures."""
    return Error(
        f"{quoted(path)}: holds {count} pages, a burst where one picture is expected; read it with "
        "read_pages or n2n burst, or export the page you mean"
    )


def picture(array: np.ndarray, meta: dict[str, Any], alpha: bool) -> Picture:
    """Make a Picture of an upright array, its last channel split off if it is alpha."""
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    mask = np.ascontiguousarray(array[..., -1]) if alpha else None
    colours = array[..., :-1] if alpha else array
    if colours.ndim == 3 and colours.shape[2] == 1:
        colours = colours[..., 0]
    meta = {**meta, "alpha": mask, "dtype": array.dtype.name}
    return Picture(np.ascontiguousarray(colours), meta)


def from_bgr(array: np.ndarray) -> np.ndarray:
    """Put cv2's channels into order."""
    if array.ndim == 2:
        return array
    return array[..., {3: [2, 1, 0], 4: [2, 1, 0, 3]}.get(array.shape[2], slice(None))]


def pages_of(path: Path, file: Any) -> list[Any]:
    """List a file's pictures, without reduced copies and masks."""
    pages = list(file.pages)
    if not pages:
        raise Error(f"{quoted(path)}: is a TIFF without a page; copy or export it again")
    return [p for p in pages if not (p.is_reduced or p.subfiletype & _MASK)] or pages[:1]


def check(path: Path, page: Any, count: int, *, whole: bool = True) -> None:
    """Refuse a page that cannot be read, or, as a `whole`, is too large."""
    kind = _REFUSED.get(int(page.photometric))
    if kind:
        raise Error(f"{quoted(path)}: is {kind}; n2n reads grey and RGB; convert it to RGB")
    itemsize = max(1, page.bitspersample // 8)
    depth = max(1, page.imagedepth)
    if whole:
        check_size(path, page.imagewidth, page.imagelength, page.samplesperpixel, itemsize, count)
    # One tile may be declared larger than the picture, and is decoded whole.
    check_size(path, max(1, page.tilewidth), max(1, page.tilelength), page.samplesperpixel)
    if depth > 1:
        raise Error(f"{quoted(path)}: is {depth} planes deep; n2n reads flat pictures; split it")
    size = path.stat().st_size
    ends = zip(page.dataoffsets, page.databytecounts, strict=False)
    if any(start + count > size for start, count in ends):
        raise Error(f"{quoted(path)}: ends before its pixels do (truncated); copy it again")
    _check_content(path, page)


def _check_content(path: Path, page: Any) -> None:
    """Refuse a page that declares more than its bytes can hold, however well packed."""
    densest = _DENSEST.get(int(page.compression))
    if densest is None:
        return
    pixels = page.imagewidth * page.imagelength * page.samplesperpixel
    declared, held = pixels * page.bitspersample // 8, sum(page.databytecounts)
    # A tile of no bytes is one of zeros: sparse files are let be, as long as they are small.
    if declared > densest * held + 2 ** (26 if 0 in page.databytecounts else 20):
        raise Error(
            f"{quoted(path)}: declares {page.imagewidth} x {page.imagelength} pixels and holds "
            f"{held:,} bytes of them only; the file is damaged or truncated; get it anew"
        )


def _read_page(path: Path, file: Any, page: Any) -> Picture:
    array, alpha = _pixels(path, page)
    check_dtype(path, array.dtype)
    turned = page.tags.valueof(metadata.ORIENTATION)
    return picture(metadata.upright(array, turned or 1), meta_of(path, file, page), alpha)


def check_dtype(path: Path, dtype: np.dtype) -> None:
    """Refuse what is neither integer nor float."""
    if dtype.kind not in "uif":
        raise Error(f"{quoted(path)}: holds {dtype} values; n2n reads integers and floats")


def meta_of(path: Path, file: Any, page: Any) -> dict[str, Any]:
    """Return what `images.read` tells of a page, but alpha and dtype."""
    exif = metadata.tiff_exif(file.filehandle)
    icc = page.tags.valueof(34675)
    meta: dict[str, Any] = {"format": "TIFF", "path": str(path)}
    meta["software"] = metadata.software_of(exif)
    return meta | {"exif": metadata.packed(exif, metadata.DESCRIPTIVE), "icc": icc or None}


def _pixels(path: Path, page: Any) -> tuple[np.ndarray, bool]:
    if not plain(page):
        return _by_pillow(path, page)
    try:
        array = page.asarray()
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        if page.bitspersample == 8:
            return _by_pillow(path, page)
        array = _by_cv2(path, page)
    return finished(_channels_last(path, page, array), page)


def plain(page: Any) -> bool:
    """Say whether the numbers of a page are its pixels, as those of a palette are not."""
    kinds = (_MINISWHITE, _MINISBLACK, _RGB, _CFA, _LINEAR_RAW)
    return page.bitspersample >= 8 and int(page.photometric) in kinds


def _channels_last(path: Path, page: Any, array: np.ndarray) -> np.ndarray:
    size = (page.imagelength, page.imagewidth)
    several = page.samplesperpixel > 1
    if several and array.shape == (page.samplesperpixel, *size):
        array = np.moveaxis(array, 0, -1)
    if array.shape != ((*size, page.samplesperpixel) if several else size):
        raise Error(f"{quoted(path)}: decodes to {array.shape} where {size} is declared; damaged")
    return array


def finished(array: np.ndarray, page: Any) -> tuple[np.ndarray, bool]:
    """Return rows h,w or h,w,c with 0 as black and alpha unmultiplied; whether there is alpha."""
    extra = tuple(int(kind) for kind in page.extrasamples)
    # Photoshop and cv2 leave the fourth channel of RGB undeclared.
    rgba = int(page.photometric) == _RGB and page.samplesperpixel == 4
    alpha = rgba or (page.samplesperpixel == 2 and extra in ((1,), (2,)))
    if int(page.photometric) == _MINISWHITE and array.dtype.kind == "u":
        array = np.iinfo(array.dtype).max - array
    if alpha and extra == (_PREMULTIPLIED,) and array.dtype.kind in "uf":
        array = _divided(array)
    return array, alpha


def _divided(array: np.ndarray) -> np.ndarray:
    """Undo the multiplication of the colours by alpha, as all other formats store them."""
    white = np.iinfo(array.dtype).max if array.dtype.kind == "u" else 1.0
    alpha = array[..., -1:].astype(np.float64)
    colours = np.divide(array[..., :-1] * float(white), alpha, where=alpha > 0, out=None)
    colours = np.where(alpha > 0, colours, 0.0)
    if array.dtype.kind == "u":
        colours = np.rint(np.minimum(colours, white))
    return np.concatenate([colours.astype(array.dtype), array[..., -1:]], axis=-1)


def _by_pillow(path: Path, page: Any) -> tuple[np.ndarray, bool]:
    from PIL import Image

    with Image.open(path, formats=["TIFF"]) as image:
        image.seek(page.index)
        alpha = image.mode in ("LA", "PA", "RGBA", "RGBa")
        grey = image.mode in ("1", "L", "LA")
        mode = ("L" if grey else "RGB") + ("A" if alpha else "")
        return np.asarray(image.convert(mode)), alpha


def _by_cv2(path: Path, page: Any) -> np.ndarray:
    cv2 = opencv()
    data = np.fromfile(path, np.uint8)
    span = (page.index, page.index + 1)
    done, arrays = cv2.imdecodemulti(data, cv2.IMREAD_UNCHANGED, range=span)
    if not done or len(arrays) != 1:
        raise Error(
            f"{quoted(path)}: compression {page.compression.name} cannot be decoded; run "
            "`pip install 'n2n[photo]'`, or save it uncompressed"
        )
    return from_bgr(arrays[0])


def encode(array: np.ndarray, exif: bytes, icc: bytes | None, alpha: bool) -> bytes:
    """Encode H,W or H,W,C, the last channel alpha if so, with the descriptive tags of EXIF."""
    file = io.BytesIO()
    file.seek(create(file, array.shape, array.dtype, exif, icc, alpha))
    file.write(np.ascontiguousarray(array).data)
    return file.getvalue()


def create(
    file: Any,
    shape: tuple[int, ...],
    dtype: Any,
    exif: bytes,
    icc: bytes | None,
    alpha: bool,
    big: bool = False,
) -> int:
    """Write a TIFF of zeros into an open file; returns where its pixels begin, row by row.

    BigTIFF if `big`, or past 4 GB.
    """
    import tifffile

    loaded = metadata.loads(exif)
    channels = (shape[2] if len(shape) == 3 else 1) - alpha
    big = big or math.prod(shape) * np.dtype(dtype).itemsize >= 2**32 - 2**27
    # The offsets of a BigTIFF are of another size.
    directories = {} if big else _directories(loaded)
    found = tifffile.imwrite(
        file,
        shape=shape,
        dtype=dtype,
        bigtiff=big,
        returnoffset=True,
        byteorder="<",
        photometric="rgb" if channels == 3 else "minisblack",
        planarconfig="contig" if len(shape) == 3 else None,
        extrasamples=["unassalpha"] if alpha else None,
        metadata=None,
        software=metadata.signature(),
        iccprofile=icc,
        extratags=_text_tags(loaded) + _placeholders(directories),
        **_resolution(loaded),
    )
    assert found is not None
    _add_directories(file, directories)
    return found[0]


def _text_tags(exif: Any) -> list[tuple[int, int, int, Any, bool]]:
    tags: list[tuple[int, int, int, Any, bool]] = [(metadata.ORIENTATION, _SHORT, 1, 1, True)]
    for tag in (271, 272, 306, 315, 33432):
        if isinstance(exif.get(tag), str) and exif[tag]:
            text = exif[tag].encode("utf-8", "replace") + b"\0"
            tags.append((tag, _ASCII, len(text), text, True))
    return tags


def _resolution(exif: Any) -> dict[str, Any]:
    try:
        across, down = float(exif[282]), float(exif[283])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return {}
    unit = exif.get(296, 2)
    sane = 0 < across < 1e6 and 0 < down < 1e6 and unit in (1, 2, 3)
    return {"resolution": (across, down), "resolutionunit": unit} if sane else {}


def _directories(exif: Any) -> dict[int, dict[int, Any]]:
    found = {tag: dict(exif.get_ifd(tag)) for tag in (metadata.EXIF_IFD, metadata.GPS_IFD)}
    found[metadata.EXIF_IFD].pop(40965, None)  # interoperability: an offset into the old file
    return {tag: values for tag, values in found.items() if values}


def _placeholders(directories: dict[int, Any]) -> list[tuple[int, int, int, Any, bool]]:
    """Reserve entries for directories, which tifffile refuses to write, in their sorted places."""
    return [(tag - 1, _LONG, 1, 0, True) for tag in directories]


def _add_directories(file: Any, directories: dict[int, dict[int, Any]]) -> None:
    """Append EXIF and GPS directories and turn their placeholders into pointers to them."""
    import tifffile
    from PIL import TiffImagePlugin

    file.seek(0)
    tags = tifffile.TiffFile(file).pages.first.tags
    for tag, values in directories.items():
        start = file.seek(0, io.SEEK_END)
        start += file.write(b"\0" * (start % 2))
        directory = TiffImagePlugin.ImageFileDirectory_v2(ifh=b"II*\0\0\0\0\0", group=tag)
        directory.update(values)
        file.write(directory.tobytes(start))
        file.seek(tags[tag - 1].offset)
        file.write(struct.pack("<HHII", tag, _LONG, 1, start))
