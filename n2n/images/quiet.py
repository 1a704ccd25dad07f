"""Decoders kept off the screen, and their exceptions turned into one line."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

from n2n.types import Error

PIXELS = 1_000_000_000
"""Largest picture read, all pages together: medium-format and stitched photographs stay below, and
a decompression bomb of a few bytes does not take the memory of the machine."""
BYTES = 4 * 2**30
"""Largest decoded size: what a computer with 8 GB can hold beside a float32 copy in tiles."""

_lock = threading.Lock()
_users = 0
_silence = contextlib.ExitStack()


def quoted(path: Any) -> str:
    """Show a file name on one line, whatever characters it holds."""
    return repr(os.fspath(path))


def one_line(error: BaseException) -> str:
    """Return an exception's text without line breaks, at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def check_size(
    path: Any, width: int, height: int, channels: int, itemsize: int = 1, pages: int = 1
) -> None:
    """Refuse a declared size beyond `PIXELS` or `BYTES`, before anything is decoded."""
    if min(width, height, channels) < 1:
        raise Error(f"{quoted(path)}: declares {width} x {height} x {channels}, an empty picture")
    pixels = width * height * pages
    if pixels > PIXELS or pixels * channels * itemsize > BYTES:
        size = f"{pages} x " * (pages > 1) + f"{width} x {height} pixels, {channels} channel(s)"
        raise too_large(path, size)


def too_large(path: Any, declared: str) -> Error:
    """Say that a file declares more than `PIXELS` or `BYTES`."""
    return Error(
        f"{quoted(path)}: declares {declared}; the limit is {PIXELS // 10**6:,} megapixels and "
        f"{BYTES // 2**30} GB; cut it into smaller files"
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings, loggers and the C libraries' stderr, and lift Pillow's limit to ours.

    All of these belong to the whole process: the first thread in sets them, the last one out
    restores them.
    """
    global _users
    with _lock:
        if _users == 0:
            _enter(_silence)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _silence.close()


@contextlib.contextmanager
def blamed(path: Any) -> Iterator[None]:
    """Turn whatever a decoder raises into one `Error` that names the file."""
    try:
        yield
    except Error:
        raise
    except Exception as error:  # decoders of strange files raise anything
        unknown = type(error).__name__ == "UnidentifiedImageError"  # its text repeats the name
        reason = "unknown format" if unknown else one_line(error)
        raise Error(
            f"{quoted(path)}: cannot be read ({reason}); the file is damaged, truncated or not a "
            "picture that n2n knows; export it as PNG or TIFF"
        ) from error


def _enter(stack: contextlib.ExitStack) -> None:
    stack.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")
    for name in ("PIL", "tifffile", "imageio", "pillow_heif"):
        logger = logging.getLogger(name)
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.CRITICAL + 1)
    _raise_limit(stack)
    _redirect(stack)


def _raise_limit(stack: contextlib.ExitStack) -> None:
    from PIL import Image

    stack.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    Image.MAX_IMAGE_PIXELS = PIXELS // 2  # Pillow raises at twice this number


def _redirect(stack: contextlib.ExitStack) -> None:
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
    try:
        saved = os.dup(2)
    except OSError:  # no stderr, as under pythonw or a daemon
        return
    stack.callback(os.close, saved)
    stack.callback(os.dup2, saved, 2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def opencv() -> Any:
    """Import cv2 without its messages; an `Error` with advice where it is missing."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
    try:
        import cv2
    except ImportError as error:
        raise Error(
            f"cv2: cannot be imported ({one_line(error)}); opencv-python installed beside "
            "opencv-python-headless and removed leaves no cv2; run "
            "`pip install --force-reinstall opencv-python-headless`"
        ) from error
    return cv2


def photo_extra(path: Any, kind: str, module: str) -> Any:
    """Import a reader of the `photo` extra; an `Error` naming the extra where it is missing."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Error(
            f"{quoted(path)}: {kind} files need {module}; run `pip install 'n2n[photo]'`"
        ) from error
