"""The paper's protocol by hand: which draws, which roundings, which pictures belong together."""

from __future__ import annotations

import io
import math
import sys

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.stats import poisson
from skimage.metrics import structural_similarity

import n2n
from n2n import evaluation
from n2n.corruptions import Bernoulli, Brown, Chain, Gaussian, Impulse, Poisson, parse
from n2n.types import Error

pytestmark = pytest.mark.usefixtures("hasty")

SIGMA = 25 / 255


def levels(seed: int, shape=(24, 30, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


class Half:
    """Stand in for a Denoiser: halves the distance to grey and remembers what it saw."""

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def predict(self, image: np.ndarray) -> np.ndarray:
        self.seen.append(image)
        return (image + np.float32(0.5)) / 2


def test_output_and_reference_are_rounded_half_up() -> None:
    values = np.array([-0.3, 0.0, 0.49 / 255, 0.5 / 255, 1.5 / 255, 254.5 / 255, 1.0, 7.0])
    got = np.rint(evaluation.rounded(values) * 255)
    assert got.tolist() == [0, 0, 0, 1, 2, 255, 255, 255]  # 0.5 and 1.5: up, not to even


def test_a_row_equals_the_computation_by_hand() -> None:
    clean, model = levels(0), Half()
    (row,) = n2n.evaluate(model, [clean], corruption=Gaussian(SIGMA), seed=3)
    truth = (clean / 255).astype(np.float64)
    seen = model.seen[0].astype(np.float64)
    out = np.floor(np.clip((seen + 0.5) / 2, 0, 1) * 255 + 0.5)
    mse = np.mean((out - clean) ** 2)  # R, G and B jointly
    assert row["psnr"] == pytest.approx(10 * math.log10(255**2 / mse), abs=1e-2)
    assert row["input_psnr"] == pytest.approx(-10 * math.log10(np.mean((seen - truth) ** 2)))
    similar = structural_similarity(out / 255, truth, data_range=1.0, channel_axis=-1)
    assert row["ssim"] == pytest.approx(similar, abs=1e-3)
    assert (row["picture"], row["repeat"], row["seed"]) == ("0", 0, 3)
    assert model.seen[0].dtype == np.float32


def test_the_input_of_sigma_25_has_20_17_db() -> None:
    # 20.17 by the reference, section 1.4; 120,000 draws know it to 10/ln(10) sqrt(2/n) = 0.018.
    rows = n2n.evaluate(lambda image: image, [levels(1, (200, 200, 3))], corruption=Gaussian(SIGMA))
    assert rows[0]["input_psnr"] == pytest.approx(20.17, abs=5 * 0.018)
    assert rows[0]["psnr"] > rows[0]["input_psnr"]  # clipping alone takes noise away


def test_every_method_sees_the_same_draws() -> None:
    pictures = [levels(0), levels(1), levels(0)]
    first, other, function = Half(), Half(), []
    rows = n2n.evaluate(first, pictures, corruption=Gaussian(SIGMA), seed=7, repeat=2)
    n2n.evaluate(other, pictures, corruption=Gaussian(SIGMA), seed=7, repeat=2)
    n2n.evaluate(
        lambda image: (function.append(image), image)[1],
        pictures,
        corruption=Gaussian(SIGMA),
        seed=7,
        repeat=2,
    )
    for ours, theirs, again in zip(first.seen, other.seen, function, strict=True):
        assert np.array_equal(ours, theirs) and np.array_equal(ours, again)
    assert [(row["picture"], row["repeat"]) for row in rows] == [
        (name, again) for name in "012" for again in (0, 1)
    ]
    draws = [image.tobytes() for image in first.seen]
    assert len(set(draws)) == 6  # the same picture in another place or repetition: other noise
    wanted = evaluation.corrupted(
        (pictures[1] / np.float32(255)).astype(np.float32),
        Gaussian(SIGMA),
        seed=7,
        index=1,
        repeat=1,
    )
    np.testing.assert_allclose(first.seen[3], wanted, atol=1e-6)
    moved = Half()
    n2n.evaluate(moved, pictures, corruption=Gaussian(SIGMA), seed=8)
    assert not np.array_equal(moved.seen[0], first.seen[0])


@pytest.mark.parametrize("words", ["motion:15,30+gaussian:2", "jpeg:20", "grey+gaussian:10"])
def test_restoration_is_asked_for_in_the_same_words(words: str) -> None:
    """The first by its own row of pixels, the others by what they leave of an edge or a colour."""
    clean = np.zeros((48, 64, 3), np.uint8)
    clean[:, 32:], clean[20:28, 10:20, 0] = 200, 255
    model = Half()
    (row,) = n2n.evaluate(model, [clean], corruption=parse(words))
    seen, truth = model.seen[0], clean / np.float32(255)
    assert 10 < row["input_psnr"] < 40
    if words.startswith("motion"):  # an edge of height 0.78 over 15 cos 30 = 13 px
        slope = np.diff(seen[:, 24:40].mean((0, 2)))
        np.testing.assert_allclose(slope[4:12], 200 / 255 / 13, atol=0.01)
        # 32,000 differences of neighbours in flat parts, where noise alone is.
        assert np.diff(seen[:, 48:], axis=0).std() == pytest.approx(2**0.5 * 2 / 255, rel=0.1)
    elif words.startswith("jpeg"):
        theirs = io.BytesIO()
        Image.fromarray(clean).save(theirs, "jpeg", quality=20)
        wanted = np.asarray(Image.open(theirs)) / 255
        assert n2n.psnr(seen, truth) == pytest.approx(n2n.psnr(wanted, truth), abs=1.5)
    else:
        assert np.ptp(seen.mean((0, 1))) < 6 * 10 / 255 / 3072**0.5  # no colour but the noise's


def test_noise_is_not_clipped() -> None:
    seen = evaluation.corrupted(np.ones((40, 40, 1), np.float32), Gaussian(0.2))
    assert seen.max() > 1.2 and seen.shape == (40, 40, 1) and seen.dtype == np.float32
    holes = evaluation.corrupted(np.ones((40, 40, 1), np.float32), Bernoulli(0.5))
    assert 0.3 < holes.mean() < 0.7


def save(folder, name: str, array: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    Image.fromarray(array).save(folder / name)


def test_real_pairs_match_by_stem_without_common_endings(tmp_path) -> None:
    for index, name in enumerate(["cat", "dog"]):
        save(tmp_path / "noisy", f"{name}_real.png", levels(index))
        save(tmp_path / "clean", f"{name}_mean.png", levels(index + 10))
    model = Half()
    rows = n2n.evaluate(model, tmp_path / "noisy", reference=tmp_path / "clean", repeat=3)
    assert [row["picture"] for row in rows] == ["cat_real.png", "dog_real.png"]
    for index, row in enumerate(rows):
        assert np.array_equal(np.rint(model.seen[index] * 255), levels(index))
        mse = np.mean((levels(index) / 255 - levels(index + 10) / 255) ** 2)
        assert row["input_psnr"] == pytest.approx(-10 * math.log10(mse), abs=1e-5)


def test_pictures_too_small_for_ssim() -> None:
    (row,) = n2n.evaluate(Half(), [levels(0, (6, 30, 3))], corruption=Gaussian(SIGMA))
    assert math.isnan(row["ssim"]) and math.isfinite(row["psnr"])


def test_progress_counts_the_rows() -> None:
    seen: list[tuple[int, int]] = []
    n2n.evaluate(
        Half(),
        [levels(0), levels(1)],
        corruption=Gaussian(SIGMA),
        repeat=2,
        progress=lambda *done: seen.append(done),
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "either corruption= .* or reference="),
        ({"corruption": Gaussian(0.1), "reference": [levels(1)]}, "either corruption="),
        ({"corruption": Gaussian(0.1), "repeat": 0}, "repeat is 0"),
        ({"corruption": Gaussian(0.1), "repeat": 1.5}, "repeat is 1.5"),
        ({"reference": [levels(1, (24, 31, 3))]}, "has shape"),
        ({"reference": [levels(1), levels(2)]}, "1 pictures against 2"),
        ({"reference": []}, "empty"),
    ],
)
def test_what_cannot_be_scored(options, message: str) -> None:
    with pytest.raises(Error, match=message):
        n2n.evaluate(Half(), [levels(0)], **options)


def test_strangers_are_named(tmp_path) -> None:
    for name in ("a", "b"):
        save(tmp_path / "noisy", f"{name}.png", levels(0))
    for name in ("a", "c"):
        save(tmp_path / "clean", f"{name}.png", levels(1))
    with pytest.raises(Error, match="'[bc]' has no partner"):
        n2n.evaluate(Half(), tmp_path / "noisy", reference=tmp_path / "clean")


def test_kodak_at_sigma_25(data) -> None:
    pictures = sorted((data / "kodak24").glob("*"))[:1]
    (row,) = n2n.evaluate(lambda image: image, pictures, corruption=Gaussian(SIGMA))
    # 1.2 million draws: 0.006 dB each deviation.
    assert row["input_psnr"] == pytest.approx(20.17, abs=0.03)


# Classical methods --------------------------------------------------------------------------------


def made(name: str, corruption=None) -> evaluation.Method:
    """Make a method, or skip where its package is absent."""
    if name == "bm3d":
        pytest.importorskip("bm3d", reason="bm3d (extra `bench`) is not installed")
    known = isinstance(corruption, (Gaussian, Poisson)) and "-" not in str(corruption)
    if name == "wavelet" or (name != "mean" and not known):
        pytest.importorskip("pywt", reason="PyWavelets (extras `bench`, `test`) is not installed")
    return evaluation.method(name, corruption)


def painting(channels: int = 3) -> np.ndarray:
    """Return 64 x 64 pixels of smooth ground, edges and a disc, uint8."""
    y, x = np.mgrid[0:64, 0:64] / 63
    disc = (x - 0.6) ** 2 + (y - 0.5) ** 2 < 0.09
    stripes = ((x * 4).astype(int) % 2 == 0) & (y > 0.75)
    planes = [0.2 + 0.3 * x + 0.2 * c * y + 0.3 * disc - 0.15 * stripes for c in range(channels)]
    return np.rint(255 * np.clip(np.stack(planes, -1), 0, 1)).astype(np.uint8)


CORRUPTIONS = [Gaussian(SIGMA), Gaussian((10 / 255, 40 / 255)), Poisson(30.0), Chain(
    (Poisson(60.0), Gaussian(10 / 255))
)]  # fmt: skip


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=str)
@pytest.mark.parametrize("name", evaluation.METHODS)
def test_every_method_beats_its_input(name: str, corruption) -> None:
    method = made(name, corruption)
    (row,) = n2n.evaluate(method, [painting()], corruption=corruption, seed=5)
    assert row["psnr"] > row["input_psnr"] + 3  # clipping alone gives less than 1


