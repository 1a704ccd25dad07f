"""Measure hand-held bursts of a known truth: what `n2n burst` gives, beside BM3D and the mean.

Pictures of `cid22_val`, which no weights were trained on; eight frames each by `n2n.simulate`:
shifts of up to 12 px, turns of up to half a degree, gain 0.01 and 0.04, read noise 0.005. They are
kept as 16 bits with white noise ("raw"), or go through white balance, mosaic and JPEG of quality 95
("developed"). Every burst is also taken without movement ("still"), to tell what registration
costs, and once with an object crossing the scene. Figures are dB against the expected frame, which
is what learning from noisy frames can reach, and against the scene; 16 px and the largest shift are
left out.

    python -m experiments.bursts DATA --minutes 9             (three pictures; 2 hours of one core)
    python -m experiments.bursts DATA --minutes 9 --seeds 0 1 2 3 4 5    (six pictures)

A seed is a picture. The rows of a burst: the reference frame; the registered mean; BM3D of the mean
with the mean's own noise told, plain and after its variance was stabilised by the noise profile;
the package's weights that score best on the burst (`photo` or `gaussian`), on the mean; n2n from
these weights, and, of hand-held bursts of 16 bits, from scratch. Where an object crosses, also the
figures inside its path, and both networks on the reference frame alone. "n2n" is what
`n2n burst` writes: where the reference alone shows what moved, the weights' picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import n2n
from experiments import runs
from n2n import simulate
from n2n.corruptions import Camera
from n2n.denoiser import (
    BURST_BATCH,
    BURST_STEPS,
    FINE_RATE,
    RATE,
    fuse_best,
    starting,
    turned,
)

GAINS = (0.01, 0.04)
READ = 0.005
FRAMES, SHIFT, ROTATION = 8, 12.0, 0.5
OBJECT = 60.0
"""Diameter of what crosses the scene, pixels."""
PICTURES = (0, 1, 2)
PIPELINES: dict[str, dict[str, float]] = {
    "raw": {},
    "developed": {"red": 2.0, "blue": 1.6, "mosaic": 1.0, "quality": 95.0},
}


@dataclass(frozen=True)
class Case:
    """Configure a burst: its pipeline, gain, and whether it moves."""

    pipeline: str
    gain: float
    moves: str
    """`held`, `still` or `crossed`."""

    @property
    def name(self) -> str:
        """The row's name."""
        return f"{self.pipeline}-{self.gain:g}-{self.moves}"

    def shoot(self, scene: np.ndarray, seed: int) -> Any:
        """Return the simulated burst of a scene H,W,3 in [0, 1]."""
        camera = Camera(self.gain, READ, **PIPELINES[self.pipeline])
        held = self.moves != "still"
        return simulate.hand_held(
            scene,
            frames=FRAMES,
            shift=SHIFT if held else 0.0,
            rotation=ROTATION if held else 0.0,
            crossing=OBJECT if self.moves == "crossed" else 0.0,
            corruption=camera,
            seed=seed,
            margin=32,
        )


CASES = tuple(
    Case(pipeline, gain, moves)
    for moves in ("held", "still", "crossed")
    for pipeline in PIPELINES
    for gain in GAINS
    if moves == "held" or pipeline == "raw"
)


def main() -> None:
    """Shoot every burst, make pictures of it in all ways, and record their figures."""
    experiment = runs.start(__doc__, "bursts", rows=tuple(case.name for case in CASES))
    paths = experiment.files(["cid22_val"])
    for case in [case for case in CASES if case.name in experiment.rows]:
        for seed in experiment.seeds or PICTURES:
            if experiment.recorded(case.name, seed) is None:
                experiment.pause()
                figures = measured(experiment, case, scene(paths[seed]), seed)
                experiment.record(case.name, seed, None, picture=paths[seed].name,
                                  steps=BURST_STEPS, batch=BURST_BATCH, optimizer="muon",
                                  **figures)  # fmt: skip


def scene(path: Path) -> np.ndarray:
    """Read a picture as a scene H,W,3 in [0, 1]."""
    return n2n.read(path).array / np.float32(255)


def measured(
    experiment: runs.Experiment, case: Case, scene: np.ndarray, seed: int
) -> dict[str, Any]:
    """Return the figures of a burst: dB against expected frame and scene by way, and the score."""
    shots = case.shoot(scene, seed)
    frames = list(stored(shots.frames, case.pipeline))
    burst = n2n.align(frames, reference=0, register=case.moves != "still")
    inner = (slice(burst.margin, -burst.margin),) * 2
    figures: dict[str, Any] = {"reference": int(burst.reference)}
    for way, picture in ways(experiment, case, burst, seed):
        against = [shots.expected, shots.truth]
        figures[way] = [round(shown_psnr(picture[inner], each[inner]), 3) for each in against]
        if case.moves == "crossed":
            path = shots.path[inner]
            figures[f"{way}-path"] = round(
                shown_psnr(picture[inner][path], shots.expected[inner][path]), 3
            )
        keep(experiment, f"{case.name}-{way}", seed, picture)
    keep(experiment, f"{case.name}-expected", seed, shots.expected)
    return figures


