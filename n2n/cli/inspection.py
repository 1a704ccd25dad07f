"""`n2n inspect`: how frames fit together, or what a model is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from n2n.cli import burst as burst_command
from n2n.cli import jobs
from n2n.cli.screen import Screen, shown


def run(options: Any) -> int:
    """Show the frames or the model; return the status."""
    screen = Screen(options.quiet)
    if len(options.paths) == 1 and is_model(options.paths[0]):
        return _model(screen, options.paths[0])
    return _frames(screen, options)


def is_model(name: str) -> bool:
    """Say whether a name means a model: a .safetensors file or weights in the package."""
    if Path(name).suffix == ".safetensors":
        return True
    if Path(name).exists():
        return False
    from n2n.denoiser.model import WEIGHTS

    return (WEIGHTS / f"{name}.safetensors").exists()


def _frames(screen: Screen, options: Any) -> int:
    from n2n import images

    paths = images.frames_in(options.paths)
    jobs.start()
    burst = burst_command.registered(screen, paths, None, options)
    count, height, width, channels = burst.frames.shape
    low, high = burst.scale
    burst_command.show_frames(screen, burst)
    screen.result(f"{count} frames of {width} x {height}, {channels} channels")
    screen.result(f"values from {low:.4g} to {high:.4g}, where 1 is white")
    if not burst.checks:
        screen.result("nothing is wrong with them")
    return 0


def _model(screen: Screen, name: str) -> int:
    import jax

    import n2n

    model = n2n.load(name)
    network = model.network
    inputs, outputs = network.channels
    facts = {
        "network": ", ".join(f"{key} {value}" for key, value in network.config.items()),
        "parameters": f"{sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.params)):,}",
        "channels": f"{inputs} in, {outputs} out",
        "halo": "never tiled" if network.halo is None else f"{network.halo} px",
        "lattice": f"{network.lattice} px",
        "scale": "{:.4g} to {:.4g}".format(*model.scale),
        **{key: str(value) for key, value in model.card.items()},
    }
    for key, value in facts.items():
        screen.result(f"{key.replace('_', ' '):<16}{shown(value)}")
    return 0
