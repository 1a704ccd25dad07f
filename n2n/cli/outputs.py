"""Where results go: everything that can be refused is refused before any work is done."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from n2n.cli.screen import write
from n2n.types import Error

_DEPTHS = {
    ".png": ("uint16", "uint8"),
    ".tif": ("uint16", "uint8", "float32"),
    ".tiff": ("uint16", "uint8", "float32"),
    ".jpg": ("uint8",),
    ".jpeg": ("uint8",),
    ".webp": ("uint8",),
}
"""What each format holds, the first of them preferred for a burst."""
_BITS = {8: "uint8", 16: "uint16", 32: "float32"}


def check(path: Path, *, overwrite: bool, sources: Iterable[Path] = ()) -> None:
    """Refuse a file that cannot or must not be written: an input always, others if they exist."""
    if any(same(path, source) for source in sources):
        raise Error(f"{quoted(path)}: is one of the pictures to read or write; choose another name")
    if path.is_dir():
        raise Error(f"{quoted(path)}: is a folder; name a file in it, or end it with a slash")
    if os.path.lexists(path) and not overwrite:
        raise Error(f"{quoted(path)}: exists; choose another output, or say --overwrite")


def prepare_folder(path: Path, out: str | None) -> None:
    """Make the folder that `-o FOLDER/` names; other folders must exist.

    Raises:
        Error: there is no such folder.
    """
    if out is not None and Path(out) != path:
        path.parent.mkdir(parents=True, exist_ok=True)
    if not path.parent.is_dir():
        raise Error(f"{quoted(path)}: its folder does not exist; make it first")


def check_folder(path: Path, out: str | None) -> None:
    """Refuse a file in a folder that neither exists nor will be made by `prepare_folder`."""
    if (out is None or Path(out) == path) and not path.parent.is_dir():
        raise Error(f"{quoted(path)}: its folder does not exist; make it first")


def dtype_for(path: Path, bits: int | None) -> str:
    """Return the dtype of a burst's result: what `--bits` says, else the format's deepest integer.

    Raises:
        Error: the format cannot be written, or does not hold so many bits.
    """
    held = _DEPTHS.get(path.suffix.lower())
    if held is None:
        known = " ".join(_DEPTHS)
        raise Error(f"{quoted(path)}: cannot write {path.suffix or 'no extension'!r}; use {known}")
    if bits is None:
        return held[0]
    if _BITS[bits] not in held:
        fits = " or ".join(str(b) for b, name in _BITS.items() if name in held)
        raise Error(f"--bits {bits} does not go into {path.suffix}, which holds {fits}")
    return _BITS[bits]


def bits(dtype: str) -> int:
    """Return how many bits a value of this dtype has."""
    return next(bits for bits, name in _BITS.items() if name == dtype)


def nearest_dtype(path: Path, dtype: Any) -> str:
    """Return the dtype in which a format holds a picture of `dtype` with the least loss."""
    held = _DEPTHS.get(path.suffix.lower(), ())
    name = str(dtype)
    if name in held or not held:
        return name
    return "float32" if name.startswith("float") and "float32" in held else held[0]


def same(path: Path, other: Path) -> bool:
    """Say whether two paths are one file."""
    try:
        return os.path.samefile(path, other)
    except OSError:
        return os.path.realpath(path) == os.path.realpath(other)


def quoted(path: Any) -> str:
    """Show a file name on one line, whatever characters it holds."""
    return repr(os.fspath(path))


def check_json(target: str | None, *, overwrite: bool, sources: Iterable[Path] = ()) -> None:
    """Refuse a `--json` file that must not be written."""
    if target is not None and target != "-":
        check(Path(target), overwrite=overwrite, sources=sources)
        check_folder(Path(target), target)


def check_report(target: str | None, *, overwrite: bool, sources: Iterable[Path] = ()) -> None:
    """Refuse a `--report` file that is no page, or must not be written."""
    if target is None:
        return
    if Path(target).suffix.lower() not in (".html", ".htm"):
        raise Error(f"--report {quoted(target)}: a report is a page; name a file ending in .html")
    check(Path(target), overwrite=overwrite, sources=sources)
    check_folder(Path(target), target)


def write_json(target: str | None, facts: Any) -> None:
    """Write facts as JSON to a file, to stdout (`-`) or nowhere; inf and nan become null."""
    if target is None:
        return
    text = json.dumps(plain(facts), indent=2, allow_nan=False)
    if target == "-":
        write(text)
        return
    from n2n import images

    images.replace_file(Path(target), (text + "\n").encode())


def plain(facts: Any) -> Any:
    """Return facts as JSON knows them."""
    if isinstance(facts, float):
        return facts if math.isfinite(facts) else None
    if isinstance(facts, dict):
        return {str(name): plain(value) for name, value in facts.items()}
    if hasattr(facts, "_asdict"):
        return plain(facts._asdict())
    if isinstance(facts, list | tuple):
        return [plain(value) for value in facts]
    return facts if isinstance(facts, str | int | bool | None) else str(facts)
