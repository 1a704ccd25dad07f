"""Unblurring: the operator in the loss, the filter before the network, and what users get."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tifffile

import n2n
from n2n import cli, networks, predict, tasks
from n2n.corruptions import Blur, Chain, Clean, Defocus, Gaussian, Measured, Motion
from n2n.corruptions.blur import convolve, response, wiener
from n2n.denoiser import as_psf
from n2n.tasks.blurred import Blurred
from n2n.types import Error

pytestmark = pytest.mark.usefixtures("hasty")
KEY = jax.random.key(0)
PSFS = (Blur(1.6), Motion(9.0, 30.0), Defocus(3.0))
SIGMA = 0.01


def scene(side: int = 96, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Return overlapping discs of flat colours, as edges and flat places stand in photographs."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    image = np.full((side, side, channels), 0.5, np.float32)
    for _ in range(150):
        row, column, radius = rng.uniform(0, side, 3) * (1, 1, 0.12)
        inside = (y - row) ** 2 + (x - column) ** 2 < (radius + 1) ** 2
        image[inside] = rng.uniform(0.1, 0.9, channels)
    return image


def frames(psf, count: int, clean: np.ndarray, sigma: float = SIGMA) -> np.ndarray:
    blurred = np.asarray(psf(KEY, clean).image)
    noise = np.random.default_rng(1).normal(0, sigma, (count, *clean.shape))
    return (blurred + noise).astype(np.float32)


# The operator in the loss ------------------------------------------------------------------------


@pytest.mark.parametrize("psf", PSFS, ids=str)
def test_the_sharp_scene_costs_the_noise_alone(psf) -> None:
    """What the loss compares is the same linear map of B f and of the blurred picture."""
    clean = scene(64)
    task = tasks.deblurring(tasks.simulated([clean], input=Clean(), target=psf), psf, sigma=SIGMA)
    task = task.arrange(1, 64)
    drawn = task.sample(KEY, jax.tree.map(lambda leaf: leaf[0], task.pool), 0.0)
    seen = task.measure(drawn.input, drawn.context)
    # The crop is the picture, turned; the blur of its inside needs nothing from beyond.
    np.testing.assert_allclose(seen, drawn.target, atol=2e-4)
    wrong = task.measure(0.9 * drawn.input, drawn.context)
    assert jnp.square(wrong - drawn.target).mean() > 100 * jnp.square(seen - drawn.target).mean()


@pytest.mark.parametrize("psf, turns", list(zip(PSFS, (True, False, True), strict=True)), ids=str)
def test_captures_are_turned_only_where_the_psf_allows(psf, turns) -> None:
    """A capture that is turned has been blurred by the PSF turned."""
    clean = scene(64)
    a, b = frames(psf, 2, clean, sigma=1e-4)
    task = tasks.deblurring(tasks.pairs(a, b), psf, sigma=SIGMA).arrange(1, 64)
    stripe = jax.tree.map(lambda leaf: leaf[0], task.pool)
    low, high = task.scale
    scaled = (clean - low) / (high - low)
    sample, measure = jax.jit(task.sample), jax.jit(task.measure)
    ways = [scaled, *(scaled[::-1], scaled[:, ::-1], scaled.transpose(1, 0, 2))]
    met = set()
    for seed in range(24):
        drawn = sample(jax.random.key(seed), stripe, 0.0)
        errors = [float(np.abs(measure(way, drawn.context) - drawn.target).max()) for way in ways]
        met.add(int(np.argmin(errors)) if min(errors) < 0.02 else -1)
    assert met == {0} if not turns else {0, 1, 2, 3} <= met


def test_the_border_has_no_say() -> None:
    seen, clean = Blurred(Defocus(3.0), SIGMA), jnp.asarray(scene(48))
    weight = seen.inside(clean.shape)
    assert weight.sum() == (48 - 2 * 4) ** 2
    other = clean.at[:, 0].set(5.0).at[-1].set(-3.0)  # they do not reach the inside, but one pixel
    reach = Defocus(3.0).reach
    blurred = [convolve(one, Defocus(3.0).kernel(KEY)) for one in (clean, other)]
    inner = slice(reach, -reach)
    changed = np.abs(blurred[0] - blurred[1])[inner, inner].max(axis=(1, 2))
    assert (changed[reach:-reach] < 1e-4).all()
    # Whatever stands in the target's border is not compared.
    a, b = (seen.whitened(weight * (x + 9 * (1 - weight))) for x in (blurred[0], 2 * blurred[0]))
    assert not np.allclose(a, b)
    np.testing.assert_allclose(
        seen.whitened(weight * (blurred[0] + 9 * (1 - weight))),
        seen.whitened(weight * blurred[0]),
        atol=1e-4,
    )


def test_what_the_psf_hides_costs() -> None:
    seen = Blurred(Blur(1.6), SIGMA)
    y, x = np.mgrid[:64, :64]
    waves = [0.5 + 0.2 * np.cos(2 * np.pi * f * x) for f in (0.03, 0.1, 0.45)]
    costs = [float(seen.unseen(jnp.asarray(w, jnp.float32)[None, ..., None]).sum()) for w in waves]
    assert costs[0] < costs[1] < costs[2] / 10
    assert float(seen.unseen(jnp.full((1, 64, 64, 1), 0.5)).sum()) == 0
    del y


def test_what_cannot_be_unblurred_is_refused() -> None:
    task = tasks.pairs(scene(40), scene(40, seed=1))
    with pytest.raises(Error, match="psf is motion:9-25,30; to unblur it must be one PSF"):
        n2n.deblurring(task, Motion((9.0, 25.0), 30.0), sigma=0.01)
    for sigma in (0.0, -1.0, np.nan):
        with pytest.raises(Error, match="sigma is .*; it must be a number above 0"):
            n2n.deblurring(task, Blur(1.0), sigma=sigma)
    assert "unblurred defocus:3" in n2n.deblurring(task, Defocus(3.0), sigma=0.01).name


# The filter before the network -------------------------------------------------------------------


@pytest.mark.parametrize("psf", PSFS, ids=str)
def test_a_wiener_filter_restores(psf) -> None:
    clean = scene(128)
    kernel = psf.kernel(KEY)
    taps = wiener(kernel, SIGMA, 4 * psf.reach)
    assert taps.sum() == pytest.approx(1, abs=1e-5) and len(taps) == 8 * psf.reach + 1
    (blurred,) = frames(psf, 1, clean)
    network = networks.build(networks.Filtered(tuple(map(tuple, taps.tolist())), LEAN))
    assert network.halo > networks.build(LEAN).halo
    restored = convolve(jnp.asarray(blurred), jnp.asarray(taps))
    inner = slice(16, -16)
    before, after = (n2n.psnr(x[inner, inner], clean[inner, inner]) for x in (blurred, restored))
    assert after > before + 0.5


LEAN = networks.Lean(6, 3, (4, 8))


def test_the_transfer_function_is_that_of_the_convolution() -> None:
    picture = np.random.default_rng(0).random((24, 30, 1)).astype(np.float32)
    kernel = Motion(9.0, 20.0).kernel(KEY)
    wide = np.pad(picture, ((12, 12), (12, 12), (0, 0)), mode="reflect")
    spectrum = np.fft.rfft2(wide, axes=(0, 1)) * response(kernel, wide.shape[:2])[..., None]
    got = np.fft.irfft2(spectrum, wide.shape[:2], axes=(0, 1))[12:-12, 12:-12]
    np.testing.assert_allclose(got, convolve(jnp.asarray(picture), kernel), atol=1e-5)


@pytest.mark.parametrize("size", [(61, 200), (150, 97)])
def test_a_filtered_network_is_tiled_exactly(size) -> None:
    taps = wiener(Motion(9.0, 30.0).kernel(KEY), SIGMA, 20)
    network = networks.build(networks.Filtered(tuple(map(tuple, taps.tolist())), LEAN))
    params = network.init(KEY)
    image = np.random.default_rng(0).random((*size, 3)).astype(np.float32)
    tiles = [2 * network.halo + network.lattice * n for n in (1, 9, 60)]
    parts = [predict.predict(network, params, image, tile=tile) for tile in tiles]
    for part in parts[1:]:
        np.testing.assert_allclose(part, parts[0], atol=1e-5 * max(1, np.abs(parts[0]).max()))


def test_a_filtered_network_comes_back_from_its_file(tmp_path) -> None:
    taps = wiener(Defocus(2.0).kernel(KEY), SIGMA, 6)
    config = networks.Filtered(tuple(map(tuple, taps.tolist())), LEAN)
    network = networks.build(config)
    assert networks.build(json.loads(json.dumps(network.config))) is network
    assert network.channels == (3, 3)
    model = n2n.Denoiser(network.init(KEY), network)
    model.save(tmp_path / "m.safetensors")
    picture = scene(40)
    got = n2n.load(tmp_path / "m.safetensors").denoise(picture)
    assert np.array_equal(got, model.denoise(picture))


@pytest.mark.parametrize(
    "changed, text",
    [
        ({"filter": [[1.0, 2.0]]}, "filter has shape"),
        ({"filter": [[1.0, 2.0], [1.0]]}, "filter has shape"),
        ({"filter": [[float("nan")]]}, "finite"),
        ({"filter": 3}, "filter has shape"),
        ({"network": {"kind": "lean", "inputs": 4, "outputs": 3}}, "twice as many"),
        ({"network": 7}, "within filtered"),
        ({"network": {"kind": "filtered", "filter": [[1.0]], "network": 1}}, "within filtered"),
    ],
)
def test_strange_filters_are_refused(changed, text) -> None:
    lean = {"kind": "lean", "inputs": 6, "outputs": 3}
    with pytest.raises(Error, match=text):
        networks.build({"kind": "filtered", "filter": [[1.0]], "network": lean} | changed)


# What users get ----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["defocus:2", "gaussian:1.6", "motion:9,30"])
def test_a_psf_by_its_text(text) -> None:
    assert str(as_psf(text)).replace("blur", "gaussian") == text
    assert as_psf(as_psf(text)) == as_psf(text)


def test_a_psf_by_a_file(tmp_path) -> None:
    kernel = np.asarray(Defocus(2.0).kernel(KEY), np.float64)
    np.save(tmp_path / "k.npy", kernel)
    np.savetxt(tmp_path / "k.txt", kernel)
    tifffile.imwrite(tmp_path / "k.tif", np.uint16(np.round(65535 * kernel / kernel.max())))
    for name in ("k.npy", "k.txt", "k.tif"):
        found = as_psf(tmp_path / name)
        assert isinstance(found, Measured)
        np.testing.assert_allclose(found.values, kernel, atol=1e-4)
    assert as_psf(kernel) == as_psf(tmp_path / "k.npy")


@pytest.mark.parametrize(
    "psf, text",
    [
        ("nothing", "psf 'nothing': no such file"),
        ("poisson:30", "is no blur"),
        ("motion:9-25,30", "must be one PSF"),
        ("motion:9", "must be one PSF"),  # of any angle
        (np.ones((3, 4)), "square"),
        (np.ones((3, 3, 3)), "without colours"),
        (-np.ones((3, 3)), "not negative"),
    ],
)
def test_a_psf_that_is_none(psf, text) -> None:
    with pytest.raises(Error, match=text):
        as_psf(psf)


def test_frames_become_sharp() -> None:
    clean, psf = scene(112), Motion(7.0, 30.0)
    shots = frames(psf, 4, clean)
    got = n2n.unblur(shots, "motion:7,30", steps=20, align=False)
    assert got.shape == clean.shape and got.dtype == np.float32
    inner = slice(16, -16)
    mean, sharp = (n2n.psnr(x[inner, inner], clean[inner, inner]) for x in (shots.mean(0), got))
    assert sharp > mean + 2
    assert n2n.unblur(shots[..., 0], psf, steps=1, align=False, sigma=0.01).shape == (112, 112)


def test_a_single_picture_needs_a_model(tmp_path) -> None:
    (shot,) = frames(Defocus(2.0), 1, scene(64))
    task = n2n.simulated(
        [scene(64)], input=Chain((Defocus(2.0), Gaussian(0.01))), target=Gaussian(0.01)
    )
    model = n2n.fit(task, network=networks.Lean(3, 3, (4, 8)), steps=1, batch=1, crop=32)
    assert n2n.unblur([shot], model=model).shape == shot.shape
    assert n2n.unblur(np.stack([shot, shot + 0.01]), model=model, align=False).shape == shot.shape
    with pytest.raises(Error, match="psf is None; say what has blurred"):
        n2n.unblur(frames(Defocus(2.0), 2, scene(64)), align=False)
    with pytest.raises(Error, match="2 frames|two frames|at least 2"):
        n2n.unblur([shot], "defocus:2")


def run(capsys, *line):
    capsys.readouterr()
    status = cli.main([str(word) for word in line])
    return status, *capsys.readouterr()


def test_unblur_as_a_user(tmp_path, capsys) -> None:
    for number, shot in enumerate(frames(Defocus(2.0), 3, scene(96))):
        tifffile.imwrite(
            tmp_path / f"{number}.tif", np.uint16(65535 * shot.clip(0, 1)), photometric="rgb"
        )
    line = ["unblur", tmp_path, "-o", tmp_path / "sharp.png", "--steps", 2]
    status, _, err = run(capsys, *line)
    assert status == 2 and "either --psf" in err
    status, _, err = run(capsys, *line, "--psf", "defocus:nothing")
    assert status == 2 and err.count("\n") == 1 and "psf 'defocus:nothing'" in err
    status, out, err = run(capsys, *line, "--psf", "defocus:2", "--json", "-")
    assert status == 0, err
    facts = json.loads(out)
    assert facts["psf"] == "defocus:2" and facts["steps"] == 2
    assert facts["sigma"] == pytest.approx(SIGMA, rel=0.3)
    assert n2n.read(tmp_path / "sharp.png").array.shape == (96, 96, 3)
    assert not (tmp_path / "sharp.png.run").exists()
    status, _, err = run(capsys, "unblur", tmp_path / "0.tif", "--psf", "defocus:2")
    assert status == 2 and "a single picture has nothing to learn from" in err
    model = tmp_path / "m.safetensors"
    network = networks.build(networks.Lean(3, 3, (4, 8)))
    n2n.Denoiser(network.init(KEY), network).save(model)
    line = ["unblur", tmp_path / "0.tif", "--model", model, "-o", tmp_path / "one.tif"]
    assert run(capsys, *line)[0] == 0 and n2n.read(tmp_path / "one.tif").array.dtype == np.uint16
