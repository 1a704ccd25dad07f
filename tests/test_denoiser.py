"""The Denoiser: what comes out is what went in, only cleaner; it lives in jit, vmap and grad."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import n2n
from n2n import checkpoints, networks
from n2n.denoiser import Denoiser, fusing
from n2n.networks import UNet
from n2n.predict import predict
from n2n.tasks import pool
from n2n.training import TrainConfig
from n2n.types import Burst, Error

pytestmark = pytest.mark.usefixtures("hasty")


def random_model(inputs: int, outputs: int, scale=(0.0, 1.0), residual: bool = True) -> Denoiser:
    """Return a model of random weights that changes a picture by about 0.1."""
    network = networks.build(UNet(inputs, outputs, width=3, residual=residual, depth=2))
    rng = np.random.default_rng(4)
    shapes = jax.eval_shape(network.init, jax.random.key(0))

    def draw(leaf):
        fan = math.prod(leaf.shape[:-1]) if len(leaf.shape) == 4 else 100
        return (rng.standard_normal(leaf.shape) / math.sqrt(fan)).astype(np.float32)

    facts = json.dumps({"task": "random", "steps": 0}, sort_keys=True)
    return Denoiser(jax.tree.map(draw, shapes), network, scale, facts)


@pytest.fixture(scope="module")
def rgb() -> Denoiser:
    return random_model(4, 3)


@pytest.fixture(scope="module")
def grey() -> Denoiser:
    return random_model(1, 1)


def picture(shape=(20, 30, 3), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape).astype(np.float32)


# The noise map ------------------------------------------------------------------------------------


def test_a_noise_map_is_read_with_the_picture(rgb: Denoiser, grey: Denoiser) -> None:
    x, level = picture(), np.full((20, 30, 1), 0.1, np.float32)
    told = rgb.predict(x, noise_map=level)
    assert np.abs(told - rgb.predict(x)).max() > 1e-3
    wide = np.concatenate([x, level], -1)
    whole = functools.partial(predict, rgb.network, rgb.params)
    np.testing.assert_allclose(told, whole(wide), atol=1e-5)
    zero = rgb.predict(x, noise_map=np.zeros_like(level))
    np.testing.assert_allclose(zero, rgb.predict(x), atol=1e-6)
    np.testing.assert_array_equal(grey.predict(x, noise_map=level), grey.predict(x))
    one = x[..., :1]
    spread = np.concatenate([np.repeat(one, 3, -1), level], -1)
    np.testing.assert_allclose(
        rgb.predict(one, noise_map=level), whole(spread).mean(-1, keepdims=True), atol=1e-5
    )
    with pytest.raises(Error, match=r"noise_map has shape \(20, 29, 1\)"):
        rgb.predict(x, noise_map=level[:, 1:])


def test_a_noise_map_is_in_the_pictures_units() -> None:
    scaled = random_model(4, 3, (0.5, 2.5))
    plain = dataclasses.replace(scaled, scale=(0.0, 1.0))
    x, level = picture(), np.full((20, 30, 1), 0.1, np.float32)
    np.testing.assert_allclose(
        scaled.predict(2 * x + 0.5, noise_map=2 * level),
        2 * plain.predict(x, noise_map=level) + 0.5,
        atol=1e-5,
    )


# Dtypes, shapes, ranges --------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(20, 30, 3), (20, 30), (20, 30, 1)])
@pytest.mark.parametrize("dtype", ["u1", "u2", "f2", "f4", "f8", ">u2", ">f4"])
def test_dtype_and_shape_out_are_those_in(rgb, shape, dtype: str) -> None:
    white = 1.0 if np.dtype(dtype).kind == "f" else np.iinfo(dtype).max
    x = (picture(shape) * white).astype(dtype)
    clean = rgb.denoise(x)
    assert clean.shape == x.shape and clean.dtype == x.dtype
    wanted = rgb.denoise(np.asarray(x, np.float64) / white)
    # Half a level, and for half floats their 11 bits.
    step = 0.5 / white if np.dtype(dtype).kind != "f" else 2e-3 if dtype == "f2" else 1e-6
    np.testing.assert_allclose(
        clean / white, np.clip(wanted, 0, 1) if white > 1 else wanted, atol=step * 1.01 + 1e-6
    )
    assert np.abs(np.asarray(clean, np.float64) - x).max() > 0.02 * white


def test_views_read_only_and_backwards_go_in(rgb) -> None:
    x = picture()
    wanted = rgb.denoise(x)
    frozen = x.copy()
    frozen.flags.writeable = False
    assert np.array_equal(rgb.denoise(frozen), wanted)
    assert np.array_equal(rgb.denoise(np.ascontiguousarray(x[::-1])[::-1]), wanted)
    assert np.array_equal(rgb.denoise(np.asfortranarray(x)), wanted)
    assert np.array_equal(rgb.denoise(jnp.asarray(x)), wanted)
    assert np.array_equal(x, frozen)  # the input is not written to


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 3, 3), (1, 100_000), (2, 3)])
def test_lines_and_specks_are_pictures(grey, shape) -> None:
    """Each pixel sees what a picture continued by its edge would show it; so does each tile."""
    x = picture(shape)
    clean = grey.denoise(x)
    assert clean.shape == x.shape and np.isfinite(clean).all()
    line = min(shape[:2]) == 1 < max(shape[:2])
    part = tuple(slice(0, min(side, 600)) for side in shape[:2]) if line else ...
    np.testing.assert_allclose(
        clean[part][:300, :300], grey.denoise(x[part])[:300, :300], atol=1e-5
    )


def test_fit_takes_specks_and_many_channels() -> None:
    for shape in ((1, 400), (9, 9, 16)):
        channels = shape[2] if len(shape) > 2 else 1
        pair = n2n.pairs([picture(shape)], [picture(shape, 1)])
        model = n2n.fit(pair, network=UNet(channels, channels, width=3, depth=1), steps=1, crop=16)
        assert model.network.channels[1] == channels
        with contextlib.nullcontext() if channels < 5 else pytest.raises(Error, match="channel"):
            assert model.denoise(picture(shape)).shape == shape


def test_channels_may_stand_elsewhere(rgb) -> None:
    x = picture()
    wanted = rgb.denoise(x)
    for axis in (0, 1, 2, -1, -3):
        moved = np.moveaxis(x, -1, axis)
        got = rgb.denoise(moved, channel_axis=axis)
        assert got.shape == moved.shape and np.array_equal(np.moveaxis(got, axis, -1), wanted)
    with pytest.raises(Error, match="channel_axis is 3"):
        rgb.denoise(x, channel_axis=3)


def test_a_data_range_maps_there_and_back(rgb) -> None:
    x = picture()
    wide = rgb.denoise(x * 900 + 100, data_range=(100, 1000))
    np.testing.assert_allclose((wide - 100) / 900, rgb.denoise(x), atol=1e-5)
    twelve = (picture() * 4095).astype(np.uint16)
    got = rgb.denoise(twelve, data_range=4095)
    np.testing.assert_allclose(
        got, np.clip(np.rint(rgb.denoise(twelve / 4095) * 4095), 0, 65535), atol=1
    )
    with pytest.raises(Error, match="data_range"):
        rgb.denoise(x * 900)


def test_grey_goes_through_rgb_and_back(rgb) -> None:
    x = picture((20, 30))
    three = rgb.denoise(np.repeat(x[..., None], 3, -1))
    np.testing.assert_allclose(rgb.denoise(x), three.mean(-1), atol=1e-6)


def test_a_grey_model_takes_channels_one_by_one(grey) -> None:
    x = picture()
    clean = grey.denoise(x)
    for channel in range(3):
        assert np.array_equal(clean[..., channel], grey.denoise(x[..., channel]))


def test_the_models_scale_is_affine(grey) -> None:
    low, high = 0.002, 0.13
    narrow = dataclasses.replace(grey, scale=(low, high))
    x = picture((20, 30))
    np.testing.assert_allclose(
        narrow.denoise(x * (high - low) + low), grey.denoise(x) * (high - low) + low, atol=1e-6
    )


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "bool"])
def test_strength_nought_is_the_picture_itself(rgb, dtype: str) -> None:
    white = np.iinfo(dtype).max if "uint" in dtype else 1.0
    x = (picture() * white).astype(dtype)
    assert np.array_equal(rgb.denoise(x, strength=0.0), x)


def test_strength_is_linear(rgb) -> None:
    x = picture()
    full = rgb.denoise(x)
    np.testing.assert_allclose(rgb.denoise(x, strength=0.25), 0.75 * x + 0.25 * full, atol=1e-6)
    for wrong in (-0.1, 1.5, math.nan):
        with pytest.raises(Error, match="strength"):
            rgb.denoise(x, strength=wrong)


def test_lists_and_paths(rgb, tmp_path) -> None:
    arrays = [picture(), picture((9, 11), 1)]
    got = rgb.denoise(arrays)
    assert isinstance(got, list) and len(got) == 2
    assert all(np.array_equal(a, rgb.denoise(b)) for a, b in zip(got, arrays, strict=True))
    deep = (picture() * 65535).astype(np.uint16)
    n2n.write(tmp_path / "a.png", deep)
    assert np.array_equal(rgb.denoise(tmp_path / "a.png"), rgb.denoise(deep))
    assert np.array_equal(n2n.denoise(str(tmp_path / "a.png"), rgb), rgb.denoise(deep))


@pytest.mark.parametrize(
    "shape, message", [((4, 5, 2), "2 channels"), ((4, 5, 7), "channel_axis"), ((5,), "H,W")]
)
def test_shapes_that_are_no_picture(rgb, shape, message: str) -> None:
    with pytest.raises(Error, match=message):
        rgb.denoise(np.zeros(shape, np.float32))


def test_progress_is_a_function_or_a_line(rgb, capsys) -> None:
    seen: list[tuple[int, int]] = []
    rgb.denoise(picture(), progress=lambda *tiles: seen.append(tiles))
    assert seen == [(1, 1)] and capsys.readouterr() == ("", "")
    rgb.denoise(picture(), progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "tile 1 of 1" in err


# The pytree --------------------------------------------------------------------------------------


def test_the_model_is_a_pytree(rgb) -> None:
    leaves, structure = jax.tree.flatten(rgb)
    assert len(leaves) == 18
    again = jax.tree.unflatten(structure, leaves)
    assert isinstance(again, Denoiser) and again.network is rgb.network


def test_calling_equals_denoise(rgb, grey) -> None:
    for model, x in [(rgb, picture((21, 40, 3))), (grey, picture((1, 7, 1)))]:
        np.testing.assert_allclose(jax.jit(model)(x), model.denoise(x), atol=1e-6)
    narrow = dataclasses.replace(grey, scale=(0.1, 0.6))
    x = picture((33, 5, 1))
    np.testing.assert_allclose(jax.jit(narrow)(x), narrow.denoise(x), atol=1e-6)


def test_jit_vmap_and_grad(grey) -> None:
    x = picture((3, 6, 8, 1))
    batch = jax.jit(lambda model, x: model(x))(grey, x)  # the model as an argument
    assert batch.shape == x.shape
    each = jax.jit(jax.vmap(lambda one: grey(one)))(x)
    np.testing.assert_allclose(batch, each, atol=1e-6)

    def loss(model, x):
        return ((model(x) - 0.5) ** 2).sum()

    of_model, of_picture = jax.jit(jax.grad(loss, argnums=(0, 1)))(grey, x[0])
    assert isinstance(of_model, Denoiser)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(of_model))
    # Against the difference quotient in a random direction; float32 leaves 1 % of it.
    direction = np.random.default_rng(0).standard_normal(x[0].shape).astype(np.float32)
    run = jax.jit(loss)
    step = 1e-2
    slope = (run(grey, x[0] + step * direction) - run(grey, x[0] - step * direction)) / (2 * step)
    assert float((of_picture * direction).sum()) == pytest.approx(float(slope), rel=0.05)


# Files -------------------------------------------------------------------------------------------


def test_save_and_load(grey, tmp_path) -> None:
    model = dataclasses.replace(grey, scale=(0.25, 0.75))
    path = tmp_path / "m.safetensors"
    model.save(path)
    back = n2n.load(path)
    assert back.network is model.network and back.scale == model.scale and back.card == model.card
    x = picture((9, 9))
    assert np.array_equal(back.denoise(x), model.denoise(x))
    again = tmp_path / "again.safetensors"
    back.save(again)
    assert path.read_bytes() == again.read_bytes()
    assert np.array_equal(n2n.denoise(x, path), n2n.denoise(x, str(path)))


def test_models_that_do_not_load(grey, tmp_path) -> None:
    path = tmp_path / "m.safetensors"
    grey.save(path)
    arrays, meta = checkpoints.load(path)
    cases = {
        "no": "does not exist",
        "fewer": "differ from the network",
        "other": "the network wants",
        "bare": "is a checkpoint or a broken model",
        "kind": "network kind is 'vgg'",
        "scale": "broken model",
        "cut": "broken",
    }
    save = checkpoints.save
    save(tmp_path / "fewer.safetensors", dict(list(arrays.items())[1:]), meta)
    wide = {name: np.zeros((*a.shape, 1), np.float32) for name, a in arrays.items()}
    save(tmp_path / "other.safetensors", wide, meta)
    save(tmp_path / "bare.safetensors", arrays, {})
    save(tmp_path / "kind.safetensors", arrays, meta | {"network": {"kind": "vgg"}})
    save(tmp_path / "scale.safetensors", arrays, meta | {"scale": [1]})
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:-5])
    for name, message in cases.items():
        with pytest.raises(Error) as caught:
            n2n.load(tmp_path / f"{name}.safetensors")
        assert message in str(caught.value) and "\n" not in str(caught.value), name
    with pytest.raises(Error, match="model is 'no-such-name'"):
        n2n.load("no-such-name")


# fit ---------------------------------------------------------------------------------------------


def ones_burst(frames: np.ndarray, **fields) -> Burst:
    ones = np.ones((*frames.shape[:3], 1), np.float32)
    moves = np.tile(np.eye(3), (len(frames), 1, 1))
    names = tuple(str(i) for i in range(len(frames)))
    return Burst(frames, ones, ones[0], moves, **({"names": names} | fields))


def noisy(count: int, sigma: float = 0.1, side: int = 64) -> tuple[np.ndarray, np.ndarray]:
    down, right = np.mgrid[:side, :side] / side
    scene = (0.5 + 0.2 * np.sin(9 * right) * np.cos(7 * down))[..., None].astype(np.float32)
    noise = np.random.default_rng(8).standard_normal((count, *scene.shape)).astype(np.float32)
    return scene, scene + sigma * noise


QUICK = {
    "network": UNet(1, 1, width=4, residual=True, depth=1),
    "steps": 2,
    "batch": 2,
    "crop": 32,
}


def test_the_best_by_the_score_is_taken() -> None:
    scene, frames = noisy(6, 0.1, side=128)
    burst = ones_burst(frames)
    smooth = dataclasses.replace(random_model(1, 1), network=_blurring(1.0))
    rough = dataclasses.replace(random_model(1, 1), network=_blurring(0.0, add=0.2))
    name, fused = n2n.denoiser.fuse_best(rough, smooth, burst)
    assert name == "start" and fused.gain.db > 0
    assert n2n.denoiser.fuse_best(smooth, rough, burst)[0] == "burst"
    shown = list[tuple[int, int]]()
    n2n.denoiser.fuse_best(rough, smooth, burst, progress=lambda *each: shown.append(each))
    done = [each for each, _ in shown]
    # Two times three pairs of frames and eight ways are one job of 100 percent.
    assert done == sorted(done) and {of for _, of in shown} == {100}
    assert len(set(done)) == 14 and done[-1] == 100
    # Turned and mirrored, sums come in another order: up to a unit in the last place of each.
    np.testing.assert_allclose(fused.image, smooth.predict(burst.mean()), rtol=0, atol=5e-7)
    name, fused = n2n.denoiser.fuse_best(rough, None, burst)
    assert name == "mean" and fused.gain.db == 0 and fused.score == fused.before
    np.testing.assert_array_equal(fused.image, burst.mean())
    assert np.square(fused.image - scene).mean() < 0.01


def _blurring(share: float, add: float = 0.0) -> networks.Network:
    """Return a network of no weights: a mean over 3x3 pixels by a share, and something added."""

    def apply(params, x, context=()):
        del params, context
        near = sum(jnp.roll(x, (dy, dx), (1, 2)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)) / 9
        return share * near + (1 - share) * x + add

    return networks.Network(lambda key: {}, apply, (1, 1), halo=16, lattice=16, config={})


class White:
    """A noise profile of the same variance everywhere."""

    def variance(self, image: np.ndarray) -> np.ndarray:
        return np.full(image.shape, 0.01, np.float32)


def test_a_burst_that_knows_its_noise_tells_the_network() -> None:
    burst = ones_burst(noisy(4)[1], profile=White())
    blind = n2n.fit(burst, **QUICK)
    assert not blind.reads_noise_map
    told = n2n.fit(burst, **QUICK | {"network": None, "init": blind})
    assert told.reads_noise_map
    level = np.full((64, 64, 1), 0.05, np.float32)  # four frames of 0.1
    expected = fusing.turned(
        lambda image, _: told.predict(image, noise_map=level), burst.mean(), None
    )
    np.testing.assert_allclose(told.fuse(burst).image, expected, atol=1e-5)


def test_a_burst_takes_a_network_of_ones_own() -> None:
    burst = ones_burst(noisy(4)[1], profile=White())
    for inputs in (1, 2):
        own = networks.build(UNet(inputs, 1, width=4, residual=True, depth=1))
        assert n2n.fit(burst, **QUICK | {"network": own}).network.channels == (inputs, 1)


def test_a_bursts_pool_is_cut_once(monkeypatch) -> None:
    cuts, fill = list[tuple[int, int]](), pool._pool

    def counted(scenes, batch, crop, number):
        cuts.append((batch, crop))
        return fill(scenes, batch, crop, number)

    monkeypatch.setattr(pool, "_pool", counted)
    n2n.fit(ones_burst(noisy(4)[1]), **QUICK)
    assert cuts == [(QUICK["batch"], QUICK["crop"])] != [(8, 64)]


def test_fit_takes_a_tuple_a_burst_or_a_task() -> None:
    _, frames = noisy(4)
    a, b = frames[:2]
    by_tuple = n2n.fit((a, b), **QUICK)
    by_task = n2n.fit(n2n.pairs(a, b), **QUICK)
    assert jax.tree.all(jax.tree.map(np.array_equal, by_tuple.params, by_task.params))
    assert by_tuple.card["task"] == "pairs" and by_tuple.scale == n2n.pairs(a, b).scale
    made = n2n.fit(ones_burst(frames, scale=(0.1, 0.9)), **QUICK)
    assert made.card["task"].startswith("burst") and made.scale == (0.1, 0.9)
    for wrong in ([a, b], (a, b, a), "folder", None):
        with pytest.raises(Error, match="task is"):
            n2n.fit(wrong, **QUICK)


def test_fit_from_weights_keeps_them(grey) -> None:
    _, frames = noisy(2)
    before = jax.tree.map(np.copy, grey.params)
    start = jax.tree.map(jnp.asarray, grey)  # as arrays on the device
    settings = {name: value for name, value in QUICK.items() if name != "network"}
    model = n2n.fit(tuple(frames), init=start, **settings)
    assert model.network is grey.network
    assert jax.tree.all(jax.tree.map(np.array_equal, before, start.params))
    assert not jax.tree.all(jax.tree.map(np.array_equal, before, model.params))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, model.params)
    assert max(jax.tree.leaves(moved)) < 1e-3  # two steps of a rate of at most 4e-5 began there


@pytest.mark.slow
def test_fit_grows_input_channels(grey) -> None:
    _, frames = noisy(2)
    wide = UNet(2, 1, width=3, residual=True, depth=2)
    model = n2n.fit(tuple(frames), init=grey, **(QUICK | {"network": wide}))
    assert model.network.channels == (2, 1)
    other = UNet(1, 1, width=5, residual=True, depth=2)
    with pytest.raises(Error, match="the network wants"):
        n2n.fit(tuple(frames), init=grey, **(QUICK | {"network": other}))


def test_fits_defaults_are_the_trainers() -> None:
    ours = {n: p.default for n, p in inspect.signature(n2n.fit).parameters.items()}
    theirs = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    shared = set(ours) & set(theirs)
    assert shared >= {"steps", "minutes", "batch", "crop", "learning_rate", "precision", "seed"}
    assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}


def test_fit_says_what_it_trained() -> None:
    _, frames = noisy(2)
    card = n2n.fit(tuple(frames), **(QUICK | {"loss": "l1", "seed": 5})).card
    assert card["steps"] == 2 and card["seed"] == 5 and card["batch"] == 2 and card["crop"] == 32
    assert card["n2n"] == n2n.__version__
    with pytest.raises(Error, match="loss"):
        n2n.fit(tuple(frames), loss="l7", **QUICK)


# Bursts ------------------------------------------------------------------------------------------


def blur(image: np.ndarray) -> np.ndarray:
    """Return a plain denoiser, the mean of 5 x 5 pixels, to be scored in the network's place."""
    wide = np.pad(image, [(2, 2), (2, 2), (0, 0)], mode="reflect")
    parts = [
        wide[y : y + image.shape[0], x : x + image.shape[1]] for y in range(5) for x in range(5)
    ]
    return np.mean(parts, axis=0).astype(np.float32)


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_fused_scores_hold_the_truth(monkeypatch, grey, count: int) -> None:
    monkeypatch.setattr(Denoiser, "predict", lambda self, image, **options: blur(image))
    scene, frames = noisy(count, side=192)
    fused = grey.fuse(ones_burst(frames))
    np.testing.assert_allclose(fused.image, blur(frames.mean(0)), atol=1e-6)
    # Frames left for the estimate that is scored: all but two, of two one.
    left = max(1, count - 2)
    means = list(frames)
    if count > 2:
        means = [np.delete(frames, [i, i + 1], 0).mean(0) for i in range(0, count - 1, 2)]
    after = n2n.psnr(
        np.stack([blur(m)[..., 0] for m in means]), np.stack([scene[..., 0]] * len(means))
    )
    assert fused.before.low <= 20 - 10 * math.log10(1 / left) <= fused.before.high
    assert fused.score.low - 0.5 <= after <= fused.score.high + 0.5
    assert fused.gain.low > 3 and fused.score.db > fused.before.db
    assert fused.frames == pytest.approx(count * 10 ** (fused.gain.db / 10))
    assert [row["frame"] for row in fused.table] == [str(i) for i in range(count)]
    assert fused.image.shape == scene.shape and fused.image.dtype == np.float32


