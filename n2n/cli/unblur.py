"""`n2n unblur`: one sharp picture of several that are blurred alike, or of one by a model."""

from __future__ import annotations

import time
from typing import Any

from n2n.cli import burst as burst_command
from n2n.cli import jobs, outputs
from n2n.cli.screen import Screen, shown
from n2n.types import Burst, Error, Picture

STEPS = 1500


def run(options: Any) -> int:
    """Make the picture; return the status."""
    if (options.psf is None) == (options.model is None):
        raise Error("give either --psf (learn from the frames) or --model (weights that unblur)")
    screen = Screen(options.quiet, machine=options.json == "-")
    job = burst_command.plan(options)
    if len(job.paths) == 1 and options.model is None and not _is_stack(job):
        raise Error(
            "a single picture has nothing to learn from: give more captures with the same blur, or "
            "--model, trained by n2n train --clean DIR --corrupt motion:9-25+gaussian:2 --target "
            "gaussian:2"
        )
    device, began = jobs.start(), time.monotonic()
    facts, picture, image = _learnt(screen, job, options, device)
    burst_command.write(job, image, picture, options)
    if not options.keep:
        from n2n import checkpoints

        checkpoints.remove(job.out)
    seconds = round(time.monotonic() - began, 1)
    screen.result(f"written: {shown(job.out)} ({outputs.bits(job.dtype)} bits)")
    facts |= {"out": str(job.out), "bits": outputs.bits(job.dtype), "seed": options.seed}
    facts |= {"seconds": seconds, "device": device, "versions": jobs.versions()}
    outputs.write_json(options.json, facts)
    return 0


def _is_stack(job: Any) -> bool:
    from n2n import images

    return len(images.read_pages(job.paths[0])) > 1


def _learnt(screen: Screen, job: Any, options: Any, device: str) -> tuple[dict, Picture, Any]:
    """Return what `--json` tells, the picture whose EXIF is kept, and the sharp image."""
    from n2n import denoiser, images

    if options.model is not None:
        model = denoiser.load(options.model)
        if len(job.paths) == 1 and not _is_stack(job):
            picture = images.read(job.paths[0])
            image = model.predict(images.to_float(picture.array, options.data_range))
            outputs.prepare_folder(job.out, options.out)
            return {"model": options.model}, picture, image
    else:
        psf = denoiser.as_psf(options.psf)  # a mistake shows before the frames are read
    burst = burst_command.registered(screen, job.paths, job.reference, options)
    burst_command.show_frames(screen, burst)
    outputs.prepare_folder(job.out, options.out)
    facts: dict[str, Any] = {"frames": list(burst.names), "checks": list(burst.checks)}
    if options.model is None:
        screen.note(_headline(device, burst, psf, options))
        model = _trained(screen, burst, psf, job, options)
        facts |= {"psf": str(psf), "sigma": denoiser.noise_of(burst, options.sigma)}
        facts |= {"steps": model.card["steps"]}
    else:
        facts |= {"model": options.model}
    return facts, burst_command.picture_of(job, burst), model.predict(burst.mean())


def _trained(screen: Screen, burst: Burst, psf: Any, job: Any, options: Any) -> Any:
    from n2n import denoiser

    with jobs.unfinished(job.out), screen.training() as progress:
        return denoiser.fit_psf(
            burst,
            psf,
            sigma=options.sigma,
            steps=options.steps,
            minutes=options.minutes,
            seed=options.seed,
            out=job.out,
            resume=options.resume,
            overwrite=True,
            progress=progress or False,
        )


def _headline(device: str, burst: Burst, psf: Any, options: Any) -> str:
    count, height, width = burst.frames.shape[:3]
    steps = options.steps or STEPS
    # A step has 4 crops of 96 px.
    seconds = jobs.plan_seconds(
        steps, height * width / 1e6, minutes=options.minutes, crops=4 * 96**2 / (8 * 64**2)
    )
    length = jobs.plan_text(steps, seconds, options.minutes)
    return f"n2n unblur: {device}, {count} frames of {width} x {height}, {psf}, {length}"
