"""`n2n evaluate`: how good a model is where the clean pictures are known."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from n2n.cli import jobs, outputs
from n2n.cli.screen import Screen, decibel, shown
from n2n.types import Error

_FIGURES = ("input_psnr", "psnr", "ssim")


def run(options: Any) -> int:
    """Measure, and show a table; return the status."""
    screen = Screen(options.quiet, machine=options.json == "-")
    _check(options)
    outputs.check_json(options.json, overwrite=options.overwrite)
    device = jobs.start()
    from n2n.denoiser import load_model

    model = load_model(options.model)
    rows = _measured(screen, model, options)
    show(screen, rows)
    mean = {name: average(row[name] for row in rows) for name in _FIGURES}
    facts = {"model": options.model, "card": model.card, "mean": mean, "rows": rows}
    given = {name: getattr(options, name) for name in ("corrupt", "seed", "repeat")}
    facts |= given | {"device": device, "versions": jobs.versions()}
    outputs.write_json(options.json, facts)
    return 0


def _check(options: Any) -> None:
    if (options.clean is None) != (options.corrupt is None):
        raise Error("evaluate: --clean and --corrupt belong together; see n2n evaluate --help")
    if (options.input is None) != (options.reference is None):
        raise Error("evaluate: --input and --reference belong together; see n2n evaluate --help")


def _measured(screen: Screen, model: Any, options: Any) -> list[dict[str, Any]]:
    import n2n
    from n2n.corruptions import parse

    corruption = options.corrupt and parse(options.corrupt)
    pictures, names = _pictures(options.clean or options.input, options.data_range)
    reference = options.reference
    if reference is not None and options.data_range is not None:
        reference = _beside(names, reference, options.data_range)
    with screen.counting("pictures") as progress:
        rows = n2n.evaluate(
            model,
            pictures,
            corruption=corruption,
            reference=reference,
            seed=options.seed,
            repeat=options.repeat,
            progress=progress,
        )
    return [row | {"picture": _name(row["picture"], names)} for row in rows]


def _pictures(folder: str, data_range: Any) -> tuple[list[Any], list[Path]]:
    """Return a folder's pictures: paths, or arrays where their range has to be told."""
    from n2n import images

    paths = images.frames_in(folder)
    if data_range is None:
        return list(paths), []
    return [images.to_float(images.read(path).array, data_range) for path in paths], paths


def _beside(names: list[Path], folder: str, data_range: Any) -> list[Any]:
    """Return the references of the same stems, in the same order."""
    arrays, paths = _pictures(folder, data_range)
    by_stem = {path.stem: array for path, array in zip(paths, arrays, strict=True)}
    for name in names:
        if name.stem not in by_stem:
            raise Error(f"{outputs.quoted(name)}: no picture of this name in {folder!r}")
    return [by_stem[name.stem] for name in names]


def _name(picture: str, names: list[Path]) -> str:
    return names[int(picture)].name if names else picture


def show(screen: Screen, rows: list[dict[str, Any]]) -> None:
    """Show a line for each picture, the mean over its draws, and one for all."""
    names = list(dict.fromkeys(row["picture"] for row in rows))
    lines = [_line(shown(name), [row for row in rows if row["picture"] == name]) for name in names]
    if len(names) > 1:
        lines.append(_line(f"mean of {len(names)}", rows))
    screen.table(("picture", "input dB", "PSNR dB", "SSIM"), lines)


def _line(name: str, rows: list[dict[str, Any]]) -> tuple[str, ...]:
    given, reached, similar = (average(row[figure] for row in rows) for figure in _FIGURES)
    return name, decibel(given, 2), decibel(reached, 2), decibel(similar, 4)


def average(values: Iterable[float]) -> float:
    """Return the mean; not a number where there is none."""
    numbers = list(values)
    return math.fsum(numbers) / len(numbers) if numbers else math.nan
