"""TIFFs larger than the memory: read by the rows that are asked for, made to be written by rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from n2n.images import metadata, tiff
from n2n.images.quiet import blamed, quiet, quoted
from n2n.images.reading import existing, kind_of
from n2n.types import Error, Picture

SEGMENT = 2**28
"""Largest strip or tile of a file, decoded: it is in memory as a whole."""


class TiffRows:
    """Hold a TIFF open as a picture whose pixels are read when asked for: `rows[a:b]`.

    dtype, shape H,W or H,W,C and meta are those that `read` gives; alpha is left out. A context
    manager. Raises Error for what `read` refuses, its size apart, and where parts cannot be read.
    """

    def __init__(self, path: Any):
        import tifffile

        self.path = existing(path)
        with quiet(), blamed(self.path):
            if kind_of(self.path) != "tiff":
                raise Error(f"{quoted(self.path)}: is no TIFF, which alone is read in pieces")
            self._file = tifffile.TiffFile(self.path)
            try:
                self._page = _page(self.path, self._file)
                self.meta = tiff.meta_of(self.path, self._file, self._page)
                first = self._picture(0, 1)
            except BaseException:
                self._file.close()
                raise
        self.dtype = first.array.dtype
        self.shape = (self._page.imagelength, *first.array.shape[1:])
        self.nbytes = self._page.nbytes
        self.big = bool(self._file.is_bigtiff)

    def __enter__(self) -> TiffRows:
        return self

    def __exit__(self, *problem: object) -> None:
        self._file.close()

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Return the colours of rows[a:b]."""
        return self._read(rows).array

    def alpha(self, rows: slice) -> np.ndarray | None:
        """Return alpha H,W of rows[a:b], None where there is none."""
        return self._read(rows).meta["alpha"]

    def _read(self, rows: slice) -> Picture:
        first, last, _ = rows.indices(self._page.imagelength)
        with quiet(), blamed(self.path):
            return self._picture(first, last)

    def _picture(self, first: int, last: int) -> Picture:
        page = self._page
        array = (_contiguous if page.is_contiguous else _decoded)(page, first, last)
        array = np.moveaxis(array, 0, -1) if page.shaped[0] > 1 else array[0]
        array = array.reshape(last - first, page.imagewidth, -1)
        array, alpha = tiff.finished(array if page.samplesperpixel > 1 else array[..., 0], page)
        return tiff.picture(array, self.meta, alpha)


def create(
    path: Path, like: TiffRows, shape: tuple[int, ...], dtype: str, *, alpha: bool = False
) -> int:
    """Make a TIFF of zeros with the metadata of another, of its kind (classic or BigTIFF).

    Returns where its pixels begin in the file, row by row, little-endian.
    """
    exif = metadata.stamped(like.meta["exif"])
    icc = metadata.fitting_icc(like.meta["icc"], like.shape[2] if len(like.shape) == 3 else 1)
    with quiet(), path.open("w+b") as file:
        return tiff.create(file, shape, dtype, exif, icc, alpha, like.big)


def _page(path: Path, file: Any) -> Any:
    """Return the one page of a file, if it can be read in pieces."""
    pages = tiff.pages_of(path, file)
    if len(pages) > 1:
        raise tiff.burst_error(path, len(pages))
    page = pages[0]
    tiff.check(path, page, 1, whole=False)
    if page.dtype is not None:
        tiff.check_dtype(path, page.dtype)
    reason = _reason(page)
    if reason:
        raise Error(f"{quoted(path)}: {reason}, so it cannot be read in pieces; save it again")
    return page


def _reason(page: Any) -> str:
    """Return why a page cannot be read in pieces, or nothing."""
    if not tiff.plain(page) or page.dtype is None:
        return "its numbers are not its pixels (a palette or single bits)"
    if (page.tags.valueof(metadata.ORIENTATION) or 1) != 1:
        return "it is turned by its orientation tag"
    if not page.is_contiguous and _segment_bytes(page) > SEGMENT:
        return f"its strips or tiles are larger than {SEGMENT // 2**20} MB"
    try:
        page.decode(None, 0)
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        return f"its compression {page.compression.name} needs `pip install 'n2n[photo]'`"
    return ""


def _segment_bytes(page: Any) -> int:
    length = page.tilelength if page.is_tiled else page.rowsperstrip
    width = page.tilewidth if page.is_tiled else page.imagewidth
    return min(length, page.imagelength) * width * page.shaped[-1] * page.dtype.itemsize


def _contiguous(page: Any, first: int, last: int) -> np.ndarray:
    """Return planes,rows,width,samples of a page whose pixels follow one another in the file."""
    planes, _, length, width, samples = page.shaped
    row = width * samples
    dtype = np.dtype(page.parent.byteorder + page.dtype.char)
    found = np.empty((planes, last - first, width, samples), dtype)
    for plane in range(planes):
        start = page.dataoffsets[0] + (plane * length + first) * row * dtype.itemsize
        page.parent.filehandle.seek(start)
        page.parent.filehandle.readinto(found[plane])
    return found


def _decoded(page: Any, first: int, last: int) -> np.ndarray:
    """Return planes,rows,width,samples of the strips or tiles that hold these rows."""
    planes, _, length, width, samples = page.shaped
    found = np.empty((planes, last - first, width, samples), page.dtype)
    for index in _segments(page, first, last):
        page.parent.filehandle.seek(page.dataoffsets[index])
        data = page.parent.filehandle.read(page.databytecounts[index]) or None
        segment, (plane, _, y, x, _), shape = page.decode(data, index, jpegtables=page.jpegtables)
        top, bottom = max(y, first), min(y + shape[1], last)
        right = min(x + shape[2], width)
        part = page.nodata if segment is None else segment[0, top - y : bottom - y, : right - x]
        found[plane, top - first : bottom - first, x:right] = part
    return found


def _segments(page: Any, first: int, last: int) -> list[int]:
    """List the strips or tiles that rows first .. last-1 lie in."""
    planes, _, length, width, _ = page.shaped
    high = page.tilelength if page.is_tiled else min(page.rowsperstrip, length)
    across = -(-width // page.tilewidth) if page.is_tiled else 1
    down = -(-length // high)
    return [
        (plane * down + line) * across + column
        for plane in range(planes)
        for line in range(first // high, -(-last // high))
        for column in range(across)
    ]
