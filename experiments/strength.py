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

CAMERA = Camera(gain=2e-3, read=4e-3, red=2.0, blue=1.6, mosaic=1.0, quality=95.0)
STRENGTHS = (0.4, 0.7, 1.0)
CORNER, SIDE = (90, 150), 180
"""Of the detail that is shown, at twice its size."""
MARGIN = ((3, 3), (3, 3), (0, 0))


def main() -> None:
    """Write the strip: as taken, then stronger from left to right."""
    scene = samples.coffee() / np.float32(255)
    seen = np.asarray(CAMERA(jax.random.key(0), scene).image)
    shown = [seen, *(n2n.denoise(seen, "photo", strength=strength) for strength in STRENGTHS)]
    top, left = CORNER
    details = [np.pad(each[top : top + SIDE, left : left + SIDE], MARGIN, constant_values=1)
               for each in shown]  # fmt: skip
    strip = np.concatenate(details, axis=1).repeat(2, 0).repeat(2, 1)
    FIGURES.mkdir(exist_ok=True)
    whole = np.round(255 * np.clip(strip, 0, 1)).astype(np.uint8)
    n2n.write(FIGURES / "strength.png", whole, overwrite=True)


if __name__ == "__main__":
    main()
