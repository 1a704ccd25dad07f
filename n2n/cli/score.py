"""`n2n score`: how good anybody's picture is, by noisy frames that it has not seen."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from n2n.cli import jobs, outputs
from n2n.cli.screen import Screen, interval, shown
from n2n.types import Error

if TYPE_CHECKING:
    from n2n.evaluation import Scored
    from n2n.types import Picture

LIGHT = 170
"""Value in sRGB above which 128 of a profile is linear light: of such it is 188, of an exponent of
1.8, the smallest of all others, 146."""


def run(options: Any) -> int:
    """Measure the picture, and say how; return the status."""
    screen = Screen(options.quiet, machine=options.json == "-")
    path, paths = _inputs(options)
    outputs.check_json(options.json, overwrite=options.overwrite, sources=[path, *paths])
    device = jobs.start()
    with screen.waiting("reading and registering the frames"):
        scored = _scored(path, paths, options.data_range)
    rows = [
        (shown(name), f"{dy:+.1f}", f"{dx:+.1f}", f"{100 * used:.0f} %")
        for name, dy, dx, used in (row.values() for row in scored.frames)
    ]
    screen.table(("frame", "down px", "right px", "used"), rows)
    for sentence in sentences(scored, shown(path.name)):
        screen.result(sentence)
    names = ("score", "places", "pairs", "frames", "apart", "still", "notes")
    facts = {"picture": str(path)} | {name: getattr(scored, name) for name in names}
    outputs.write_json(options.json, facts | {"device": device, "versions": jobs.versions()})
    return 0


def _inputs(options: Any) -> tuple[Path, list[Path]]:
    """Return the picture and the frames, less the picture where it stands among them."""
    from n2n import images

    path = Path(options.picture)
    if not path.is_file():
        raise Error(f"{outputs.quoted(path)}: there is no such picture; name one file")
    paths = [each for each in images.frames_in(options.frames) if not outputs.same(each, path)]
    if not paths:
        raise Error(f"--frames: only {outputs.quoted(path)} itself; give frames it has not seen")
    return path, paths


def _scored(path: Path, paths: list[Path], data_range: Any) -> Scored:
    from n2n import evaluation, images
    from n2n.denoiser.frames import named_pages

    images.refuse_bracket([images.shot(one) for one in paths])
    named = [(path.name, images.read(path))] + [page for one in paths for page in named_pages(one)]
    names, pictures = zip(*named, strict=True)
    pictures, notes = _in_one_tone(names, pictures)
    arrays = [images.to_float(picture.array, data_range) for picture in pictures]
    scored = evaluation.score(arrays[0], arrays[1:], names=names)
    return replace(scored, notes=(*notes, *scored.notes))


def _in_one_tone(
    names: Sequence[str], pictures: Sequence[Picture]
) -> tuple[Sequence[Picture], list[str]]:
    """Develop what is RAW to sRGB, as `n2n denoise` does, unless all pictures are linear light.

    Returns them, and a sentence for those that are another picture then.
    """
    from n2n import images

    if all(_is_linear(picture) for picture in pictures):
        return pictures, []
    developed = [images.developed(picture) for picture in pictures]
    changed = [
        name for name, old, new in zip(names, pictures, developed, strict=True) if new is not old
    ]
    if not changed:
        return pictures, []
    others = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
    return developed, [
        f"{changed[0]}{others}: RAW, developed to sRGB as `n2n denoise` does it, since not all "
        "pictures are linear."
    ]


def _is_linear(picture: Picture) -> bool:
    """Say whether a picture holds linear light: a RAW file, or one whose profile says so."""
    from PIL import Image, ImageCms

    from n2n.images import colour

    if colour.LINEAR in picture.meta:
        return True
    grey = Image.new("L", (1, 1), 128)
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(picture.meta.get("icc") or b""))
        shown = ImageCms.profileToProfile(
            grey if picture.array.ndim == 2 else grey.convert("RGB"),
            profile,
            ImageCms.createProfile("sRGB"),
            outputMode="RGB",
        )
    except (ImageCms.PyCMSError, OSError):  # no profile, a damaged one, or another kind's
        return False
    return int(np.asarray(shown).min()) > LIGHT


def sentences(scored: Scored, name: str) -> list[str]:
    """Say how good the picture is, where that was measured, and what would flatter it."""
    pairs = "a pair" if scored.pairs == 1 else f"{scored.pairs} pairs"
    lines = [
        f"quality: {interval(scored.score)}, measured without a clean picture on "
        f"{100 * scored.places:.0f} % of {name}, by {pairs} of frames"
    ]
    if scored.still is not None:
        lines.append(
            f"in {100 * scored.apart:.1f} % of that the picture differs from all frames by more "
            "than their noise, by its own faults or because something moved; without these "
            f"places: {interval(scored.still)}"
        )
    warning = "CAUTION: if the picture was made of any of these frames, the figure is too good"
    return [*lines, *scored.notes, f"{warning}: give frames that it has not seen"]