@pytest.mark.parametrize("name", evaluation.METHODS)
def test_methods_see_the_bytes_that_a_model_sees(name: str) -> None:
    method, model, seen = made(name, Poisson(30.0)), Half(), []
    pictures = [painting(), painting(1)]
    rows = n2n.evaluate(model, pictures, corruption=Poisson(30.0), seed=7, repeat=2)
    ours = n2n.evaluate(
        lambda image: (seen.append(image.copy()), method(image))[1],
        pictures,
        corruption=Poisson(30.0),
        seed=7,
        repeat=2,
    )
    assert [image.tobytes() for image in seen] == [image.tobytes() for image in model.seen]
    assert [row["input_psnr"] for row in ours] == [row["input_psnr"] for row in rows]


@pytest.mark.filterwarnings("ignore:Level value:UserWarning")  # PyWavelets on a few pixels
@pytest.mark.parametrize("name", evaluation.METHODS)
@pytest.mark.parametrize(
    "shape", [(24, 30, 1), (24, 30, 2), (9, 40, 3), (8, 8, 3), (1, 3, 3), (1, 1, 3)]
)
def test_methods_keep_shape_and_type(name: str, shape) -> None:
    for corruption in (Gaussian(SIGMA), Poisson(30.0), None):
        noisy = (levels(3, shape) / 255).astype(np.float32)
        before = noisy.copy()
        got = made(name, corruption)(noisy)
        assert got.shape == shape and got.dtype == np.float32 and np.isfinite(got).all()
        assert np.array_equal(noisy, before)


