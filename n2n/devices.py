"""Where programs run and how they are compiled: the only module that asks which device this is.

One-dimensional mesh "data", automatic axes; parameters are replicated, a batch and a striped pool
are split along their leading axis. Of several processes (machines) each builds and holds only its
own stripes, and process 0 alone writes. Steps are scanned on accelerators and dispatched one by one
on CPU, where a convolution inside `lax.scan` trains 40-60 times slower (jax-ml/jax#12868).
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from n2n.types import Error, Failure, Interrupted

# XLA's CPU fusions into YNNPACK make convolutions 2 to 4 times slower, their weight gradients up
# to 8 times (measured with jax 0.10.2 and 0.12.0 on two cores); an empty value turns them off.
_CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""}

_TEMPORARIES = 1_200_000_000
"""Most bytes that one program works with: with rows, results and JAX itself it is 1.5 GB."""
_LINE = 64
"""Bytes to whose multiples JAX aligns its buffers."""
_CGROUP = Path("/sys/fs/cgroup")

HEARTBEAT_SECONDS = 60
"""Time after which a process that is not heard of is taken for dead, and the run ends."""
GONE = (
    "another process of this run has ended or cannot be reached; start all of them again with "
    "--resume to go on from the last checkpoint"
)
"""What the processes that are left say."""


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


def mesh(count: int | None = None, *, local: bool = False) -> Mesh:
    """Make the mesh of `count` devices of every process; None: one on CPU, all on an accelerator.

    With `local` those of this process alone, for what it computes without the others.

    Raises:
        Error: more devices asked for than there are.
    """
    here = jax.local_devices()
    count = count or (1 if jax.default_backend() == "cpu" else len(here))
    if not 1 <= count <= len(here):
        raise Error(f"devices is {count}, but only {len(here)} are here; ask for fewer")
    processes = [jax.process_index()] if local else range(jax.process_count())
    # By process, so that a process's stripes follow each other.
    chosen = [each for process in processes for each in jax.local_devices(process)[:count]]
    return Mesh(np.array(chosen), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that keeps a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """Return the sharding that splits the leading axis over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def copied(tree: Any, mesh: Mesh) -> Any:
    """Put a copy of the arrays of a tree, equal in all processes, on every device of a mesh."""
    if jax.process_count() == 1:
        return jax.device_put(tree, replicated(mesh))
    whole = functools.partial(jax.make_array_from_process_local_data, replicated(mesh))
    return jax.tree.map(lambda leaf: whole(np.asarray(leaf), np.shape(leaf)), tree)


def local(tree: Any) -> Any:
    """Return copied arrays as arrays of this process's first device, without moving them."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def share(stripes: int) -> slice:
    """Return which of so many stripes this process holds: its part, all if they do not divide."""
    part, rest = divmod(stripes, jax.process_count())
    first = part * jax.process_index()
    return slice(0, stripes) if rest else slice(first, first + part)


def own(pool: Any, batch: int) -> Any:
    """Cut a pool that has a stripe for each example down to this process's; others stay."""
    part = share(batch)
    return jax.tree.map(lambda leaf: leaf[part] if leaf.shape[0] == batch else leaf, pool)


def place(pool: Any, mesh: Mesh) -> Any:
    """Put a pool on the devices: a single stripe on each, else this process's stripes split."""
    if jax.tree.leaves(pool)[0].shape[0] == 1:
        return copied(pool, mesh)
    if jax.process_count() == 1:
        return jax.device_put(pool, split(mesh))
    return jax.tree.map(functools.partial(_placed, mesh), pool)


def _placed(mesh: Mesh, leaf: Any) -> jax.Array:
    shape = (leaf.shape[0] * jax.process_count(), *leaf.shape[1:])
    return jax.make_array_from_process_local_data(split(mesh), np.asarray(leaf), shape)


def spread(run: Callable, items: Sequence[np.ndarray], mesh: Mesh) -> np.ndarray:
    """Return run(n,...) of up to as many equal arrays as the mesh has devices, one on each.

    Those that are missing are filled up by repeating the last, so that there is one program.
    """
    batch = np.stack([*items, *[items[-1]] * (mesh.size - len(items))])
    made = run(jax.device_put(batch, split(mesh)))
    # Waiting raises what went wrong; reading an array that found no memory would end the process.
    return np.asarray(jax.block_until_ready(made))[: len(items)]


def check_batch(batch: int, mesh: Mesh) -> None:
    """Refuse a batch that does not divide among the devices of a mesh."""
    if batch % mesh.size:
        raise Error(
            f"batch is {batch}, which does not divide among {mesh.size} devices; "
            f"take a multiple of {mesh.size}"
        )


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return an empty array at an address that JAX on CPU takes over without a copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.empty(size + _LINE, np.uint8)
    start = -room.ctypes.data % _LINE
    return room[start : start + size].view(dtype).reshape(shape)


