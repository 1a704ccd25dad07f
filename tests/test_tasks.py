"""Task builders: which crops are drawn, that two noises are independent, and the burst's law."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from n2n import devices, images, metrics, tasks
from n2n.corruptions import Bernoulli, Camera, Clean, Gaussian, Impulse
from n2n.tasks import pool as pools
from n2n.tasks import subsets
from n2n.tasks.pictures import box_mean, unit
from n2n.types import Batch, Burst, Error, Task

SIGMA = 0.1
QUICKLY = {"xla_backend_optimization_level": 0}
"""Programs that run once: without it, XLA takes three times longer to compile a sampler."""


def examples(task: Task, count: int, seed: int = 0, stripe: int = 0) -> Batch:
    """Draw examples from one stripe in one compiled call, as numpy arrays."""
    only = jax.tree.map(lambda leaf: leaf[stripe], task.pool)
    keys = jax.random.split(jax.random.key(seed), count)
    sample = jax.vmap(lambda k, s: task.sample(k, s, jnp.float32(0)), in_axes=(0, None))
    run = jax.jit(sample, compiler_options=QUICKLY)
    return jax.tree.map(np.asarray, run(keys, only))


def marked(height: int, width: int) -> np.ndarray:
    """Return a picture whose two channels are each pixel's place."""
    return np.stack(np.mgrid[:height, :width], axis=-1).astype(np.float32)


