"""The score of anybody's picture, against the truth in simulations."""

from __future__ import annotations

import json
import math

import cv2
import numpy as np
import pytest
from test_raw import dng

from n2n import cli, evaluation, images, metrics
from n2n.cli import score as command
from n2n.evaluation import Scored
from n2n.types import Error, Score

SIDE, MARGIN = 128, 16


def scene(seed: int = 0, channels: int = 1) -> np.ndarray:
    """Return H,W,C in [0.2, 0.8] with structure at all scales."""
    rng = np.random.default_rng(seed)
    total = np.zeros((SIDE, SIDE, channels), np.float32)
    for cells in (3, 6, 12, 24, 48):
        block = (rng.random((cells, cells, channels)) / cells**0.5).astype(np.float32)
        wide = cv2.resize(block, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        total += wide.reshape(total.shape)
    return 0.2 + 0.6 * (total - total.min()) / np.ptp(total)


def noisy(clean: np.ndarray, rng: np.random.Generator, sigma: float) -> np.ndarray:
    return (clean + sigma * rng.standard_normal(clean.shape)).astype(np.float32)


def estimate(clean: np.ndarray, rng: np.random.Generator, size: float = 0.06) -> np.ndarray:
    """Return a picture with smooth faults, as denoisers leave them."""
    faults = cv2.GaussianBlur(rng.standard_normal(clean.shape[:2]), (0, 0), 1.0)
    return (clean + size * faults[..., None]).astype(np.float32)


def broad(seed: int = 0) -> np.ndarray:
    """Return H,W,3 that reaches from black to white, twice as large as a scene."""
    wide = cv2.resize(scene(seed, channels=3), (2 * SIDE, 2 * SIDE), interpolation=cv2.INTER_LINEAR)
    return np.clip((wide - 0.2) / 0.6, 0, 1)


def jpeg(picture: np.ndarray, quality: int = 90) -> np.ndarray:
    coded = cv2.imencode(".jpg", images.from_float(picture, "uint8"), [1, quality])[1]
    return images.to_float(cv2.imdecode(coded, cv2.IMREAD_COLOR))


def truth(picture: np.ndarray, clean: np.ndarray) -> float:
    inner = slice(MARGIN, -MARGIN)
    return metrics.psnr(picture[inner, inner], clean[inner, inner])


def test_the_interval_holds_the_truth() -> None:
    clean, held, errors = scene(), 0, []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        picture = estimate(clean, rng)
        frames = [noisy(clean, rng, 0.04) for _ in range(2)]
        got = evaluation.score(picture, frames, register=False).score
        held += got.low <= truth(picture, clean) <= got.high
        errors.append(10 ** (-got.db / 10) / 10 ** (-truth(picture, clean) / 10) - 1)
    assert 90 <= held <= 99
    assert abs(np.mean(errors)) < 4 * np.std(errors) / math.sqrt(len(errors))


def test_a_shifted_picture_has_the_same_score() -> None:
    wide = scene(1, channels=3)
    rng = np.random.default_rng(1)
    picture = estimate(wide, rng)
    frames = [noisy(wide, rng, 0.05) for _ in range(2)]
    still = evaluation.score(picture, frames)
    moved = evaluation.score(np.roll(picture, 3, axis=1), frames)
    # The faults of this picture move with it: its place has a standard error of 0.09 px.
    for row in moved.frames:
        assert row["dx"] == pytest.approx(-3, abs=0.27) and row["dy"] == pytest.approx(0, abs=0.27)
    assert still.score.low <= moved.score.db <= still.score.high
    assert moved.score.low <= still.score.db <= moved.score.high


def test_more_pairs_tell_more() -> None:
    clean, rng = scene(), np.random.default_rng(2)
    picture, frames = estimate(clean, rng), [noisy(clean, rng, 0.05) for _ in range(8)]
    one = evaluation.score(picture, frames[:2], register=False)
    odd = evaluation.score(picture, frames[:3], register=False)
    four = evaluation.score(picture, frames, register=False)
    assert (one.pairs, odd.pairs, four.pairs) == (1, 1, 4)
    assert len(odd.frames) == 3
    widths = [each.score.high - each.score.low for each in (one, four)]
    # Four independent pairs halve the standard error; dB and the places shift that a little.
    assert widths[1] == pytest.approx(widths[0] / 2, rel=0.35)
    assert four.score.low <= truth(picture, clean) <= four.score.high


def test_exposure_and_colour_are_matched_and_told() -> None:
    clean, rng = scene(3, channels=3), np.random.default_rng(3)
    picture = estimate(clean, rng)
    frames = [noisy(clean, rng, 0.03) for _ in range(2)]
    plain = evaluation.score(picture, frames, register=False)
    assert plain.notes == ()
    tinted = [(frame * np.array([1.08, 1.0, 0.95], np.float32)) for frame in frames]
    got = evaluation.score(picture, tinted, names=("p", "x", "y"), register=False)
    assert [note.split(" differs")[0] for note in got.notes] == ["x", "y"]
    assert got.score.db == pytest.approx(plain.score.db, abs=0.3)
    # Unmatched, the tint alone would be an error of 30 dB.
    assert metrics.upsnr(picture, *tinted).db < plain.score.db - 1


@pytest.mark.parametrize("exponent", [2.2, 1 / 2.2])
def test_another_tone_curve_is_refused(exponent: float) -> None:
    clean, rng = broad(), np.random.default_rng(9)
    frames = [noisy(clean, rng, 0.05) for _ in range(2)]
    with pytest.raises(Error, match=r"p has another tone curve .* by up to [\d.]+ % .*; export it"):
        evaluation.score(clean**exponent, frames, names=("p", "x", "y"), register=False)


def test_a_slight_bend_is_told_and_counted() -> None:
    clean, rng = broad(), np.random.default_rng(10)
    frames = [noisy(clean, rng, 0.02) for _ in range(2)]
    got = evaluation.score(clean**1.15, frames, names=("p", "x", "y"), register=False)
    (note,) = (each for each in got.notes if "tones" in each)
    most = float(note.split("keeps it below ")[1].split(" dB")[0])
    assert most - 4 < got.score.db < most


def test_neither_denoisers_nor_jpeg_nor_a_thing_that_came_bend_the_tone() -> None:
    clean, rng = broad(1), np.random.default_rng(11)
    frames = [jpeg(noisy(clean, rng, 0.06)) for _ in range(2)]
    seen = images.from_float(jpeg(noisy(clean, rng, 0.06)), "uint8")
    quiet = images.to_float(cv2.fastNlMeansDenoisingColored(seen, None, 12, 12))
    came = clean.copy()
    came[100:160, 40:200] = 0.97
    for picture in (clean, jpeg(clean, 70), quiet, cv2.GaussianBlur(clean, (0, 0), 2), came):
        got = evaluation.score(picture, frames, register=False)
        assert got.score.db < 20 or not any("tones" in note for note in got.notes)


def test_a_darker_picture_is_not_better() -> None:
    clean, rng = broad(12), np.random.default_rng(12)
    picture = estimate(clean, rng, 0.15)
    frames = [noisy(clean, rng, 0.05) for _ in range(2)]
    plain = evaluation.score(picture, frames, register=False)
    darker = evaluation.score(0.8 * picture + 0.03, frames, register=False)
    assert plain.score.low <= darker.score.db <= plain.score.high
    assert darker.score.db == pytest.approx(plain.score.db, abs=0.1)
    assert darker.places == plain.places


def test_frames_that_fill_a_sixteenth_of_white_are_matched() -> None:
    clean, rng = scene(13, channels=3), np.random.default_rng(13)
    picture = estimate(clean, rng, 0.15)
    frames = [noisy(clean, rng, 0.05) for _ in range(2)]
    low = [images.to_float(images.from_float(one / 16, "uint16")) for one in frames]
    plain = evaluation.score(picture, frames, register=False).score
    got = evaluation.score(picture, low, register=False)
    assert got.score.db == pytest.approx(plain.db, abs=0.1)
    assert all("exposure" in note for note in got.notes) and len(got.notes) == 2
    # Of a perfect picture the error is within two standard errors of none.
    assert evaluation.score(clean, low, register=False).score.high == math.inf


def test_what_is_clipped_is_left_out_whatever_the_pictures_exposure() -> None:
    clean, rng = 1.6 * broad(14), np.random.default_rng(14)
    frames = [np.minimum(noisy(clean, rng, 0.03), 1) for _ in range(2)]
    picture = np.minimum(estimate(clean, rng), 1)
    plain = evaluation.score(picture, frames, register=False)
    darker = evaluation.score(0.8 * picture, frames, register=False)
    blown = clean.max(-1) > 1
    inside = (1 - MARGIN / SIDE) ** 2
    assert 0.1 < blown.mean() and plain.places < inside - 0.1
    assert darker.places == plain.places
    assert plain.score.low <= darker.score.db <= plain.score.high
    faulty = np.where(clean.max(-1, keepdims=True) > 1.15, 0.9 * picture, picture)
    assert (faulty != picture).mean() > 0.01
    again = evaluation.score(0.8 * faulty, frames, register=False)
    assert again.score.db == pytest.approx(darker.score.db, abs=0.1)


def test_raw_frames_are_developed_for_a_developed_picture(tmp_path, capsys) -> None:
    pytest.importorskip("rawpy", reason="needs the photo extra", exc_type=ImportError)
    clean, rng = 0.05 + 0.75 * broad(15), np.random.default_rng(15)
    frames = [
        str(dng(tmp_path / f"{name}.dng", np.clip(noisy(clean, rng, 0.005), 0, 1))) for name in "xy"
    ]
    linear = images.read(dng(tmp_path / "clean.dng", clean))
    shown = images.developed(linear)
    images.write(tmp_path / "shown.png", shown.array, like=shown)
    images.write(tmp_path / "linear.tif", linear.array, like=linear)
    for name, developed in (("shown.png", True), ("linear.tif", False), ("clean.dng", False)):
        facts = tmp_path / f"{name}.json"
        line = ["score", str(tmp_path / name), "--frames", *frames, "--json", str(facts)]
        assert cli.main(line) == 0
        found = json.loads(facts.read_text())
        assert found["score"]["db"] is None or Score(**found["score"]).db > 42
        out = capsys.readouterr().out
        assert ("x.dng and 1 more: RAW, developed to sRGB" in out) == developed


def test_skewed_noise_is_no_difference_of_exposure() -> None:
    clean, rng = scene(4), np.random.default_rng(4)
    frames = [rng.poisson(8 * clean).astype(np.float32) / 8 for _ in range(2)]
    got = evaluation.score(clean.astype(np.float32), frames, register=False)
    assert got.notes == ()
    # Of a clean picture the error is within two standard errors of none.
    assert got.score.high == math.inf


def test_flat_pictures_keep_their_faults() -> None:
    """Nothing but noise to sort by: matching tone by the frames' own noise would remove it."""
    rng = np.random.default_rng(5)
    clean = np.full((SIDE, SIDE, 1), 0.5, np.float32)
    picture = estimate(clean, rng)
    frames = [noisy(clean, rng, 0.05) for _ in range(4)]
    got = evaluation.score(picture, frames, register=False)
    assert got.score.low <= truth(picture, clean) <= got.score.high


def test_what_the_picture_shows_alone_is_told_apart() -> None:
    clean, rng = scene(6), np.random.default_rng(6)
    frames = [noisy(clean, rng, 0.03) for _ in range(2)]
    picture = estimate(clean, rng)
    picture[40:60, 50:70] = 1.2 - picture[40:60, 50:70]
    got = evaluation.score(picture, frames, register=False)
    assert 0.02 < got.apart < 0.15 and got.still is not None
    assert got.score.high < got.still.db
    moving = [frame.copy() for frame in frames]
    moving[0][40:60, 50:70] = noisy(np.full((20, 20, 1), 0.9), rng, 0.03)
    places = evaluation.score(clean, moving, register=False).places
    assert places < evaluation.score(clean, frames, register=False).places - 0.02


def test_a_picture_made_of_the_frames_is_found_out() -> None:
    clean, rng = scene(7), np.random.default_rng(7)
    frames = [noisy(clean, rng, 0.05) for _ in range(2)]
    got = evaluation.score(np.mean(frames, axis=0), frames, names=("p", "x", "y"), register=False)
    assert got.score.low == math.inf and "was made of them" in got.notes[0]


@pytest.mark.parametrize(
    "frames, words",
    [
        ([scene(1)], "frames=1: a score needs at least 2"),
        ([scene(1), scene(1)], "are the same picture"),
        ([scene(1), scene(0)], "are the same picture"),
        ([scene(1), scene(2)[:100]], "have one size"),
        ([scene(1), scene(2, 3)], "have one size"),
        ([scene(1), scene(2)], "frame 1 does not show the scene of picture"),
    ],
)
def test_what_cannot_be_scored_is_one_line(frames: list[np.ndarray], words: str) -> None:
    with pytest.raises(Error, match=words) as caught:
        evaluation.score(scene(0), frames)
    assert "\n" not in str(caught.value)


def test_nothing_left_to_measure_on() -> None:
    clean, rng = scene(0)[:40, :40], np.random.default_rng(0)
    with pytest.raises(Error, match="pixels to measure on, which must be at least 1024"):
        evaluation.score(clean, [noisy(clean, rng, 0.05) for _ in range(2)], register=False)


def test_score_as_a_user(tmp_path, capsys) -> None:
    clean, rng = scene(8, channels=3), np.random.default_rng(8)
    images.write(tmp_path / "result.png", images.from_float(estimate(clean, rng), "uint16"))
    folder = tmp_path / "frames"
    folder.mkdir()
    for index in range(3):
        frame = images.from_float(noisy(clean, rng, 0.03), "uint8")
        cv2.imwrite(str(folder / f"IMG_{index}.png"), frame[..., ::-1])
    line = ["score", str(tmp_path / "result.png"), "--frames", str(folder)]
    assert cli.main([*line, "--json", str(tmp_path / "facts.json")]) == 0
    out = capsys.readouterr().out
    assert "IMG_2" in out and "by a pair of frames" in out and "CAUTION" in out
    facts = json.loads((tmp_path / "facts.json").read_text())
    score = Score(**facts["score"])
    wanted = truth(estimate(clean, np.random.default_rng(8)), clean)
    assert abs(score.db - wanted) < 0.77 * (score.high - score.low)  # three standard errors
    assert [row["frame"] for row in facts["frames"]] == [f"IMG_{i}.png" for i in range(3)]
    assert cli.main([*line, "--json", str(tmp_path / "result.png"), "--overwrite"]) == 2
    assert cli.main(["score", str(tmp_path / "none.png"), "--frames", str(folder)]) == 2
    picture = str(folder / "IMG_0.png")
    assert cli.main(["score", picture, "--frames", picture]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("n2n: ") for line in lines)


def test_sentences_say_where_and_warn() -> None:
    score, still = Score(38.21, 37.9, 38.6), Score(39.04, 38.7, 39.4)
    lines = command.sentences(Scored(score, 0.8, 1, (), 0.0, None), "a.png")
    assert lines[0] == (
        "quality: 38.2 dB (37.9 to 38.6), measured without a clean picture on 80 % of a.png, by a "
        "pair of frames"
    )
    assert lines[-1].startswith("CAUTION")
    lines = command.sentences(Scored(score, 0.8, 3, (), 0.034, still, ("Note.",)), "a.png")
    assert "3 pairs" in lines[0] and "in 3.4 %" in lines[1] and "39.0 dB" in lines[1]
    assert lines[2] == "Note."
