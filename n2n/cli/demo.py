"""`n2n demo`: a simulated hand-held burst, the picture made of it, and the hidden truth."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from n2n.cli import burst as burst_command
from n2n.cli import jobs, outputs
from n2n.cli.screen import Screen, decibel, duration, shown
from n2n.types import Burst, Error, Fused, Score

FRAMES = 8
MEAN_DB = 28.7
"""Quality of the mean that the noise is chosen for; resampling the frames adds about 0.8 dB."""
_FRAME_NAMES = tuple(f"frames/frame-{number}.png" for number in range(1, FRAMES + 1))
_NAMES = ("truth.png", "mean.png", "result.png", "before-after.png")
_SOURCE = "n2n demo"


class _Size(NamedTuple):
    """Hold how much work a demo is."""

    side: int
    """Longest side of the scene in pixels."""
    steps: int
    draws: int
    """Photographs of which the expected frame is the mean."""


FULL, QUICK = _Size(451, 2400, 512), _Size(220, 600, 128)


class _Outcome(NamedTuple):
    """Hold what is compared: all pictures H,W,C in the reference's geometry."""

    truth: np.ndarray
    burst: Burst
    fused: Fused
    smoothed: np.ndarray


def run(options: Any) -> int:
    """Simulate, denoise, compare; return the status."""
    screen, folder = Screen(options.quiet), Path(options.out)
    _check(folder, options.overwrite)
    size = QUICK if options.quick else FULL
    device, began = jobs.start(), time.monotonic()
    with screen.waiting("photographing"):
        shots = photographed(size, options.seed)
    screen.note(_headline(device, shots.frames, size))
    (folder / "frames").mkdir(parents=True, exist_ok=True)
    outcome = _worked(screen, shots, _write_frames(folder, shots.frames), size, options)
    _write(folder, outcome, shots.truth)
    for line in burst_command.summary(outcome.fused, FRAMES):
        screen.result(line)
    screen.table(("picture", "dB to the truth", "dB without it"), rows(outcome))
    screen.result(
        "truth: the expected frame, the mean of many noisy ones; nothing that sees noisy frames "
        "alone comes nearer to the scene"
    )
    screen.result(f"side by side: {shown(folder / _NAMES[3])}")
    took = duration(time.monotonic() - began)
    screen.result(f"all pictures are in {shown(folder)} ({took})")
    return 0


