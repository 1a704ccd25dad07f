"""Processes that work for hours: neither memory nor open files grow."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from test_resume import fit

import n2n
from n2n import networks
from n2n.networks import Lean

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="counts as Linux shows them"),
]
GROWTH = 8e6
"""Bytes by which the memory may have grown, by the line through the second half of the samples,
over all of that half: the allocator's own play is about half of it."""


def usage() -> tuple[int, int]:
    """Return this process's resident bytes and its open files."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE"), len(os.listdir("/proc/self/fd"))


def check_flat(samples: list[tuple[int, int]]) -> None:
    """Fail if memory or open files grow in the second half, when all programs are compiled."""
    half = np.array(samples[len(samples) // 2 :], float)
    assert len(half) >= 20
    place = np.linspace(0, 1, len(half))
    growth = np.polyfit(place, half[:, 0], 1)[0]
    print(f"{growth / 1e6:+.2f} MB, files {half[0, 1]:.0f} to {half[-1, 1]:.0f}")
    assert growth < GROWTH
    assert half[-10:, 1].max() <= half[:10, 1].max()


def test_ten_thousand_predictions(tmp_path) -> None:
    """Pictures of many sizes, each read, denoised and written."""
    network = networks.build(Lean(3, 3, (4, 8)))
    model = n2n.Denoiser(network.init(jax.random.key(0)), network)
    rng = np.random.default_rng(0)
    samples = []
    for number in range(10_000):
        height, width = (int(side) for side in rng.integers(1, 90, 2))
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        clean = model.denoise(image)
        assert clean.shape == image.shape and clean.dtype == np.uint8
        if number % 10 == 0:
            n2n.write(tmp_path / "clean.png", clean, overwrite=True)
            assert np.array_equal(n2n.read(tmp_path / "clean.png").array, clean)
        if number % 100 == 0:
            samples.append(usage())
    check_flat(samples)


def test_fifty_thousand_steps(tmp_path) -> None:
    samples = []

    def follow(event: object) -> None:
        if event.step >= 500 * len(samples):
            samples.append(usage())

    settings = {"steps": 50_000, "batch": 1, "crop": 16, "network": Lean(1, 1, (2, 4))}
    fit("pairs", tmp_path / "m.safetensors", progress=follow, **settings)
    check_flat(samples)
    assert os.listdir(tmp_path) == ["m.safetensors"]
