"""Weights and run state on disk: dicts of arrays with JSON beside them, safetensors, no pickle.

A file is written aside, flushed and renamed, so that a reader finds the old file or the new one
and never half of either. Nothing here knows a network, a task or an optimizer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from n2n.images import refusal, replace_file
from n2n.types import Error, Failure

FORMAT = 1
PART = ".n2n-result.part"
"""Name of a result that grows in a run's folder; `remove` takes it away."""
_KEY = "n2n"
_BEYOND = 1 << 20
"""Byte of a lock file that Windows locks."""


def flatten(tree: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """Return the arrays of nested dicts under "/"-joined names."""
    if not isinstance(tree, Mapping):
        return {prefix: np.asarray(tree)}
    flat: dict[str, np.ndarray] = {}
    for name, branch in tree.items():
        flat |= flatten(branch, f"{prefix}/{name}" if prefix else str(name))
    return flat


def fill(template: Any, arrays: Mapping[str, np.ndarray], *, grow: bool = False) -> Any:
    """Return nested dicts shaped as `template` with the values of `arrays`.

    Args:
        template: nested dicts whose leaves have a shape and a dtype.
        arrays: values under "/"-joined names, as `flatten` gives them.
        grow: allow convolutions that read more channels than the stored ones; the new ones start
            at zero, those of a joined skip included.

    Raises:
        Error: a name is missing or superfluous, or a shape differs.
    """
    wanted = flatten_shapes(template)
    strangers = sorted(set(arrays) ^ set(wanted))
    if strangers:
        raise Error(f"weights differ from the network in {strangers[0]!r}; use the same network")
    return _fill(template, arrays, "", grow)


def flatten_shapes(tree: Any, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """Return the shapes of nested dicts' leaves under "/"-joined names."""
    if not isinstance(tree, Mapping):
        return {prefix: tuple(tree.shape)}
    flat: dict[str, tuple[int, ...]] = {}
    for name, branch in tree.items():
        flat |= flatten_shapes(branch, f"{prefix}/{name}" if prefix else str(name))
    return flat


def _fill(template: Any, arrays: Mapping[str, np.ndarray], prefix: str, grow: bool) -> Any:
    if isinstance(template, Mapping):
        return {
            name: _fill(branch, arrays, f"{prefix}/{name}" if prefix else str(name), grow)
            for name, branch in template.items()
        }
    value = arrays[prefix]
    if value.shape != tuple(template.shape):
        value = (
            _grown(prefix, value, tuple(template.shape))
            if grow
            else _differs(prefix, value, template)
        )
    return np.asarray(value, dtype=template.dtype)


def _grown(name: str, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Append zero input channels (axis -2 of a kernel h,w,ci,co)."""
    fits = value.ndim == len(shape) == 4 and value.shape[-2] < shape[-2]
    if not fits or value.shape[:-2] + value.shape[-1:] != shape[:-2] + shape[-1:]:
        raise Error(
            f"weights {name!r} have shape {value.shape}, the network wants {shape}; only further "
            "input channels can be added"
        )
    more = [(0, 0), (0, 0), (0, shape[-2] - value.shape[-2]), (0, 0)]
    return np.pad(value, more)


def _differs(name: str, value: np.ndarray, template: Any) -> np.ndarray:
    raise Error(
        f"weights {name!r} have shape {value.shape}, the network wants {tuple(template.shape)}; "
        "use the same network"
    )


def save(path: Path | str, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    """Write arrays and their JSON facts as one safetensors file, atomically; equal in, equal out.

    Raises:
        Failure: the disk refuses.
    """
    text = json.dumps({"format": FORMAT, **meta}, sort_keys=True)
    ordered = {name: np.asarray(arrays[name], order="C") for name in sorted(arrays)}
    data = safetensors.numpy.save(ordered, metadata={_KEY: text})
    replace_file(Path(path), data)


def load(path: Path | str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read the arrays and the JSON facts that `save` wrote.

    Raises:
        Error: the file is missing, broken, not n2n's, or of a newer version.
    """
    path = Path(path)
    try:
        with safetensors.safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get(_KEY)
            meta = json.loads(text) if text else None
            arrays = {name: file.get_tensor(name) for name in file.keys()} if meta else {}
    except (FileNotFoundError, IsADirectoryError):
        raise Error(f"model file {str(path)!r} does not exist; give a .safetensors file") from None
    except (OSError, ValueError, RecursionError, TypeError, safetensors.SafetensorError):
        # TypeError: numbers that numpy does not know; RecursionError: JSON that is nothing but [.
        raise Error(f"{str(path)!r} is no n2n model file, or a broken one; get it anew") from None
    if not isinstance(meta, dict):
        raise Error(
            f"{str(path)!r} is a safetensors file, but not n2n's: it says nothing of a network"
        )
    if meta.get("format") != FORMAT:
        raise Error(
            f"{str(path)!r} has format {meta.get('format')!r}, this n2n reads {FORMAT}; update n2n"
        )
    return arrays, meta


class Run:
    """Keep a run's state beside its output in OUT.run/: checkpoint, log.jsonl, lock.

    With `writes` False it is only read: one process of several writes.

    Raises:
        Error: another live process holds the folder, or a run is there and `resume` is False.
    """

    def __init__(self, out: Path | str, *, resume: bool = False, writes: bool = True):
        self.folder, self.writes = _folder(out), writes
        self.checkpoint = self.folder / "checkpoint.safetensors"
        if writes:
            self._make()
            self._lock()
        if self.checkpoint.exists() and not resume:
            self.unlock()
            raise Error(
                f"{str(self.folder)!r} holds an unfinished run; continue it with --resume "
                "(resume=True) or delete that folder"
            )

    def _make(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Error(
                f"cannot make {str(self.folder)!r}: {error.strerror}; choose another output"
            ) from None
        # What is written there must not land where somebody's link leads.
        links = [path for path in (self.folder, *self.folder.iterdir()) if path.is_symlink()]
        if links:
            raise Error(
                f"{str(links[0])!r} is a symbolic link, which runs do not follow; delete it or "
                "choose another output"
            )

    @property
    def _lockfile(self) -> Path:
        return self.folder / "lock"

    def _lock(self) -> None:
        """Hold the folder by a lock of the system, which ends with the process, however it ends."""
        for _ in range(3):
            self._handle = os.open(self._lockfile, os.O_CREAT | os.O_RDWR, 0o644)
            if not _seized(self._handle):
                busy = _busy(self.folder, self._handle)
                os.close(self._handle)
                raise busy
            if _same_file(self._handle, self._lockfile):
                with suppress(OSError):  # the number is for people; the lock holds without it
                    os.ftruncate(self._handle, 0)
                    os.write(self._handle, str(os.getpid()).encode())
                return
            os.close(self._handle)  # the one who held it has just taken it away
        raise Error(f"cannot lock {str(self.folder)!r}; try again")

    def unlock(self) -> None:
        """Give the folder free for another process."""
        if not self.writes:
            return
        if os.name == "nt":  # there, an open file cannot be deleted
            os.close(self._handle)
            with suppress(OSError):
                self._lockfile.unlink()
        else:
            self._lockfile.unlink(missing_ok=True)
            os.close(self._handle)

    def save(self, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        """Replace the checkpoint; Failure where the disk refuses, and the last one stays."""
        if not self.writes:
            return
        try:
            save(self.checkpoint, arrays, meta)
        except Failure as failure:
            raise self._unsaved(failure) from failure

    def _unsaved(self, failure: Failure) -> Failure:
        if not self.checkpoint.exists():
            return failure
        return Failure(f"{failure}; the last checkpoint stays: make room and go on with --resume")

    def load(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Return the checkpoint's arrays and facts, or None where there is none."""
        return load(self.checkpoint) if self.checkpoint.exists() else None

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one line to log.jsonl."""
        if not self.writes:
            return
        line, path = json.dumps(row) + "\n", self.folder / "log.jsonl"
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise self._unsaved(Failure(refusal(path, error, len(line)))) from error


def remove(out: Path | str) -> None:
    """Delete the finished run beside `out`; somebody else's files in its folder stay."""
    folder = _folder(out)
    names = ("checkpoint.safetensors", "log.jsonl", "lock")
    for path in (*folder.glob(".n2n-*.part"), *(folder / name for name in names)):
        path.unlink(missing_ok=True)
    try:
        folder.rmdir()
    except OSError:
        pass  # not empty, or not there


def unfinished(out: Path | str) -> bool:
    """Say whether a run that can be continued stands beside `out`."""
    return (_folder(out) / "checkpoint.safetensors").exists()


def _folder(out: Path | str) -> Path:
    out = Path(out)
    return out.with_name(out.name + ".run")


@contextmanager
def running(
    out: Path | str | None, *, resume: bool = False, writes: bool = True
) -> Iterator[Run | None]:
    """Open the run beside `out` for as long as the block lasts; None where nothing is kept."""
    if out is None:
        yield None
        return
    run = Run(out, resume=resume, writes=writes)
    try:
        yield run
    finally:
        run.unlock()


def check_free(out: Path | str) -> None:
    """Refuse an output whose run another process holds, before work that would be for nothing.

    Raises:
        Error: it is in use.
    """
    try:
        handle = os.open(_folder(out) / "lock", os.O_RDWR)
    except OSError:  # nobody has begun
        return
    try:
        if not _seized(handle):
            raise _busy(_folder(out), handle)
    finally:
        os.close(handle)


def _busy(folder: Path, handle: int) -> Error:
    owner = os.read(handle, 20).decode("ascii", "replace").strip() or "another"
    return Error(
        f"{str(folder)!r} is in use by process {owner}; wait for it or choose another output"
    )


def _seized(handle: int) -> bool:
    """Lock an open file for this process alone, or say that another has done so."""
    if os.name == "nt":
        import msvcrt

        os.lseek(handle, _BEYOND, os.SEEK_SET)  # there, a locked byte cannot be read
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        finally:
            os.lseek(handle, 0, os.SEEK_SET)
        return True
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _same_file(handle: int, path: Path) -> bool:
    """Say whether an open file still has its name."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
