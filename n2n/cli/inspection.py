"""`n2n inspect`: how frames fit together and how noisy they are, or what a model is."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from n2n.cli import burst as burst_command
from n2n.cli import jobs, outputs
from n2n.cli.screen import Screen, shown
from n2n.types import Burst

_CHANNELS = {1: ("grey",), 3: ("red", "green", "blue")}


def run(options: Any) -> int:
    """Show the frames or the model; return the status."""
    screen = Screen(options.quiet, machine=options.json == "-")
    if len(options.paths) == 1 and is_model(options.paths[0]):
        return _model(screen, options)
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
    outputs.check_json(options.json, overwrite=options.overwrite, sources=paths)
    jobs.start()
    if len(paths) == 1 and len(pages := images.read_pages(paths[0])) == 1:
        return _single(screen, images.to_float(pages[0].array, options.data_range), options)
    burst = burst_command.registered(screen, paths, None, options)
    count, height, width, channels = burst.frames.shape
    low, high = burst.scale
    burst_command.show_frames(screen, burst)
    screen.result(f"{count} frames of {width} x {height}, {channels} channels")
    screen.result(f"values from {low:.4g} to {high:.4g}, where 1 is white")
    _show_noise(screen, burst)
    mean = burst.mean()
    noise = burst.profile and float(np.sqrt(burst.profile.variance(mean).mean() / count))
    blur = _blur(screen, mean, noise)
    if not burst.checks:
        screen.result("nothing is wrong with them")
    outputs.write_json(options.json, _facts(burst) | {"blur": blur})
    return 0


def _single(screen: Screen, image: np.ndarray, options: Any) -> int:
    """Show what one picture tells: noise is measured between several."""
    height, width, channels = image.shape
    screen.result(f"one picture of {width} x {height}, {channels} channels")
    screen.result(f"values from {image.min():.4g} to {image.max():.4g}, where 1 is white")
    facts = {"size": list(image.shape), "blur": _blur(screen, image, None)}
    screen.result("give two frames or more to see their noise and how they fit together")
    outputs.write_json(options.json, facts)
    return 0


def _blur(screen: Screen, image: np.ndarray, sigma: float | None) -> dict[str, Any]:
    """Say which point spread function a picture shows, as `n2n unblur --psf` takes it."""
    from n2n import psf

    found = psf.estimate(image, sigma=sigma)
    text = "" if found.psf is None else _psf_text(found.psf)
    sure = f"confidence {100 * found.confidence:.0f} %"
    screen.result(f"blur: {f'--psf {text}' if text else 'none that shows'} ({sure})")
    return {"kind": found.kind, "psf": text or None, "confidence": found.confidence}


def _psf_text(psf: Any) -> str:
    """Return a point spread function as `--psf` takes it, to hundredths of pixels and degrees."""
    rounded = {name: round(value, 2) for name, value in dataclasses.asdict(psf).items()}
    return str(dataclasses.replace(psf, **rounded)).replace("blur:", "gaussian:")


def _show_noise(screen: Screen, burst: Burst) -> None:
    if burst.profile is None:
        screen.result("too small to measure their noise")
        return
    columns = ("noise", "gain", "read", "dark", "middle", "bright", "a line fits")
    screen.table(columns, noise_rows(burst.profile))
    screen.result("noise: one frame's standard deviation (at the brightness), where 1 is white")


def noise_rows(profile: Any) -> list[tuple[str, ...]]:
    """Return a row for each channel: what sensors are told by, and the noise where it was measured.

    The gain is the variance per brightness, the read noise the standard deviation at black; both
    are the line's and stand only where one fits.
    """
    count = len(profile.gain)
    names = _CHANNELS.get(count) or tuple(f"channel {i}" for i in range(1, count + 1))
    return [(name, *_noise(profile, channel)) for channel, name in enumerate(names)]


def _noise(profile: Any, channel: int) -> tuple[str, ...]:
    gain, offset, line = (one[channel] for one in (profile.gain, profile.offset, profile.linear))
    level = profile.curves[channel].level
    shown = [
        f"{profile.sigma_at(channel, at):.3g} ({at:.3g})"
        for at in (level[0], level[len(level) // 2], level[-1])
    ]
    # A black level that was not subtracted makes the variance at 0 negative: no read noise shows.
    read = f"{math.sqrt(offset):.3g}" if line and offset > 0 else "-"
    return f"{gain:.3g}" if line else "-", read, *shown, "yes" if line else "no"


def _facts(burst: Burst) -> dict[str, Any]:
    """Return what `--json` tells of frames."""
    table = zip(burst.names, burst.shifts.tolist(), burst.weights, strict=True)
    return {
        "size": list(burst.frames.shape[1:]),
        "reference": burst.names[burst.reference],
        "range": list(burst.scale),
        "frames": [
            {"name": name, "shift": shift, "used": float(weight.mean())}
            for name, shift, weight in table
        ],
        "checks": list(burst.checks),
        "profile": None if burst.profile is None else burst.profile.as_dict(),
    }


def _told(config: dict[str, Any]) -> str:
    """Return a configuration in words; of a filter only its size."""
    words = []
    for key, value in config.items():
        if key == "filter":
            value = f"of {len(value)}x{len(value)}"
        words.append(f"{key} ({_told(value)})" if isinstance(value, dict) else f"{key} {value}")
    return ", ".join(words)


def _model(screen: Screen, options: Any) -> int:
    import jax

    import n2n

    (name,) = options.paths
    outputs.check_json(options.json, overwrite=options.overwrite, sources=[Path(name)])
    model = n2n.load(name)
    network = model.network
    reads, writes = network.channels
    facts = {
        "network": _told(network.config),
        "parameters": f"{sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.params)):,}",
        "channels": f"{reads} in, {writes} out",
        "halo": "never tiled" if network.halo is None else f"{network.halo} px",
        "lattice": f"{network.lattice} px",
        "scale": "{:.4g} to {:.4g}".format(*model.scale),
        **model.card,
    }
    for key, value in facts.items():
        screen.result(f"{key.replace('_', ' '):<16}{shown(_line(value))}")
    outputs.write_json(options.json, facts)
    return 0


def _line(value: Any) -> str:
    """Write a fact of a card on one line: figures by name, before and after as `a / b`."""
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_line(each)}" for name, each in value.items())
    if isinstance(value, list):
        return " / ".join("-" if each is None else str(each) for each in value)
    return str(value)
