"""n2n: a Noise2Noise denoiser that learns from noisy pictures alone.

`clean = n2n.denoise(image)` uses the weights in the package; `n2n.denoise_burst(frames)` learns
from the burst itself; `n2n.fit(task)` trains on anything. Names load on first use, so that
importing n2n costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from n2n import corruptions as corruptions
    from n2n import psf as psf
    from n2n import types as types
    from n2n.denoiser import Denoiser as Denoiser
    from n2n.denoiser import align as align
    from n2n.denoiser import denoise as denoise
    from n2n.denoiser import denoise_burst as denoise_burst
    from n2n.denoiser import fit as fit
    from n2n.denoiser import load as load
    from n2n.denoiser import unblur as unblur
    from n2n.evaluation import evaluate as evaluate
    from n2n.images import read as read
    from n2n.images import write as write
    from n2n.metrics import psnr as psnr
    from n2n.metrics import ssim as ssim
    from n2n.metrics import upsnr as upsnr
    from n2n.metrics import upsnr_pair as upsnr_pair
    from n2n.tasks import deblurring as deblurring
    from n2n.tasks import pairs as pairs
    from n2n.tasks import simulated as simulated
    from n2n.types import Error as Error

__version__ = "0.1.0"

_HOME = {
    "Denoiser": "denoiser",
    "align": "denoiser",
    "denoise": "denoiser",
    "denoise_burst": "denoiser",
    "fit": "denoiser",
    "load": "denoiser",
    "unblur": "denoiser",
    "evaluate": "evaluation",
    "read": "images",
    "write": "images",
    "psnr": "metrics",
    "ssim": "metrics",
    "upsnr": "metrics",
    "upsnr_pair": "metrics",
    "deblurring": "tasks",
    "pairs": "tasks",
    "simulated": "tasks",
    "Error": "types",
}
_MODULES = ("corruptions", "psf", "types")


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"n2n.{_HOME[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"n2n.{name}")
    else:
        raise AttributeError(f"module 'n2n' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*_HOME, *_MODULES, "__version__"})