@pytest.mark.parametrize(
    "corruption, rule",
    [
        (Gaussian(SIGMA), "known, 25/255"),
        (Gaussian((0, SIGMA)), "estimated"),
        (Poisson(30), "1 by Anscombe"),
        (Poisson((5, 50)), "estimated"),
        (Brown(SIGMA, 4), "estimated"),
        (Impulse(0.1), "estimated"),
        (Chain((Poisson(30), Gaussian(SIGMA))), "estimated"),
        (None, "estimated"),
    ],
    ids=str,
)
def test_how_a_method_learns_sigma(corruption, rule: str, monkeypatch) -> None:
    monkeypatch.setattr(evaluation, "_require", lambda *names: None)
    for name in ("bm3d", "nlm", "wavelet"):
        assert evaluation.method(name, corruption).sigma == rule
    assert evaluation.method("mean", corruption).sigma == "not needed"


def test_the_estimate_of_sigma() -> None:
    pytest.importorskip("pywt", reason="PyWavelets (extras `bench`, `test`) is not installed")
    noisy = evaluation.corrupted(np.full((96, 96, 3), 0.5, np.float32), Gaussian(SIGMA), seed=2)
    got = evaluation._estimated(lambda image, sigma: np.full_like(image, sigma), noisy)
    # The median of n = 3 x 48^2 magnitudes knows sigma to 1.17 / sqrt(n), 1.4 %.
    assert got[0, 0, 0] == pytest.approx(SIGMA, rel=5 * 0.014)


