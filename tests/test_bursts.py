"""Bursts: geometry, weights and masks that look at no single sample, and a sentence per fault."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from skimage import data

import n2n
from n2n import images
from n2n.bursts import _glance, align, checks
from n2n.bursts.checks import placed
from n2n.bursts.masks import clipping, hard_limit, motion
from n2n.profile import measure
from n2n.registration import Transform
from n2n.types import Error

DATA = Path(__file__).parents[2] / "shared" / "data"


def scene(name: str = "chelsea") -> np.ndarray:
    """Return a photograph, the default one cut to 300x200 pixels."""
    picture = getattr(data, name)().astype(np.float32) / 255
    return picture[50:250, 80:380] if name == "chelsea" else picture


def noisy(picture: np.ndarray, count: int, sigma: float = 10, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [
        picture + np.float32(sigma / 255) * rng.standard_normal(picture.shape, np.float32)
        for _ in range(count)
    ]


def ones(picture: np.ndarray) -> np.ndarray:
    return np.ones((*picture.shape[:2], 1), np.float32)


def test_a_static_burst_stays_as_it_is():
    frames = noisy(scene(), 4, sigma=25)
    burst = align(frames)
    np.testing.assert_array_equal(burst.frames, np.stack(frames))
    np.testing.assert_array_equal(burst.transforms, np.tile(np.eye(3), (4, 1, 1)))
    assert burst.frames.dtype == burst.weights.dtype == burst.mask.dtype == np.float32
    assert burst.weights.shape == (4, 200, 300, 1) and burst.mask.shape == (200, 300, 1)
    assert burst.checks == () and burst.margin == 16 and burst.names[3] == "frame 4"
    np.testing.assert_allclose(burst.scale, np.percentile(frames, (0.1, 99.9)), atol=1e-6)


def test_frames_side_by_side_give_what_they_give_one_by_one(monkeypatch):
    wide = data.chelsea().astype(np.float32) / 255
    frames = noisy(wide[:, :300], 5)
    moved = [np.roll(frame, (2 * i, -i), (0, 1)) for i, frame in enumerate(frames)]
    moved[2][100:130, 100:130] = 0.9
    moved[3] = 0.9 * moved[3]
    monkeypatch.setattr(n2n.bursts, "_AT_ONCE", 1)
    serial = align(moved)
    monkeypatch.setattr(n2n.bursts, "_AT_ONCE", 4)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    for name, value in vars(align(moved)).items():
        if name != "profile":
            np.testing.assert_array_equal(value, getattr(serial, name), err_msg=name)


@pytest.mark.parametrize("name", ["chelsea", "coffee", "rocket"])
@pytest.mark.parametrize("sigma", [5, 25])
def test_false_alarms_of_movement_stay_under_one_percent(name, sigma):
    first, second = noisy(scene(name), 2, sigma)
    assert 1 - motion(second, first, ones(first)).mean() < 0.01
    known = measure(np.stack([first, second]))
    assert 1 - motion(second, first, ones(first), known).mean() < 0.01


def test_false_alarms_stay_rare_in_large_frames(monkeypatch):
    monkeypatch.setattr("n2n.bursts.masks.LARGE", 0)
    first, second = noisy(scene("coffee")[:399, :597], 2, 15)
    weight = motion(second, first, ones(first))
    assert weight.shape == (*first.shape[:2], 1) and 1 - weight.mean() < 0.01


def test_false_alarms_stay_rare_in_correlated_noise():
    """Neighbours correlated as after demosaicking and JPEG: the white-noise rule would fail."""
    rng = np.random.default_rng(1)
    pair = [
        scene() + 0.08 * cv2.GaussianBlur(rng.standard_normal((200, 300, 3), np.float32), (0, 0), 1)
        for _ in range(2)
    ]
    assert 1 - motion(pair[1], pair[0], ones(pair[0])).mean() < 0.01


def test_false_alarms_stay_rare_under_exposure_and_a_tenth_of_a_pixel():
    first, second = noisy(scene("coffee"), 2, sigma=3)
    second = cv2.warpAffine(second, np.array([[1, 0, 0.08], [0, 1, 0.04]]), second.shape[1::-1])
    inner = motion(1.06 * second, first, ones(first))[8:-8, 8:-8]
    assert 1 - inner.mean() < 0.01


@pytest.mark.parametrize("sigma", [5, 25])
@pytest.mark.parametrize("large", [False, True])
def test_a_moving_square_is_masked_and_the_background_is_not(sigma, large, monkeypatch):
    if large:
        monkeypatch.setattr("n2n.bursts.masks.LARGE", 0)
    first, second = noisy(scene(), 2, sigma, seed=2)
    second[100:150, 200:250] += 0.25
    weight = motion(second, first, ones(first))[..., 0]
    assert weight[102:148, 202:248].max() == 0
    far, wide = np.ones_like(weight, bool), 30 if large else 15
    far[100 - wide : 150 + wide, 200 - wide : 250 + wide] = False
    assert 1 - weight[far].mean() < 0.01


@pytest.mark.parametrize("shade", [0.02, 0.5, 0.98])
def test_a_thing_that_fills_a_range_of_brightness_is_masked(shade):
    """A flat square of a tenth of the picture: some bins of brightness hold nothing else."""
    rng, frames, inside = np.random.default_rng(0), [], []
    for left in (20, 150, 280):
        picture = scene("coffee")[:320, :480].copy()
        moved = np.zeros(picture.shape[:2], bool)
        moved[80:200, left : left + 130] = True
        picture[moved] = shade
        noise = np.sqrt(0.01 * picture + 0.005**2) * rng.standard_normal(picture.shape, np.float32)
        frames.append(picture + noise)
        inside.append(moved)
    burst = align(frames, reference=0, register=False)
    for one, moved in zip(burst.weights[1:, ..., 0], inside[1:], strict=True):
        assert one[moved != inside[0]].mean() < 0.01
        far = ~cv2.dilate((moved | inside[0]).astype(np.uint8), np.ones((31, 31))).astype(bool)
        assert one[far].mean() > 0.99


def test_the_mean_shows_no_ghost():
    frames = noisy(scene(), 6, seed=3)
    for index in range(1, 6):
        frames[index][60:110, 45 * index : 45 * index + 30] = 1.0
    clean, mean = scene(), align(frames).mean()
    error = np.sqrt(np.mean(np.square(mean - clean), axis=(0, 1, 2)))
    # One frame's noise is 0.039 and the mean's 0.016; a fifth of a ghost would add 0.02 or more.
    assert error < 0.018
    assert np.abs(cv2.blur(mean - clean, (15, 15)))[60:110].max() < 0.03


def test_motion_does_not_look_at_a_single_sample():
    """One outlier, however large for a sample, is averaged away; its place keeps its weight."""
    first, second = noisy(scene(), 2, sigma=10, seed=4)
    before = motion(second, first, ones(first))
    second[150, 150] += 3 * 10 / 255
    np.testing.assert_array_equal(motion(second, first, ones(first)), before)


def test_noise_of_kept_samples_stays_independent():
    """Correlation of the two frames' noise where both are used: 0 up to its standard error."""
    clean = scene()
    first, second = noisy(clean, 2, sigma=25, seed=5)
    kept = motion(second, first, ones(first))[..., 0] > 0
    a, b = (first - clean)[kept].ravel(), (second - clean)[kept].ravel()
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(a.size)


