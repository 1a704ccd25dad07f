"""Which shots of a folder are one burst: by time, camera, size and exposure; pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from n2n.images.shots import Shot
from n2n.types import Error

GAP = 3.0
"""Seconds between two frames that end a burst: longer than buffers take to empty, and than a hand
takes to release again."""
STEP = 0.45
"""Stops of exposure that frames of one burst may differ by. Cameras mark thirds of a stop by round
numbers, 1/60 and 1/80 s, which are up to 0.42 stops apart."""
_NAMED = 3
_Placed = tuple[int, Shot]
"""A shot and its place among all."""


def groups(shots: Sequence[Shot], gap: float = GAP) -> list[list[Shot]]:
    """Split shots into bursts; single pictures are groups of one.

    Frames of a burst have one camera, one size, exposures within `STEP`, and no pause beyond `gap`
    seconds (and the two exposures) between them. Shots without a time are told apart by the rest
    and by their folders alone. A file of several pages is a group of its own. The groups are a
    partition of the shots and keep their order, within a group and by their first shot.
    """
    found = [
        sorted(alike)
        for kind in _kinds(enumerate(shots))
        for near in _near(kind, gap)
        for alike in _alike(near)
    ]
    return [[shots[index] for index, _ in group] for group in sorted(found)]


def _kinds(shots: Iterable[_Placed]) -> list[list[_Placed]]:
    """Split by camera and size, without a time by folder, and stacks from everything else."""
    parts: dict[Any, list[_Placed]] = {}
    for index, one in shots:
        folder = one.path.parent if one.time is None else None
        key = (one.camera, one.size, folder, index if one.pages > 1 else None)
        parts.setdefault(key, []).append((index, one))
    return list(parts.values())


def _near(shots: list[_Placed], gap: float) -> list[list[_Placed]]:
    """Split where nothing was taken for a while; those without a time stay together."""
    untimed = [(index, one) for index, one in shots if one.time is None]
    timed = sorted((one.time, index, one) for index, one in shots if one.time is not None)
    parts = [untimed] if untimed else []
    end = -math.inf
    for time, index, one in timed:
        # Some cameras write the time at which the shutter closed.
        if time - one.seconds > end + gap:
            parts.append([])
        parts[-1].append((index, one))
        end = max(end, time + one.seconds)
    return parts


def _alike(shots: list[_Placed]) -> list[list[_Placed]]:
    """Split by exposure, so that no two of a part differ by more than `STEP`."""
    unknown = [(index, one) for index, one in shots if one.stops is None]
    known = sorted((one.stops, index, one) for index, one in shots if one.stops is not None)
    parts = [unknown] if unknown else []
    darkest = -math.inf
    for stops, index, one in known:
        if stops - darkest > STEP:
            darkest = stops
            parts.append([])
        parts[-1].append((index, one))
    return parts


def refuse_bracket(shots: Sequence[Shot]) -> None:
    """Refuse frames whose EXIF says that they were exposed differently.

    Raises:
        Error: exposures differ by more than `STEP` stops; names the frames.
    """
    known = [(one.path.name, one.stops) for one in shots if one.stops is not None]
    stops = [value for _, value in known]
    if not known or max(stops) - min(stops) <= STEP:
        return
    first, level = known[0]
    odd = [f"{name} ({value - level:+.1f})" for name, value in known if abs(value - level) > 0.1]
    more = f" and {len(odd) - _NAMED} more" if len(odd) > _NAMED else ""
    raise Error(
        f"exposures differ by {max(stops) - min(stops):.1f} stops: {', '.join(odd[:_NAMED])}{more} "
        f"against {first}; a bracket is no burst, merge it in a program for HDR, or let --group "
        "part its exposures"
    )
