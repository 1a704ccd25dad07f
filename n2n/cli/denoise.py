"""`n2n denoise`: pictures one by one, with trained weights."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from n2n.cli import jobs, outputs
from n2n.cli.screen import Screen, shown
from n2n.types import Error


def run(options: Any) -> int:
    """Denoise all pictures; one that fails does not stop the others. Return the worst status."""
    from n2n import devices
    from n2n.denoiser import load_model

    screen = Screen(options.quiet)
    sources, statuses = _sources(screen, options.images)
    targets = _targets(sources, options)
    devices.enable_cache()
    model = load_model(options.model) if sources else None
    for source, target in zip(sources, targets, strict=True):
        statuses.append(jobs.guarded(screen, _one, screen, model, source, target, sources, options))
    # What failed at work outweighs what was refused.
    return min(filter(None, statuses), default=0)


def _sources(screen: Screen, given: list[str]) -> tuple[list[Path], list[int]]:
    """Return all pictures, each once, and the status of each argument."""
    from n2n import images

    found: dict[Path, None] = {}
    statuses = [
        jobs.guarded(screen, lambda path=path: found.update(dict.fromkeys(images.frames_in(path))))
        for path in given
    ]
    return list(found), statuses


def _targets(sources: list[Path], options: Any) -> list[Path]:
    """Return where each picture's result goes.

    Raises:
        Error: two results would be one file.
    """
    from n2n import images

    several = len(options.images) > 1 or len(sources) > 1
    targets = [images.output_path(path, options.out, several=several) for path in sources]
    seen: dict[str, Path] = {}
    for source, target in zip(sources, targets, strict=True):
        other = seen.setdefault(os.path.realpath(target), source)
        if other is not source:
            raise Error(
                f"{outputs.quoted(other)} and {outputs.quoted(source)} would both become "
                f"{outputs.quoted(target)}; denoise them one by one, with -o"
            )
    return targets


def _one(
    screen: Screen, model: Any, source: Path, target: Path, sources: list[Path], options: Any
) -> None:
    """Denoise one picture."""
    jobs.check(target, options, sources)
    with _rows(source, target, options) as rows:
        with screen.counting(shown(source.name)) as progress:
            if rows is None:
                _in_memory(model, source, target, options, progress)
            else:
                _streamed(model, rows, target, options, progress)
    screen.result(f"{shown(source)} -> {shown(target)}")


def _rows(source: Path, target: Path, options: Any) -> Any:
    """Open a picture that is to be streamed; a context of None for others.

    Raises:
        Error: `--stream` is asked for where it cannot be.
    """
    from n2n import devices, images

    plain = contextlib.nullcontext()
    if target.suffix.lower() not in (".tif", ".tiff"):
        if options.stream:
            raise Error(f"{outputs.quoted(target)}: --stream writes TIFF; name a .tif file")
        return plain
    try:
        rows = images.TiffRows(source)
    except Error:
        if options.stream:
            raise
        return plain
    free = devices.host_memory()
    if options.stream or jobs.holds_run(target) or (free and rows.nbytes > free // 4):
        return rows
    rows.__exit__()
    return plain


def _streamed(model: Any, rows: Any, target: Path, options: Any, progress: Any) -> None:
    from n2n.denoiser import streaming

    outputs.prepare_folder(target, options.out)
    with jobs.unfinished(target):
        streaming.stream(
            model,
            rows,
            target,
            strength=options.strength,
            data_range=options.data_range,
            tile=options.tile,
            dtype=outputs.nearest_dtype(target, rows.dtype),
            resume=options.resume,
            progress=progress,
        )


def _in_memory(model: Any, source: Path, target: Path, options: Any, progress: Any) -> None:
    from n2n import images

    picture = images.read(source)
    if options.raw == "srgb":
        picture = images.developed(picture)
    array = model.denoise(
        picture.array,
        strength=options.strength,
        data_range=options.data_range,
        tile=options.tile,
        progress=progress or False,
    )
    dtype = outputs.nearest_dtype(target, array.dtype)
    if dtype != str(array.dtype):
        array = images.from_float(images.to_float(array, options.data_range), dtype)
    outputs.prepare_folder(target, options.out)
    images.write(target, array, like=picture, overwrite=options.overwrite)