def _headline(device: str, frames: np.ndarray, size: _Size) -> str:
    count, height, width = frames.shape[:3]
    megapixels = (count // 2 + 1) * height * width / 1e6
    seconds = jobs.plan_seconds(size.steps, megapixels, crops=burst_command.BATCH / 8)
    length = jobs.plan_text(size.steps, seconds + height * width / 5000)  # for what is compared
    return f"n2n demo: {device}, {count} frames of {width} x {height}, {length}"


def photographed(size: _Size, seed: int) -> Any:
    """Photograph, in dim light and from an unsteady hand, the cat that scikit-image carries."""
    from skimage import data

    from n2n import simulate

    picture = data.chelsea()
    left = (picture.shape[1] - size.side) // 2
    scene = np.asarray(picture[: size.side, left : left + size.side], np.float32) / 255
    camera = simulate.noise_for(scene, target_db=MEAN_DB, frames=FRAMES, seed=seed)
    return simulate.hand_held(scene, frames=FRAMES, corruption=camera, seed=seed, draws=size.draws)


def _worked(screen: Screen, shots: Any, paths: list[Path], size: _Size, options: Any) -> _Outcome:
    """Do what `n2n burst --from-scratch` does, and what it is compared with."""
    import n2n

    with screen.waiting("registering the frames"):
        burst = n2n.align(paths)
    burst_command.show_frames(screen, burst)
    with screen.training() as progress:
        model = n2n.fit(
            burst,
            steps=size.steps,
            batch=burst_command.BATCH,
            seed=options.seed,
            devices=1,
            progress=progress or False,
        )
    with screen.waiting("measuring"):
        fused = model.fuse(burst, seed=options.seed)
        smoothed = best_non_local_means(burst.mean(), shots.expected)
    return _Outcome(shots.expected, burst, fused, smoothed)


def best_non_local_means(mean: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Denoise the mean by non-local means, its strength tuned on the truth: in its favour."""
    from skimage.restoration import denoise_nl_means

    sigma = float(np.std(mean - truth))
    tried: dict[float, np.ndarray] = {}

    def quality(strength: float) -> float:
        if strength not in tried:
            tried[strength] = denoise_nl_means(
                mean,
                patch_size=5,
                patch_distance=6,
                h=strength * sigma,
                sigma=sigma,
                fast_mode=True,
                channel_axis=-1,
            )
        return psnr(tried[strength], truth)

    best = max((0.4, 0.6, 0.8, 1.0, 1.3), key=quality)
    best = max((round(best - 0.1, 2), best, round(best + 0.1, 2)), key=quality)
    return tried[best]


def psnr(image: np.ndarray, truth: np.ndarray, margin: int = 0) -> float:
    """Return dB of display values clipped to [0, 1], a margin left out."""
    from n2n import metrics

    inner = (slice(margin, -margin or None),) * 2
    return metrics.psnr(np.clip(image[inner], 0, 1), np.clip(truth[inner], 0, 1))


def rows(outcome: _Outcome) -> list[tuple[str, str, str]]:
    """Return the table: each picture against the truth, and what is known without it."""
    before, after = outcome.fused.before, outcome.fused.score
    return [
        (name, decibel(psnr(image, outcome.truth, outcome.burst.margin), 2), _known(score))
        for (name, image), score in zip(
            _pictures(outcome).items(), (None, before, None, after), strict=True
        )
    ]


def _pictures(outcome: _Outcome) -> dict[str, np.ndarray]:
    burst = outcome.burst
    return {
        "one frame": burst.frames[burst.reference],
        "registered mean": burst.mean(),
        "best non-local means of it": outcome.smoothed,
        "n2n": outcome.fused.image,
    }


def _known(score: Score | None) -> str:
    return "" if score is None or math.isnan(score.db) else f"at least {decibel(score.db, 2)}"


def _check(folder: Path, overwrite: bool) -> None:
    """Refuse to replace files that the demo has not made itself."""
    for name in (*_FRAME_NAMES, *_NAMES):
        path = folder / name
        if path.exists() and not overwrite and not _is_own(path):
            raise Error(
                f"{outputs.quoted(path)}: exists and is not the demo's; choose another folder with "
                "--out, or say --overwrite"
            )


def _is_own(path: Path) -> bool:
    from PIL import Image

    from n2n.images.metadata import is_ours
    from n2n.images.reading import software

    try:
        with Image.open(path) as picture:
            return picture.info.get("Source") == _SOURCE or is_ours(software(path))
    except OSError:
        return False


def _write_frames(folder: Path, frames: np.ndarray) -> list[Path]:
    """Write the frames as a camera would: 8 bits, and not marked as n2n's results."""
    from PIL import Image, PngImagePlugin

    from n2n import images

    paths = [folder / name for name in _FRAME_NAMES]
    for path, frame in zip(paths, frames, strict=True):
        note = PngImagePlugin.PngInfo()
        note.add_text("Source", _SOURCE)
        Image.fromarray(images.from_float(frame, "uint8")).save(path, pnginfo=note)
    return paths


def _write(folder: Path, outcome: _Outcome, scene: np.ndarray) -> None:
    """Write all pictures but the frames; `truth.png` is the scene without noise."""
    from n2n import images, report

    found = _pictures(outcome)
    for name, image in zip(_NAMES, (scene, found["registered mean"], found["n2n"]), strict=False):
        images.write(folder / name, images.from_float(image, "uint16"), overwrite=True)
    report.before_after(
        found["one frame"],
        found["n2n"],
        folder / _NAMES[3],
        between=[found["registered mean"]],
        labels=("one frame", f"mean of {FRAMES}", "n2n"),
        overwrite=True,
    )
