"""Which networks may be asked for: frozen dataclasses, the dicts of weights files, their rules."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from n2n.types import Error


@dataclass(frozen=True)
class UNet:
    """Configure the U-Net of Lehtinen et al. 2018, appendix table 2 (width 48: 991,203 parameters).

    `residual=True` predicts the noise, f(x) = x - net(x), with a last layer that starts near zero.
    `depth` counts the pools; the paper has 5.
    """

    inputs: int = 3
    outputs: int = 3
    width: int = 48
    residual: bool = False
    depth: int = 5


@dataclass(frozen=True)
class Lean:
    """Configure a residual U-Net with few channels where there are many pixels.

    A level has `widths[level]` channels: one convolution before the pool, two after the enlarged
    level below and the convolved maps have been put together (Ronneberger et al. 2015, in less
    than half of the paper's time; `experiments/default_network.py`). Kernels are kept in units of
    `n2n.networks._unit`, so that all learn at one pace (Karras et al. 2018, section 4.1).
    """

    inputs: int = 4
    outputs: int = 3
    widths: tuple[int, ...] = (24, 48, 64, 64)


@dataclass(frozen=True)
class RED30:
    """Configure RED30 (Mao et al. 2016): 15 + 15 convolutions, a skip every second one."""

    inputs: int = 3
    outputs: int = 3
    width: int = 128


@dataclass(frozen=True)
class Filtered:
    """Configure a network that sees a picture through a fixed linear filter, too.

    What the filter makes of the picture comes first, so that a residual network corrects it: a
    Wiener filter takes back what a blur has left, and the network its noise and its ringing. Reads
    as many channels as it writes; the halo grows by the filter.
    """

    filter: tuple[tuple[float, ...], ...]
    """Rows of a square kernel of odd side."""
    network: UNet | Lean | RED30
    """Reads twice as many channels as it writes."""

    @property
    def inputs(self) -> int:
        """Channels of the picture."""
        return self.network.outputs

    @property
    def outputs(self) -> int:
        """Channels of the picture."""
        return self.network.outputs


Config = UNet | Lean | RED30 | Filtered
_CONFIGS: dict[str, type] = {"lean": Lean, "unet": UNet, "red30": RED30, "filtered": Filtered}


def kind(config: Config) -> str:
    """Return the name of a configuration's kind, as files have it."""
    return next(name for name, each in _CONFIGS.items() if type(config) is each)


def named(name: str, inputs: int, outputs: int) -> Config:
    """Return what a name stands for: `default` (`Lean`), `unet` (the paper's), `red30`.

    The default reads a noise-level map beside the picture, zeros when unknown.

    Raises:
        Error: no such name.
    """
    if name == "default":
        return Lean(inputs + (inputs == outputs), outputs)
    if name in ("unet", "red30"):
        return _CONFIGS[name](inputs, outputs)
    raise Error(f"network is {name!r}; known are default, unet, red30")


def known(config: dict[str, Any]) -> bool:
    """Say whether a network's configuration is one of this module's."""
    return config.get("kind") in _CONFIGS


def parse(config: Config | dict[str, Any]) -> Config:
    """Return the configuration that a dict (`Network.config`, a weights file) describes.

    Raises:
        Error: an unknown kind or field, or a value out of range.
    """
    if isinstance(config, dict):
        fields = {name: _fixed(value) for name, value in config.items()}
        name = fields.pop("kind", None)
        if not isinstance(name, str) or name not in _CONFIGS:
            raise Error(f"network kind is {name!r}; known are {', '.join(_CONFIGS)}")
        try:
            config = _CONFIGS[name](**fields)
        except TypeError:
            allowed = ", ".join(f.name for f in dataclasses.fields(_CONFIGS[name]))
            raise Error(f"network has fields {sorted(fields)}; {name} knows {allowed}") from None
        if isinstance(config, Filtered) and isinstance(config.network, dict):
            within: Any = parse(config.network)
            config = dataclasses.replace(config, network=within)
    assert not isinstance(config, dict)
    _check(config)
    return config


def _fixed(value: Any) -> Any:
    """Return JSON's lists as the tuples that configurations have."""
    return tuple(_fixed(one) for one in value) if isinstance(value, list) else value


_SIDE = 513
"""Longest side of a filter."""
_MOST = {"inputs": 1024, "outputs": 1024, "width": 1024, "depth": 7, "widths": 1024}


def _check(config: Config) -> None:
    if isinstance(config, Filtered):
        _check_filtered(config)
        return
    if isinstance(config, Lean):
        widths = config.widths
        if not isinstance(widths, tuple) or not 2 <= len(widths) <= 8:
            raise Error(f"network widths is {widths!r}; it must be 2 to 8 numbers, one per level")
    for name, most in _MOST.items():
        value = getattr(config, name, 1)
        for one in value if name == "widths" and isinstance(value, tuple) else (value,):
            if not isinstance(one, int) or isinstance(one, bool) or not 1 <= one <= most:
                raise Error(
                    f"network {name} is {value!r}; it must be a whole number from 1 to {most}"
                )
    residual = getattr(config, "residual", True)
    if not isinstance(residual, bool):
        raise Error(f"network residual is {residual!r}; it must be true or false")
    if residual and config.inputs < config.outputs:
        raise Error(
            f"network reads {config.inputs} channels and writes {config.outputs}; a residual "
            "network must read at least as many as it writes"
        )


def _check_filtered(config: Filtered) -> None:
    if not isinstance(config.network, UNet | Lean | RED30):
        raise Error(
            f"network within filtered is {config.network!r}; it must be unet, lean or red30"
        )
    _check(config.network)
    if config.network.inputs != 2 * config.network.outputs:
        raise Error(
            f"network within filtered reads {config.network.inputs} channels and writes "
            f"{config.network.outputs}; it must read twice as many as it writes"
        )
    try:
        rows = np.asarray(config.filter, np.float64)
    except (TypeError, ValueError):
        rows = np.zeros(0)
    side = rows.shape[0] if rows.ndim else 0
    if rows.shape != (side, side) or not side % 2 or side > _SIDE or not np.isfinite(rows).all():
        raise Error(
            f"network filter has shape {rows.shape}; it must be square, of odd side up to {_SIDE}, "
            "and finite"
        )
