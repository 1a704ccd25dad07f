"""Measure the local field of registration beside OpenCV's dense flow (DIS), on a known truth.

A picture of `cid22_val` and the same one bent by a smooth random field, both with white noise of
sigma 0.01, 0.03 and 0.08; the field's displacements are 1 and 3 px (root mean square), smooth over
60 px. Figures: root mean square error of the displacement found, pixels, 24 px off the border, mean
of six pictures: of `n2n.registration.register`, of DIS (its medium preset, on the grey 8 bits that
it takes), of DIS smoothed over 16 px, and of no field at all.

    python -m experiments.flow DATA     (2 minutes on two cores)
"""

from __future__ import annotations

import statistics

import cv2
import numpy as np

import n2n
from experiments import runs
from n2n import registration

SIZES, SIGMAS = (1.0, 3.0), (0.01, 0.03, 0.08)
SMOOTH, BORDER, PICTURES = 60.0, 24, 6


def main() -> None:
    """Bend the pictures, find the fields back in all ways, and record the errors."""
    experiment = runs.start(__doc__, "flow")
    paths = experiment.files(["cid22_val"])[:PICTURES]
    pictures = [n2n.read(path).array / np.float32(255) for path in paths]
    rng = np.random.default_rng(0)
    for size in SIZES:
        for sigma in SIGMAS:
            found = [errors(picture, size, sigma, rng) for picture in pictures]
            means = {way: statistics.mean(one[way] for one in found) for way in found[0]}
            experiment.record(f"{size:g} px, sigma {sigma:g}", 0, None,
                              **{way: round(value, 3) for way, value in means.items()})  # fmt: skip


def errors(
    picture: np.ndarray, size: float, sigma: float, rng: np.random.Generator
) -> dict[str, float]:
    """Return the error in pixels of every way to find a field of `size` px in H,W,C."""
    height, width = picture.shape[:2]
    field = cv2.GaussianBlur(rng.standard_normal((height, width, 2)), (0, 0), SMOOTH)
    field = (size * field / np.sqrt(np.square(field).sum(-1).mean())).astype(np.float32)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    bent = cv2.remap(picture, x + field[..., 0], y + field[..., 1], cv2.INTER_CUBIC,
                     borderMode=cv2.BORDER_REFLECT_101)  # fmt: skip
    frame, reference = (
        each + np.float32(sigma) * rng.standard_normal(each.shape, np.float32)
        for each in (picture, bent)
    )
    own = registration.register(frame, reference)
    moved = np.stack(registration.displacement(own.matrix, x, y), -1)
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow = dis.calc(shades(reference), shades(frame), np.zeros_like(field))
    ways = {
        "n2n": moved + (0 if own.field is None else own.field),
        "dis": flow,
        "dis smoothed": cv2.GaussianBlur(flow, (0, 0), 16),
        "none": np.zeros_like(field),
    }
    inner = (slice(BORDER, -BORDER),) * 2
    return {
        way: float(np.sqrt(np.square(each - field).sum(-1)[inner].mean()))
        for way, each in ways.items()
    }


def shades(picture: np.ndarray) -> np.ndarray:
    """Return a picture H,W,C as the 8 grey bits that DIS takes."""
    return np.clip(255 * picture.mean(-1), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
