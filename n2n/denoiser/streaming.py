"""Pictures larger than the memory: read, denoised and written by rows of tiles, resumable.

The result grows in `OUT.run/`, beside a checkpoint of how far it has come, and is renamed at the
end. Its bytes are those of the picture denoised in memory, however often it was stopped.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from n2n import checkpoints, images
from n2n import predict as prediction
from n2n.denoiser.model import Denoiser
from n2n.types import Error, Failure


def stream(
    model: Denoiser,
    source: images.TiffRows,
    out: Path,
    *,
    strength: float = 1.0,
    data_range: Any = None,
    tile: int | None = None,
    dtype: str | None = None,
    resume: bool = False,
    progress: prediction.Progress | None = None,
) -> None:
    """Denoise a TIFF of any size into a file of the same kind, in constant memory.

    Args:
        model: what to denoise with.
        source: the picture; its strips or tiles are decoded as they are needed.
        out: the file to write; an existing one is replaced.
        strength: share of what the network removes that is really removed.
        data_range: (low, high) or high of black and white, where the file does not say.
        tile: side in pixels that the network sees at once; a resumed run keeps its own.
        dtype: of the result; None: the source's.
        resume: continue the run in `OUT.run/`, if there is one.
        progress: called with (tiles done, tiles in all) of what is left.

    Raises:
        Error: the picture or an option breaks its rule, or the run was begun with others.
        Failure: the disk refuses; the run can be continued.
    """
    dtype = dtype or source.dtype.name
    facts = _facts(model, source, strength, data_range, tile, dtype)
    with checkpoints.running(out, resume=resume) as run:
        assert run is not None
        part = run.folder / checkpoints.PART
        try:
            state = _state(run, part, facts) or _fresh(model, source, part, tile, dtype)
            bands = model.bands(
                source,
                strength=strength,
                data_range=data_range,
                tile=state["side"],
                start=state["rows"],
                progress=progress,
            )
            with part.open("r+b") as file:
                for y, rows in bands:
                    pixels = _stored(source, y, rows, dtype, data_range)
                    file.seek(state["offset"] + y * pixels[0].nbytes)
                    file.write(pixels.data)
                    file.flush()
                    os.fsync(file.fileno())  # before the checkpoint says that they are there
                    run.save({}, facts | state | {"rows": y + len(rows)})
            os.replace(part, out)
        except OSError as error:
            size = int(np.prod(source.shape)) * np.dtype(dtype).itemsize
            text = images.refusal(out, error, size)
            raise Failure(f"{text}; make room and go on with --resume") from error
    checkpoints.remove(out)


def _facts(
    model: Denoiser,
    source: images.TiffRows,
    strength: float,
    data_range: Any,
    tile: Any,
    dtype: str,
) -> dict[str, Any]:
    """Return what a run must have in common with the one that it continues."""
    from n2n import __version__

    stat = source.path.stat()
    return {
        "picture": [source.path.name, stat.st_size, stat.st_mtime_ns],
        "model": _digest(model),
        "strength": strength,
        "data range": None if data_range is None else list(images.ends(dtype, data_range)),
        "tile": tile,
        "dtype": dtype,
        "n2n": __version__,
    }


def _digest(model: Denoiser) -> str:
    """Return what tells a model from others: a hash of network, scale and weights."""
    known = hashlib.sha256(repr((sorted(model.network.config.items()), model.scale)).encode())
    for name, array in sorted(checkpoints.flatten(jax.device_get(model.params)).items()):
        known.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return known.hexdigest()[:16]


def _state(run: checkpoints.Run, part: Path, facts: dict[str, Any]) -> dict[str, Any] | None:
    """Return how far an unfinished run has come, None where there is none.

    Raises:
        Error: it was begun with other facts.
    """
    found = run.load()
    if found is None or not part.exists():
        return None
    meta = found[1]
    for name, value in facts.items():
        if meta.get(name) != value:
            raise Error(
                f"{str(run.folder)!r} was begun with {name} {meta.get(name)!r}, now it is "
                f"{value!r}; take the same, or delete that folder"
            )
    return {name: meta[name] for name in ("side", "offset", "rows")}


def _fresh(
    model: Denoiser, source: images.TiffRows, part: Path, tile: int | None, dtype: str
) -> dict[str, Any]:
    """Begin: choose the tile and make a file of zeros."""
    side = model.side(source.shape, tile)
    if side is None:
        raise Error("the model sees pictures whole, it cannot work in pieces; take another --model")
    alpha = source.alpha(slice(0, 1)) is not None
    channels = (source.shape[2] if len(source.shape) == 3 else 1) + alpha
    shape = (*source.shape[:2], channels) if channels > 1 else source.shape[:2]
    offset = images.create(part, source, shape, dtype, alpha=alpha)
    return {"side": side, "offset": offset, "rows": 0}


def _stored(
    source: images.TiffRows, y: int, rows: np.ndarray, dtype: str, data_range: Any
) -> np.ndarray:
    """Return rows as the file holds them: in its dtype, alpha behind the colours."""
    alpha = source.alpha(slice(y, y + len(rows)))
    rows = _converted(rows, dtype, data_range)
    pixels = rows if alpha is None else np.dstack([rows, _converted(alpha, dtype, None)])
    return np.ascontiguousarray(pixels, np.dtype(dtype).newbyteorder("<"))


def _converted(rows: np.ndarray, dtype: str, data_range: Any) -> np.ndarray:
    if rows.dtype.name == dtype:
        return rows
    shown = images.to_float(rows, images.ends(rows.dtype, data_range))
    return images.from_float(shown.reshape(rows.shape), dtype)
