"""Check the noise profile against a camera's own measurement and against raw mosaics.

Photon transfer as `n2n.align` does it for every burst. `flatfield_emva1288_ccd12` holds pairs of
frames of uniform light and of darkness, of which EMVA 1288 (release 3.0, section 6) computes the
system gain K: the slope of the variance, less that of the dark, over the mean, less that of the
dark, up to 70 % of saturation. `burst_neif_pair` holds two raw frames; the profile of their four
Bayer planes is compared with var(x0 - x1) / 2 around the 5, 50 and 95 % points of the mean: in the
3 % of the pixels whose surroundings (5x5) are as bright. (`pixelwise`: whose own mean is so. There
dark pixels that are bright by chance are taken for brighter ones, and bins narrower than the steps
of the values take differences of one parity only: it scatters by a tenth.)
Expected: gain within 3 %, dark variance within 5 %, the planes' variances within 5 %.

    python -m experiments.profile DATA        (5 seconds on two cores)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

import n2n
from experiments import runs

FLAT, RAW = "flatfield_emva1288_ccd12", "burst_neif_pair"
PHASES = ((0, 0), (0, 1), (1, 0), (1, 1))
"""Row and column of the first pixel of each Bayer plane."""
WHITE = 4095
"""Of the 12 bits of the flat fields."""
EXPOSURES = (0, 7, 14, 21, 28, 35, 42, 49)
LINEAR = 0.7
"""Share of saturation up to which EMVA 1288 fits the gain."""
POINTS = (5, 50, 95)
HALF = 1.5
"""Percent of the pixels on either side of such a point."""


def main() -> None:
    """Measure both, compare, and record the lines."""
    experiment = runs.start(__doc__, "profile")
    experiment.record("emva1288", 0, None, **flat_fields(experiment.pictures(FLAT)))
    experiment.record("neif", 0, None, **planes(experiment.pictures(RAW)))


def flat_fields(folder: Path) -> dict[str, Any]:
    """Return gain and dark variance, in 12-bit values, by EMVA 1288 and by the profile."""
    bright, dark = (
        [_pair(folder, kind, exposure) for exposure in EXPOSURES] for kind in ("b", "d")
    )
    gain, level, variance = emva1288(bright, dark)
    # One frame pair of all exposures side by side: what photon transfer wants of a scene.
    frames = np.concatenate(bright + dark, axis=2).astype(np.float32)
    profile = n2n.align(frames, data_range=(0, WHITE), register=False).profile
    found = profile.gain[0] * WHITE
    found_dark = (profile.sigma_at(0, level / WHITE) * WHITE) ** 2
    return {
        "gain": round(found, 5),
        "gain_emva": round(gain, 5),
        "gain_ratio": round(found / gain, 4),
        "dark": round(found_dark, 3),
        "dark_emva": round(variance, 3),
        "dark_ratio": round(found_dark / variance, 4),
        "linear": profile.linear[0],
    }


def _pair(folder: Path, kind: str, exposure: int) -> np.ndarray:
    """Return two frames 2,H,W,1 float64 of one exposure, bright (b) or dark (d)."""
    names = (f"{kind}_{exposure:03d}_snap_{number:03d}.png" for number in (1, 2))
    return np.stack([n2n.read(folder / name).array[..., None] for name in names]).astype(float)


def emva1288(bright: list[np.ndarray], dark: list[np.ndarray]) -> tuple[float, float, float]:
    """Return system gain, dark level and dark variance of pairs 2,H,W,1 by the standard."""
    level, variance = np.transpose([_moments(*pair) for pair in bright])
    black, noise = np.transpose([_moments(*pair) for pair in dark])
    light, more = level - black, variance - noise
    # The brightest pairs are there to saturate.
    used = light <= LINEAR * light.max()
    gain = float((light * more)[used].sum() / np.square(light)[used].sum())
    return gain, float(black.mean()), float(noise.mean())


def _moments(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Return mean and temporal variance of two frames (equations 18 to 20)."""
    return (a.mean() + b.mean()) / 2, np.mean(np.square(a - b)) / 2 - (a.mean() - b.mean()) ** 2 / 2


def planes(folder: Path) -> dict[str, Any]:
    """Return the profile's variance over the measured one, for each plane and point."""
    mosaics = [n2n.read(folder / f"frame{i}.tiff").array for i in (0, 1)]
    frames = np.stack([np.stack([one[y::2, x::2] for y, x in PHASES], -1) for one in mosaics])
    profile = n2n.align(frames, register=False).profile
    figures: dict[str, Any] = {"linear": profile.linear}
    for name, side in (("surroundings", 5), ("pixelwise", 1)):
        table = [
            [round(ratio, 3) for ratio in _ratios(profile, channel, pair, side)]
            for channel, pair in enumerate(np.moveaxis(frames / 65535, -1, 0))
        ]
        worst = float(np.abs(np.array(table) - 1).max())
        figures |= {name: table, f"{name}_worst": round(worst, 3)}
    return figures


def _ratios(profile: Any, channel: int, pair: np.ndarray, side: int) -> list[float]:
    """Return predicted over measured variance of a plane 2,h,w at its three points."""
    first, second = pair
    mean = (first + second) / 2
    near, ratios = cv2.blur(mean, (side, side)), []
    for point in POINTS:
        low, high = np.percentile(near, (point - HALF, point + HALF))
        inside = (near >= low) & (near <= high)
        measured = float(np.var((first - second)[inside])) / 2
        level = float(np.percentile(mean, point))
        ratios.append(profile.sigma_at(channel, level) ** 2 / measured)
    return ratios


if __name__ == "__main__":
    main()