def stored(frames: np.ndarray, pipeline: str) -> np.ndarray:
    """Return frames as a file keeps them: 16 bits, or the 8 of a JPEG."""
    if pipeline == "raw":
        return np.round(frames * 65535).astype(np.uint16)
    return np.round(frames * 255).astype(np.uint8)


def ways(
    experiment: runs.Experiment, case: Case, burst: Any, seed: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Make one picture H,W,3 of a registered burst in every way."""
    mean = burst.mean()
    yield "frame", burst.frames[burst.reference]
    yield "mean", mean
    if case.moves == "held":
        yield from classical(burst, mean)
    weights = n2n.load(starting(burst))
    yield "weights", weights.fuse(burst).image
    if case.moves == "crossed":
        yield "weights-alone", alone(weights, burst)
    starts: dict[str, Any] = {"scratch": None, "n2n": weights}
    both = case.moves == "held" and case.pipeline == "raw"
    for way in starts if both else ["n2n"]:
        experiment.pause()
        out = experiment.file(f"{case.name}-{way}", seed, ".safetensors")
        model = n2n.load(out) if out.exists() else n2n.fit(
            burst, init=starts[way], steps=BURST_STEPS, batch=BURST_BATCH, devices=1, out=out,
            learning_rate=FINE_RATE if way == "n2n" else RATE, resume=True)  # fmt: skip
        start = weights if way == "n2n" else None
        yield way, fuse_best(model, start, burst)[1].image
        if case.moves == "crossed":
            yield f"{way}-alone", alone(model, burst)


def alone(model: n2n.Denoiser, burst: Any) -> np.ndarray:
    """Return what a model makes of the reference frame, told its noise, turned in all ways."""
    frame = burst.frames[burst.reference]
    sigma = np.sqrt(np.square(burst.profile.sigma(frame)).mean(-1, keepdims=True))
    return turned(lambda image, noise: model.predict(image, noise_map=noise), frame,
                  sigma if model.reads_noise_map else None)  # fmt: skip


def classical(burst: Any, mean: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Apply BM3D to the mean: with one sigma, and to values whose noise the profile evens out."""
    import bm3d

    single = bm3d.BM3DProfile()
    single.num_threads = 1
    count = burst.weights.sum(0).mean()
    variance = burst.profile.variance(mean) / count
    sigma = float(np.sqrt(variance.mean()))
    yield "bm3d", np.asarray(bm3d.bm3d_rgb(mean, sigma, profile=single), np.float32)
    curves = [stabiliser(burst.profile, channel, mean) for channel in range(3)]
    even = np.stack([np.interp(mean[..., c], *curves[c]) for c in range(3)], -1)
    span = float(np.ptp(even))
    clean = bm3d.bm3d_rgb(even / span, float(1 / np.sqrt(count) / span), profile=single) * span
    back = [np.interp(clean[..., c], curves[c][1], curves[c][0]) for c in range(3)]
    yield "bm3d-even", np.stack(back, -1).astype(np.float32)


def stabiliser(profile: Any, channel: int, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return levels and what they are mapped to, so that one frame's noise has a variance of 1."""
    levels = np.linspace(mean[..., channel].min() - 0.05, mean[..., channel].max() + 0.05, 4096)
    shades = np.repeat(levels[:, None, None], mean.shape[-1], axis=-1)
    sigma = np.maximum(profile.sigma(shades)[:, 0, channel], 1e-4)
    step = np.diff(levels) * (1 / sigma[1:] + 1 / sigma[:-1]) / 2
    return levels, np.concatenate([[0.0], np.cumsum(step)])


def shown_psnr(picture: np.ndarray, reference: np.ndarray) -> float:
    """Return the PSNR of display values clipped to [0, 1], dB."""
    return n2n.psnr(np.clip(picture, 0, 1), np.clip(reference, 0, 1))


def keep(experiment: runs.Experiment, row: str, seed: int, picture: np.ndarray) -> None:
    """Write a picture beside the runs, to be looked at."""
    path = experiment.file(row, seed, ".png")
    n2n.write(path, np.round(255 * np.clip(picture, 0, 1)).astype(np.uint8), overwrite=True)


if __name__ == "__main__":
    main()
