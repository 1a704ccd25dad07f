"""All of a burst in one HTML file that refers to nothing outside itself.

Its own policy (Content-Security-Policy) forbids loading anything and running any script but ours.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from n2n import images
from n2n.bursts import checks
from n2n.images.metadata import fitting_icc
from n2n.report.curve import fitted, noise_curve
from n2n.report.pictures import (
    Box,
    amplification,
    data_uri,
    marked,
    overview,
    pixels,
    shown_part,
    unused,
    window,
)
from n2n.types import Burst, Error, Fused, Score


def write_page(
    path: Path | str,
    burst: Burst,
    fused: Fused,
    *,
    title: str,
    summary: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
    icc: bytes | None = None,
    overwrite: bool = False,
) -> None:
    """Write `page` to a file, atomically.

    Raises:
        Error: the file exists and overwrite is not said, or the frames are neither grey nor RGB.
    """
    path = Path(path)
    if os.path.lexists(path) and not overwrite:
        raise Error(f"{str(path)!r}: exists; say overwrite=True (--overwrite) to replace it")
    text = page(
        burst, fused, title=title, summary=summary, settings=settings, versions=versions, icc=icc
    )
    images.replace_file(path, text.encode())


def page(
    burst: Burst,
    fused: Fused,
    *,
    title: str,
    summary: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
    icc: bytes | None = None,
) -> str:
    """Return HTML that shows what became of a burst: before, after, and all that is known.

    Args:
        burst: the registered frames, of 1 or 3 channels.
        fused: the picture made of them, with its scores.
        title: a name for it; like all texts given here it may hold any character.
        summary: sentences at the top.
        settings: what it was made with, name to value, shown as given.
        versions: of all software that matters.
        icc: colour profile of the frames, so that browsers show their colours.

    Raises:
        Error: the frames are neither grey nor RGB.
    """
    channels = fused.image.shape[2]
    if channels not in (1, 3):
        raise Error(f"frames have {channels} channels; a report shows grey (1) or RGB (3) ones")
    mean, ends, box = burst.mean(), window(burst.scale), shown_part(fused.image)
    sections = [
        _header(title, summary),
        _viewer(burst, mean, fused.image, box, ends, fitting_icc(icc, channels)),
        _quality(fused, len(burst.frames)),
        _section("What was noticed", _sentences(burst.checks or ["Nothing is wrong with them."])),
        _frames(burst),
        _maps(burst, fused.image, ends),
        _removed(fused.image - mean, box, ends),
        _noise(burst.profile),
        _section("Settings", _pairs(settings or {})),
        _section("Versions", _pairs(versions or {})),
    ]
    return _document(title, "\n".join(section for section in sections if section))


def _document(title: str, body: str) -> str:
    style, script = (
        resources.files("n2n.report").joinpath(name).read_text("utf-8")
        for name in ("viewer.css", "viewer.js")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n{body}\n"
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def _text(value: Any) -> str:
    """Return a text for HTML: escaped, what cannot be printed spelt out."""
    text = str(value)
    return html.escape(text if text.isprintable() else repr(text)[1:-1])


def _section(heading: str, body: str) -> str:
    return f"<section>\n<h2>{heading}</h2>\n{body}\n</section>" if body else ""


def _sentences(sentences: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{_text(each)}</li>" for each in sentences) + "</ul>"


def _pairs(facts: Mapping[str, Any]) -> str:
    rows = "".join(f"<dt>{_text(k)}</dt><dd>{_text(v)}</dd>" for k, v in facts.items())
    return f"<dl>{rows}</dl>" if rows else ""


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], words: int = -1) -> str:
    """Return a table of texts; column number `words` holds sentences, the others numbers."""

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = [' class="words"' if i == words else "" for i in range(len(cells))]
        return "".join(
            f"<{tag}{kind}>{_text(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True)
        )

    body = "".join(f"<tr>{line(row, 'td')}</tr>\n" for row in rows)
    head = f"<thead><tr>{line(columns, 'th')}</tr></thead>"
    return f'<div class="wide"><table>{head}<tbody>\n{body}</tbody></table></div>'


def _header(title: str, summary: Sequence[str]) -> str:
    lines = "".join(f"<p>{_text(line)}</p>\n" for line in summary)
    return f"<header>\n<h1>{_text(title)}</h1>\n{lines}</header>"


def _viewer(
    burst: Burst,
    mean: np.ndarray,
    result: np.ndarray,
    box: Box,
    ends: tuple[float, float],
    icc: bytes | None,
) -> str:
    """Return the slider: the mean or the reference frame to its left, the result to its right."""
    high, wide = box.cut(result).shape[:2]
    count, reference = len(burst.frames), burst.reference
    names = {"mean": f"mean of {count} frames", "frame": _text(burst.names[reference])}
    befores = {"mean": mean, "frame": burst.frames[reference]}
    size = f'width="{wide}" height="{high}" draggable="false"'
    addresses = {
        name: data_uri(pixels(box.cut(picture), ends), icc=icc)
        for name, picture in {"after": result, **befores}.items()
    }
    shown = [f'<img class="after" alt="the result" {size} src="{addresses["after"]}">']
    for name in befores:
        hidden = "" if name == "mean" else " hidden"
        shown.append(
            f'<img class="before" data-name="{name}" alt="{names[name]}" {size}{hidden} '
            f'style="clip-path: inset(0 50% 0 0)" src="{addresses[name]}">'
        )
    choices = "".join(
        f'<label><input type="radio" name="before" value="{name}"> {text}</label>'
        for name, text in names.items()
    )
    return (
        '<section>\n<div class="view">\n<div class="pane">\n'
        f'<div class="stage" style="width: {wide}px; height: {high}px">\n'
        + "\n".join(shown)
        + '\n</div>\n</div>\n<div class="line" aria-hidden="true"></div>\n</div>\n'
        '<div class="bar" hidden><label>line <input id="position" type="range" min="0" max="100" '
        f'step="0.5" value="50"></label><span>left of it:</span>{choices}'
        "<span>right of it: the result</span></div>\n"
        + _whereabouts(result, box, ends)
        + "</section>"
    )


def _whereabouts(result: np.ndarray, box: Box, ends: tuple[float, float]) -> str:
    """Say what part of the picture is shown how; show the whole where it is a detail."""
    height, width = result.shape[:2]
    high, wide = box.cut(result).shape[:2]
    whole = (high, wide) == (height, width)
    part = f"The whole picture, {width} x {height} pixels, at 100 %."
    if not whole:
        part = (
            f"The most detailed {wide} x {high} of {width} x {height} pixels, at 100 %, since the "
            "whole would make this file too large."
        )
    tone = ""
    if ends != (0.0, 1.0):
        tone = f" From black to white: {ends[0]:.4g} to {ends[1]:.4g}, where 1 is the file's white."
    text = f'<p class="faint">{part} Shown as JPEG.{tone}</p>\n'
    if whole:
        return text
    small = overview(result, box, ends)
    return text + _figure(small, f"The whole, reduced to {small.width} x {small.height}.", 85)


def _figure(picture: Any, caption: str, quality: int) -> str:
    return (
        f'<figure><img width="{picture.width}" height="{picture.height}" alt="{caption}" '
        f'style="max-width: 100%; height: auto" src="{data_uri(picture, quality=quality)}">'
        f"<figcaption>{caption}</figcaption></figure>\n"
    )


def _quality(fused: Fused, count: int) -> str:
    if fused.score is None or fused.before is None or fused.gain is None:
        return _section("Quality", "<p>Too small or too clipped to measure.</p>")
    seen = "one frame" if count == 2 else f"{count - 2} of {count} frames"
    rows = [
        (f"{'' if count == 2 else 'mean of '}{seen}", *_decibels(fused.before)),
        (f"n2n of {seen}", *_decibels(fused.score)),
        ("gain", *_decibels(fused.gain)),
    ]
    table = _table(("measured clean-free", "dB", "95 % from", "to"), rows)
    return _section(
        "Quality",
        table + f"<p>{equivalent(fused.frames, count)}</p>\n"
        '<p class="faint">On places that training has not seen, against frames that were left out '
        "for it; the picture itself, made of all frames, is at least as good. What is the same in "
        "every frame counts as part of the scene.</p>",
    )


def _decibels(score: Score) -> tuple[str, str, str]:
    return _decibel(score.db), _decibel(score.low), _decibel(score.high)


def _decibel(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "not bounded"


def equivalent(frames: float, count: int) -> str:
    """Say how long a burst's mean would need to be as good, in frames and in stops of light."""
    if not math.isfinite(frames) or frames <= 0:
        return "These frames cannot tell how many more a mean would need."
    stops = math.log2(frames / count)
    return (
        f"As good as the mean of {frames:.1f} frames, {stops:+.1f} stops of light against the "
        f"{count} taken."
    )