def views(scenes, crop: int, count: int, batch: int = 1, seed: int = 0) -> list[np.ndarray]:
    """Return crops as the sampler cuts them, from every stripe alike."""
    task = pools.arranged(scenes, lambda key, view: view, "marks")
    assert task.arrange is not None
    task = task.arrange(batch, crop)
    stripes = jax.tree.leaves(task.pool)[0].shape[0]
    drawn = [examples(task, count // stripes, seed + i, i)["image"] for i in range(stripes)]  # type: ignore[index]
    return list(np.concatenate(drawn))


# Blocks and crops --------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 3000), st.integers(1, 96), st.integers(1, 600))
def test_blocks_hold_every_crop_of_a_line(length: int, crop: int, more: int) -> None:
    length = max(length, crop)
    side = min(length, crop + more - 1)
    spans = pools._spans(length, side, crop)
    crops: list[int] = []
    for start, size in spans:
        assert 0 <= start and start + size <= length and size <= side
        crops += range(start, start + size - crop + 1)
    assert crops == list(range(length - crop + 1))  # each exactly once
    assert len(spans) <= math.ceil((length - crop + 1) / (side - crop + 1))


@pytest.mark.parametrize("size", [(9, 31), (33, 70)])
def test_every_crop_of_a_picture_is_drawn(monkeypatch, size: tuple[int, int]) -> None:
    monkeypatch.setattr(pools, "BLOCK", 12)
    drawn = views([{"image": marked(*size)}], 8, 8000)
    corners = {tuple(view.min((0, 1)).astype(int)) for view in drawn}
    wanted = set(itertools.product(range(size[0] - 7), range(size[1] - 7)))
    # Of 1,638 crops (33 x 70) each is missed with at most exp(-8000 / 1638 / 2) = 9 %: so for the
    # largest only the share is asked, for the other (48) all are there.
    assert corners <= wanted
    assert len(corners) == len(wanted) or (len(wanted) > 1000 and len(corners) > 0.9 * len(wanted))


def test_crops_are_whole_and_turned_in_all_eight_ways() -> None:
    drawn = views([{"image": marked(20, 30)}], 4, 800)
    base = marked(4, 4)
    ways = set()
    for view in drawn:
        low = view.min((0, 1))
        local = view - low
        ways.add(local.tobytes())
        assert sorted(map(tuple, local.reshape(-1, 2))) == sorted(map(tuple, base.reshape(-1, 2)))
    turned = {
        np.ascontiguousarray(image[::a, ::b]).tobytes()
        for image in (base, base.swapaxes(0, 1))
        for a, b in itertools.product((1, -1), repeat=2)
    }
    assert ways == turned and len(ways) == 8


def test_crops_within_a_block_are_drawn_uniformly() -> None:
    size, crop, count = (11, 13), 8, 9600
    drawn = views([{"image": marked(*size)}], crop, count)
    corners = np.array([view.min((0, 1)) for view in drawn]).astype(int)
    seen = np.zeros((4, 6))
    np.add.at(seen, tuple(corners.T), 1)
    expected = count / seen.size
    # Chi squared with 23 degrees of freedom: mean 23, deviation sqrt(46) = 6.8; five of them.
    assert ((seen - expected) ** 2 / expected).sum() < 23 + 5 * 6.8


def test_pictures_count_by_their_crops() -> None:
    scenes = [{"image": np.full(s, v, np.float32)} for s, v in [((64, 64, 1), 0), ((16, 16, 1), 1)]]
    drawn = np.array([view.mean() for view in views(scenes, 8, 4000)])
    share = 9 * 9 / (9 * 9 + 57 * 57)
    # A binomial's five standard deviations.
    assert abs(drawn.mean() - share) < 5 * math.sqrt(share / 4000)


def test_a_picture_smaller_than_the_crop_is_continued_by_reflection() -> None:
    image = marked(5, 40)
    drawn = views([{"image": image}], 8, 60)
    wide = np.pad(image, [(0, 3), (0, 0), (0, 0)], mode="reflect")
    patches = {
        np.ascontiguousarray(turned).tobytes()
        for x in range(33)
        for cut in (wide[:, x : x + 8], wide[:, x : x + 8].swapaxes(0, 1))
        for turned in (cut, cut[::-1], cut[:, ::-1], cut[::-1, ::-1])
    }
    assert all(np.ascontiguousarray(view).tobytes() in patches for view in drawn)


def test_blocks_are_dealt_to_as_many_stripes_as_the_batch(monkeypatch) -> None:
    monkeypatch.setattr(pools, "BLOCK", 8)
    image = np.arange(40 * 40).reshape(40, 40, 1).astype(np.uint16)
    task = tasks.simulated(image, input=Gaussian(0.1))
    assert task.arrange is not None
    pool = task.arrange(4, 8).pool
    assert pool["image"].dtype == np.uint16 and pool["image"].shape[0] == 4
    assert set(np.unique(pool["image"])) == set(range(1600))
    assert {leaf.shape[0] for leaf in jax.tree.leaves(task.arrange(100, 32).pool)} == {1}
    np.testing.assert_allclose(pool["until"][:, -1], 1)


# Simulated noise ---------------------------------------------------------------------------------


@functools.cache
def scene() -> np.ndarray:
    return np.random.default_rng(1).random((48, 40, 3)).astype(np.float32)


def cut(task: Task, batch: int = 1, crop: int = 32) -> Task:
    assert task.arrange is not None
    return task.arrange(batch, crop)


def is_view(crop: np.ndarray, of: np.ndarray) -> bool:
    """Say whether a square crop, however turned, is part of a picture."""
    side = crop.shape[0]
    for turned in (crop, crop.swapaxes(0, 1)):
        for a, b in itertools.product((1, -1), repeat=2):
            image = turned[::a, ::b]
            for y, x in np.argwhere(np.isclose(of[..., 0], image[0, 0, 0], atol=1e-6)):
                part = of[y : y + side, x : x + side]
                if part.shape == image.shape and np.allclose(part, image, atol=1e-6):
                    return True
    return False


def test_input_and_target_are_the_same_crop() -> None:
    task = cut(tasks.simulated(scene(), input=Gaussian(SIGMA), target=Clean()))
    batch = examples(task, 40)
    noise = batch.input - batch.target
    # 123,000 draws: five standard errors of a deviation are 5 / sqrt(2 n) = 1 %.
    assert abs(noise.std() / SIGMA - 1) < 0.01
    assert all(is_view(target, scene()) for target in batch.target)


def test_input_and_target_have_independent_noise() -> None:
    flat = np.full(scene().shape, 0.5, np.float32)
    batch = examples(cut(tasks.simulated(flat, input=Gaussian(SIGMA))), 20)
    a, b = (batch.input - 0.5).ravel(), (batch.target - 0.5).ravel()
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(a.size)
    assert abs(a.std() / SIGMA - 1) < 0.01 and abs(b.std() / SIGMA - 1) < 0.01
    first, second = batch.input[0].ravel(), batch.input[1].ravel()
    assert abs(np.corrcoef(first - 0.5, second - 0.5)[0, 1]) < 5 / math.sqrt(first.size)


def test_no_clean_pixel_is_in_a_batch() -> None:
    batch = examples(cut(tasks.simulated(scene(), input=Gaussian(SIGMA))), 20)
    values = np.unique(scene())
    for leaf in (batch.input, batch.target):
        # 61,000 normal draws hit one of 5,760 floats of 24 bits about 60000 * 5760 / 2^24 = 20
        # times by chance; a clean picture would hit every time.
        assert np.isin(leaf, values).sum() < 200


def test_the_targets_weight_is_the_batchs() -> None:
    task = cut(tasks.simulated(scene(), input=Gaussian(SIGMA), target=Bernoulli(0.25)))
    batch = examples(task, 20)
    assert set(np.unique(batch.weight)) == {0.0, 1.0}
    count = batch.weight.size
    assert abs(batch.weight.mean() - 0.75) < 5 * math.sqrt(0.25 * 0.75 / count)
    assert batch.weight.shape == (20, 32, 32, 1)


def test_both_copies_are_by_the_same_camera() -> None:
    def log_error(image: np.ndarray, clean: np.ndarray) -> np.ndarray:
        return np.log(np.square(image - clean).mean((1, 2, 3)))

    cameras = Camera((1e-6, 1e-2), 0.0), Camera((1e-6, 0.9e-2), 0.0)
    clean = examples(cut(tasks.simulated(scene(), input=Clean())), 40).input
    batch = examples(cut(tasks.simulated(scene(), input=cameras[0])), 40)
    first, second = log_error(batch.input, clean), log_error(batch.target, clean)
    assert np.corrcoef(first, second)[0, 1] > 0.98
    batch = examples(cut(tasks.simulated(scene(), input=cameras[0], target=cameras[1])), 40)
    np.testing.assert_array_equal(log_error(batch.input, clean), first)
    other = log_error(batch.target, clean)
    assert abs(np.corrcoef(first, other)[0, 1]) < 5 / math.sqrt(40)


def test_both_copies_lose_as_many_pixels_to_impulses() -> None:
    flat = np.full((64, 64, 3), 0.5, np.float32)
    batch = examples(cut(tasks.simulated(flat, input=Impulse((0.0, 0.95)))), 100)
    seen, wanted = ((image != 0.5).any(-1) for image in (batch.input, batch.target))
    shares = seen.mean((1, 2)), wanted.mean((1, 2))
    # 1,024 pixels each; a difference of two shares has at most this deviation.
    assert np.abs(shares[0] - shares[1]).max() < 5 * math.sqrt(2 * 0.25 / 1024)
    assert np.ptp(shares[0]) > 0.8
    # Which pixels is drawn anew: lost in both by p^2.
    both = (seen & wanted).mean((1, 2)) - shares[0] * shares[1]
    assert abs(both.mean()) < 5 * 0.25 / math.sqrt(100 * 1024)


def test_the_mean_around_a_pixel() -> None:
    values = np.random.default_rng(5).random((12, 7, 2)).astype(np.float32)
    found = box_mean(jnp.asarray(values))
    for y, x in ((0, 0), (5, 3), (11, 6), (2, 6)):
        around = values[max(y - 4, 0) : y + 5, max(x - 4, 0) : x + 5]
        np.testing.assert_allclose(found[y, x], around.mean((0, 1)), rtol=1e-5)


def test_the_noise_map_is_given_half_the_time() -> None:
    flat = np.full((40, 40, 3), 0.5, np.float32)
    task = cut(tasks.simulated(flat, input=Gaussian((0.05, 0.2)), noise_map=True))
    batch = examples(task, 200)
    assert batch.input.shape[-1] == 4 and batch.target.shape[-1] == 3
    level = batch.input[..., 3].mean((1, 2))
    given = level > 0
    assert abs(given.mean() - 0.5) < 5 * 0.5 / math.sqrt(200)
    measured = batch.input[..., :3].std((1, 2, 3))[given]
    # 3,072 draws each: the deviation is known to 1.3 %; five of these.
    np.testing.assert_allclose(level[given], measured, rtol=5 / math.sqrt(2 * 3072))
    # The target's level is drawn apart from the input's.
    a, b = batch.input[..., :3].std((1, 2, 3)), batch.target.std((1, 2, 3))
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(200)
    assert b.min() < 0.06 and b.max() > 0.19


def test_the_floor_is_the_targets_variance() -> None:
    task = tasks.simulated(scene(), input=Clean(), target=Gaussian(SIGMA))
    # 256 crops of 64 x 64 x 3: the mean of 3.1 M squares, five standard errors of sqrt(2 / n).
    assert task.floor == pytest.approx(SIGMA**2, rel=5 * math.sqrt(2 / (256 * 64 * 64 * 3)))
    assert tasks.simulated(scene(), input=Gaussian(SIGMA), target=Clean()).floor == 0


def test_the_name_tells_the_noises() -> None:
    task = tasks.simulated(scene(), input=Gaussian(25 / 255), target=Clean())
    assert task.name == "simulated gaussian:25 -> clean"
    assert cut(task).name == task.name and cut(task).floor == task.floor


def test_grey_pictures_join_coloured_ones() -> None:
    grey = np.full((40, 40), 51, np.uint8)
    task = cut(tasks.simulated([grey, np.zeros((40, 40, 3), np.uint8)], input=Clean()))
    assert examples(task, 2).input.shape == (2, 32, 32, 3)
    with pytest.raises(Error, match="2 and 3 channels"):
        tasks.simulated([np.zeros((9, 9, 2)), np.zeros((9, 9, 3))], input=Clean())


@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">u2", "uint32", "float64"])
def test_dtypes_become_display_units(dtype: str) -> None:
    white = 1.0 if dtype == "float64" else np.iinfo(dtype).max
    picture = np.full((40, 40), 0.6 * white).astype(dtype)
    pool = tasks.simulated(picture, input=Clean()).pool["image"]
    kept = {"uint8": "uint8", "uint16": "uint16", ">u2": "uint16"}  # the others as floats
    assert pool.dtype == kept.get(dtype, "float32") and pool.dtype.isnative
    values = np.asarray(unit(pool[pool > 0]))
    # A level of 255 is 0.004 wide, rounded down.
    assert 0.6 - 0.004 <= values.mean() <= 0.6 + 1e-6 and values.dtype == np.float32


