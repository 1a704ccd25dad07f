"""The blur of a picture: its kind and parameters found again, and nothing else taken for a blur."""

from __future__ import annotations

import functools
import json
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy import ndimage

import n2n
from n2n import psf
from n2n.corruptions import PSF, Blur, Defocus, Motion
from n2n.corruptions.blur import response
from n2n.types import Error

pytestmark = pytest.mark.usefixtures("hasty")
KEY = jax.random.key(0)
NOISE = 2 / 255
EDGE = 32


@functools.cache
def scene(height: int = 320, width: int = 384) -> np.ndarray:
    """Return dead leaves: discs of power-law sizes, each before those that were there."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[:height, :width]
    picture = np.full((height, width, 3), 0.5)
    radii = 4 / np.sqrt(rng.uniform(4**2 / 120**2, 4, 2500))
    for radius, row, column in zip(radii, rng.uniform(0, height, 2500), rng.uniform(0, width, 2500),
                                   strict=True):  # fmt: skip
        top, left = max(0, int(row - radius)), max(0, int(column - radius))
        part = np.s_[top : int(row + radius) + 2, left : int(column + radius) + 2]
        inside = np.hypot(y[part] - row, x[part] - column) <= radius
        picture[part][inside] = rng.uniform(0.05, 0.95) + rng.uniform(-0.1, 0.1, 3)
    # A lens is not sharper than its pixels.
    return ndimage.gaussian_filter(picture, (0.5, 0.5, 0)).astype(np.float32)


def taken(truth: PSF | None, clean: np.ndarray, seed: int = 0, noise: float = NOISE) -> np.ndarray:
    """Return the picture blurred, noisy, and without the border that the blur reflects."""
    seen = clean if truth is None else np.asarray(truth(KEY, clean).image)
    rng = np.random.default_rng(seed)
    seen = seen + noise * rng.standard_normal(seen.shape, np.float32)
    return seen[EDGE:-EDGE, EDGE:-EDGE]


def sizes(blur: PSF | None) -> list[float]:
    return [] if blur is None else [getattr(blur, name) for name in blur.__dataclass_fields__]


def near(found: PSF | None, truth: PSF | None) -> bool:
    """Say whether a blur is of the true one's kind, within 15 %, 1 px and 3 degrees, or 0.3 px."""
    if type(found) is not type(truth):
        return False
    for ours, true, (name, within) in zip(
        sizes(found), sizes(truth), TOLERANCE[type(truth)].items(), strict=True
    ):
        away = (ours - true + 90) % 180 - 90 if name == "angle" else ours - true
        if abs(away) > within * (true if name == "sigma" else 1):
            return False
    return True


TOLERANCE: dict[type, dict[str, float]] = {
    type(None): {},
    Blur: {"sigma": 0.15},
    Motion: {"length": 1, "angle": 3},
    Defocus: {"radius": 0.3},
}
KINDS = {type(None): "none", Blur: "gaussian", Motion: "motion", Defocus: "defocus"}
BLURS = [
    None, Blur(1.2), Blur(2.5), Motion(9, 140), Motion(15, 0), Motion(15, 90), Motion(22, 35),
    Defocus(2.3), Defocus(4.1), Defocus(7.6),
]  # fmt: skip


@pytest.mark.parametrize("truth", BLURS, ids=str)
def test_a_blur_is_found(truth: PSF | None) -> None:
    found = psf.estimate(taken(truth, scene()))
    assert found.kind == KINDS[type(truth)] == KINDS[type(found.psf)]
    assert near(found.psf, truth), found
    assert 0.3 < found.confidence <= 1


def test_the_noise_may_be_told() -> None:
    for truth in (None, Defocus(3)):
        found = psf.estimate(taken(truth, scene()), sigma=NOISE)
        assert near(found.psf, truth)


def test_a_grey_picture_is_seen_like_its_colours() -> None:
    seen = taken(Motion(14, 60), scene())
    grey = psf.estimate(seen.mean(-1))
    assert grey == psf.estimate(seen.mean(-1, keepdims=True).astype(np.float64))
    np.testing.assert_allclose(sizes(grey.psf), sizes(psf.estimate(seen).psf), rtol=1e-3)


def test_a_turned_picture_has_its_blur_turned() -> None:
    seen = taken(Motion(14, 60), scene())
    assert near(psf.estimate(np.rot90(seen)).psf, Motion(14, 150))
    assert near(psf.estimate(seen[:, ::-1]).psf, Motion(14, 120))


def test_exposure_does_not_matter() -> None:
    seen = taken(Defocus(3.5), scene())
    assert near(psf.estimate(4 * seen + 0.1).psf, Defocus(3.5))


def test_a_blur_without_noise_is_found() -> None:
    for truth in (Blur(1.5), Motion(12, 20), Defocus(5)):
        assert near(psf.estimate(taken(truth, scene(), noise=0)).psf, truth)


def test_small_pictures_have_small_windows() -> None:
    seen = taken(Motion(10, 110), scene())[50:150, 30:200]
    found = psf.estimate(seen)
    assert near(found.psf, Motion(10, 110)), found


@pytest.mark.parametrize("shape", [(1, 1), (63, 500, 3), (500, 63), (64, 64, 1)])
def test_nothing_is_seen_in_tiny_and_in_flat_pictures(shape: tuple[int, ...]) -> None:
    for level in (0, 0.5):
        assert psf.estimate(np.full(shape, level, np.float32)) == (None, "none", 0.0)


