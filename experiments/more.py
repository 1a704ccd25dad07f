"""Draw what else the trainer learns: blur, compression, writing and lost colour, taken away.

    python -m experiments.more     (a minute; writes experiments/figures/more.png)

Above what is given, below what comes out; none of the networks has seen a sharp, uncompressed,
unwritten or clean picture of its task, but noisy ones. Needs the models of `experiments.unblur`,
`jpeg` and `colour` in `--runs`, trained by `--preset cpu`; `text` is in the package. The pictures
are scikit-image's `astronaut`, `coffee` and `cat`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import numpy as np
from skimage import data as samples

import n2n
from experiments import colour, unblur
from experiments.curves import FIGURES
from experiments.strength import MARGIN
from n2n.corruptions import JPEG, Chain, Gaussian, Text

BLURRED = Chain((unblur.PSFS["motion"], Gaussian(unblur.SIGMA)))
COLUMNS = (
    ("astronaut", BLURRED, "unblur-cpu/motion-operator-0.safetensors", (30, 140)),
    ("coffee", JPEG(10.0), "jpeg-cpu/noisy-0.safetensors", (90, 150)),
    ("cat", Text(0.25), "text", (60, 150)),
    ("astronaut", colour.INPUT, "colour-cpu/noisy-0.safetensors", (0, 300)),
)
"""Picture, what is done to it, the model, and the corner of the detail that is shown."""
SIDE = 160
"""Of the details, shown at twice their size."""


def main() -> None:
    """Write the details side by side."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the models are")
    options = parser.parse_args()
    columns = []
    for name, corruption, weights, corner in COLUMNS:
        scene = getattr(samples, name)() / np.float32(255)
        seen = np.asarray(corruption(jax.random.key(0), scene).image)
        model = n2n.load(options.runs / weights if weights.endswith("s") else weights)
        both = [detail(each, corner) for each in (seen, model.predict(seen))]
        columns.append(np.concatenate(both).repeat(2, 0).repeat(2, 1))
    whole = np.round(255 * np.clip(np.concatenate(columns, 1), 0, 1)).astype(np.uint8)
    FIGURES.mkdir(exist_ok=True)
    n2n.write(FIGURES / "more.png", whole, overwrite=True)


def detail(picture: np.ndarray, corner: tuple[int, int]) -> np.ndarray:
    """Return a square of a picture with a white margin."""
    top, left = corner
    return np.pad(picture[top : top + SIDE, left : left + SIDE], MARGIN, constant_values=1)


if __name__ == "__main__":
    main()