def test_pictures_that_cannot_be_used() -> None:
    with pytest.raises(Error, match="data_range"):
        tasks.simulated(np.full((40, 40), 900.0), input=Clean())
    with pytest.raises(Error, match="empty"):
        tasks.simulated([], input=Clean())
    task = tasks.simulated(np.full((40, 40), 900.0), input=Clean(), data_range=(0, 1800))
    assert set(np.unique(task.pool["image"])) <= {0.0, 0.5}


# Pairs -------------------------------------------------------------------------------------------


def noisy(seed: int, shape=(40, 40, 1)) -> np.ndarray:
    return (0.5 + SIGMA * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def test_each_of_a_pair_is_the_others_target_in_turn() -> None:
    a, b = noisy(1), noisy(2)
    task = cut(tasks.pairs(a, b))
    low, high = task.scale
    batch = examples(task, 60)
    first = np.array([is_view(x * (high - low) + low, a) for x in batch.input])
    second = np.array([is_view(x * (high - low) + low, b) for x in batch.target])
    assert np.array_equal(first, second)
    assert 10 < first.sum() < 50  # five deviations of a binomial around 30 are 19
    assert batch.weight.min() == 1


def test_the_scale_is_the_robust_range_mapped_to_0_and_1() -> None:
    a = np.linspace(0.002, 0.13, 2500).reshape(50, 50, 1)
    b = a[::-1].copy()
    task = cut(tasks.pairs(a, b))
    low, high = task.scale
    np.testing.assert_allclose(task.scale, np.quantile([a, b], [0.001, 0.999]), atol=1e-6)
    values = examples(task, 30).input * (high - low) + low
    place = (values - a[0, 0, 0]) / (a[0, 1, 0] - a[0, 0, 0])  # a whole number in every pixel
    assert np.abs(place - np.round(place)).max() < 0.05
    integers = tasks.pairs((a * 65535).astype(np.uint16), (b * 65535).astype(np.uint16))
    np.testing.assert_allclose(integers.scale, task.scale, atol=2 / 65535)


def test_files_pair_by_stem(tmp_path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for name, seed in [("x", 1), ("y", 2), ("z", 3)]:
        for folder in ("a", "b"):
            array = images.from_float(noisy(seed + 10 * (folder == "b")), "uint8")
            Image.fromarray(array[..., 0]).save(tmp_path / folder / f"{name}.png")
    left, right = tasks.matched(tmp_path / "a", [tmp_path / "b" / f"{n}.png" for n in "zxy"])
    assert [path.stem for path in left] == [path.stem for path in right] == ["x", "y", "z"]
    (tmp_path / "b" / "y.png").rename(tmp_path / "b" / "stranger.png")
    with pytest.raises(Error, match="'stranger' has no partner"):
        tasks.pairs(tmp_path / "a", tmp_path / "b")


def test_common_endings_are_no_part_of_a_stem() -> None:
    left, right = tasks.matched(["1_real.png", "2_real.png"], ["2_mean.png", "1_mean.png"])
    assert left == ["1_real.png", "2_real.png"] and right == ["1_mean.png", "2_mean.png"]


def test_pairs_that_are_none() -> None:
    with pytest.raises(Error, match="pair 1: both pictures are identical"):
        tasks.pairs(noisy(1), noisy(1))
    with pytest.raises(Error, match="pair 2: sizes .* differ"):
        tasks.pairs([noisy(1), noisy(2)], [noisy(3), noisy(4, (40, 41, 1))])
    with pytest.raises(Error, match="2 pictures against 1"):
        tasks.pairs([noisy(1), noisy(2)], [noisy(3)])
    with pytest.raises(Error, match="same stem"):
        tasks.matched(["a.png", "a.tif"], ["a.png", "b.png"])
    with pytest.raises(Error, match="data_range"):
        tasks.pairs(noisy(1) * 1000, noisy(2) * 1000)


@pytest.mark.parametrize(
    "value, text",
    [(0.0, "is black, the other is not"), (1.0, "is the value 1 everywhere"), (np.nan, "finite")],
)
@pytest.mark.parametrize("side", [0, 1])
def test_a_poisoned_picture_is_refused_by_name(value, text, side) -> None:
    """A frame that shows nothing would teach that the scene is nothing."""
    good = [[noisy(1), noisy(2), noisy(3)], [noisy(4), noisy(5), noisy(6)]]
    bad = [list(pictures) for pictures in good]
    bad[side][1] = np.full_like(noisy(1), value)
    with pytest.raises(Error, match=f"(pair|picture) 2: .*{text}"):
        tasks.pairs(*bad)
    dark = [[*pictures, np.zeros_like(noisy(1)) + side] for side, pictures in enumerate(good)]
    assert tasks.pairs(*dark).name == "pairs"  # both flat: a dark frame, or a sky that is clipped


def test_an_empty_picture_is_refused_by_name() -> None:
    empty, black = (np.zeros((height, 8, 3), np.uint8) for height in (0, 8))
    with pytest.raises(Error, match="picture 2: image: shape .0, 8, 3. is empty"):
        tasks.simulated([black, empty], input=Clean())


# Bursts ------------------------------------------------------------------------------------------


def burst(count: int, side: int = 64, seed: int = 0, sigma: float = SIGMA) -> Burst:
    rng = np.random.default_rng(seed)
    frames = 0.5 + sigma * rng.standard_normal((count, side, side, 1))
    ones = np.ones((count, side, side, 1), np.float32)
    moves = np.tile(np.eye(3), (count, 1, 1))
    names = tuple(f"{i}" for i in range(count))
    return Burst(frames.astype(np.float32), ones, ones[0].copy(), moves, names=names)


def law(count: int, patchy: bool = False, draws: int = 2000):
    """Return what 12 places of frames weigh, of which `count` are taken."""
    keys = jax.random.split(jax.random.key(count), draws)
    return tuple(np.asarray(share) for share in shares(keys, present(count), patchy))


def present(count: int) -> np.ndarray:
    return (np.arange(12) < count).astype(np.float32)


@functools.partial(jax.jit, static_argnums=2, compiler_options=QUICKLY)
def shares(keys, present, patchy: bool):
    return jax.vmap(lambda k: subsets._subset_weights(k, present, 12, patchy))(keys)


@pytest.mark.parametrize("count", [4, 5, 8, 9])
def test_subsets_follow_the_law(count: int) -> None:
    a, b = law(count)
    assert not ((a > 0) & (b > 0)).any()
    sizes = (a > 0).sum(1)
    assert set(sizes) == set(range((count + 1) // 2, count))
    expected = len(a) / len(set(sizes))
    # Five deviations of each count.
    assert all(abs((sizes == s).sum() - expected) < 5 * math.sqrt(expected) for s in set(sizes))
    np.testing.assert_allclose(a[a > 0], np.repeat(1 / sizes, sizes), rtol=1e-6)
    assert np.array_equal((b > 0).sum(1), count - sizes)
    np.testing.assert_allclose([a.sum(1), b.sum(1)], 1, atol=1e-6)
    # Every frame takes its turn, and none that is not there.
    turns = (a > 0).mean(0)
    assert (np.abs(turns[:count] - sizes.mean() / count) < 5 * 0.5 / math.sqrt(len(a))).all()
    assert not a[:, count:].any() and not b[:, count:].any()


@pytest.mark.parametrize("count", [2, 3])
def test_two_or_three_frames_give_uncorrelated_means(count: int) -> None:
    a, b = law(count)
    assert (a[:, count:] == 0).all() and (b[:, count:] == 0).all()
    # Float32 sums of a few numbers of up to 4.
    np.testing.assert_allclose((a * b).sum(1), 0, atol=2e-6)
    np.testing.assert_allclose([a.sum(1), b.sum(1)], 1, atol=2e-6)
    assert (a[:, :count] > 0).all(1).any() and (b < 0).any()
    noise = (a**2).sum(1)
    assert noise.min() < 1.2 / count  # the input comes near the noise of the whole mean


def test_patchy_bursts_have_smaller_subsets_one_time_in_five() -> None:
    a, _ = law(8, patchy=True)
    small = ((a > 0).sum(1) < 4).mean()
    share = 0.2 * 3 / 7  # sizes 1, 2, 3 of 1 .. 7
    assert abs(small - share) < 5 * math.sqrt(share / 2000)


@pytest.mark.parametrize("patchy", [False, True])
@pytest.mark.parametrize("count", range(2, 13))
def test_shares_always_make_means(count: int, patchy: bool) -> None:
    a, b = law(count, patchy)
    assert (a >= 0).all() and np.isfinite(b).all()
    np.testing.assert_allclose([a.sum(1), b.sum(1)], 1, atol=2e-6)
    np.testing.assert_allclose((a * b).sum(1), 0, atol=2e-6)


def test_noise_levels_of_input_and_target() -> None:
    task = cut(tasks.bursts([burst(5)]))
    assert task.scale == (0.0, 1.0) and task.name.startswith("burst")
    batch = examples(task, 60)
    seen = batch.input.std((1, 2, 3)) / SIGMA
    aimed = batch.target.std((1, 2, 3)) / SIGMA
    sizes = np.round(1 / seen**2)
    assert set(sizes) == {3, 4}
    # 1,024 pixels: each deviation is known to 2.2 %; five of these.
    np.testing.assert_allclose(seen, 1 / np.sqrt(sizes), rtol=0.11)
    np.testing.assert_allclose(aimed, 1 / np.sqrt(5 - sizes), rtol=0.11)
    assert task.floor == pytest.approx(SIGMA**2 * (1 + 1 / 2) / 2, rel=0.1)


def test_masked_pixels_never_enter() -> None:
    made = burst(6)
    frames, weights = made.frames.copy(), made.weights.copy()
    rng = np.random.default_rng(3)
    hidden = rng.random(weights.shape) < 0.3
    weights[hidden] = 0
    frames[np.broadcast_to(hidden, frames.shape)] = 1e6
    task = cut(tasks.bursts([dataclasses.replace(made, frames=frames, weights=weights)]))
    batch = examples(task, 40)
    used = batch.weight > 0
    assert 0.3 < used.mean() < 0.5  # 44 % of 64 x 64 are trained on
    assert np.abs(batch.input[used]).max() < 2 and np.abs(batch.target[used]).max() < 2
    levels = np.unique(batch.weight)
    assert len(levels) > 3  # n_T(p) / |T|: 0, 1/3, 1/2, 2/3, 1 and others


def test_the_weight_is_the_share_of_the_target_that_is_valid() -> None:
    frames = jnp.arange(4.0)[:, None, None, None] * jnp.ones((4, 1, 2, 1))
    weights = jnp.ones((4, 1, 2, 1)).at[2, 0, 0].set(0)
    share = jnp.asarray([0.0, 0.5, 0.5, 0.0])
    mean, valid = subsets._combine(share, frames, weights)
    np.testing.assert_allclose(mean[0, :, 0], [1.0, 1.5])
    np.testing.assert_allclose(valid[0, :, 0], [0.5, 1.0])
    nothing, valid = subsets._combine(share, frames, weights * 0)
    assert np.isfinite(nothing).all() and not valid.any()
    odd = jnp.asarray([1.5, -0.5, 0.0, 0.0])
    _, valid = subsets._combine(odd, frames, weights.at[1, 0, 1].set(0))
    np.testing.assert_allclose(valid[0, :, 0], [1.0, 0.0])


def test_held_out_and_clipped_places_have_no_weight() -> None:
    made = burst(5, side=96)
    places = marked(96, 96)
    frames = np.broadcast_to(places, (5, 96, 96, 2)) + 0
    mask = np.ones((96, 96, 1), np.float32)
    mask[:10] = 0
    made = dataclasses.replace(made, frames=frames, mask=mask)
    batch = examples(cut(tasks.bursts([made], seed=3)), 300)
    scored, trained = metrics.held_out((96, 96), seed=3)
    assert scored.any() and not (scored & trained).any()
    allowed = trained & (mask[..., 0] > 0)
    y, x = np.round(batch.target[..., 0]).astype(int), np.round(batch.target[..., 1]).astype(int)
    assert np.array_equal(batch.weight[..., 0] > 0, allowed[y, x])
    reached = np.zeros((96, 96), bool)
    reached[y, x] = True
    assert reached[scored].mean() > 0.9


def test_bursts_of_different_lengths_share_a_pool() -> None:
    task = cut(tasks.bursts([burst(3, seed=1), burst(6, side=80, seed=2)]), batch=2)
    for stripe in range(2):
        batch = examples(task, 30, stripe=stripe)
        assert np.isfinite(batch.input).all()
        # A sum of six float32 shares over another sum of them: a few rounding errors of 6e-8.
        assert batch.weight.max() == pytest.approx(1, rel=1e-6)
        # Frames that are not there are 0, a mean with one of them would be far off 0.5.
        low, high = task.scale
        assert np.abs(batch.input.mean((1, 2, 3)) * (high - low) + low - 0.5).max() < 0.05


@pytest.mark.parametrize("count", [2, 3, 8])
def test_the_score_of_a_burst_is_the_error_without_a_clean_picture(count: int) -> None:
    own = burst(count, side=400)
    score = tasks.bursts([own]).score
    assert score is not None
    # The mean of N-2 frames (of two: one) is the estimate; the scene is 0.5 everywhere.
    wanted = SIGMA**2 / max(count - 2, 1)
    places = int(score.mask.sum())
    assert 0.05 < places / score.mask.size < 0.13
    # Products of two deviations of SIGMA each; of two frames four such squares.
    spread = 3 * SIGMA**2 / math.sqrt(places)
    assert abs(-score(lambda x: x) - wanted) < 5 * spread
    better = score(lambda x: jnp.full_like(x, 0.5))
    assert abs(better) < 5 * spread and better > score(lambda x: x)


def test_the_score_of_a_burst_looks_at_held_out_places_alone() -> None:
    own = burst(5, side=300)
    task = tasks.bursts([own], seed=3)
    scored, trained = metrics.held_out((300, 300), seed=3)
    spoilt = dataclasses.replace(own, frames=np.where(scored[..., None], own.frames, 9.0))
    again = tasks.bursts([spoilt], seed=3)
    assert task.score(lambda x: x) == again.score(lambda x: x)
    assert not (scored & trained).any() and task.patience == 0.25


def test_a_detail_of_the_score_is_that_of_the_whole_picture() -> None:
    own = dataclasses.replace(burst(6, side=300), profile=Line())
    own.weights[2, 40:200, 90:] = 0
    read = functools.partial(subsets._input, own, [0, 2, 3, 5], own.scale, True)
    whole = read((slice(0, 300), slice(0, 300)))
    for place in ((slice(0, 80), slice(7, 87)), (slice(150, 230), slice(220, 300))):
        np.testing.assert_array_equal(read(place), whole[place])


def test_small_bursts_and_several_have_no_score() -> None:
    assert tasks.bursts([burst(4, side=64)]).score is None
    assert tasks.bursts([burst(4, side=300), burst(4, side=300)]).score is None


@dataclasses.dataclass(frozen=True)
class Line:
    """A noise profile: variance = gain * brightness + offset in each channel."""

    gain: float = 0.0
    offset: float = SIGMA**2

    def variance(self, image: np.ndarray) -> np.ndarray:
        return (image * self.gain + self.offset).astype(np.float32)


def informed(count: int, profile: Line | None = None, **changes) -> Burst:
    return dataclasses.replace(burst(count), profile=profile or Line(), **changes)


def test_the_noise_map_is_the_noise_of_the_input() -> None:
    batch = examples(cut(tasks.bursts([informed(8)])), 60)
    assert batch.input.shape[-1] == 2 and batch.target.shape[-1] == 1
    told, seen = batch.input[..., 1].mean((1, 2)), batch.input[..., 0].std((1, 2))
    # A deviation of 1,024 draws is known to 1 / sqrt(2,048) of itself.
    np.testing.assert_allclose(told, seen, rtol=5 / math.sqrt(2048))
    counts = np.square(SIGMA / told)
    np.testing.assert_allclose(counts, np.round(counts), rtol=1e-3)
    assert set(np.round(counts)) == {4, 5, 6, 7}


def test_the_noise_map_tells_nothing_of_the_target() -> None:
    own = informed(5, Line(0.1, 0.01))
    batch = examples(cut(tasks.bursts([own])), 40)
    for image, level in zip(batch.input[..., :1], batch.input[..., 1:], strict=True):
        ratio = level / np.sqrt(own.profile.variance(np.asarray(box_mean(jnp.asarray(image)))))
        # The picture alone tells the map, but for the number of frames.
        np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-3)
        assert np.abs(1 / np.square(ratio.mean()) - np.array([3, 4])).min() < 0.01


def test_the_noise_map_knows_where_frames_are_missing() -> None:
    own = informed(4)
    weights = own.weights.copy()
    weights[1:, :32] = 0
    found = tasks.noise_map(dataclasses.replace(own, weights=weights))
    assert found is not None and found.shape == (64, 64, 1)
    np.testing.assert_allclose(found[:32], SIGMA, rtol=1e-3)
    np.testing.assert_allclose(found[32:], SIGMA / 2, rtol=1e-3)
    assert tasks.noise_map(burst(4)) is None


def test_bursts_without_a_profile_have_no_noise_map() -> None:
    for stacks, options in (
        ([burst(4), informed(4)], {}),
        ([informed(4)], {"noise_map": False}),
    ):
        assert examples(cut(tasks.bursts(stacks, **options)), 2).input.shape[-1] == 1


def test_no_burst() -> None:
    with pytest.raises(Error, match="bursts is empty"):
        tasks.bursts([])


# Budget ------------------------------------------------------------------------------------------


def test_a_pool_beyond_its_budget_is_drawn_anew(monkeypatch) -> None:
    pictures = [np.full((40, 40), value, np.uint8) for value in range(20)]
    whole = tasks.simulated(pictures, input=Clean())
    assert whole.refresh is None and cut(whole).refresh is None
    monkeypatch.setattr(devices, "pool_budget", lambda: 6 * 40 * 40)
    task = cut(tasks.simulated(pictures, input=Clean()), batch=2)
    assert task.refresh is not None
    pool = [task.refresh(number) for number in range(8)]
    shapes = [jax.tree.map(np.shape, each) for each in (task.pool, *pool)]
    assert all(shape == shapes[0] for shape in shapes)
    assert pool[0]["image"].nbytes <= 6 * 40 * 40
    assert np.array_equal(task.pool["image"], pool[0]["image"])
    assert np.array_equal(task.refresh(3)["image"], pool[3]["image"])
    assert not np.array_equal(pool[0]["image"], pool[1]["image"])
    drawn = set(np.unique([each["image"] for each in pool]))
    assert len(drawn) > 14  # of 20; each is missed by 8 draws of 6 with 0.7^8 = 6 %
