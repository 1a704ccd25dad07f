"""What callers give for a burst's frames, as a list of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from n2n import images
from n2n.types import Error


def gather(frames: Any) -> tuple[list[np.ndarray], tuple[str, ...], bool]:
    """Return a burst's frames as arrays, a name for each, and whether files tell one exposure.

    Raises:
        Error: a frame cannot be read, or the files tell that they are a bracket.
    """
    if isinstance(frames, np.ndarray):
        if frames.ndim not in (3, 4):
            raise Error(f"frames has shape {frames.shape}; it must be N,H,W or N,H,W,C")
        return list(frames), tuple(f"frame {i}" for i in range(1, len(frames) + 1)), False
    if isinstance(frames, (str, Path)):
        frames = [frames]
    if any(isinstance(frame, (str, Path)) for frame in frames):
        return _frame_files(images.frames_in(frames))
    arrays = [np.asarray(frame) for frame in frames]
    return arrays, tuple(f"frame {i}" for i in range(1, len(arrays) + 1)), False


def _frame_files(paths: Sequence[Path]) -> tuple[list[np.ndarray], tuple[str, ...], bool]:
    shots = [images.shot(path) for path in paths]
    images.refuse_bracket(shots)
    exposed = all(one.stops is not None and one.pages == 1 for one in shots)
    arrays, names = [], []
    for path in paths:
        pages = images.read_pages(path)
        arrays += [page.array for page in pages]
        several = len(pages) > 1
        names += [f"{path.name} {i}" if several else path.name for i in range(1, len(pages) + 1)]
    return arrays, tuple(names), exposed