def shifted(count: int = 4, seed: int = 6, sigma: float = 10):
    """Return frames that move by whole pixels, their shifts (dx, dy) and the scene."""
    picture, rng = scene("astronaut"), np.random.default_rng(seed)
    moves = [(0, 0), *(tuple(rng.integers(-12, 13, 2)) for _ in range(count - 1))]
    cuts = [picture[40 - dy : 440 - dy, 40 - dx : 440 - dx] for dx, dy in moves]
    return [noisy(cut, 1, sigma, seed=i)[0] for i, cut in enumerate(cuts)], moves, cuts[0]


def test_shifts_are_found_and_undone():
    frames, moves, clean = shifted()
    burst = align(frames, names=list("abcd"))
    np.testing.assert_allclose(burst.shifts, np.array(moves)[:, ::-1], atol=0.05)
    assert burst.margin >= 16 + np.abs(moves).max() and burst.names == tuple("abcd")
    np.testing.assert_array_equal(burst.frames[0], frames[0])
    inner = (slice(burst.margin, -burst.margin),) * 2
    error = np.mean(np.square(burst.mean() - clean)[inner])
    # White noise leaves sigma^2 / 4; Lanczos keeps 0.8 to 1 of three of the four frames'.
    assert 0.8 < error / (np.square(10 / 255) / 4) < 1.1


