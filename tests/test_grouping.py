"""Which shots are one burst, what files say about how they were taken, and brackets."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from n2n import images
from n2n.images import GAP, Shot, groups, refuse_bracket
from n2n.images.grouping import STEP
from n2n.types import Error


def taken(*times, first=1, **facts):
    return [
        Shot(Path(f"IMG_{first + index}.jpg"), time=time, **{"size": (60, 40)} | facts)
        for index, time in enumerate(times)
    ]


def names(found):
    return [[one.path.stem.removeprefix("IMG_") for one in group] for group in found]


# Grouping


def test_a_pause_ends_a_burst():
    shots = taken(0, 0.2, 0.4, 10, 10.2, 20)
    assert names(groups(shots)) == [["1", "2", "3"], ["4", "5"], ["6"]]
    assert names(groups(shots, gap=15)) == [["1", "2", "3", "4", "5", "6"]]


def test_long_exposures_are_no_pause():
    shots = taken(0, 31, 62, seconds=30)
    assert len(groups(shots)) == 1
    assert len(groups([dataclasses.replace(one, seconds=0) for one in shots])) == 3


def test_another_camera_size_or_exposure_is_another_burst():
    ours, others = taken(0, 0.2, 0.4), taken(0.1, 0.3, first=4, camera="other")
    assert names(groups(ours + others)) == [["1", "2", "3"], ["4", "5"]]
    upright = taken(0.1, 0.3, first=4, size=(40, 60))
    assert names(groups(ours + upright)) == [["1", "2", "3"], ["4", "5"]]


def test_repeated_brackets_become_a_burst_for_each_exposure():
    shots = [
        dataclasses.replace(one, stops=10.0 + (0, -2, 2)[index % 3])
        for index, one in enumerate(taken(*np.arange(6) / 5))
    ]
    found = groups(shots)
    assert names(found) == [["1", "4"], ["2", "5"], ["3", "6"]]
    for group in found:
        refuse_bracket(group)


def test_a_third_of_a_stop_is_drift():
    """1/60 and 1/80 s, a third of a stop as cameras mark it, are 0.415 apart by the numbers."""
    first, second, third = taken(0, 0.1, 0.2)
    near = dataclasses.replace(second, stops=-np.log2(80 / 60))
    far = dataclasses.replace(third, stops=-np.log2(100 / 60))
    first = dataclasses.replace(first, stops=0.0)
    refuse_bracket([first, near])
    assert names(groups([first, near])) == [["1", "2"]]
    assert len(groups([first, far])) == 2


def test_a_stack_is_a_burst_of_its_own():
    shots = [dataclasses.replace(one, pages=5) for one in taken(0, 0.1)] + taken(0.2, 0.3, first=3)
    assert names(groups(shots)) == [["1"], ["2"], ["3", "4"]]


def test_shots_without_a_time_are_told_apart_by_the_rest():
    shots = taken(None, None, 5, None) + taken(None, first=5, size=(10, 10))
    assert names(groups(shots)) == [["1", "2", "4"], ["3"], ["5"]]


def test_shots_without_a_time_belong_to_their_folder():
    shots = [Shot(Path(folder, name), (60, 40)) for folder in "ab" for name in ("1.jpg", "2.jpg")]
    found = groups(shots)
    assert [{one.path.parent.name for one in group} for group in found] == [{"a"}, {"b"}]
    timed = [dataclasses.replace(one, time=index / 5) for index, one in enumerate(shots)]
    assert len(groups(timed)) == 1  # a camera begins a new folder amid a burst


shot_lists = st.lists(
    st.builds(
        Shot,
        path=st.just(Path("a")),
        size=st.sampled_from([(60, 40), (40, 60)]),
        camera=st.sampled_from(["", "a", "b"]),
        time=st.none() | st.floats(0, 60),
        seconds=st.sampled_from([0.0, 0.01, 5.0]),
        stops=st.none() | st.floats(-3, 3),
        pages=st.sampled_from([1, 1, 1, 3]),
    ),
    max_size=20,
)


@settings(max_examples=100, deadline=None)
@given(shot_lists, st.floats(0.1, 20))
def test_groups_partition_the_shots_and_keep_their_order(shots, gap):
    shots = [dataclasses.replace(one, path=Path(f"{i}")) for i, one in enumerate(shots)]
    found = [[int(one.path.name) for one in group] for group in groups(shots, gap)]
    assert sorted(sum(found, [])) == list(range(len(shots)))
    assert all(group == sorted(group) for group in found)
    assert [group[0] for group in found] == sorted(group[0] for group in found)


@settings(max_examples=100, deadline=None)
@given(shot_lists, st.floats(0.1, 20))
def test_each_group_is_one_burst(shots, gap):
    for group in groups(shots, gap):
        assert len({(one.camera, one.size, one.time is None) for one in group}) == 1
        refuse_bracket(group)
        times = sorted(one.time for one in group if one.time is not None)
        assert all(one.pages == 1 for one in group) or len(group) == 1
        # Other exposures taken in between may bridge a pause, but none is longer than all of them.
        assert not times or times[-1] - times[0] <= len(shots) * (gap + 10)


@settings(max_examples=50, deadline=None)
@given(shot_lists, st.randoms())
def test_the_order_of_files_does_not_change_who_belongs_together(shots, random):
    shots = [dataclasses.replace(one, path=Path(f"{i}")) for i, one in enumerate(shots)]
    mixed = random.sample(shots, len(shots))
    assert {frozenset(group) for group in groups(shots)} == {frozenset(g) for g in groups(mixed)}


# Brackets


def bracket(*stops):
    return [
        dataclasses.replace(one, stops=value)
        for one, value in zip(taken(*range(len(stops))), stops, strict=True)
    ]


def test_a_bracket_is_refused_by_name():
    with pytest.raises(Error) as caught:
        refuse_bracket(bracket(10.0, 8.0, 12.0))
    text = str(caught.value)
    assert "4.0 stops" in text and "IMG_2.jpg (-2.0)" in text and "IMG_3.jpg (+2.0)" in text
    assert "against IMG_1.jpg" in text and len(text.splitlines()) == 1


def test_many_exposures_are_not_all_named():
    with pytest.raises(Error, match=r"IMG_4.jpg \(\+3.0\) and 2 more against IMG_1.jpg"):
        refuse_bracket(bracket(*range(6)))


@pytest.mark.parametrize("stops", [(), (1.0,), (None, None), (None, 3.0), (0.0, 0.2, STEP)])
def test_frames_of_one_exposure_are_not_refused(stops):
    refuse_bracket(bracket(*stops))


# What files say


def exif(time="2026:01:02 03:04:05", **more):
    made = Image.Exif()
    made[271], made[272], made[274] = "Maker", "Model", more.pop("orientation", 1)
    ifd = {36867: time, 33434: 0.01, 33437: 4.0, 34855: 400} | more.pop("ifd", {})
    made.get_ifd(34665).update({tag: value for tag, value in ifd.items() if value is not None})
    return made.tobytes()


def saved(path, **more):
    Image.new("RGB", (60, 40)).save(path, exif=exif(**more))
    return path


@pytest.mark.parametrize("extension", [".jpg", ".png", ".tif", ".webp"])
def test_a_shot_is_read_from_the_header(tmp_path, monkeypatch, extension):
    path = saved(tmp_path / f"a{extension}", ifd={37521: "25", 42033: "007"})
    shot = images.shot(path)
    assert shot.path == path and shot.size == (60, 40) and shot.pages == 1
    assert shot.camera == "Maker Model 007" and shot.seconds == pytest.approx(0.01)
    # As date(1) has it: 2026-01-02 03:04:05 UTC.
    assert shot.time == pytest.approx(1767323045.25)
    assert shot.stops == pytest.approx(np.log2(0.01 * 400 / 16), abs=1e-4)


def test_a_shot_decodes_nothing(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.jpg")
    Image.new("RGB", (60, 40)).save(tmp_path / "b.png")
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    assert images.shot(path).camera == "Maker Model"
    assert images.shot(tmp_path / "b.png") == Shot(tmp_path / "b.png", (60, 40))


@pytest.mark.parametrize("orientation, size", [(1, (60, 40)), (3, (60, 40)), (6, (40, 60))])
@pytest.mark.parametrize("extension", [".jpg", ".tif"])
def test_sizes_are_upright(tmp_path, extension, orientation, size):
    assert images.shot(saved(tmp_path / f"a{extension}", orientation=orientation)).size == size


@pytest.mark.parametrize("time", [None, "", "0000:00:00 00:00:00", "    :  :     :  :  ", "later"])
def test_a_time_that_is_none(tmp_path, time):
    assert images.shot(saved(tmp_path / "a.jpg", time=time)).time is None


@pytest.mark.parametrize(
    "ifd, stops",
    [
        ({33437: None}, np.log2(0.01 * 400)),
        ({33437: 0.0}, np.log2(0.01 * 400)),
        ({33434: None}, None),
        ({34855: None}, None),
        ({34855: 0}, None),
        ({34855: 65535, 34866: 102400}, np.log2(0.01 * 102400 / 16)),
        ({34855: (400, 0)}, np.log2(0.01 * 400 / 16)),
    ],
)
def test_odd_exposures(tmp_path, ifd, stops):
    found = images.shot(saved(tmp_path / "a.jpg", ifd=ifd)).stops
    assert found == (None if stops is None else pytest.approx(stops, abs=1e-4))


def test_pages_are_counted(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((3, 40, 60), np.uint8), photometric="minisblack")
    assert images.shot(tmp_path / "a.tif").pages == 3
    frames = [Image.new("L", (60, 40), value) for value in (0, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert images.shot(tmp_path / "a.gif").pages == 2


def test_what_is_no_picture_is_refused(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    for name in ("a.jpg", "none.jpg"):
        with pytest.raises(Error, match=name):
            images.shot(tmp_path / name)


def test_the_default_gap():
    assert len(groups(taken(0, GAP - 0.1))) == 1 and len(groups(taken(0, GAP + 0.1))) == 2
