"""Draw what `strength` does: a photograph under a camera's noise, and `photo` at four strengths.

    python -m experiments.strength     (half a minute; writes experiments/figures/strength.png)

The picture is scikit-image's `coffee`, exposed by a simulated camera at about ISO 3,200.
"""

from __future__ import annotations

import jax
import numpy as np
from skimage import data as samples

import n2n
from experiments.curves import FIGURES
from n2n.corruptions import Camera
from n2n.report import before_after

CAMERA = Camera(gain=2e-3, read=4e-3, red=2.0, blue=1.6, mosaic=1.0, quality=95.0)
STRENGTHS = (0.4, 0.7, 1.0)


def main() -> None:
    """Write the strip."""
    scene = samples.coffee() / np.float32(255)
    seen = np.asarray(CAMERA(jax.random.key(0), scene).image)
    shown = [n2n.denoise(seen, "photo", strength=strength) for strength in STRENGTHS]
    labels = ["0 (as taken)", *(f"{strength:g}" for strength in STRENGTHS)]
    FIGURES.mkdir(exist_ok=True)
    before_after(
        seen,
        shown[-1],
        FIGURES / "strength.png",
        between=shown[:-1],
        labels=labels,
        overwrite=True,
    )


if __name__ == "__main__":
    main()