def test_another_reference_keeps_its_own_samples():
    frames, moves, _ = shifted(3)
    burst = align(frames, reference=-1)
    assert burst.reference == 2
    np.testing.assert_array_equal(burst.frames[2], frames[2])
    expected = np.array(moves)[:, ::-1] - np.array(moves)[2, ::-1]
    np.testing.assert_allclose(burst.shifts, expected, atol=0.05)


def test_weights_end_with_the_overlap():
    picture = scene("astronaut")
    frames = [noisy(picture[40 - y : 340 - y, 40:340], 1, seed=y)[0] for y in (0, 9)]
    weight = align(frames).weights[1, ..., 0]
    # Reference row y is frame row y + 9; the kernel needs four rows more.
    assert weight[-9:].max() == 0 and weight[-9 - 3].max() == 0
    assert weight[8:-20, 8:-20].mean() > 0.99


# Clipping


def test_limit_is_found_where_samples_pile_up():
    picture = scene("astronaut")
    assert hard_limit(noisy(picture, 2)) is None
    assert hard_limit([np.clip(one, 0, 1) for one in noisy(picture, 2)]) == 1
    twelve = [np.clip(1.3 * one, 0, 1) * 4095 / 65535 for one in noisy(picture, 2)]
    assert hard_limit(twelve) == pytest.approx(4095 / 65535)


def test_clipping_is_decided_by_place_not_by_sample():
    ramp = np.tile(np.linspace(0, 1.2, 400, dtype=np.float32), (200, 1))[..., None]
    stack = np.stack([np.clip(one, 0, 1) for one in noisy(ramp, 4)])
    weights = np.ones((4, 200, 400, 1), np.float32)
    mask = clipping(stack, weights, 0, 1.0)
    # Off within a sigma (10/255) of the limit, on two sigma away; shadows stay.
    assert mask[:, ramp[0, :, 0] > 1].max() == 0
    assert mask[:, ramp[0, :, 0] < 0.9].min() == 1
    stack[1, 100, 150] = 1.0
    np.testing.assert_array_equal(clipping(stack, weights, 0, 1.0), mask)


def test_clipped_share_is_said():
    bright = np.clip(np.stack(noisy(scene("coffee")[:, :300] * 1.4, 2)), 0, 1)
    burst = align(bright)
    share = 100 * (1 - burst.mask.mean())
    assert share > 1
    (text,) = burst.checks
    assert f"{share:.1f} % of the picture is clipped at 1" in text


# Faults, one at a time


