"""Unblur: several captures, blurred alike, become their sharp scene; learnt from these alone.

The captures are registered as a burst is. A Wiener filter of the PSF stands before the network, so
that what is learnt is what a linear filter cannot do: to take its noise and its ringing away, and
to bring back what photographs are known to have at edges.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from n2n import corruptions, images, networks, tasks
from n2n.corruptions.blur import PSF, Measured, wiener
from n2n.types import Burst, Error

REACH = 4
"""Of the Wiener filter, in reaches of the PSF."""
CROP = 96
"""Side of a training crop in pixels: the border that a PSF of 20 px blurs is a third of it."""


def as_psf(psf: Any) -> PSF:
    """Return the point spread function that a text, a file or an array stands for.

    `gaussian:1.6` (sigma), `motion:15,30` (length and angle), `defocus:4` (radius), in pixels and
    degrees; a file: a picture of the kernel, or a .npy or .txt of its rows; an array of its rows.

    Raises:
        Error: nothing of that kind, a range where one PSF is needed, or no kernel.
    """
    if isinstance(psf, PSF):
        return tasks.single(psf)
    if isinstance(psf, (str, Path)) and not os.path.exists(psf):
        return tasks.single(_parsed(str(psf)))
    rows = _kernel(Path(psf)) if isinstance(psf, (str, Path)) else np.asarray(psf)
    if rows.ndim != 2:
        raise Error(f"psf {psf!r} has shape {rows.shape}; a kernel is square, without colours")
    return Measured(tuple(map(tuple, rows.astype(np.float64).tolist())))


def _parsed(text: str) -> PSF:
    # Gaussian noise has the name `gaussian`; as a PSF it is what is written `blur` in a corruption.
    name, colon, rest = text.partition(":")
    try:
        found = corruptions.parse(f"blur{colon}{rest}" if name == "gaussian" else text)
    except Error as error:
        raise Error(f"psf {text!r}: no such file, and {error}") from None
    if not isinstance(found, PSF):
        raise Error(
            f"psf {text!r}: is no blur; write gaussian:1.6, motion:15,30, defocus:4, or name a file"
        )
    return found


def _kernel(path: Path) -> np.ndarray:
    """Read a kernel; the mean of the channels of a picture that has several."""
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        if path.suffix == ".txt":
            return np.loadtxt(path, ndmin=2)
    except (OSError, ValueError) as error:
        raise Error(f"psf {str(path)!r}: cannot be read as rows of numbers ({error})") from None
    array = images.read(path).array.astype(np.float64)
    return array if array.ndim == 2 else array.mean(-1)


def sharpener(psf: PSF, sigma: float, channels: int) -> networks.Filtered:
    """Return the network for pictures blurred by a PSF, noise of sigma: Wiener's, then ours."""
    taps = wiener(psf.kernel(jax.random.key(0)), sigma, REACH * psf.reach)
    return networks.Filtered(
        tuple(map(tuple, taps.tolist())), networks.Lean(2 * channels, channels)
    )


def noise_of(burst: Burst, sigma: float | None) -> float:
    """Return the standard deviation of a frame's noise in display units: as told, or as measured.

    Raises:
        Error: it is told by nobody, or is none.
    """
    if sigma is None and burst.profile is not None:
        sigma = float(np.sqrt(np.mean(burst.profile.variance(burst.mean()))))
    if sigma is None:
        raise Error("the frames are too small to measure their noise; say it with sigma= (--sigma)")
    if not 0 < sigma < np.inf:
        raise Error(f"sigma is {sigma:g}; unblurring needs the frames' noise, a number above 0")
    return sigma
