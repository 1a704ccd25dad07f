"""What callers give for a burst's frames, as a list of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from n2n import images
from n2n.types import Error, Picture


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
    named = [(name, page.array) for path in paths for name, page in named_pages(path)]
    return [array for _, array in named], tuple(name for name, _ in named), exposed


def named_pages(path: Path) -> list[tuple[str, Picture]]:
    """Read a file's pictures, each with its name; several, of a stack, are numbered from 1."""
    pages = images.read_pages(path)
    if len(pages) == 1:
        return [(path.name, pages[0])]
    return [(f"{path.name} {index}", page) for index, page in enumerate(pages, 1)]
