"""`n2n burst`: one clean picture of several noisy ones."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

from n2n.cli import jobs, outputs
from n2n.cli.screen import Screen, duration, interval, shown
from n2n.types import Burst, Error, Fused, Picture

STEPS, BATCH = 4000, 4
_INSTEAD = {
    "start": "the weights it started from do better than what was learnt: theirs is the picture",
    "mean": "nothing that was learnt does better than the mean of the frames: it is the picture",
}


class _Job(NamedTuple):
    """Hold what was decided before any work."""

    paths: list[Path]
    reference: int | None
    out: Path
    dtype: str


class _Made(NamedTuple):
    """Hold a burst's picture and what it was made by."""

    fused: Fused
    by: str
    """`burst` (what was learnt), `start` (the weights that this began with) or `mean`."""
    steps: int


def run(options: Any) -> int:
    """Make the picture, or with `--group` one of each burst; return the status."""
    if options.group:
        from n2n.cli import group

        return group.run(options)
    if options.gap is not None:
        raise Error("--gap: parts the bursts of a folder; say --group, too")
    screen = Screen(options.quiet, machine=options.json == "-")
    outputs.write_json(options.json, make(screen, options))
    return 0


def make(screen: Screen, options: Any) -> dict[str, Any]:
    """Make the picture of one burst; return what `--json` tells of it."""
    from n2n import denoiser

    job = plan(options)
    device, began = jobs.start(), time.monotonic()
    if options.init is not None:
        denoiser.load(options.init)  # a mistake shows before the frames are read
    burst = registered(screen, job.paths, job.reference, options)
    _check_reference(job, burst)
    with screen.waiting("choosing the weights to start from"):
        start = denoiser.starting(burst, False if options.from_scratch else options.init)
    screen.note(_headline(device, burst, start, options))
    show_frames(screen, burst)
    with jobs.unfinished(job.out):
        made = _work(screen, burst, start, job, options)
        fused = made.fused
        picture = picture_of(job, burst)
        write(job, fused.image, picture, options)
    seconds = time.monotonic() - began
    for line in summary(fused, len(burst.frames), made.by):
        screen.result(line)
    screen.result(f"written: {shown(job.out)} ({outputs.bits(job.dtype)} bits)")
    facts = _facts(job, burst, fused, options)
    facts |= {"init": start, "made_by": made.by, "steps": made.steps}
    facts |= {"seconds": round(seconds, 1), "device": device}
    if options.report is not None:
        _report(options.report, burst, made, facts, picture)
        screen.result(f"report: {shown(options.report)}")
    if not options.keep:
        from n2n import checkpoints

        checkpoints.remove(job.out)
    return facts


def plan(options: Any) -> _Job:
    """Find the frames and decide on reference and output; refuse what can be refused now."""
    from n2n import images

    paths = images.frames_in(options.frames)
    reference, source = chosen(options.reference, paths)
    extension = "tif" if options.bits == 32 else "png"
    out = images.output_path(source, options.out, extension=extension)
    dtype = outputs.dtype_for(out, options.bits)
    jobs.check(out, options, paths)
    outputs.check_json(options.json, overwrite=options.overwrite, sources=[*paths, out])
    others = [*paths, out, *([Path(options.json)] if options.json else [])]
    outputs.check_report(options.report, overwrite=options.overwrite, sources=others)
    return _Job(paths, reference, out, dtype)


def chosen(reference: str | None, paths: list[Path]) -> tuple[int | None, Path]:
    """Return the index of the frame that `--reference` names, and the file it lies in.

    Raises:
        Error: no frame has this name or number.
    """
    if reference is None:
        return None, paths[0]
    if reference.isascii() and reference.isdigit():
        return _numbered(int(reference), paths)
    found = [i for i, path in enumerate(paths) if reference in (str(path), path.name, path.stem)]
    found = found or [i for i, path in enumerate(paths) if outputs.same(Path(reference), path)]
    if len(found) != 1:
        many = "several frames have" if found else "no frame has"
        raise Error(f"--reference {reference!r}: {many} this name; give a number from 1")
    return found[0], paths[found[0]]


def _numbered(number: int, paths: list[Path]) -> tuple[int, Path]:
    # A single file is a stack, whose pages are counted when it is read.
    if number < 1 or number > len(paths) > 1:
        raise Error(f"--reference {number}: the frames have the numbers 1 to {len(paths)}")
    return number - 1, paths[min(number, len(paths)) - 1]


def registered(screen: Screen, paths: list[Path], reference: int | None, options: Any) -> Burst:
    """Read and register the frames."""
    import n2n

    with screen.waiting("reading and registering the frames"):
        return n2n.align(paths, reference=reference, data_range=options.data_range)


def _check_reference(job: _Job, burst: Burst) -> None:
    """Refuse to guess where a stack among several files has moved the numbers of the frames."""
    if job.reference is None or len(job.paths) == 1:
        return
    wanted, got = job.paths[job.reference].name, burst.names[burst.reference]
    if wanted != got:
        raise Error(f"--reference: {wanted!r} stands beside a stack; give a stack alone")


def show_frames(screen: Screen, burst: Burst) -> None:
    """Show the list of frames and what is wrong with them."""
    rows = []
    for index, (dy, dx) in enumerate(burst.shifts):
        mark = " (reference)" if index == burst.reference else ""
        used = f"{100 * float(burst.weights[index].mean()):.0f} %"
        rows.append((shown(burst.names[index]) + mark, f"{dy:+.1f}", f"{dx:+.1f}", used))
    screen.table(("frame", "down px", "right px", "used"), rows)
    for sentence in burst.checks:
        screen.result(sentence)