def pool_budget() -> int:
    """Return how many bytes a pool may take: 1 GB on CPU, a third of an accelerator's memory."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if jax.default_backend() == "cpu" or "bytes_limit" not in stats:
        return 10**9
    return int(stats["bytes_limit"]) // 3


def memory_budget() -> int:
    """Return how many bytes one program may work with: 1.2 GB, or half of what is free."""
    free = free_memory()
    return _TEMPORARIES if free is None else min(_TEMPORARIES, free // 2)


def free_memory() -> int | None:
    """Return how many bytes are free where programs run, None where nobody says."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if jax.default_backend() == "cpu" or "bytes_limit" not in stats:
        return host_memory()
    return int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))


def host_memory() -> int | None:
    """Return how many bytes of the computer's memory are free, None where nobody says.

    Linux says what programs may still get, a container and `ulimit -v` what they allow; elsewhere
    it is half of all.
    """
    found = [size for size in (_available(), _allowed(), _addresses()) if size is not None]
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


def _addresses() -> int | None:
    """Return a quarter of the addresses left under `ulimit -v`: XLA reserves four times its use."""
    try:
        import resource

        most = resource.getrlimit(resource.RLIMIT_AS)[0]
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError, ValueError):  # Windows, macOS
        return None
    if most == resource.RLIM_INFINITY:
        return None
    return max(0, most - pages * resource.getpagesize()) // 4


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


def leads() -> bool:
    """Say whether this is the process that writes: 0 of them all."""
    return jax.process_index() == 0


def gather(values: np.ndarray) -> np.ndarray:
    """Return equally shaped arrays of all processes, stacked along a new first axis.

    All processes must call it. 64-bit numbers come back with 32 bits where there are several.
    """
    if jax.process_count() == 1:
        return np.asarray(values)[None]
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(values))


@contextlib.contextmanager
def joined(distributed: bool = True) -> Iterator[None]:
    """Work with the other processes of a run for as long as the block lasts; False: alone.

    Slurm, Kubernetes, Open MPI and TPU pods are found by jax. By hand, every process is told
    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Raises:
        Error: nothing of that is here, or makes no sense.
        Failure: the other processes did not come in time.
    """
    if not distributed:
        yield
        return
    _join()
    try:
        yield
    except Interrupted:  # by agreement, in all processes
        _leave()
        raise
    except BaseException:
        # No farewell: the others may wait in a collective for ever. Where they met the same, they
        # say so before process 0, which the runtime takes for their own end, is gone.
        if leads():
            time.sleep(1)
        raise
    _leave()


def _join() -> None:
    # Of the three variables jax itself reads only the address.
    count, number = _variable("JAX_NUM_PROCESSES"), _variable("JAX_PROCESS_ID")
    # The loop hears SIGTERM itself and agrees on it; jax's own listener would take it away.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            num_processes=count,
            process_id=number,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (ValueError, KeyError):
        raise Error(
            "--distributed: no Slurm, Kubernetes, Open MPI or TPU pod is here; set "
            "JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES=n and JAX_PROCESS_ID=0..n-1"
        ) from None
    except RuntimeError as error:
        raise Failure(f"the processes of this run did not meet: {_first_line(error)}") from error


def _leave() -> None:
    """Wait for the others and part; one that does not come is not worth an error any more."""
    with contextlib.suppress(RuntimeError):
        jax.distributed.shutdown()


def _variable(name: str) -> int | None:
    text = os.environ.get(name)
    if text is not None and not (text.isascii() and text.isdigit()):
        raise Error(f"{name} is {text!r}; it must be a whole number")
    return None if text is None else int(text)


@contextlib.contextmanager
def blamed() -> Iterator[None]:
    """Turn a collective that breaks off into a `Failure`: another process of the run has gone."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if not any(word in str(error).lower() for word in ("gloo", "nccl", "collective")):
            raise
        raise Failure(GONE) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def describe() -> str:
    """Name the devices in a few words, for the first line of a long job."""
    devices = jax.devices()
    if jax.default_backend() == "cpu":
        here = f"CPU ({os.cpu_count()} cores, {platform.machine()})"
    else:
        here = f"{len(devices)} x {devices[0].device_kind}"
    return here if jax.process_count() == 1 else f"{jax.process_count()} processes, {here}"


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
        safe = _private(folder)
    except OSError:
        return  # a read-only home only costs the cache
    if not safe:
        return  # what others can write into it, JAX would run
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _private(folder: Path) -> bool:
    """Say whether a folder is this user's, and nobody else may write into it."""
    if os.name == "nt":
        return True  # there, a profile's folders are private
    facts = folder.stat()
    return facts.st_uid == os.geteuid() and not facts.st_mode & 0o022
