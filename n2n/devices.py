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

_TEMPORARIES = 1_200_000_000
"""Most bytes that one program works with: with rows, results and JAX itself it is 1.5 GB."""
_CGROUP = Path("/sys/fs/cgroup")


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


def jit(function: Callable, **options: Any) -> jax.stages.Wrapped:
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


def memory_budget() -> int:
    """Return how many bytes one program may work with: 1.2 GB, or half of what is free."""
    free = free_memory()
    return _TEMPORARIES if free is None else min(_TEMPORARIES, free // 2)


def free_memory() -> int | None:
    """Return how many bytes are free where programs run, None where nobody says."""
    stats = jax.devices()[0].memory_stats() or {}
    if jax.default_backend() == "cpu" or "bytes_limit" not in stats:
        return host_memory()
    return int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))


def host_memory() -> int | None:
    """Return how many bytes of the computer's memory are free, None where nobody says.

    Linux says what programs may still get, and a container what it allows; elsewhere it is half
    of all.
    """
    found = [size for size in (_available(), _allowed()) if size is not None]
    if found:
        return max(0, min(found))
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return None


def _available() -> int | None:
    found = _fields(Path("/proc/meminfo")).get("MemAvailable:")
    return None if found is None else found * 1024


def _allowed() -> int | None:
    """Return what is left of a container's memory; what it has cached of files counts as free."""
    try:
        most = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
    except (OSError, ValueError):  # no container, or "max": no limit
        return None
    return most - used + _fields(_CGROUP / "memory.stat").get("inactive_file", 0)


def _fields(path: Path) -> dict[str, int]:
    """Return a file of lines `name number ...` as a dict, empty where there is none."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdigit()}


def temporaries(program: Any) -> int:
    """Return the bytes that a compiled program works with, 0 where the backend does not say."""
    try:
        return int(program.memory_analysis().temp_size_in_bytes)
    except (AttributeError, NotImplementedError, RuntimeError):
        return 0


def out_of_memory(error: BaseException) -> bool:
    """Say whether an exception means that the memory of host or device is full."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


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
