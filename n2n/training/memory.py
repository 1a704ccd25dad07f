"""Whether a step fits the memory, and what to ask for where it does not."""

from __future__ import annotations

from n2n.training.step import TrainConfig

_SHARE = 0.9
"""Of the free memory, what is advised to be used."""


def too_large(config: TrainConfig, lattice: int, devices: int, need: int, free: int | None) -> str:
    """Say that a step does not fit, and the largest batch, or else crop, that would.

    Args:
        config: batch and crop as they are.
        lattice: the network's, in pixels.
        devices: how many share a batch.
        need: bytes that a step works with on each, in proportion to batch and the crop's area; 0
            where nobody knows.
        free: bytes at hand on each, None where nobody says.
    """
    known = need > 0 and free is not None and free < need
    share = _SHARE * free / need if known and free is not None else 0.5
    sizes = f" {need / 1e9:.2g} GB, {free / 1e9:.2g} GB are free" if known and free else ""
    step = f"a step with batch {config.batch} and crop {config.crop} does not fit the memory"
    return f"{step}{sizes and f' (it needs{sizes})'}; {_advice(config, lattice, devices, share)}"


def _advice(config: TrainConfig, lattice: int, devices: int, share: float) -> str:
    batch = int(config.batch * share) // devices * devices
    if batch:
        return f"take batch {batch}, or close other programs"
    side = config.crop * (config.batch * share / devices) ** 0.5
    crop = min(int(side) // lattice * lattice, config.crop)
    if crop:
        return f"take batch {devices} and crop {crop}, or close other programs"
    return "take a smaller network, or a computer with more memory"