def _frames(burst: Burst) -> str:
    """Return the table of all frames, those left out last."""
    sharp = checks.sharpness(burst.frames, burst.weights, burst.reference)
    rows = []
    for index, name in enumerate(burst.names):
        dy, dx = burst.shifts[index]
        detail = "-" if math.isnan(sharp[index]) else f"{100 * sharp[index]:.0f} %"
        used = f"{100 * float(burst.weights[index].mean()):.0f} %"
        fate = "kept; all others are laid on it" if index == burst.reference else "kept"
        rows.append((name, _signed(dy), _signed(dx), detail, used, fate))
    rows += [(name, "-", "-", "-", "0 %", f"left out: {why}") for name, why in burst.left_out]
    columns = ("frame", "down px", "right px", "fine detail", "used", "what became of it")
    note = '<p class="faint">Fine detail is measured against the reference.</p>'
    return _section("Frames", _table(columns, rows, words=5) + note)


def _signed(shift: float) -> str:
    return f"{round(float(shift), 1) + 0.0:+.1f}"  # never -0.0


def _maps(burst: Burst, result: np.ndarray, ends: tuple[float, float]) -> str:
    """Return small pictures of where frames were not used."""
    shown = [
        _figure(marked(burst.frames[i], burst.weights[i], ends), _text(burst.names[i]), 85)
        for i in unused(burst)
    ]
    share = 100 * (1 - float(burst.mask.mean()))
    if share >= 0.05:
        caption = f"clipped, {share:.1f} %: nothing was learnt here"
        shown.append(_figure(marked(result, burst.mask, ends), caption, 85))
    text = "<p>Orange: something else than in the reference, or outside the frame.</p>\n"
    body = text + '<div class="small">\n' + "".join(shown) + "</div>"
    return _section("Where frames were not used", body if shown else "")


def _removed(removed: np.ndarray, box: Box, ends: tuple[float, float]) -> str:
    """Return the result less the mean, made visible."""
    part = box.cut(removed) / (ends[1] - ends[0])
    factor = amplification(part)
    picture = pixels(0.5 + factor * part)
    caption = f"The result less the mean, {factor} times, around mid-grey"
    image = (
        f'<img width="{picture.width}" height="{picture.height}" alt="{caption}" '
        f'src="{data_uri(picture, quality=80)}">'
    )
    hint = "Structure of the scene in it would be detail that was lost, or blur that was undone."
    return _section(
        "What was removed",
        f'<figure><div class="scroll">{image}</div>'
        f"<figcaption>{caption}. {hint}</figcaption></figure>",
    )


def _noise(profile: Any) -> str:
    if profile is None:
        return ""
    note = '<p class="faint">Dots are measured; a line is drawn where the noise follows one.</p>'
    return _section("Noise of one frame", noise_curve(profile) + _sentences(fitted(profile)) + note)
