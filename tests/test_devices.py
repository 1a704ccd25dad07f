"""Devices: meshes and their errors, where pools go, and the probed compiler option."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from n2n import devices
from n2n.types import Error


@pytest.fixture
def fresh_probe():
    devices.compiler_options.cache_clear()
    yield
    devices.compiler_options.cache_clear()


def test_tests_run_on_four_fake_devices() -> None:
    assert jax.device_count() == 4 and jax.default_backend() == "cpu"


def test_the_option_compiles_and_computes(fresh_probe) -> None:
    options = devices.compiler_options()
    assert options in (None, {"xla_cpu_experimental_ynn_fusion_type": ""})
    assert devices.jit(lambda x: x * 3)(2.0) == 6.0


def test_an_option_that_is_gone_costs_nothing(fresh_probe, monkeypatch) -> None:
    monkeypatch.setattr(devices, "_CPU_OPTIONS", {"xla_cpu_no_such_option": ""})
    assert devices.compiler_options() is None
    assert devices.jit(lambda x: x + 1)(1.0) == 2.0


def test_the_option_is_for_the_cpu(fresh_probe, monkeypatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert devices.compiler_options() is None
    assert devices.scans()


def test_steps_are_not_scanned_on_the_cpu() -> None:
    assert not devices.scans()


def test_jit_passes_options_on() -> None:
    with pytest.raises(RuntimeError, match="deleted"):
        value = jnp.ones(4)
        devices.jit(lambda x: x + 1, donate_argnums=0)(value)
        np.asarray(value)
    assert devices.jit(lambda x, n: x * n, static_argnums=1)(2.0, 3) == 6.0


def test_mesh_is_one_device_on_the_cpu_unless_asked() -> None:
    assert devices.mesh().size == 1
    assert devices.mesh(4).size == 4 and devices.mesh(4).axis_names == ("data",)
    assert devices.mesh(2).devices.ravel().tolist() == jax.devices()[:2]


def test_more_devices_than_there_are() -> None:
    with pytest.raises(Error, match="devices is 9, but only 4 are here; ask for fewer"):
        devices.mesh(9)


def test_striped_pools_are_split_and_single_ones_copied() -> None:
    mesh = devices.mesh(4)
    striped = devices.place({"a": np.arange(8.0).reshape(8, 1), "b": np.zeros((8, 2, 2))}, mesh)
    assert [shard.data.shape for shard in striped["b"].addressable_shards] == [(2, 2, 2)] * 4
    assert [float(s.data[0, 0]) for s in striped["a"].addressable_shards] == [0, 2, 4, 6]
    single = devices.place((np.arange(3.0)[None],), mesh)[0]
    assert [shard.data.shape for shard in single.addressable_shards] == [(1, 3)] * 4


def test_copies_are_on_every_device_and_here() -> None:
    tree = devices.copied({"a": np.arange(3), "b": jnp.float32(2)}, devices.mesh(4))
    assert [shard.data.tolist() for shard in tree["a"].addressable_shards] == [[0, 1, 2]] * 4
    here = devices.local(tree)
    assert here["b"].devices() == {jax.devices()[0]} and here["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("count", [1, 3, 4])
def test_items_are_spread_one_to_a_device(count: int) -> None:
    seen = []

    def run(batch):
        seen.extend(shard.data.shape for shard in batch.addressable_shards)
        return 2 * batch

    items = [np.full((2, 2), i, np.float32) for i in range(count)]
    got = devices.spread(run, items, devices.mesh(4))
    assert seen == [(1, 2, 2)] * 4 and np.array_equal(got, 2 * np.stack(items))


def test_one_process_gathers_itself_and_writes() -> None:
    assert devices.leads() and devices.share(5) == slice(0, 5)
    assert devices.gather(np.arange(3)).tolist() == [[0, 1, 2]]
    assert devices.mesh(2, local=True) == devices.mesh(2)
    with devices.joined(False):  # nothing to join
        pass


def test_a_batch_must_divide_among_devices() -> None:
    devices.check_batch(8, devices.mesh(4))
    with pytest.raises(Error, match="batch is 6, which does not divide among 4 devices"):
        devices.check_batch(6, devices.mesh(4))


def test_pool_budget_on_the_cpu() -> None:
    assert devices.pool_budget() == 1_000_000_000


@pytest.mark.parametrize("shape, dtype", [((3, 5, 7), np.float32), ((2, 1), np.uint8)])
def test_aligned_arrays_are_taken_over_without_a_copy(shape: tuple[int, ...], dtype: type) -> None:
    array = devices.aligned(shape, dtype)
    assert array.shape == shape and array.dtype == dtype and array.ctypes.data % 64 == 0
    array[...] = 1
    placed = devices.place({"x": array[None]}, devices.mesh(1))["x"]
    assert placed.unsafe_buffer_pointer() == array.ctypes.data


def test_memory_is_what_programs_may_still_get(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(devices, "_CGROUP", tmp_path)
    alone = devices.host_memory()
    assert alone and 1e8 < alone < 1e14
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("123\n")
    assert abs((devices.host_memory() or 0) - alone) < alone / 2
    (tmp_path / "memory.max").write_text("5000\n")
    (tmp_path / "memory.current").write_text("4000\n")
    (tmp_path / "memory.stat").write_text("anon 3000\ninactive_file 700\n")
    assert devices.host_memory() == 1700
    assert devices.memory_budget() == 850


def test_memory_where_nobody_says(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(devices, "_available", lambda: None)
    monkeypatch.setattr(devices, "_allowed", lambda: None)
    assert (devices.host_memory() or 0) > 1e8
    monkeypatch.delattr(os, "sysconf")
    assert devices.host_memory() is None
    assert devices.memory_budget() == 1_200_000_000


def test_memory_of_an_accelerator(monkeypatch) -> None:
    class Device:
        def memory_stats(self):
            return {"bytes_limit": 5_000_000_000, "bytes_in_use": 4_000_000_000}

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert devices.free_memory() == 1_000_000_000 and devices.memory_budget() == 500_000_000


def test_temporaries_are_the_compilers() -> None:
    program = devices.jit(lambda x: jnp.sin(x) @ jnp.cos(x)).lower(jnp.ones((64, 64))).compile()
    assert 2 * 64 * 64 * 4 <= devices.temporaries(program) <= 8 * 64 * 64 * 4
    assert devices.temporaries(object()) == 0


def test_how_a_full_memory_looks() -> None:
    assert devices.out_of_memory(MemoryError())
    assert devices.out_of_memory(RuntimeError("RESOURCE_EXHAUSTED: Out of memory"))
    assert not devices.out_of_memory(RuntimeError("INTERNAL: a fault"))


def test_describe_is_a_few_words_on_one_line() -> None:
    text = devices.describe()
    assert text.startswith(f"CPU ({os.cpu_count()} cores") and "\n" not in text


def test_versions_name_what_bytes_depend_on() -> None:
    versions = devices.versions()
    assert set(versions) == {"jax", "flax", "optax", "numpy", "backend", "threads"}
    assert all(isinstance(value, str) and value for value in versions.values())


@pytest.fixture
def cache_settings():
    names = ["jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"]
    names.append("jax_persistent_cache_min_entry_size_bytes")
    old = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in old.items():
        jax.config.update(name, value)


def test_the_cache_is_the_users_own(tmp_path, monkeypatch, cache_settings) -> None:
    monkeypatch.delenv("N2N_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    devices.enable_cache()
    folder = tmp_path / "n2n" / "jax"
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("N2N_CACHE", str(tmp_path / "mine"))
    devices.enable_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
@pytest.mark.parametrize("mode, used", [(0o755, True), (0o775, False), (0o757, False)])
def test_a_cache_that_others_can_write_into_is_not_used(
    mode, used, tmp_path, monkeypatch, cache_settings
) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(mode)
    monkeypatch.setenv("N2N_CACHE", str(folder))
    jax.config.update("jax_compilation_cache_dir", None)
    devices.enable_cache()
    assert jax.config.jax_compilation_cache_dir == (str(folder) if used else None)


def test_a_cache_that_cannot_be_made_is_no_error(tmp_path, monkeypatch, cache_settings) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("N2N_CACHE", str(tmp_path / "file" / "below"))
    before = jax.config.jax_compilation_cache_dir
    devices.enable_cache()
    assert jax.config.jax_compilation_cache_dir == before
