"""What makes two runs the same: settings, data, and the weights they start from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from n2n import devices
from n2n.training.step import TrainConfig
from n2n.types import Error, Network, PyTree, Task

_SETTINGS = ("seed", "batch", "crop", "learning_rate", "optimizer", "precision", "warmup", "ramp")


def identity(task: Task, network: Network, config: TrainConfig, params: PyTree) -> dict[str, Any]:
    """Return what must be equal for a run to be continued, as JSON gives it back."""
    settings = dataclasses.asdict(config)
    found = {
        "network": network.config,
        "noise": task.name,
        "loss": _name(task.loss),
        "data": _fingerprint(task.pool),
        **{k: settings[k] for k in _SETTINGS},
    }
    if params is not None:
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
        found["init"] = _digest(leaves).tobytes().hex()[:16]
    return json.loads(json.dumps(found))


def _name(function: Callable) -> str:
    return getattr(function, "__qualname__", type(function).__name__)


def _fingerprint(pool: PyTree) -> str:
    """Return a short digest of a pool: other data, other digest, whoever holds which stripes."""
    leaves = [np.ascontiguousarray(leaf) for leaf in jax.tree.leaves(pool)]
    stripes = np.stack([_digest([leaf[i] for leaf in leaves]) for i in range(len(leaves[0]))])
    rows = stripes if len(stripes) == 1 else devices.gather(stripes)
    return hashlib.sha256(rows.tobytes()).hexdigest()[:16]


def _digest(arrays: list[np.ndarray]) -> np.ndarray:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return np.frombuffer(digest.digest(), np.uint8)


def same_run(ours: dict[str, Any], theirs: dict[str, Any], folder: Path) -> None:
    """Raise `Error` where a run in a folder is not the one to be continued, and say by what."""
    for field in {**ours, **theirs}:
        value = ours.get(field)
        if theirs.get(field) != value:
            raise Error(
                f"{field} is {value!r}, but the run in {str(folder)!r} has "
                f"{theirs.get(field)!r}; give the same {field} or delete that folder"
            )
