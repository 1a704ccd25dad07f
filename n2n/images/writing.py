"""Arrays to files: the dtype decides the depth, the extension the format; all or nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from n2n.images import metadata, tiff, values
from n2n.images.quiet import blamed, one_line, opencv, quiet, quoted
from n2n.types import Error, Failure

_JPEG_EXIF = 65_533 - 2
_SIDES = {".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383}


def write(
    path: Any, array: Any, *, like: Any = None, overwrite: bool = False, quality: int = 95
) -> None:
    """Write H,W or H,W,C (1 or 3 channels) as PNG, TIFF, JPEG or lossless WebP, atomically.

    uint8 goes into all of them, uint16 into PNG and TIFF, float32 into TIFF; nothing is converted
    here. like (a Picture or its meta) gives EXIF, ICC and, where the format can, alpha. Raises
    Error for another dtype, shape or extension, for an existing path unless overwrite, and always
    for the file that `like` was read from; Failure where the disk or memory is full.
    """
    path, array = Path(path), np.asarray(array)
    meta = metadata.mapping_of(like)
    encoder = _encoder(path, array)
    _check_target(path, meta.get("path"), overwrite)
    channels = 1 if array.ndim == 2 else array.shape[2]
    pixels = _with_alpha(path, array, meta.get("alpha"))
    exif = metadata.stamped(meta.get("exif") or b"")
    icc = metadata.fitting_icc(meta.get("icc"), channels)
    try:
        with quiet():
            data = encoder(path, pixels, exif, icc, quality)
    except (OSError, MemoryError) as error:
        raise Failure(f"{quoted(path)}: could not be written ({one_line(error)})") from error
    replace_file(path, data)


def dtypes_for(path: Any) -> tuple[str, ...]:
    """List the dtypes that a file's extension can hold, shallowest first; none if not writable."""
    return _ENCODERS[extension][1] if (extension := Path(path).suffix.lower()) in _ENCODERS else ()


def _encoder(path: Path, array: np.ndarray) -> Callable[..., bytes]:
    extension = path.suffix.lower()
    if extension not in _ENCODERS:
        known = " ".join(_ENCODERS)
        raise Error(f"{quoted(path)}: cannot write {extension or 'no extension'!r}; use {known}")
    encoder, dtypes = _ENCODERS[extension]
    if array.dtype.name not in dtypes:
        raise Error(
            f"{quoted(path)}: {array.dtype} does not go into {extension}, which takes "
            f"{' or '.join(dtypes)}; convert it with from_float(image, '{dtypes[-1]}')"
            + (" or write .tif" if array.dtype.name in _ENCODERS[".tif"][1] else "")
        )
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3)):
        raise Error(
            f"{quoted(path)}: shape {array.shape}; it must be H,W, H,W,1 or H,W,3; alpha goes into "
            "like={'alpha': ...}"
        )
    if array.size == 0 or max(array.shape[:2]) > _SIDES.get(extension, 2**31):
        raise Error(f"{quoted(path)}: shape {array.shape} does not fit {extension}; write .png")
    return encoder


def _check_target(path: Path, source: Any, overwrite: bool) -> None:
    with blamed(path):
        folder = path.parent.is_dir()
    if not folder:
        raise Error(f"{quoted(path)}: its folder does not exist; make it first")
    if path.is_dir():
        raise Error(f"{quoted(path)}: is a folder; name a file in it")
    if source and _same(path, Path(source)):
        raise Error(f"{quoted(path)}: is the picture that was read; choose another name")
    if os.path.lexists(path) and not overwrite:
        raise Error(f"{quoted(path)}: exists; say overwrite=True (--overwrite) to replace it")


def _same(path: Path, source: Path) -> bool:
    try:
        return os.path.samefile(path, source)
    except OSError:  # one of them does not exist
        return os.path.realpath(path) == os.path.realpath(source)


