"""`n2n burst --group`: a folder of many bursts, one picture of each."""

from __future__ import annotations

import argparse
import datetime
import os
from pathlib import Path
from typing import Any

from n2n.cli import burst as burst_command
from n2n.cli import jobs, outputs
from n2n.cli.screen import Screen, shown
from n2n.types import Error

_NAMED = 5


def run(options: Any) -> int:
    """Make a picture of each burst; one that fails stops no other. Return the worst status."""
    from n2n import images

    screen = Screen(options.quiet, machine=options.json == "-")
    _check(options)
    paths = list(dict.fromkeys(images.frames_in(options.frames, below=True)))
    outputs.check_json(options.json, overwrite=options.overwrite, sources=paths)
    shots: list[Any] = []
    statuses = [
        jobs.guarded(screen, lambda path=path: shots.append(images.shot(path))) for path in paths
    ]
    found = images.groups(shots, options.gap or images.GAP)
    bursts = [group for group in found if len(group) > 1 or group[0].pages > 1]
    _show(screen, bursts, [group[0] for group in found if group not in bursts])
    if not bursts:
        raise Error("--group: no two pictures belong together; give a longer --gap, or no --group")
    every = [_options(options, [one.path for one in group]) for group in bursts]
    _distinct(every)
    for one in every if options.report is not None else ():
        Path(one.report).parent.mkdir(parents=True, exist_ok=True)
    facts: list[dict[str, Any]] = []
    for number, one in enumerate(every, 1):
        screen.result(f"burst {number} of {len(every)}: {_span(bursts[number - 1])}")
        statuses.append(jobs.guarded(screen, _one, screen, one, facts))
    outputs.write_json(options.json, facts)
    # What failed at work outweighs what was refused.
    return min(filter(None, statuses), default=0)


def _check(options: Any) -> None:
    if options.reference is not None:
        raise Error("--reference: names a frame of one burst; make that burst without --group")
    for name in filter(None, (options.out, options.report)):
        if Path(name).exists() and not Path(name).is_dir():
            raise Error(f"{outputs.quoted(name)}: is a file; with --group, name a folder")
    if options.report is not None and Path(options.report).suffix.lower() in (".html", ".htm"):
        raise Error(f"--report {outputs.quoted(options.report)}: with --group, name a folder")


def _options(options: Any, paths: list[Path]) -> argparse.Namespace:
    """Return the options of one burst's own command; folders are found again below the output."""
    below = _below(paths[0], options.frames)
    out = options.out and os.path.join(options.out, below, "")
    own = {"frames": [str(path) for path in paths], "out": out, "json": None, "group": False}
    one = argparse.Namespace(**vars(options) | own)
    if options.report is not None:
        one.report = str(Path(options.report) / below / f"{_target(one).stem}.html")
    return one


def _below(path: Path, given: list[str]) -> Path:
    """Return the folder of a file as seen from the given one that it lies in; `.` for a file."""
    inside = (Path(one) for one in given if path.is_relative_to(one) and path != Path(one))
    return next((path.parent.relative_to(folder) for folder in inside), Path())


def _target(options: Any) -> Path:
    from n2n import images

    extension = "tif" if options.bits == 32 else "png"
    return images.output_path(options.frames[0], options.out, extension=extension)


def _distinct(every: list[argparse.Namespace]) -> None:
    """Refuse bursts whose pictures would be one file, before any work."""
    seen: dict[str, str] = {}
    for one in every:
        target = os.path.realpath(_target(one))
        if target in seen:
            raise Error(
                f"{outputs.quoted(seen[target])} and {outputs.quoted(one.frames[0])} begin bursts "
                f"that would both become {outputs.quoted(_target(one))}; make them one by one"
            )
        seen[target] = one.frames[0]


def _one(screen: Screen, options: Any, facts: list[dict[str, Any]]) -> None:
    out = _target(options)
    if options.resume and out.exists() and not options.overwrite and not jobs.holds_run(out):
        screen.result(f"{shown(out)} is there already")
        return
    facts.append(burst_command.make(screen, options))


def _show(screen: Screen, bursts: list[list[Any]], alone: list[Any]) -> None:
    """Show who belongs to whom, who is left alone, and what could not be told."""
    columns = ("burst", "frames", "size", "taken", "camera")
    if bursts:
        screen.table(columns, [_row(group) for group in bursts])
    if alone:
        names = ", ".join(shown(one.path.name) for one in alone)
        screen.result(f"single pictures, left alone: {names}")
    blind = [one for group in bursts for one in group if one.time is None and one.pages == 1]
    if blind:
        names = ", ".join(shown(one.path.name) for one in blind[:_NAMED])
        more = f" and {len(blind) - _NAMED} more" if len(blind) > _NAMED else ""
        screen.result(
            f"without EXIF time: {names}{more}; a file's own date may be that of a copy, so "
            "camera, size and exposure alone tell them apart"
        )


def _row(group: list[Any]) -> tuple[str, ...]:
    first = group[0]
    count = sum(one.pages for one in group)
    width, height = first.size
    return _span(group), str(count), f"{width} x {height}", _taken(first), shown(first.camera)


def _span(group: list[Any]) -> str:
    first, last = (shown(group[index].path.name) for index in (0, -1))
    return first if len(group) == 1 else f"{first} to {last}"


def _taken(one: Any) -> str:
    if one.time is None:
        return ""
    moment = datetime.datetime.fromtimestamp(one.time, datetime.UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S}"
