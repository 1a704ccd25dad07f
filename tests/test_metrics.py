"""Metrics against scikit-image, and clean-free quality against the truth in simulations."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from n2n import metrics
from n2n.types import Error, Score

RUNS = 100
SIDE = 256


def scene() -> np.ndarray:
    """Return a textured picture, H,W: chirps, a disc and fine lines."""
    down, right = np.mgrid[:SIDE, :SIDE] / SIDE
    chirps = 0.2 * np.sin(40 * right**2 + 9 * down) * np.cos(25 * down * right)
    disc = 0.15 * (np.hypot(right - 0.5, down - 0.4) < 0.3)
    return 0.5 + chirps + disc + 0.05 * np.sin(90 * right + 60 * down)


def noise(generator: np.random.Generator, sigma: float, blur: float) -> np.ndarray:
    """Return periodic noise of standard deviation sigma, white or blurred."""
    white = generator.standard_normal((SIDE, SIDE))
    if blur == 0:
        return sigma * white
    kernel = gaussian_filter(np.eye(1, 65, 32)[0], blur)
    return sigma * gaussian_filter(white, blur, mode="wrap") / np.sum(kernel**2)


def judge(estimates: np.ndarray, truths: np.ndarray, deviations: np.ndarray) -> None:
    """Assert what an interval of 95 % must keep: no bias, coverage, and a width that tells."""
    errors = estimates - truths
    spread = errors.std(ddof=1)
    # Four standard errors of the mean of the runs.
    assert abs(errors.mean()) < 4 * spread / math.sqrt(len(errors))
    covered = np.mean(np.abs(errors) < 1.96 * deviations)
    # Design, section 5: 90 to 99 of 100; 95 +- 2.3 standard deviations (2.2) of a binomial.
    assert 0.90 <= covered <= 0.99
    assert deviations.mean() <= 2 * spread


NOISES = pytest.mark.parametrize(
    "sigma, blur", [(5 / 255, 0.0), (25 / 255, 0.0), (5 / 255, 1.0), (25 / 255, 1.0)]
)


def mse(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean((a - b) ** 2))


@pytest.mark.parametrize("shape", [(16, 16), (31, 45), (40, 33, 3), (9, 7, 1)])
def test_psnr_and_ssim_agree_with_scikit_image(shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    reference = generator.random(shape)
    image = reference + 0.1 * generator.standard_normal(shape)
    axis = 2 if len(shape) == 3 else None
    assert metrics.psnr(image, reference) == pytest.approx(
        peak_signal_noise_ratio(reference, image, data_range=1.0), abs=1e-9
    )
    theirs = structural_similarity(reference, image, data_range=1.0, channel_axis=axis)
    assert metrics.ssim(image, reference) == pytest.approx(theirs, abs=1e-5)


def test_ssim_survives_a_flat_bright_picture() -> None:
    # Where E[x^2] - E[x]^2 cancels; scikit-image in float64 is the reference.
    image = np.full((32, 32), 1000.0) + np.random.default_rng(0).normal(0, 0.01, (32, 32))
    reference = np.full((32, 32), 1000.0)
    theirs = structural_similarity(reference, image, data_range=1.0)
    assert metrics.ssim(image, reference) == pytest.approx(theirs, abs=1e-5)


def test_psnr_by_hand() -> None:
    assert metrics.psnr(np.zeros((4, 4)), np.full((4, 4), 0.1)) == pytest.approx(20.0)
    assert metrics.psnr(jnp.zeros((4, 4, 3)), jnp.full((4, 4, 3), 2.0)) == pytest.approx(-6.0206)
    assert metrics.psnr(np.ones((4, 4)), np.ones((4, 4))) == math.inf
    eight_bit = metrics.psnr(np.uint8([[0, 10]]), np.uint8([[10, 0]]))
    assert eight_bit == pytest.approx(20 * math.log10(25.5))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_black_to_white_is_that_of_the_type(dtype: type) -> None:
    generator = np.random.default_rng(8)
    top = np.iinfo(dtype).max
    shots = [(top * generator.uniform(0.2, 0.8, (40, 48))).astype(dtype) for _ in range(3)]
    for measure in (metrics.psnr, metrics.ssim):
        assert measure(*shots[:2]) == measure(*shots[:2], data_range=top)
    assert metrics.upsnr(*shots) == metrics.upsnr(*shots, data_range=top)


def test_the_same_picture_is_its_own_ssim() -> None:
    assert metrics.ssim(scene(), scene()) == pytest.approx(1.0, abs=1e-12)


@NOISES
def test_upsnr_is_unbiased_and_its_interval_covers(sigma: float, blur: float) -> None:
    generator = np.random.default_rng(1)
    clean, rows = scene(), []
    for _ in range(RUNS):
        estimate = gaussian_filter(clean + noise(generator, sigma, blur) / 2, 0.8)
        x, y = (clean + noise(generator, sigma, blur) for _ in range(2))
        value, variance = metrics.product_mse(estimate, x, y)
        rows.append((value, mse(estimate, clean), math.sqrt(variance)))
    judge(*np.array(rows).T)


@NOISES
def test_upsnr_pair_is_unbiased_and_its_interval_covers(sigma: float, blur: float) -> None:
    generator = np.random.default_rng(2)
    clean, rows = scene(), []
    for _ in range(RUNS):
        a, b = (clean + noise(generator, sigma, blur) for _ in range(2))
        fa, fb = gaussian_filter(a, 1.5), gaussian_filter(b, 1.5)
        value, variance = metrics.pair_mse(fa, a, fb, b)
        truth = (mse(fa, clean) + mse(fb, clean)) / 2
        rows.append((value, truth, math.sqrt(variance)))
    judge(*np.array(rows).T)


def test_pair_form_holds_for_the_frame_itself_and_for_weak_denoisers() -> None:
    # Correlated noise passes a weak denoiser, so that f(a) keeps much of a's own noise.
    generator = np.random.default_rng(3)
    clean = scene()
    for strength in (0.0, 0.4):
        rows = []
        for _ in range(RUNS // 2):
            a, b = (clean + noise(generator, 25 / 255, 1.0) for _ in range(2))
            fa, fb = gaussian_filter(a, strength), gaussian_filter(b, strength)
            value, variance = metrics.pair_mse(fa, a, fb, b)
            rows.append((value, (mse(fa, clean) + mse(fb, clean)) / 2, math.sqrt(variance)))
        values, truths, deviations = np.array(rows).T
        # 50 runs: a share of 0.95 has a standard deviation of 0.031.
        assert np.mean(np.abs(values - truths) < 1.96 * deviations) > 0.95 - 3 * 0.031


@pytest.mark.parametrize("sigma, blur", [(5 / 255, 0.0), (25 / 255, 1.0)])
def test_paired_difference_covers_and_is_narrower(sigma: float, blur: float) -> None:
    generator = np.random.default_rng(4)
    clean, rows, single = scene(), [], []
    for _ in range(RUNS):
        frame = clean + noise(generator, sigma, blur) / 2
        f, g = gaussian_filter(frame, 0.8), gaussian_filter(frame, 0.9)
        x, y = (clean + noise(generator, sigma, blur) for _ in range(2))
        value, variance = metrics.paired_difference(f, g, x, y)
        rows.append((value, mse(f, clean) - mse(g, clean), math.sqrt(variance)))
        single.append(math.sqrt(metrics.product_mse(f, x, y)[1]))
    judge(*np.array(rows).T)
    assert np.mean([row[2] for row in rows]) < np.mean(single) / 3


def test_gains_in_decibel_cover_the_truth() -> None:
    generator = np.random.default_rng(5)
    clean, paired, pair = scene(), [], []

    def holds(score: Score, f: np.ndarray, g: np.ndarray) -> bool:
        assert score.low <= score.db <= score.high
        return score.low <= 10 * math.log10(mse(g, clean) / mse(f, clean)) <= score.high

    for _ in range(RUNS):
        frame = clean + noise(generator, 12 / 255, 1.0)
        f = gaussian_filter(frame, 1.0)
        x, y = (clean + noise(generator, 25 / 255, 1.0) for _ in range(2))
        paired.append(holds(metrics.paired_gain(f, frame, x, y), f, frame))
        fx, fy = gaussian_filter(x, 1.5), gaussian_filter(y, 1.5)
        both, raw = np.stack([fx, fy]), np.stack([x, y])
        pair.append(holds(metrics.pair_gain(fx, x, fy, y), both, raw))
    assert 0.90 <= np.mean(paired) <= 0.99
    # Conservative by construction, so there is no upper limit.
    assert np.mean(pair) >= 0.90


def test_product_form_by_hand() -> None:
    x, y = np.array([[1.0, 3.0]]), np.array([[2.0, 5.0]])
    value, variance = metrics.product_mse(np.zeros((1, 2)), x, y, block=1)
    assert value == (2 + 15) / 2
    # Two blocks: Student's t at 2 degrees of freedom is 4.3027; w = (1-4)/2 and (9-25)/2.
    assert variance == pytest.approx((1.5**2 + 8**2) / 4 * (4.3027 / 1.95996) ** 2, rel=1e-4)


def test_the_mask_chooses_the_pixels() -> None:
    generator = np.random.default_rng(6)
    estimate, x, y = generator.random((3, 40, 50, 3))
    mask = np.zeros((40, 50), bool)
    mask[8:30, 5:45] = True
    cut = [each[8:30, 5:45] for each in (estimate, x, y)]
    expected = np.mean((cut[0] - cut[1]) * (cut[0] - cut[2]))
    spoilt = np.where(mask[..., None], x, np.nan)
    for form in (mask, mask[..., None], mask.astype(np.float32)):
        assert metrics.product_mse(estimate, spoilt, y, mask=form)[0] == pytest.approx(expected)


def test_scores_are_decibel_of_the_mse_and_its_ends() -> None:
    score = metrics.to_score(0.01, 0.001)
    assert score.db == pytest.approx(20.0)
    assert score.low == pytest.approx(-10 * math.log10(0.01 + 0.00195996), abs=1e-4)
    assert score.high == pytest.approx(-10 * math.log10(0.01 - 0.00195996), abs=1e-4)
    assert metrics.to_score(-1e-5, 1e-4).db == math.inf
    assert metrics.to_score(1e-5, 1e-4).high == math.inf
    assert math.isfinite(metrics.to_score(1e-5, 1e-4).low)
    scaled = metrics.to_score(0.01, 0.001, data_range=10.0)
    assert scaled.db == pytest.approx(40.0)


def test_gain_by_hand_and_without_bounds() -> None:
    exact = metrics.to_gain(np.array([0.01, 0.1]), np.zeros((2, 2)))
    assert exact == pytest.approx((10.0, 10.0, 10.0))
    # Only the first MSE is uncertain: its ends over the second.
    some = metrics.to_gain(np.array([0.01, 0.1]), np.array([[1e-6, 0], [0, 0]]))
    assert some.high == pytest.approx(-10 * math.log10((0.01 - 1.959964e-3) / 0.1))
    assert some.low == pytest.approx(-10 * math.log10((0.01 + 1.959964e-3) / 0.1))
    lost = metrics.to_gain(np.array([0.01, 0.1]), np.eye(2))
    assert lost == (pytest.approx(10.0), -math.inf, math.inf)
    assert metrics.to_gain(np.array([-0.01, -0.1]), np.eye(2)) == (0.0, -math.inf, math.inf)


def test_upsnr_returns_scores() -> None:
    generator = np.random.default_rng(7)
    clean = scene()
    x, y = (clean + noise(generator, 25 / 255, 0.0) for _ in range(2))
    f = clean + 0.03 * generator.standard_normal(clean.shape)
    score = metrics.upsnr(f, x, y)
    assert isinstance(score, Score)
    assert score.low < metrics.psnr(f, clean) < score.high
    fx, fy = gaussian_filter(x, 1.5), gaussian_filter(y, 1.5)
    pair = metrics.upsnr_pair(jnp.asarray(fx), x, fy, y, data_range=2.0)
    assert pair.low < metrics.psnr(fx, clean, data_range=2.0) < pair.high


@pytest.mark.parametrize("shape", [(96, 96), (100, 130), (512, 768), (64, 64), (3000, 40)])
def test_held_out_blocks_keep_away_from_the_loss(shape: tuple[int, int]) -> None:
    score, loss = metrics.held_out(shape, seed=3)
    blocks = (shape[0] // 32) * (shape[1] // 32)
    assert score.shape == loss.shape == shape
    assert score.sum() == 32 * 32 * max(1, round(blocks / 8))
    near = np.zeros(shape, bool)
    for top, left in np.argwhere(score[::32, ::32]) * 32:
        near[max(top - 8, 0) : top + 40, max(left - 8, 0) : left + 40] = True
    np.testing.assert_array_equal(loss, ~near)
    again = metrics.held_out(shape, seed=3)
    np.testing.assert_array_equal(score, again[0])


def test_held_out_depends_on_the_seed_and_spares_tiny_pictures() -> None:
    assert (
        metrics.held_out((512, 512), seed=0)[0] != metrics.held_out((512, 512), seed=1)[0]
    ).any()
    for shape in ((20, 500), (48, 48), (32, 32)):
        score, loss = metrics.held_out(shape)
        assert not score.any() and loss.all()


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: metrics.psnr(np.zeros((2, 2)), np.zeros((2, 3))), "reference has shape"),
        (lambda: metrics.psnr(np.zeros(4), np.zeros(4)), "H,W or H,W,C"),
        (lambda: metrics.psnr(np.zeros((2, 2)), np.zeros((2, 2)), data_range=0), "data_range=0"),
        (lambda: metrics.psnr(np.zeros((2, 2), np.uint8), np.zeros((2, 2))), "bring them to one"),
        (lambda: metrics.upsnr(*np.zeros((3, 2, 2), int)), "is int64: say what black to white"),
        (lambda: metrics.ssim(np.zeros((6, 9)), np.zeros((6, 9))), "7 px"),
        (lambda: metrics.upsnr(*np.zeros((3, 8, 8)), mask=np.ones((8, 9))), "mask has shape"),
        (lambda: metrics.upsnr(*np.zeros((3, 8, 8)), mask=np.zeros((8, 8))), "True somewhere"),
        (lambda: metrics.upsnr(*np.zeros((3, 8, 8)), mask=np.full((8, 8), 0.5)), "True and False"),
        (lambda: metrics.upsnr(*np.zeros((3, 8, 8)), block=0), "block=0"),
        (lambda: metrics.held_out((8,)), "H,W"),
        (lambda: metrics.held_out((64, 64), one_in=0), "one_in=0"),
    ],
)
def test_bad_input_is_one_line(call: Callable[[], object], words: str) -> None:
    with pytest.raises(Error, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_options_are_keyword_only_and_everything_is_documented() -> None:
    public = [f for n, f in inspect.getmembers(metrics, inspect.isfunction) if n[0] != "_"]
    own = [f for f in public if f.__module__ == metrics.__name__]
    assert len(own) >= 11
    for function in own:
        assert function.__doc__
        for parameter in inspect.signature(function).parameters.values():
            optional = parameter.default is not parameter.empty
            assert optional == (parameter.kind is parameter.KEYWORD_ONLY), function.__name__
