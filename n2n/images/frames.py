"""Which files are frames, in which order, and where results go."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from n2n.images import metadata
from n2n.images.quiet import blamed, quoted
from n2n.images.raw import RAW
from n2n.images.reading import HEIF, software
from n2n.images.writing import WRITABLE
from n2n.types import Error

_PLAIN = WRITABLE | {".bmp", ".ppm", ".pgm", ".pnm"}
_JPEG = (".jpg", ".jpeg")


def is_picture(path: Any) -> bool:
    """Say by its extension whether a file is a picture, RAW and HEIC included."""
    return Path(path).suffix.lower() in _PLAIN | RAW | HEIF


def frames_in(paths: Any) -> list[Path]:
    """List the picture files that files, folders and glob patterns stand for, in order.

    Named files stay in the order given. Of a folder: its pictures in natural order (IMG_2 before
    IMG_10), without hidden files and n2n's own results; RAW wins over a JPEG of the same stem if
    it can be read. Raises Error for what is missing and for folders without pictures.
    """
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not given:
        raise Error("frames: none are given; name files or a folder")
    return [frame for path in given for frame in _frames(path)]


def output_path(
    source: Any,
    out: Any = None,
    *,
    suffix: str = "-n2n",
    extension: str | None = None,
    several: bool = False,
) -> Path:
    """Name the result of a source: beside it as <stem>-n2n.<ext>, in the folder out, or out itself.

    out is a folder when it is one, ends in a slash, or there are several inputs. extension, or the
    source's own, is kept if it can be written, else it is .png. Raises Error if several results
    would go into one file.
    """
    source = Path(source)
    wanted = source.suffix if extension is None else "." + extension.lstrip(".")
    wanted = wanted if wanted.lower() in WRITABLE else ".png"
    name = source.stem + suffix + wanted
    if out is None:
        return source.with_name(name)
    if several and Path(out).exists() and not Path(out).is_dir():
        raise Error(f"{quoted(out)}: is a file, but there are several inputs; name a folder")
    return Path(out) / name if several or _is_folder(out) else Path(out)


def _is_folder(out: Any) -> bool:
    separators = tuple(filter(None, ("/", os.sep, os.altsep)))
    return os.fspath(out).endswith(separators) or Path(out).is_dir()


def _frames(path: Any) -> Iterator[Path]:
    with blamed(path):
        if Path(path).is_dir():
            yield from _frames_of_folder(Path(path))
        elif Path(path).exists():
            yield Path(path)
        else:
            yield from _expanded(path)


def _expanded(pattern: Any) -> Iterator[Path]:
    """Expand a glob that the shell has left alone, as Windows' does."""
    matches = glob.glob(os.fspath(pattern)) if glob.has_magic(os.fspath(pattern)) else []
    if not matches:
        raise Error(f"{quoted(pattern)}: no such file or folder; check the name")
    for match in sorted(matches, key=natural):
        yield from _frames(match)


def _frames_of_folder(folder: Path) -> list[Path]:
    pictures = [file for file in folder.iterdir() if _is_visible_picture(file)]
    if not pictures:
        raise Error(f"{quoted(folder)}: holds no pictures; name a folder of pictures, or files")
    frames = [file for file in pictures if not metadata.is_ours(software(file))]
    if not frames:
        raise Error(
            f"{quoted(folder)}: all {len(pictures)} pictures in it are results of n2n; name a "
            "folder of frames, or the files"
        )
    return sorted(_without_doubles(frames), key=lambda file: natural(file.name))


def _is_visible_picture(file: Path) -> bool:
    return not file.name.startswith(".") and is_picture(file) and file.is_file()


def _without_doubles(files: Iterable[Path]) -> list[Path]:
    """Drop JPEGs that stand beside a RAW of the same stem, or such RAWs if they cannot be read."""
    files = list(files)
    raws = {file.stem.casefold() for file in files if file.suffix.lower() in RAW}
    jpegs = {file.stem.casefold() for file in files if file.suffix.lower() in _JPEG}
    both, loser = raws & jpegs, _JPEG if _reads_raw() else RAW
    return [f for f in files if f.stem.casefold() not in both or f.suffix.lower() not in loser]


def _reads_raw() -> bool:
    try:
        import rawpy
    except ImportError:
        return False
    return bool(rawpy)


def natural(name: str) -> tuple[list[Any], str]:
    """Return a sorting key by which IMG_2 comes before IMG_10."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name
