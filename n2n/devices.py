"""Where programs run and how they are compiled: the only module that asks which device this is.

One-dimensional mesh "data", automatic axes; parameters are replicated, a batch and a striped pool
are split along their leading axis. Steps are scanned on accelerators and dispatched one by one on
CPU, where a convolution inside `lax.scan` trains 40-60 times slower (jax-ml/jax#12868).
"""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from n2n.types import Error

# XLA's CPU fusions into YNNPACK make convolutions 2 to 4 times slower, their weight gradients up
# to 8 times (measured with jax 0.10.2 and 0.12.0 on two cores); an empty value turns them off.
_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""}


@functools.cache
def compiler_options() -> dict[str, str] | None:
    """Return the compiler options for this backend, or None; probed once, unknown ones raise."""
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda x: x + 1, compiler_options=_CPU_OPTIONS).lower(1.0).compile()
    except Exception:  # the name of an experimental option may go in any jaxlib, with any error
        return None
    return _CPU_OPTIONS


def jit(function: Callable, **options: Any) -> Callable:
    """Compile a function with this backend's options; takes what `jax.jit` takes."""
    return jax.jit(function, compiler_options=compiler_options(), **options)


def scans() -> bool:
    """Say whether several training steps belong into one `lax.scan` here (never on CPU)."""
    return jax.default_backend() != "cpu"


def mesh(count: int | None = None) -> Mesh:
    """Make the mesh of `count` devices; None: one on CPU, all of them on an accelerator.

    Raises:
        Error: more devices asked for than there are.
    """
    devices = jax.devices()
    count = count or (1 if jax.default_backend() == "cpu" else len(devices))
    if count > len(devices):
        raise Error(f"devices is {count}, but only {len(devices)} are here; ask for fewer")
    return jax.make_mesh((count,), ("data",), (AxisType.Auto,), devices=devices[:count])


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that keeps a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """Return the sharding that splits the leading axis over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def place(pool: Any, mesh: Mesh) -> Any:
    """Put a pool on the devices: striped pools split by stripe, a single stripe on each."""
    stripes = jax.tree.leaves(pool)[0].shape[0]
    return jax.device_put(pool, replicated(mesh) if stripes == 1 else split(mesh))


def check_batch(batch: int, mesh: Mesh) -> None:
    """Refuse a batch that does not divide among the devices of a mesh."""
    if batch % mesh.size:
        raise Error(
            f"batch is {batch}, which does not divide among {mesh.size} devices; "
            f"take a multiple of {mesh.size}"
        )


def pool_budget() -> int:
    """Return how many bytes a pool may take: 2 GB on CPU, a third of an accelerator's memory."""
    stats = jax.devices()[0].memory_stats() or {}
    if jax.default_backend() == "cpu" or "bytes_limit" not in stats:
        return 2 * 10**9
    return int(stats["bytes_limit"]) // 3


def describe() -> str:
    """Name the devices in a few words, for the first line of a long job."""
    devices = jax.devices()
    if jax.default_backend() == "cpu":
        return f"CPU ({os.cpu_count()} cores, {platform.machine()})"
    return f"{len(devices)} x {devices[0].device_kind}"


def versions() -> dict[str, str]:
    """Return the versions that byte-equal resuming depends on, and the thread count."""
    import flax
    import optax

    return {
        "jax": jax.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "numpy": np.__version__,
        "backend": jax.default_backend(),
        "threads": str(os.cpu_count()),
    }


def enable_cache() -> None:
    """Keep compiled programs in the user's own cache folder (trusted code: never share it)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("N2N_CACHE") or Path(base) / "n2n" / "jax")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return  # a read-only home only costs the cache
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