def test_fuse_without_a_place_to_score(grey) -> None:
    _, frames = noisy(3, side=40)
    fused = grey.fuse(ones_burst(frames))
    assert fused.score is None and fused.gain is None and math.isnan(fused.frames)
    assert fused.image.shape == (40, 40, 1)


def test_units_of_a_burst_do_not_matter(grey) -> None:
    _, frames = noisy(4, sigma=0.03)
    raw = np.rint(np.clip(frames[..., 0], 0, 1) * 4095).astype(np.uint16)
    bright = n2n.align(raw * 16, register=False)
    dark = n2n.align(raw, register=False)
    floats = n2n.align(raw.astype(np.float64), data_range=(0, 65535), register=False)
    assert bright.frames.shape == (4, 64, 64, 1)
    np.testing.assert_allclose(dark.frames * 16, bright.frames, rtol=1e-6)
    np.testing.assert_allclose(np.array(dark.scale) * 16, bright.scale, rtol=1e-5)
    np.testing.assert_allclose(floats.frames, dark.frames, rtol=1e-6)

    def fused(burst: Burst) -> np.ndarray:
        return dataclasses.replace(grey, scale=burst.scale).fuse(burst).image

    # The scale (low, high) takes the factor out but for roundings.
    np.testing.assert_allclose(fused(dark) * 16, fused(bright), atol=1e-5)
    np.testing.assert_allclose(fused(floats), fused(dark), atol=1e-6)
