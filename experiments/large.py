"""Measure `n2n burst` on eight hand-held JPEGs of 12 megapixels: time and peak memory.

    python -m experiments.large DATA    (9 minutes on two cores)

The scene is laid of `kodak24` pictures, 4000 x 3000 px when the frames are cut; the camera is that
of `bursts` through mosaic and JPEG. `n2n burst --report` runs as a process of its own, and nothing
else should run beside it. Asked for: eight minutes and 6 GB on two cores.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

import n2n
from experiments import bursts, runs
from n2n import simulate
from n2n.corruptions import Camera

HEIGHT, WIDTH, MARGIN = 3000, 4000, 64
GAIN = 0.01


def main() -> None:
    """Write the frames where they are not there yet, make their picture, and record the cost."""
    experiment = runs.start(__doc__, "large")
    folder = experiment.folder / "frames"
    if not (folder / "IMG_8.jpg").exists():
        photograph(scene(experiment.files(["kodak24"])), folder)
    out = experiment.folder / "clean.png"
    command = [sys.executable, "-m", "n2n", "burst", str(folder), "-o", str(out), "--overwrite",
               "--report", str(out.with_suffix(".html"))]  # fmt: skip
    began = time.monotonic()
    with subprocess.Popen(command) as process:
        peak = watched(process)
    seconds = time.monotonic() - began
    if process.returncode:
        raise SystemExit(process.returncode)
    experiment.record("burst", 0, None, pixels=[HEIGHT, WIDTH], frames=bursts.FRAMES,
                      minutes=round(seconds / 60, 2), gigabytes=round(peak, 2))  # fmt: skip


def watched(process: subprocess.Popen) -> float:
    """Wait for a process of Linux; return the most memory it held, in GB.

    As it says itself: what the system counts for a child begins with the memory of its parent.
    """
    peak = 0.0
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        held = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")]
        peak = max([peak, *(1.024e-6 * kilobytes for kilobytes in held)])
        time.sleep(0.1)
    return peak


def scene(paths: list[Path]) -> np.ndarray:
    """Lay pictures side by side to a scene H,W,3 float32 in [0, 1]."""
    pictures = [n2n.read(path).array for path in paths]
    wide = [picture for picture in pictures if picture.shape == (512, 768, 3)]
    height, width = HEIGHT + 2 * MARGIN, WIDTH + 2 * MARGIN
    rows = []
    for first in range(0, -(-height // 512)):
        chosen = [wide[(6 * first + i) % len(wide)] for i in range(-(-width // 768))]
        rows.append(np.concatenate(chosen, axis=1))
    return np.concatenate(rows)[:height, :width] / np.float32(255)


def photograph(picture: np.ndarray, folder: Path) -> None:
    """Write a hand-held burst of a scene as JPEGs of quality 95."""
    camera = Camera(GAIN, bursts.READ, **bursts.PIPELINES["developed"] | {"quality": 0.0})
    shots = simulate.hand_held(picture, frames=bursts.FRAMES, shift=bursts.SHIFT,
                               rotation=bursts.ROTATION, corruption=camera, margin=MARGIN,
                               draws=1)  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(shots.frames, 1):
        shown = np.round(255 * np.clip(frame, 0, 1)).astype(np.uint8)
        Image.fromarray(shown).save(folder / f"IMG_{number}.jpg", quality=95)


if __name__ == "__main__":
    main()
