"""The paper's protocol by hand: which draws, which roundings, which pictures belong together."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import structural_similarity

import n2n
from n2n import evaluation
from n2n.corruptions import Bernoulli, Gaussian
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