def refusal(frames, **options) -> str:
    with pytest.raises(Error) as caught:
        align(frames, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_fewer_than_two_frames_are_refused():
    assert "frames=1" in refusal(noisy(scene(), 1))


def test_different_sizes_are_refused():
    frames = noisy(scene(), 3)
    frames[1] = frames[1][:-2]
    text = refusal(frames, names=["a.png", "b.png", "c.png"])
    assert "a.png is 300x200" in text and "b.png is 300x198" in text


def test_different_channels_are_refused():
    frames = noisy(scene(), 2)
    assert "1 channel:" in refusal([frames[0], frames[1][..., :1]])


def test_the_same_picture_twice_is_refused():
    frames = noisy(scene(), 3)
    text = refusal([*frames, frames[1].copy()], names=list("wxyz"))
    assert text.startswith("x and z are the same picture")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(value):
    frames = noisy(scene(), 3)
    frames[2][3, 4, 1] = value
    assert refusal(frames).startswith("frame 3 has 1 values that are NaN or infinite")


@pytest.mark.parametrize(("value", "word"), [(0.0, "all black"), (0.5, "0.5 everywhere")])
def test_a_constant_frame_is_refused(value, word):
    frames = noisy(scene(), 3)
    frames[1][:] = value
    text = refusal(frames)
    assert text.startswith("frame 2 is") and word in text


def test_a_stranger_is_left_out_of_three():
    frames = noisy(scene(), 4)
    frames[0] = noisy(scene("coffee")[:200, :300], 1, seed=9)[0]
    burst = align(frames, reference=2, names=list("abcd"))
    assert burst.names == ("b", "c", "d") and burst.reference == 1 and len(burst.frames) == 3
    assert burst.checks[0].startswith("a does not show the scene of c")


def strays(*counts: int) -> list[np.ndarray]:
    """Return so many frames of each of four scenes."""
    cuts = [scene(), *(scene(name)[:200, :300] for name in ("coffee", "astronaut", "rocket"))]
    return [frame for cut, n in zip(cuts, counts, strict=False) for frame in noisy(cut, n)]


@pytest.mark.parametrize("register", [True, False])
def test_a_stray_first_frame_is_left_out_by_name(register):
    good, (stray,) = strays(4), strays(0, 1)
    burst = align([stray, *good], names=list("abcde"), register=register)
    assert burst.names == tuple("bcde") and burst.reference == 0
    assert "a does not show the scene of b" in burst.checks[0] and "left out" in burst.checks[0]
    ((name, why),) = burst.left_out
    assert name == "a" and why.startswith("does not show the scene of b")
    assert "b does not show the scene of a" in refusal([stray, *good], reference=0, names="abcde")


@pytest.mark.parametrize(
    ("counts", "order", "kept"),
    [
        ((4, 1, 1), (4, 5, 0, 1, 2, 3), "cdef"),  # two strays, of two scenes
        ((2, 3), (0, 1, 2, 3, 4), "cde"),  # two scenes: most frames show the second
        ((2, 2), (0, 2, 1, 3), "ac"),  # as many of each: the first stays
        ((2, 1, 1, 1), (2, 0, 3, 1, 4), "bd"),  # no scene has half of the others, one has most
    ],
)
def test_the_scene_that_most_frames_show_is_the_bursts(counts, order, kept):
    frames = strays(*counts)
    burst = align([frames[i] for i in order], names="abcdef"[: len(order)])
    assert burst.names == tuple(kept)


def test_strangers_alone_are_refused_after_a_few_tries(monkeypatch):
    calls = []

    def register(*given):
        calls.append(given)
        return Transform(np.eye(3), correlation=0.1)

    monkeypatch.setattr("n2n.bursts._register", register)
    text = refusal(noisy(scene(), 6))
    assert text.startswith("frame 2 does not show the scene of frame 1 (correlation 0.10")
    assert len(calls) == 4 * 5


def test_frames_are_tried_as_small_copies():
    wide = np.zeros((300, 3000, 3), np.float32)
    assert _glance(wide).shape == (51, 512)
    assert _glance(wide[:60]).shape == (48, 2400) and _glance(wide[:20, :600]).shape == (20, 600)


@pytest.mark.parametrize(
    ("correlation", "error", "said"),
    [
        (0.45, 0.1, "(correlation 0.45, at least 0.5 is needed)"),
        (0.65, 21.0, "(correlation 0.65, its place is known to 21 px only)"),
        (0.65, 0.2, None),
        (0.95, 21.0, None),
    ],
)
def test_a_doubtful_match_counts_where_its_place_is_known(correlation, error, said):
    found = Transform(np.eye(3), None, correlation, error)
    text = checks.unrelated(found, (400, 448, 3), "b", "a")
    assert text == (said and f"b does not show the scene of a {said}")


def test_a_stranger_of_two_is_refused():
    text = refusal([*noisy(scene(), 1), *noisy(scene("coffee")[:200, :300], 1, seed=9)])
    assert "frame 2 does not show the scene of frame 1" in text


def test_another_exposure_is_said():
    frames = noisy(scene(), 3)
    frames[2] *= 1.08
    (text,) = align(frames).checks
    assert text.startswith("frame 3 is") and "brighter than frame 1" in text
    assert float(text.split()[3]) == pytest.approx(8, abs=0.3)


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.3, 4.0])
def test_a_bracket_is_refused(factor):
    frames = noisy(scene(), 3, sigma=4)
    frames[1] = frames[1] * np.float32(factor)
    text = refusal(np.clip(frames, 0, 1), names=["a", "b", "c"])
    assert text.startswith("b (") and "x) against a: frames of different exposure" in text
    if factor < 1:
        assert float(text.split("(")[1].split(" x")[0]) == pytest.approx(factor, abs=0.01)


def test_frames_known_to_be_equally_exposed_are_no_bracket():
    frames = noisy(scene(), 3, sigma=4)
    frames[1] = frames[1] * np.float32(1.3)
    burst = align(frames, exposed=True)
    assert "frame 2 is 30" in burst.checks[0] and "it is matched" in burst.checks[0]
    assert abs(float((burst.frames[1] - burst.frames[0]).mean())) < 0.002


