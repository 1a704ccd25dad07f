"""What all tests share: four fake CPU devices, and the way to the data beside the checkout."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if "jax" in sys.modules:  # pragma: no cover
    raise RuntimeError("jax was imported before tests/conftest.py could ask for four CPU devices")

import jax

jax.config.update("jax_num_cpu_devices", 4)

DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def data() -> Path:
    """Return the folder of test pictures beside the checkout, or skip."""
    if not DATA.is_dir():
        pytest.skip(f"needs the pictures in {DATA}, which are not here")
    return DATA


@pytest.fixture(scope="session", autouse=True)
def programs(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Share compiled programs within this session: equal steps are compiled once, not each time."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("programs")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="module")
def hasty() -> Iterator[None]:
    """Compile with few optimizations: for modules whose tests compile more than they compute."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
