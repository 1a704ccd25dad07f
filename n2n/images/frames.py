"""Which files are frames, in which order, and where results go."""

from __future__ import annotations

import glob
import importlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from n2n.images import metadata
from n2n.images.quiet import blamed, quoted
from n2n.images.raw import RAW
from n2n.images.reading import HEIF, software
from n2n.images.writing import WRITABLE
from n2n.types import Error

_PLAIN = WRITABLE | {".bmp", ".ppm", ".pgm", ".pnm"}
_KINDS = ((RAW, "rawpy"), (HEIF, "pillow_heif"), (frozenset((".jpg", ".jpeg")), "PIL"))
"""What cameras write of one shot, the best first, and the modules that read it."""


def is_picture(path: Any) -> bool:
    """Say by its extension whether a file is a picture, RAW and HEIC included."""
    return Path(path).suffix.lower() in _PLAIN | RAW | HEIF


def frames_in(paths: Any, *, below: bool = False) -> list[Path]:
    """List the picture files that files, folders and glob patterns stand for, in order.

    Named files stay in the order given. Of a folder: its pictures in natural order (IMG_2 before
    IMG_10), without hidden files and n2n's own results. Of pictures of the same stem RAW wins over
    HEIF and HEIF over JPEG, if it can be read; the others are not listed. `below`: also those of
    the folders in it, at any depth, except hidden ones, n2n's runs (*.run) and links. Raises Error
    for what is missing and for folders without pictures.
    """
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    if not given:
        raise Error("frames: none are given; name files or a folder")
    return [frame for path in given for frame in _frames(path, below)]


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


def _frames(path: Any, below: bool) -> Iterator[Path]:
    with blamed(path):
        if Path(path).is_dir():
            yield from _frames_of_folder(Path(path), below)
        elif Path(path).exists():
            yield Path(path)
        else:
            yield from _expanded(path, below)


def _expanded(pattern: Any, below: bool) -> Iterator[Path]:
    """Expand a glob that the shell has left alone, as Windows' does."""
    matches = glob.glob(os.fspath(pattern)) if glob.has_magic(os.fspath(pattern)) else []
    if not matches:
        raise Error(f"{quoted(pattern)}: no such file or folder; check the name")
    for match in sorted(matches, key=natural):
        yield from _frames(match, below)


def _frames_of_folder(folder: Path, below: bool) -> list[Path]:
    folders = [folder, *_folders_below(folder)] if below else [folder]
    pictures = [file for each in folders for file in _pictures_of(each)]
    if not pictures:
        raise Error(f"{quoted(folder)}: holds no pictures; name a folder of pictures, or files")
    frames = [file for file in pictures if not metadata.is_ours(software(file))]
    if not frames:
        raise Error(
            f"{quoted(folder)}: all {len(pictures)} pictures in it are results of n2n; name a "
            "folder of frames, or the files"
        )
    return _without_doubles(frames)


def _folders_below(folder: Path) -> Iterator[Path]:
    """Walk all visible folders in a folder, in natural order; one that cannot be read is none."""
    for here, inner, _ in os.walk(folder):
        seen = (name for name in inner if not name.startswith(".") and not name.endswith(".run"))
        inner[:] = sorted(seen, key=natural)
        if Path(here) != folder:
            yield Path(here)


def _pictures_of(folder: Path) -> list[Path]:
    files = (file for file in folder.iterdir() if _is_visible_picture(file))
    return sorted(files, key=lambda file: natural(file.name))


def _is_visible_picture(file: Path) -> bool:
    return not file.name.startswith(".") and is_picture(file) and file.is_file()


def _without_doubles(files: Sequence[Path]) -> list[Path]:
    shots: dict[tuple[Path, str], list[Path]] = {}
    for file in files:
        shots.setdefault(_shot_of(file), []).append(file)
    return [file for file in files if file in _best(shots[_shot_of(file)])]


def _shot_of(file: Path) -> tuple[Path, str]:
    return file.parent, file.stem.casefold()


def _best(files: list[Path]) -> list[Path]:
    """Drop the HEIFs and JPEGs of one shot beside its RAW, and the JPEGs beside its HEIF.

    What cannot be read drops nothing that can be.
    """
    there = [kind for kind in _KINDS if any(_extension(file) in kind[0] for file in files)]
    if len(there) < 2:
        return files
    winner = next((kind for kind, module in there if _imports(module)), there[0][0])
    losers = frozenset().union(*(kind for kind, _ in there)) - winner
    return [file for file in files if _extension(file) not in losers]


def _extension(file: Path) -> str:
    return file.suffix.lower()


def _imports(module: str) -> bool:
    try:
        return bool(importlib.import_module(module))
    except ImportError:
        return False


def natural(name: str) -> tuple[list[Any], str]:
    """Return a sorting key by which IMG_2 comes before IMG_10."""
    parts = re.split(r"([0-9]+)", name.casefold())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name