def test_a_large_thing_that_moves_is_no_bracket():
    frames = noisy(scene(), 3, sigma=4)
    frames[1][:, :130] = 0.95
    assert any("frame 2 shows movement" in text for text in align(frames).checks)


def test_another_white_balance_is_said():
    frames = noisy(scene(), 3)
    frames[1] *= np.array([1.06, 1.0, 0.93], np.float32)
    (text,) = align(frames).checks
    assert text.startswith("The colours of frame 2 differ")


def test_shift_without_registration_is_said():
    frames, moves, _ = shifted(2)
    burst = align(frames, register=False)
    assert "frame 2 is shifted by up to" in burst.checks[0]
    np.testing.assert_array_equal(burst.transforms[1], np.eye(3))
    # In place, only its exposure is matched: 0.005 at most here, where noise is 0.1.
    np.testing.assert_allclose(burst.frames[1], frames[1], atol=0.01)


def test_doubtful_registration_is_said():
    found = [Transform(np.eye(3)), Transform(np.eye(3), error=0.4)]
    ((_, text),) = placed(found, (50, 60, 3), ("a", "b"), 0, True)
    assert text.startswith("The place of b is known to 0.4 px only")


@pytest.mark.parametrize(
    ("errors", "kept"),
    [
        ((0, 0.2, 1.1, 0.9), [0, 1, 3]),
        ((0, 1.1, 1.1), [0, 1, 2]),  # all of them in doubt: better than nothing
        ((0, 1.1), [0, 1]),
        ((1.1, 0, 0.9), [1, 2]),
    ],
)
def test_a_frame_whose_place_is_not_known_is_left_out(errors, kept):
    """Registration must be good to 0.1 px; at 6,000 px the share `LOST` alone is 30 px."""
    found = [Transform(np.eye(3), None, 0.95, error) for error in errors]
    names = tuple("abcd"[: len(errors)])
    got, notes = checks.related(found, (4000, 6000, 3), names, errors.index(0))
    assert got == kept
    said = [text for _, text in notes]
    assert len(said) == len(errors) - len(kept)
    assert all("its place is known to 1.1 px only: it is left out" in text for text in said)
    assert checks.related(found, (4000, 6000, 3), names, errors.index(0), used=False)[1] == []


@pytest.mark.parametrize(("error", "used"), [(0.1, 3), (0.6, 3), (1.2, 2)])
def test_doubt_about_a_place_costs_the_frame_or_a_sentence(monkeypatch, error, used):
    frames = noisy(scene(), 3)

    def register(frame, reference, local):
        doubtful = np.array_equal(frame, frames[1])
        return Transform(np.eye(3), error=error if doubtful else 0.05)

    monkeypatch.setattr("n2n.bursts._register", register)
    burst = align(frames, names="abc", reference=0)
    assert len(burst.frames) == used
    said = " ".join(burst.checks)
    assert ("The place of b is known to 0.6 px only" in said) == (error == 0.6)
    left_out = "b has too little structure to register it well: its place is known to 1.2 px only"
    assert [" ".join(one) for one in burst.left_out] == [left_out] * (3 - used)


def stored(white: int, largest: int, dtype: str = "uint16") -> list[np.ndarray]:
    """Return frames of integers up to the largest, read as if this were the value of white."""
    frames = np.clip(noisy(scene(), 3), 0, None)
    numbers = np.rint(frames * (largest / frames.max())).astype(dtype)
    return [images.to_float(one, white) for one in numbers]


def test_frames_that_fill_little_of_their_range_are_told():
    (text,) = (text for text in align(stored(65535, 4095)).checks if "dB" in text)
    assert "fill 6.2 % of 16 bits (their largest value is 4,095)" in text
    assert "against 65,535, 24 dB more than against that" in text
    assert "of 12 bits, say --data-range 0,4095." in text
    assert any("0,16383" in text for text in align(stored(65535, 9000)).checks)


@pytest.mark.parametrize(
    ("white", "largest", "dtype"),
    [(4095, 4095, "uint16"), (4095, 900, "uint16"), (65535, 17000, "uint16"), (255, 50, "uint8")],
)
def test_frames_of_a_given_white_or_of_8_bits_are_not(white, largest, dtype):
    assert not any("dB" in text for text in align(stored(white, largest, dtype)).checks)
    assert checks.filled([0.2 * one for one in noisy(scene(), 2)]) == []


