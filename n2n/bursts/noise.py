"""The noise profile of registered frames, freed of what resampling has done to their noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from n2n import profile
from n2n.profile import Profile
from n2n.registration import Transform, warp

_SIDE = 512
"""Pixels of white noise, squared, that tell what a frame's resampling keeps; a turned frame, whose
fractions of a pixel change over it, is told from these."""


def noise_profile(
    stack: np.ndarray, weights: np.ndarray, found: Sequence[Transform], first: int
) -> Profile | None:
    """Measure the noise of frames N,H,W,C as they were taken; None where they show too little.

    `stack` and `weights` N,H,W,1 are in the geometry of frame `first`, in which `found` has brought
    the others. Movement and other light need not be taken out: both are left out by the profile.
    """
    side = tuple(min(size, _SIDE) for size in stack.shape[1:3])
    if min(side) < profile.BLOCK:
        return None
    spectra = np.stack([_kept(one, side) for one in found])
    return profile.measure(stack, weights=weights, reference=first, spectra=spectra)


def _kept(transform: Transform, side: tuple[int, int]) -> np.ndarray:
    """Return the share 8,8 of white noise that resampling keeps, by frequency; 1 for none."""
    white = np.random.default_rng(0).standard_normal((*side, 1), np.float32)
    field = transform.field
    field = None if field is None else np.ascontiguousarray(field[: side[0], : side[1]])
    warped, _ = warp(white, transform.matrix, field)
    return profile.spectrum(warped[..., 0]) / profile.spectrum(white[..., 0])
