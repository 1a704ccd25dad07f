"""`n2n evaluate`: how good a model or a classical method is where the truth is known."""

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
    from n2n.corruptions import parse

    corruption = options.corrupt and parse(options.corrupt)
    model, facts = _denoiser(options, corruption)
    rows = _measured(screen, model, corruption, options)
    show(screen, rows)
    mean = {name: average(row[name] for row in rows) for name in _FIGURES}
    given = {name: getattr(options, name) for name in ("corrupt", "seed", "repeat")}
    facts |= {"mean": mean, "rows": rows} | given
    facts |= {"device": device, "versions": jobs.versions()}
    outputs.write_json(options.json, facts)
    return 0


def _check(options: Any) -> None:
    if (options.clean is None) != (options.corrupt is None):
        raise Error("evaluate: --clean and --corrupt belong together; see n2n evaluate --help")
    if (options.input is None) != (options.reference is None):
        raise Error("evaluate: --input and --reference belong together; see n2n evaluate --help")
    if options.input is not None and options.repeat > 1:
        raise Error("evaluate: --repeat draws noise anew, and --input has its own; leave one out")


def _denoiser(options: Any, corruption: Any) -> tuple[Any, dict[str, Any]]:
    """Return what is to be measured, and what the JSON says about it."""
    if options.method is None:
        from n2n.denoiser import load_model

        model = load_model(options.model)
        return model, {"model": options.model, "card": model.card, "method": None, "sigma": None}
    from n2n.evaluation import method

    made = method(options.method, corruption)
    return made, {"model": None, "card": None, "method": made.name, "sigma": made.sigma}


def _measured(screen: Screen, model: Any, corruption: Any, options: Any) -> list[dict[str, Any]]:
    import n2n

    paths, others = _paths(options)
    screen.note(_begin(options, getattr(model, "sigma", None), len(paths)))
    with screen.counting("pictures") as progress:
        rows = n2n.evaluate(
            model,
            _pictures(paths, options.data_range),
            corruption=corruption,
            reference=others and _pictures(others, options.data_range),
            seed=options.seed,
            repeat=options.repeat,
            progress=progress,
        )
    if options.data_range is None:
        return rows
    return [row | {"picture": paths[int(row["picture"])].name} for row in rows]


def _begin(options: Any, sigma: str | None, count: int) -> str:
    """Say what is measured on what: all that a figure depends on."""
    model = shown(options.model) if options.model else "the default weights"
    what = f"{options.method}, sigma {sigma}" if sigma else model
    if options.input:
        return f"{what}; {_counted(count, 'pair')}"
    draws = _counted(options.repeat, "draw")
    pictures = _counted(count, "picture")
    return f"{what}; {pictures}, {options.corrupt}, seed {options.seed}, {draws} of each"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + "s" * (count != 1)


def _paths(options: Any) -> tuple[list[Path], list[Path] | None]:
    """Return the pictures to measure on, and their references, or None for clean ones."""
    from n2n import images
    from n2n.tasks import matched

    paths = list(images.frames_in(options.clean or options.input))
    if options.reference is None:
        return paths, None
    return matched(paths, images.frames_in(options.reference))


def _pictures(paths: list[Path], data_range: Any) -> list[Any]:
    """Return pictures for `n2n.evaluate`: arrays where their range has to be told."""
    from n2n import images

    if data_range is None:
        return list(paths)
    return [images.to_float(images.read(path).array, data_range) for path in paths]


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