def test_shared_noise_is_said():
    frames = noisy(scene(), 5)
    shared = noisy(0 * scene(), 1, seed=7)[0]
    for index in (1, 3):
        frames[index] = scene() + 0.8 * (frames[index] - scene()) + 0.6 * shared
    (text,) = align(frames).checks
    assert text.startswith("The noise of frame 2 and frame 4 is alike (correlation 0.3")


def test_much_movement_is_said():
    frames = noisy(scene(), 2)
    frames[1][:, :120] = noisy(scene("coffee")[:200, :120], 1, seed=8)[0]
    assert any("frame 2 shows movement in" in text for text in align(frames).checks)


def test_worst_fault_comes_first():
    frames = noisy(scene(), 4)
    frames[1] *= 1.1
    frames[3] = noisy(scene("coffee")[:200, :300], 1, seed=9)[0]
    found = align(frames).checks
    assert len(found) == 2 and "does not show" in found[0] and "brighter" in found[1]


@pytest.mark.parametrize("reference", [3, -4])
def test_a_reference_that_is_not_there_is_refused(reference):
    assert f"reference={reference}" in refusal(noisy(scene(), 3), reference=reference)


def test_names_are_one_per_frame():
    assert "names has 2 entries for 3 frames" in refusal(noisy(scene(), 3), names=["a", "b"])


def test_grey_frames_without_channel_axis():
    burst = align([one[..., 0] for one in noisy(scene(), 2)])
    assert burst.frames.shape == (2, 200, 300, 1) and burst.checks == ()


def test_frames_are_left_alone():
    frames, _, _ = shifted(2)
    copies = [one.copy() for one in frames]
    align(frames)
    for frame, copy in zip(frames, copies, strict=True):
        np.testing.assert_array_equal(frame, copy)


# Real bursts


def real(folder: str, *names: str) -> list[np.ndarray]:
    if not (DATA / folder).is_dir():
        pytest.skip(f"shared/data/{folder} is not here")
    read = [cv2.imread(str(DATA / folder / name), cv2.IMREAD_UNCHANGED) for name in names]
    return [one.reshape(*one.shape[:2], -1) / np.float32(255) for one in read]


@pytest.mark.slow
def test_real_hand_in_the_corner_is_masked():
    burst = align(real("burst_handheld_maitek", "1.jpg", "4.jpg", "5.jpg"))
    weights = burst.weights[..., 0]
    # The hand fills the corner's last 20 rows and 40 columns in frame 5; the table does not
    # move, and frame 4 stands still.
    assert weights[2:, 690:710, 1010:1030].max() == 0
    assert weights[:, 420:560, 300:500].mean() > 0.99
    assert weights[1].mean() > 0.97
    assert burst.margin > 50
    inner = (slice(None), slice(burst.margin, -burst.margin), slice(burst.margin, -burst.margin))
    assert weights[inner].mean() > 0.95


def test_real_microscope_is_static():
    burst = align(real("burst_scmos_eb3", *(f"frame_{index:02d}.png" for index in (0, 7))))
    assert np.abs(burst.shifts).max() == 0 and burst.checks == ()
    assert 1 - burst.weights.mean() < 0.01 and burst.mask.min() == 1


# Exposure, white balance, shading ----------------------------------------------------------------


@pytest.mark.parametrize("change", ["gain", "tint", "shading"])
def test_exposure_colours_and_shading_become_the_references(change):
    truth = scene("astronaut")[100:420, 100:420]
    x = np.linspace(-1, 1, truth.shape[1], dtype=np.float32)[None, :, None]
    tint = np.array([1.04, 1.0, 0.96], np.float32)
    factor = {"gain": np.float32(1.06), "tint": tint, "shading": 1 + 0.08 * x}[change]
    first, *others = noisy(truth, 4, sigma=5)
    burst = align([first, *(frame * factor for frame in others)], register=False)
    inner = np.s_[30:-30, 30:-30]
    for frame in burst.frames[1:]:
        rest = (frame - truth)[inner]
        # The changes are 0.01 to 0.03 in the mean; noise of 5/255 leaves 1e-4 of these pixels.
        assert np.abs(rest.mean((0, 1))).max() < 0.002
        # Shading of 8 % is 0.02 at this brightness; a quarter of it may be left.
        assert cv2.blur(rest, (41, 41)).std() < 0.005
    assert burst.weights[:, 30:-30, 30:-30].mean() > 0.99


