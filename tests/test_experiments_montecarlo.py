"""The Monte Carlo experiment: tone map, ways to compare, crops, cameras, the flight."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import n2n
from experiments import montecarlo as mc
from experiments import runs
from n2n import losses

pytestmark = pytest.mark.usefixtures("hasty")
TINY = mc.Renders(side=32, views=1, tests=1, spp=1, clean=4, reference=8, frames=8)
MIXER = n2n.types.Network(
    lambda key: 0.1 * jax.random.normal(key, (9, 3)),
    lambda p, x, context=(): x @ p + 0.5,
    (9, 3),
    0,
    1,
    {"kind": "mixer"},
)
"""Mixes the channels of a pixel."""


def view(seed: int = 0, side: int = 32) -> mc.View:
    """Return a view of random light, whose noisy colours are integers that tell who is who."""
    rng = np.random.default_rng(seed)
    noisy = rng.random((2, side, side, 9), np.float32)
    noisy[0, ..., :3], noisy[1, ..., :3] = 1, 2
    return mc.View(noisy, np.full((side, side, 3), 3, np.float32))


def test_the_tone_map_is_the_papers() -> None:
    light = np.array([-1.0, 0.0, 0.01, 1.0, 20.0])
    expected = [0, 0, (0.01 / 1.01) ** (1 / 2.2), 0.5 ** (1 / 2.2), (20 / 21) ** (1 / 2.2)]
    np.testing.assert_allclose(mc.tone_map(light), expected, rtol=1e-6)


def test_the_tone_map_is_undone() -> None:
    light = np.geomspace(1e-4, 300, 50).astype(np.float32)
    np.testing.assert_allclose(mc.tone_unmap(mc.tone_map(light)), light, rtol=1e-3)
    assert np.isfinite(mc.tone_unmap(np.array([-1.0, 1.0, 5.0]))).all()


def test_l_hdr_is_the_librarys() -> None:
    rng = np.random.default_rng(0)
    f, y = jnp.asarray(rng.random((2, 5, 5, 3)))
    np.testing.assert_allclose(mc.relative(f, y, 0.0), losses.hdr(f, y), rtol=1e-6)
    slope = jax.grad(lambda f: mc.relative(f, y, jnp.float32(0)).sum())(f)
    np.testing.assert_allclose(slope, 2 * (f - y) / (f + 0.01) ** 2, rtol=1e-5)
    np.testing.assert_allclose(mc.relative(-f, y, 0.0), losses.hdr(-f, y), rtol=1e-6)


@pytest.mark.parametrize("name", mc.WAYS)
def test_a_crop_is_compared_with_the_other_render(name: str) -> None:
    way = mc.WAYS[name]
    law = mc.task([view()], way, 16)
    stripe = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), law.pool)
    seen = set()
    sample = jax.jit(law.sample)
    for seed in range(20):
        batch = sample(jax.random.key(seed), stripe, jnp.float32(0))
        assert batch.input.shape == (16, 16, 9) and batch.target.shape == (16, 16, 3)
        colour, target = float(batch.input[0, 0, 0]), float(batch.target[0, 0, 0])
        seen.add((round(colour, 3), round(target, 3)))
    given = {c: round(float(mc.tone_map(c)), 3) if way.maps_input else float(c) for c in (1, 2)}
    want = {c: round(float(mc.tone_map(c)), 3) if way.maps_target else float(c) for c in (1, 2)}
    pairs = {(given[1], want[2]), (given[2], want[1])}
    assert seen == ({(g, 3.0) for g in given.values()} if way.clean else pairs)


def test_features_stay_as_they_are_and_crops_are_aligned() -> None:
    first = view()
    first.noisy[1] = first.noisy[0]
    first.noisy[..., :3] = first.noisy[..., 3:6]
    law = mc.task([first], mc.WAYS["hdr-x-y"], 16)
    stripe = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), law.pool)
    batch = law.sample(jax.random.key(0), stripe, jnp.float32(0))
    np.testing.assert_array_equal(batch.target, batch.input[..., 3:6])


def test_every_way_yields_light() -> None:
    render = jnp.asarray(view().noisy[0])

    class Echo:
        @staticmethod
        def apply(params, x):
            return x[..., :3]

    shown = mc.denoise(Echo, (), mc.WAYS["l2-Tx-Ty"], render)
    np.testing.assert_allclose(shown, render[..., :3], rtol=1e-3)
    linear = mc.denoise(Echo, (), mc.WAYS["l2-x-y"], render)
    np.testing.assert_array_equal(linear, render[..., :3])


def test_psnr_is_that_of_the_tone_mapped() -> None:
    light = view()
    found = mc.score(lambda render: jnp.ones((32, 32, 3)), [light])
    difference = float(mc.tone_map(3.0) - mc.tone_map(1.0))
    assert found == pytest.approx(-20 * np.log10(difference), abs=1e-3)


def test_cameras_lie_in_their_boxes() -> None:
    rng = np.random.default_rng(0)
    for scene in mc.SCENES.values():
        cameras = [mc.camera(scene, rng) for _ in range(50)]
        low, high = (np.array(corner) for corner in scene.origin)
        assert all(((low <= c.origin) & (c.origin <= high)).all() for c in cameras)
        assert 0.5 <= min(c.light for c in cameras) < 0.7 < 1.5 < max(c.light for c in cameras) <= 2


@pytest.fixture
def studio(tmp_path, monkeypatch) -> mc.Studio:
    """Return a studio whose renders are random numbers about a known light."""
    (tmp_path / "mc_scenes").mkdir()

    def fake(file, scene, where, side, spp, seed):
        rng = np.random.default_rng(seed)
        light = np.linspace(0.2, 1, side)[:, None, None] * np.ones((side, side, 9))
        return (light * rng.gamma(4 * spp, 1 / (4 * spp), light.shape)).astype(np.float32)

    monkeypatch.setattr(mc, "render", fake)
    experiment = runs.Experiment("montecarlo", tmp_path, "cpu", tmp_path / "runs")
    return mc.Studio(experiment, TINY)


def test_views_are_rendered_once(studio, monkeypatch) -> None:
    views = studio.views("train", 2, 4)
    assert len(views) == 2 * len(mc.SCENES)
    assert views[0].noisy.shape == (2, 32, 32, 9) and views[0].clean.shape == (32, 32, 3)
    shots = [shot.tobytes() for v in views for shot in (*v.noisy[..., :3], v.clean)]
    assert len(set(shots)) == len(shots)  # every seed is used once
    monkeypatch.setattr(mc, "render", None)
    again = studio.views("train", 2, 4)
    np.testing.assert_array_equal(again[3].noisy, views[3].noisy)
    tests = {path.name for path in studio.folder.iterdir()}
    assert len(tests) == 6


def test_the_slice_ends_between_renders(studio) -> None:
    studio.experiment.until = 0.0
    with pytest.raises(SystemExit) as stop:
        studio.views("train", 1, 4)
    assert stop.value.code == runs.AGAIN


@pytest.mark.slow
def test_the_flight_learns_as_it_goes(studio) -> None:
    recipe = runs.Recipe(MIXER, steps=1, crop=16, learning_rate=1e-2)
    figures = mc.fly(studio, recipe)
    assert figures["frame"] == [0, 1, 3, 7]
    assert figures["psnr"][-1] > figures["psnr"][0] + 1


def test_mitsuba_renders_nine_channels(data: Path) -> None:
    pytest.importorskip("mitsuba", reason="needs mitsuba, which is not installed")
    scene = mc.SCENES["boxes"]
    file = data / "mc_scenes" / scene.file
    where = mc.camera(scene, np.random.default_rng(0))
    first, again, other = (mc.render(file, scene, where, 16, 1, seed) for seed in (0, 0, 1))
    assert first.shape == (16, 16, 9) and first.dtype == np.float32
    np.testing.assert_array_equal(first, again)
    assert (first[..., :3] != other[..., :3]).any()
    assert (first[..., :6] >= 0).all() and (np.abs(first[..., 6:]) <= 1 + 1e-5).all()
    bright = mc.render(file, scene, where._replace(light=3 * where.light), 16, 1, 0)
    np.testing.assert_allclose(bright[..., :3], 3 * first[..., :3], rtol=1e-3)


def test_a_missing_renderer_is_named(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mitsuba", None)
    mc._mitsuba.cache_clear()
    with pytest.raises(n2n.Error, match="pip install"):
        mc._mitsuba()