def summary(fused: Fused, count: int, by: str = "burst") -> list[str]:
    """Say in two or three sentences how good the picture is, and what it is if not the learnt one.

    `by`: see `denoiser.fuse_best`.
    """
    return _measured(fused, count) + _otherwise(fused, by)


def _otherwise(fused: Fused, by: str) -> list[str]:
    """Say what of the picture is not by what was learnt on the burst."""
    said = [text for made, text in _INSTEAD.items() if made == by]
    if fused.borrowed:
        said.append(
            f"what moved and one frame alone shows, {100 * fused.borrowed:.2g} % of the picture, "
            "is by the weights that training started from"
        )
    return said


def _measured(fused: Fused, count: int) -> list[str]:
    if fused.score is None or fused.before is None or fused.gain is None:
        return ["too small or too clipped to measure its quality without a clean picture"]
    seen = "single frames" if count == 2 else f"{count - 2} of the {count} frames"
    lines = [
        f"quality: at least {interval(fused.score)}, measured without a clean picture on {seen}; "
        f"their {'own' if count == 2 else 'mean has'} {interval(fused.before)}",
        f"gain: {interval(fused.gain)}",
    ]
    if count < fused.frames < 1e6:
        lines[1] += f"; as good as the mean of {fused.frames:.0f} frames"
    return lines


def _headline(device: str, burst: Burst, start: str | None, options: Any) -> str:
    count, height, width = burst.frames.shape[:3]
    megapixels = (count // 2 + 1) * height * width / 1e6
    steps = options.steps or STEPS
    seconds = jobs.plan_seconds(steps, megapixels, minutes=options.minutes, crops=BATCH / 8)
    length = jobs.plan_text(steps, seconds, options.minutes)
    begin = "from scratch" if start is None else f"from {shown(start)}"
    return f"n2n burst: {device}, {count} frames of {width} x {height}, {begin}, {length}"


def _work(screen: Screen, burst: Burst, start: str | None, job: _Job, options: Any) -> _Made:
    """Train on the burst and make the picture by what was learnt, unless something is better."""
    import n2n
    from n2n import denoiser

    outputs.prepare_folder(job.out, options.out)
    with screen.training() as progress:
        model = n2n.fit(
            burst,
            init=start,
            steps=options.steps,
            minutes=options.minutes,
            batch=BATCH,
            learning_rate=denoiser.RATE if start is None else denoiser.FINE_RATE,
            seed=options.seed,
            devices=1,
            out=job.out,
            resume=options.resume,
            overwrite=True,
            progress=progress or False,
        )
    origin = None if start is None else denoiser.load(start)
    with screen.counting("percent of the picture") as progress:
        by, fused = denoiser.fuse_best(model, origin, burst, seed=options.seed, progress=progress)
    return _Made(fused, by, model.card["steps"])


def picture_of(job: _Job, burst: Burst) -> Picture:
    """Read the reference once more, for its EXIF, profile and alpha."""
    from n2n import images

    name = burst.names[burst.reference]
    path = next(path for path in job.paths if name == path.name or name.startswith(f"{path.name} "))
    if job.reference is not None and len(job.paths) > 1:
        path = job.paths[job.reference]  # names may be alike in two folders
    pages = images.read_pages(path)
    return pages[0 if name == path.name else int(name.rpartition(" ")[2]) - 1]


def write(job: _Job, image: Any, picture: Picture, options: Any) -> None:
    """Write H,W,C float32 as the job's file, with what is kept of a picture."""
    from n2n import images

    # In the frames' own depth their own units are kept; another depth has its own white.
    given = picture.array.dtype
    own = given == job.dtype or (given.kind == "f" and job.dtype == "float32")
    if options.raw == "srgb" or job.dtype == "uint8":  # 8 linear bits would show as bands
        image, meta = images.developed(Picture(image, picture.meta))
        picture = Picture(picture.array, meta)
    array = images.from_float(image, job.dtype, options.data_range if own else None)
    images.write(job.out, array, like=picture, overwrite=options.overwrite or options.resume)


def _report(path: str, burst: Burst, made: _Made, facts: dict[str, Any], like: Picture) -> None:
    """Write the page that tells all of a burst; it may be replaced, or `plan` had refused it."""
    from n2n import report

    height, width, channels = burst.frames.shape[1:]
    settings = {
        "picture": f"{Path(facts['out']).name}, {facts['bits']} bits",
        "size": f"{width} x {height}, {channels} channel{'s' * (channels > 1)}",
        "reference": facts["reference"],
        "training": f"from {facts['init'] or 'scratch'}, {facts['steps']:,} steps, "
        f"seed {facts['seed']}",
        "time": f"{duration(facts['seconds'])} on {facts['device']}",
    }
    report.write_page(
        path,
        burst,
        made.fused,
        title=Path(facts["out"]).name,
        summary=summary(made.fused, len(burst.frames), made.by),
        settings=settings,
        versions=facts["versions"],
        icc=like.meta.get("icc"),
        overwrite=True,
    )


def _facts(job: _Job, burst: Burst, fused: Fused, options: Any) -> dict[str, Any]:
    """Return what `--json` tells of the burst and its picture."""
    return {
        "out": str(job.out),
        "bits": outputs.bits(job.dtype),
        "size": list(burst.frames.shape[1:]),
        "reference": burst.names[burst.reference],
        "frames": list(fused.table),
        "checks": list(burst.checks),
        "left_out": [{"frame": name, "why": why} for name, why in burst.left_out],
        "profile": None if burst.profile is None else burst.profile.as_dict(),
        "score": fused.score,
        "before": fused.before,
        "gain": fused.gain,
        "equivalent_frames": fused.frames,
        "borrowed": fused.borrowed,
        "seed": options.seed,
        "versions": jobs.versions(),
    }
