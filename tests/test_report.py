"""Pictures for people: what lies where, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from n2n import images, report
from n2n.types import Error

GAP = 8


def picture(height=60, width=80, channels=3, value=0.5):
    return np.full((height, width, channels), value, np.float32)


def read(path):
    return np.asarray(Image.open(path).convert("RGB"))


def test_pictures_stand_side_by_side_in_order(tmp_path):
    path = tmp_path / "sheet.png"
    shades = [0.2, 0.4, 0.6]
    first, middle, last = (picture(value=shade) for shade in shades)
    report.before_after(first, last, path, between=[middle], zoom=1, side=40)
    sheet = read(path)
    assert sheet.shape == (GAP + 40 + GAP, 3 * (40 + GAP) + GAP, 3)
    for index, shade in enumerate(shades):
        left = GAP + index * (40 + GAP)
        tile = sheet[GAP : GAP + 40, left : left + 40]
        assert (tile == round(255 * shade)).all()


def test_zoom_repeats_pixels(tmp_path):
    rng = np.random.default_rng(0)
    before, after = (rng.random((40, 40, 3)).astype(np.float32) for _ in range(2))
    report.before_after(before, after, tmp_path / "a.png", zoom=3, side=16, centre=(20, 20))
    tile = read(tmp_path / "a.png")[GAP : GAP + 48, GAP : GAP + 48]
    wanted = images.from_float(before[12:28, 12:28], "uint8")
    assert np.array_equal(tile[::3, ::3], wanted)
    assert np.array_equal(tile[2::3, 2::3], wanted)


def test_captions_are_written_below(tmp_path):
    for name, labels in (("plain.png", ()), ("named.png", ("before", "after"))):
        report.before_after(picture(), picture(), tmp_path / name, labels=labels)
    plain, named = read(tmp_path / "plain.png"), read(tmp_path / "named.png")
    assert named.shape[0] > plain.shape[0]
    assert named[plain.shape[0] :].min() < 100


@pytest.mark.parametrize("place", [(0, 0), (0, 44), (24, 10)])
def test_detail_is_found_where_the_structure_is(tmp_path, place):
    after = picture(64, 80)
    y, x = place
    after[y : y + 20, x : x + 20] = np.random.default_rng(0).random((20, 20, 3))
    report.before_after(picture(64, 80), after, tmp_path / "a.png", zoom=1, side=24)
    tile = read(tmp_path / "a.png")[GAP : GAP + 24, 2 * GAP + 24 : 2 * GAP + 48]
    assert (tile != 128).any(-1).sum() >= 19 * 19


@pytest.mark.parametrize("shape", [(5, 9, 3), (1, 1, 1), (30, 7, 1)])
def test_small_and_grey_pictures_are_shown_whole(tmp_path, shape):
    report.before_after(picture(*shape), picture(*shape), tmp_path / "a.png", zoom=1)
    assert read(tmp_path / "a.png").shape[1] == 2 * (shape[1] + GAP) + GAP


def test_values_beyond_display_are_clipped_and_the_file_is_n2ns(tmp_path):
    report.before_after(picture(value=-1), picture(value=2), tmp_path / "a.png", zoom=1, side=8)
    sheet = read(tmp_path / "a.png")
    assert sheet[GAP, GAP].max() == 0 and sheet[GAP, 2 * GAP + 8].min() == 255
    with pytest.raises(Error, match="results of n2n"):
        images.frames_in(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"after": picture(61, 80)},
        {"after": picture(channels=2), "before": picture(channels=2)},
        {"labels": ("one",)},
        {"zoom": 0},
        {"side": 0},
        {"between": [picture(2, 2)]},
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, change):
    given = {"before": picture(), "after": picture(), "path": tmp_path / "a.png"} | change
    with pytest.raises(Error):
        report.before_after(**given)
    assert not any(tmp_path.iterdir())


def test_an_existing_file_is_kept(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"mine")
    with pytest.raises(Error, match="exists"):
        report.before_after(picture(), picture(), path)
    assert path.read_bytes() == b"mine"
    report.before_after(picture(), picture(), path, overwrite=True)
    assert read(path).ndim == 3