def _with_alpha(path: Path, array: np.ndarray, alpha: Any) -> np.ndarray:
    """Return H,W or H,W,C with alpha as the last channel, in the array's dtype."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if alpha is None or path.suffix.lower() in (".jpg", ".jpeg"):
        return np.ascontiguousarray(array)
    alpha = np.asarray(alpha)
    if alpha.shape != array.shape[:2]:
        raise Error(
            f"{quoted(path)}: alpha is {alpha.shape}, the picture {array.shape[:2]}; cut it alike, "
            "or leave it out with {**like.meta, 'alpha': None}"
        )
    if alpha.dtype != array.dtype:
        alpha = values.from_float(values.to_float(alpha)[..., 0], array.dtype)
    return np.dstack([array, alpha])


def replace_file(path: Path, data: bytes) -> None:
    """Write a whole file aside, flush it and rename it: the old one or the new one, never half.

    Failure where the disk refuses, with the space that is needed; nothing is left behind then.
    """
    # A short name of its own, since the picture's may already have the longest length; hidden, so
    # that what a killed process leaves behind is never taken for a frame.
    aside = path.with_name(f".n2n-{secrets.token_hex(8)}.part")
    try:
        with open(aside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        _forget(aside)
        raise Failure(refusal(path, error, len(data))) from error
    except BaseException:
        _forget(aside)
        raise
    _settle(path.parent)


def refusal(path: Path, error: OSError, size: int) -> str:
    """Say in one line that a file of `size` bytes was not written, and why."""
    free = ""
    if error.errno == errno.ENOSPC:
        with contextlib.suppress(OSError):
            free = f", {_megabytes(shutil.disk_usage(path.parent).free)} are free"
    reason = error.strerror or one_line(error)
    return f"cannot write {quoted(path)} ({_megabytes(size)}{free}): {reason}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.{3 if size < 1e5 else 1}f} MB"


def _forget(aside: Path) -> None:
    with contextlib.suppress(OSError):  # what made the writing fail is what has to be told
        aside.unlink(missing_ok=True)


def _settle(folder: Path) -> None:
    """Let a rename reach the disk; where folders cannot be flushed, the system does so in time."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _imageio(pixels: np.ndarray, extension: str, **options: Any) -> bytes:
    import imageio.v3 as imageio

    options = {name: value for name, value in options.items() if value is not None}
    return imageio.imwrite(
        "<bytes>", pixels, extension=extension, plugin="pillow", is_batch=False, **options
    )


def _png(path: Path, pixels: np.ndarray, exif: bytes, icc: bytes | None, quality: int) -> bytes:
    del quality
    if pixels.dtype == np.uint8:
        return _imageio(pixels, ".png", exif=exif, icc_profile=icc)
    return _deep_png(path, pixels, exif, icc)


def _deep_png(path: Path, pixels: np.ndarray, exif: bytes, icc: bytes | None) -> bytes:
    cv2 = opencv()
    if pixels.ndim == 3 and pixels.shape[2] == 2:  # cv2 cannot write grey with alpha
        pixels, icc = pixels[..., [0, 0, 0, 1]], None
    blocks = [(cv2.IMAGE_METADATA_EXIF, metadata.bare(exif)), (cv2.IMAGE_METADATA_ICCP, icc)]
    kinds = [kind for kind, block in blocks if block]
    arrays = [np.frombuffer(block, np.uint8) for _, block in blocks if block]
    bgr = np.ascontiguousarray(tiff.from_bgr(pixels))
    done, data = cv2.imencodeWithMetadata(".png", bgr, kinds, arrays)
    if not done:
        raise Error(f"{quoted(path)}: shape {pixels.shape} cannot be encoded; write .tif")
    return data.tobytes()


def _tiff(path: Path, pixels: np.ndarray, exif: bytes, icc: bytes | None, quality: int) -> bytes:
    del path, quality
    return tiff.encode(pixels, exif, icc, alpha=pixels.ndim == 3 and pixels.shape[2] in (2, 4))


def _jpeg(path: Path, pixels: np.ndarray, exif: bytes, icc: bytes | None, quality: int) -> bytes:
    del path
    if len(exif) > _JPEG_EXIF:
        exif = metadata.without_maker_note(exif)
    if len(exif) > _JPEG_EXIF:
        exif = metadata.stamped(b"")
    options = {"exif": exif, "icc_profile": icc, "quality": quality, "subsampling": "4:4:4"}
    return _imageio(pixels, ".jpg", **options)


def _webp(path: Path, pixels: np.ndarray, exif: bytes, icc: bytes | None, quality: int) -> bytes:
    del path, quality
    if pixels.ndim == 3 and pixels.shape[2] == 2:
        pixels, icc = pixels[..., [0, 0, 0, 1]], None
    # exact: without it libwebp discards the colours of transparent pixels.
    return _imageio(pixels, ".webp", exif=exif, icc_profile=icc, lossless=True, exact=True)


_ENCODERS: dict[str, tuple[Callable[..., bytes], tuple[str, ...]]] = {
    ".png": (_png, ("uint8", "uint16")),
    ".tif": (_tiff, ("uint8", "uint16", "float32")),
    ".tiff": (_tiff, ("uint8", "uint16", "float32")),
    ".jpg": (_jpeg, ("uint8",)),
    ".jpeg": (_jpeg, ("uint8",)),
    ".webp": (_webp, ("uint8",)),
}
WRITABLE = frozenset(_ENCODERS)