def test_nothing_is_seen_in_noise() -> None:
    noise = 0.5 + NOISE * np.random.default_rng(3).standard_normal((200, 260, 3))
    assert psf.estimate(noise) == psf.estimate(noise, sigma=NOISE) == (None, "none", 0.0)


@pytest.mark.parametrize(
    "image, sigma, words",
    [
        (np.zeros(9), None, r"image has shape \(9,\): give one picture"),
        (np.zeros((2, 80, 80, 3)), None, r"shape \(2, 80, 80, 3\)"),
        (np.zeros((0, 80, 3)), None, "not empty"),
        (np.zeros((80, 80), np.uint8), None, "image is uint8: give floats"),
        (np.full((80, 80), np.nan), None, "not finite"),
        (np.zeros((80, 80)), -0.1, "sigma=-0.1 must be"),
        (np.zeros((80, 80)), np.inf, "sigma=inf must be"),
    ],
)
def test_what_is_no_picture_is_refused(image: np.ndarray, sigma: float, words: str) -> None:
    with pytest.raises(Error, match=words) as caught:
        psf.estimate(image, sigma=sigma)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "truth", [blur for blur in BLURS if blur] + [Blur(0.7), Motion(30, 77), Defocus(1.5)], ids=str
)
def test_the_transfer_functions_are_those_of_the_kernels(truth: PSF) -> None:
    side = 128
    kind = next(each for each in psf._KINDS if each.name == KINDS[type(truth)])
    ours = kind.response(np.fft.fftfreq(side), np.fft.rfftfreq(side), *sizes(truth))
    theirs = np.asarray(response(truth.kernel(KEY), (side, side)))
    # A disc is drawn in parts of an eighth of a pixel, here their edge is smooth; a line in fewer.
    atol = 0.02 if isinstance(truth, Defocus) else 5e-3
    np.testing.assert_allclose(ours, theirs, atol=atol)


def test_the_window_fills_the_zeros_as_reckoned() -> None:
    """The spectrum of white noise through a blur is |H|^2 as the window sees it."""
    side, truth = 128, Motion(20, 0)
    white = np.random.default_rng(5).standard_normal((1200, 1200, 1)).astype(np.float32)
    power = psf._welch(np.asarray(truth(KEY, white).image)[EDGE:-EDGE, EDGE:-EDGE], side)
    kind = next(each for each in psf._KINDS if each.name == "motion")
    h = kind.response(np.fft.fftfreq(side), np.fft.rfftfreq(side), 20, 0)
    # Over the rows' frequencies that the bilinear kernel leaves alone.
    found, expected = (each[2:12, 2:30].mean(0) for each in (power, psf._leaked(h * h)))
    np.testing.assert_allclose(found, expected, rtol=0.25, atol=2e-3)


@pytest.mark.parametrize("truth", [None, Blur(1.8), Motion(15, 30), Defocus(4)], ids=str)
def test_inspect_says_what_unblur_is_to_be_told(truth: PSF | None, tmp_path, capsys) -> None:
    from n2n import cli
    from n2n.denoiser import as_psf

    path = tmp_path / "seen.png"
    seen = taken(truth, scene())
    n2n.write(path, np.round(np.clip(seen, 0, 1) * 65535).astype(np.uint16))
    assert cli.main(["inspect", str(path)]) == 0
    said = capsys.readouterr().out
    assert "one picture of 320 x 256, 3 channels" in said
    assert cli.main(["inspect", str(path), "--json", "-"]) == 0
    told = json.loads(capsys.readouterr().out)["blur"]
    assert told["kind"] == KINDS[type(truth)] and 0.3 < told["confidence"] <= 1
    if truth is None:
        assert told["psf"] is None and "blur: none that shows" in said
    else:
        assert f"blur: --psf {told['psf']} (confidence" in said
        assert near(as_psf(told["psf"]), truth)
        assert all(len(number.partition(".")[2]) <= 2 for number in told["psf"].split(","))


def test_large_pictures_take_no_longer() -> None:
    """400 windows in any picture; the time is that of the fits."""
    assert all(len(psf._starts(length, 128)) <= 20 for length in (128, 700, 6000, 10**6))
    small = taken(Defocus(3), scene())
    large = np.tile(small.mean(-1), (16, 12))[:4000, :3800]
    psf.estimate(small)
    began = time.perf_counter()
    found = psf.estimate(large)
    assert time.perf_counter() - began < 30  # 1 s on an idle core
    assert near(found.psf, Defocus(3))


@pytest.mark.slow
def test_the_blurs_of_photographs_are_found(data: Path) -> None:
    """One draw of each kind for each of Kodak's 24; two minutes."""
    rng = np.random.default_rng(11)
    right, good = [], {name: [] for name in KINDS.values()}
    for number, path in enumerate(sorted((data / "kodak24").glob("*.png"))):
        clean = n2n.read(path).array / np.float32(255)
        for truth in (
            None,
            Blur(rng.uniform(1, 3)),
            Motion(rng.uniform(9, 25), rng.uniform(0, 180)),
            Defocus(rng.uniform(2, 8)),
        ):
            found = psf.estimate(taken(truth, clean, seed=number))
            name = KINDS[type(truth)]
            right.append(found.kind == name)
            good[name].append(near(found.psf, truth))
    assert len(right) == 96 and np.mean(right) >= 0.85
    assert np.mean(good["motion"]) >= 0.9 and np.mean(good["defocus"]) >= 0.9
    assert np.mean(good["gaussian"]) >= 0.8