def flickering(factors, encoded: bool, boost: float = 1.0):
    """Return a frame of light and others of light x factors, clipped at white, and its mean."""
    light = cv2.GaussianBlur(scene("astronaut")[100:420, 100:420] ** 2.2, (0, 0), 0.7) * boost
    rng = np.random.default_rng(0)

    def taken(factor):
        seen = light * np.asarray(factor, np.float32)
        deviation = np.sqrt(0.003 * seen + 1e-5).astype(np.float32)
        seen = np.clip(seen + deviation * rng.standard_normal(seen.shape, np.float32), 0, 1)
        return (seen ** (1 / 2.2) if encoded else seen).astype(np.float32)

    expected = np.mean([taken(1) for _ in range(48)], axis=0)
    return [taken(1), *(taken(factor) for factor in factors)], expected


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize("boost", [0.8, 1.5])
def test_flicker_is_taken_out_at_every_brightness(encoded, boost):
    """Ten percent, and colours of their own; linear or encoded; without and with clipping."""
    factors = [1.1, 0.9, (1.1, 1.0, 0.93)]
    frames, expected = flickering(factors, encoded, boost)
    burst = align(frames, register=False)
    low = 0.1 if encoded else 0.02
    for frame, weight in zip(burst.frames[1:], burst.weights[1:], strict=True):
        for least, most in ((low, 0.3), (0.3, 0.6), (0.6, 0.8)):
            here = (expected >= least) & (expected < most) & (weight > 0)
            # The flicker itself is 0.1 x 0.45 to 0.1 of these values. Noise of 0.05 in 5,000
            # pixels and more leaves 0.001; texture beside clipped places a little more.
            bias = float((frame - expected)[here].mean())
            assert abs(bias) < (0.002 if boost < 1 else 0.006), (least, bias)


def test_highlights_that_only_one_frame_has_clipped_are_left_to_the_others():
    ramp = np.repeat(np.tile(np.linspace(0.3, 1.3, 400), (120, 1))[..., None], 3, 2)
    rng = np.random.default_rng(0)
    noise = 0.01 * rng.standard_normal((2, *ramp.shape))
    frames = np.clip(np.stack([ramp, 1.1 * ramp]) + noise, 0, 1).astype(np.float32)
    burst = align(frames, register=False)
    value, weight = ramp[0, :, 0], burst.weights[1, 20:-20, :, 0].mean(0)
    # 1.1 x 0.909 = 1: above, the second frame measures nothing until the first is white as well.
    assert weight[(value > 0.93) & (value < 0.97)].max() == 0
    assert weight[value < 0.89].min() == 1 and weight[value > 1.02].min() == 1
    assert np.abs(burst.frames[1, 20:-20][:, value > 1.02] - 1).max() < 0.001
    assert np.abs(burst.mean()[20:-20].mean(0) - np.minimum(ramp[0], 1)).max() < 0.012


def test_a_darker_frame_is_clipped_where_the_reference_is():
    ramp = np.repeat(np.tile(np.linspace(0.3, 1.3, 400), (120, 1))[..., None], 3, 2)
    noise = 0.01 * np.random.default_rng(0).standard_normal((2, *ramp.shape))
    frames = np.clip(np.stack([ramp, 0.9 * ramp]) + noise, 0, 1).astype(np.float32)
    burst = align(frames, register=False)
    assert burst.frames.max() == 1
    assert np.abs(burst.mean()[20:-20].mean(0) - np.minimum(ramp[0], 1)).max() < 0.006


def test_noise_alone_is_matched_to_nothing():
    """Of 7 x 3 x 16 medians the worst is 3 of its own errors away from none by chance."""
    truth = scene("astronaut")[:256, :256]
    frames = noisy(truth, 8, sigma=25)
    burst = align(frames, register=False)
    np.testing.assert_array_equal(burst.frames, np.stack(frames))


def test_a_difference_that_only_a_mean_shows_is_matched():
    """A tenth of one frame's noise, over all brightnesses."""
    first, second = noisy(scene("astronaut"), 2, sigma=25)
    burst = align([first, second + np.float32(2.5 / 255)], register=False)
    rest = burst.frames[1] - second
    assert abs(rest.mean()) < 0.1 * 2.5 / 255


# Sharpness ---------------------------------------------------------------------------------------