@pytest.mark.parametrize("name", evaluation.METHODS)
def test_nothing_to_take_away(name: str) -> None:
    flat = np.full((16, 16, 3), 0.25, np.float32)
    np.testing.assert_allclose(made(name)(flat), flat, atol=1e-5)  # BM3D: 5e-6
    np.testing.assert_allclose(made(name, Gaussian(0.0))(flat), flat, atol=1e-6)
    black = np.zeros_like(flat)
    assert np.array_equal(made(name, Poisson(30.0))(black), black)


def test_bm3d_of_grey_in_three_channels() -> None:
    # Two of its opponent channels are then constant, and it divides by their ranges.
    noisy = evaluation.corrupted(painting(1) / np.float32(255), Gaussian(SIGMA))
    method = made("bm3d", Gaussian(SIGMA))
    wide = method(np.repeat(noisy, 3, axis=-1))
    np.testing.assert_array_equal(wide, np.repeat(method(noisy), 3, axis=-1))


def test_mean_is_that_of_nine_pixels() -> None:
    noisy = np.random.default_rng(4).normal(0.5, 0.3, (13, 17, 3)).astype(np.float32)
    wanted = cv2.blur(noisy, (3, 3), borderType=cv2.BORDER_REFLECT_101)
    np.testing.assert_allclose(evaluation.method("mean")(noisy), wanted, atol=1e-6)
    one = noisy[:1, :1]
    np.testing.assert_allclose(evaluation.method("mean")(one), one, atol=1e-6)


def expected(function, mean: float) -> float:
    """Return the mean of a function of Poisson counts, summed over all that ever occur."""
    counts = np.arange(int(mean + 12 * math.sqrt(mean) + 40))
    return float(np.sum(poisson.pmf(counts, mean) * function(counts)))


@pytest.mark.parametrize("mean", [0, 0.1, 0.5, 1, 2, 3, 5, 10, 30, 100, 1000])
def test_anscombe_and_its_inverse_against_the_expectation(mean: float) -> None:
    middle = expected(evaluation.anscombe, mean)
    got = float(evaluation.anscombe_inverse(np.asarray(middle)))
    assert got == pytest.approx(mean, abs=0.04)
    if mean >= 5:
        spread = expected(lambda counts: (evaluation.anscombe(counts) - middle) ** 2, mean)
        assert math.sqrt(spread) == pytest.approx(1, abs=0.03)
    if mean >= 1:  # the plain square is biased by a quarter: this test can tell
        assert (middle / 2) ** 2 - 3 / 8 < mean - 0.15


def test_unknown_methods_and_absent_packages(monkeypatch) -> None:
    with pytest.raises(Error, match="'median'; it must be one of bm3d, nlm, wavelet, mean"):
        evaluation.method("median")
    monkeypatch.setitem(sys.modules, "bm3d", None)
    monkeypatch.setitem(sys.modules, "pywt", None)
    for name in ("bm3d", "wavelet"):
        with pytest.raises(Error, match=r"needs the package \w+; pip install 'n2n\[bench\]'"):
            evaluation.method(name, Gaussian(SIGMA))
    with pytest.raises(Error, match="'nlm', which needs the package pywt"):
        evaluation.method("nlm")
    evaluation.method("nlm", Gaussian(SIGMA))