def blurred(frame: np.ndarray, sigma: float) -> np.ndarray:
    return cv2.GaussianBlur(frame, (0, 0), sigma)


@pytest.mark.parametrize("sigma", [2, 10, 25])
def test_a_blurred_frame_is_left_out(sigma):
    truth = scene("astronaut")[100:356, 100:356]
    frames = noisy(truth, 6, sigma)
    frames[3] = noisy(blurred(truth, 1.5), 1, sigma, seed=1)[0]
    burst = align(frames)
    assert burst.names == ("frame 1", "frame 2", "frame 3", "frame 5", "frame 6")
    assert len(burst.frames) == len(burst.weights) == len(burst.transforms) == 5
    assert "frame 4 shows" in burst.checks[0] and "it is left out" in burst.checks[0]
    ((name, why),) = burst.left_out
    assert name == "frame 4" and why.startswith("shows ") and why.endswith("while exposed")


def test_a_frame_that_is_left_out_is_not_said_to_be_matched():
    truth = scene("astronaut")[100:356, 100:356]
    frames = noisy(truth, 6, 10)
    frames[1] = frames[1] * np.float32(0.9)
    frames[3] = noisy(blurred(truth, 1.5), 1, 10, seed=1)[0] * np.float32(0.9)
    burst = align(frames)
    assert [name for name, _ in burst.left_out] == ["frame 4"]
    matched = [text for text in burst.checks if "matched" in text]
    assert len(matched) == 1 and matched[0].startswith("frame 2 is 10")


def test_sharpness_is_measured_against_the_reference():
    truth = scene("astronaut")[100:356, 100:356]
    frames = np.stack(noisy(truth, 5, 10))
    frames[3] = noisy(blurred(truth, 1.0), 1, 10, seed=1)[0]
    weights = np.ones((5, 256, 256, 1), np.float32)
    found = checks.sharpness(frames, weights, 1)
    assert found[1] == 1.0 and found[3] < 0.8
    assert found[0] == pytest.approx(1, abs=0.1)
    assert np.isnan(checks.sharpness(frames[:2], weights[:2], 0)).all()


def test_frames_left_out_are_told_even_if_names_are_alike():
    notes = [(1.0, "a 1 is odd."), (2.0, "a 10 is blurred: it is left out."), (3.0, "b moved.")]
    found = checks.left_out(("a 1", "a 10", "b", "b"), ("a 1", "b"), notes)
    assert found == (("a 10", "is blurred"), ("b", ""))


def test_the_sharpest_frame_is_the_reference():
    truth = scene("astronaut")[100:356, 100:356]
    first = noisy(blurred(truth, 1.5), 1, 5, seed=1)[0]
    frames = [first, *noisy(truth, 3, 5)]
    burst = align(frames)
    assert burst.reference > 0 and burst.names[burst.reference] in burst.checks[-1]
    assert "more fine detail than frame 1: it is the reference" in burst.checks[-1]
    named = align(frames, reference=0)
    assert len(named.frames) == 4 and "take it for a sharper picture" in named.checks[0]
    assert named.names[named.reference] == "frame 1"


@pytest.mark.parametrize("sigma, changes", [(0.5, True), (0.35, False)])
def test_the_first_frame_is_the_reference_unless_another_has_5_percent_more(sigma, changes):
    truth = scene("astronaut")[60:380, 60:380]
    dull = blurred(truth, sigma)
    sharp, soft = (checks._band(one, *checks.DETAIL) for one in (truth, dull))
    assert (np.vdot(sharp, sharp) / np.vdot(soft, sharp) > 1.05) == changes
    frames = [noisy(0.9 * dull, 1, 3, seed=1)[0], *noisy(truth, 4, 3)]
    assert (align(frames).reference > 0) == changes


def test_half_of_the_frames_stay_however_blurred():
    truth = scene("astronaut")[100:356, 100:356]
    frames = noisy(truth, 2, 5) + noisy(blurred(truth, 2), 6, 5, seed=1)
    burst = align(frames)
    assert len(burst.frames) == 4 and burst.names[:2] == ("frame 1", "frame 2")


def test_two_frames_are_never_judged_by_sharpness():
    truth = scene("astronaut")[100:356, 100:356]
    burst = align([*noisy(truth, 1, 5), *noisy(blurred(truth, 1.5), 1, 5, seed=1)])
    assert len(burst.frames) == 2
