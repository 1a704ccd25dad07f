"""`n2n burst --group`, brackets and RAW on the command line."""

from __future__ import annotations

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from n2n import cli, images
from n2n.cli import burst, denoise, group, jobs, parser
from n2n.types import Error, Failure, Fused, Picture

SIDE = 96
SECONDS = 0.01


def scene():
    rng = np.random.default_rng(0)
    cells = [rng.random((n, n, 3)) / n**0.5 for n in (3, 6, 12, 24, 48)]
    total = sum(np.kron(one, np.ones((SIDE // len(one), SIDE // len(one), 1))) for one in cells)
    return (0.1 + 0.8 * (total - total.min()) / np.ptp(total)).astype(np.float32)


def photograph(path, second, seed=None, seconds=SECONDS, side=SIDE):
    """Write a noisy JPEG that was taken so many seconds after three o'clock; None: no EXIF."""
    rng = np.random.default_rng(second if seed is None else seed)
    picture = np.clip(scene() + rng.normal(0, 0.05, (SIDE, SIDE, 3)), 0, 1)[:side]
    made = Image.Exif()
    if second is not None:
        made[271], made[272] = "Maker", "Model"
        time = f"2026:01:02 03:{second // 60:02d}:{second % 60:02d}"
        made.get_ifd(34665).update({36867: time, 33434: seconds, 33437: 4.0, 34855: 400})
    Image.fromarray(images.from_float(picture, "uint8")).save(path, quality=98, exif=made)


@pytest.fixture
def folder(tmp_path):
    """Two bursts, of three and of two frames, and a single picture."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, second in enumerate((0, 1, 2, 60, 61, 120), 1):
        photograph(folder / f"IMG_{number}.jpg", second)
    return folder


@pytest.fixture
def made(monkeypatch):
    """Write down which bursts are made, and make nothing."""
    calls = []

    def make(screen, options):
        job = burst.plan(options)
        calls.append(([path.name for path in job.paths], job.out))
        if job.paths[0].name in broken:
            raise broken[job.paths[0].name]
        return {"out": str(job.out)}

    broken: dict[str, Exception] = {}
    monkeypatch.setattr(burst, "make", make)
    return calls, broken


def run(*arguments):
    return cli.main(["burst", *map(str, arguments)])


def refused(capsys, *arguments):
    capsys.readouterr()
    assert run(*arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("n2n: ") and err.count("\n") == 1
    return err


def test_each_burst_becomes_a_picture_in_the_folder(folder, tmp_path, made, capsys):
    assert run(folder, "--group", "-o", tmp_path / "out", "--json", tmp_path / "all.json") == 0
    out = tmp_path / "out"
    assert made[0] == [
        (["IMG_1.jpg", "IMG_2.jpg", "IMG_3.jpg"], out / "IMG_1-n2n.png"),
        (["IMG_4.jpg", "IMG_5.jpg"], out / "IMG_4-n2n.png"),
    ]
    text = capsys.readouterr().out
    assert "IMG_1.jpg to IMG_3.jpg" in text and "2026-01-02 03:01:00" in text
    assert "Maker Model" in text and "96 x 96" in text
    assert "single pictures, left alone: IMG_6.jpg" in text and "EXIF time" not in text
    facts = json.loads((tmp_path / "all.json").read_text())
    assert [one["out"] for one in facts] == [str(target) for _, target in made[0]]


def test_results_stand_beside_their_frames_without_an_output(folder, made):
    assert run(folder, "--group") == 0
    assert [target for _, target in made[0]] == [
        folder / "IMG_1-n2n.png",
        folder / "IMG_4-n2n.png",
    ]


@pytest.fixture
def card(tmp_path):
    """A camera's card: three folders, two of them with a burst of equal names."""
    card = tmp_path / "DCIM"
    for number, inner in enumerate(("100CANON", "101CANON", "102CANON/own")):
        (card / inner).mkdir(parents=True)
        for index in (1, 2):
            second, name = 100 * number + index, "IMG" if number < 2 else "OWN"
            photograph(card / inner / f"{name}_{index}.jpg", second)
    return card


def test_the_folders_of_a_card_are_found_again_in_the_output(card, tmp_path, made):
    out, pages = tmp_path / "clean", tmp_path / "pages"
    assert run(card, "--group", "-o", out, "--report", pages) == 0
    assert made[0] == [
        (["IMG_1.jpg", "IMG_2.jpg"], out / "100CANON" / "IMG_1-n2n.png"),
        (["IMG_1.jpg", "IMG_2.jpg"], out / "101CANON" / "IMG_1-n2n.png"),
        (["OWN_1.jpg", "OWN_2.jpg"], out / "102CANON" / "own" / "OWN_1-n2n.png"),
    ]
    assert sorted(one.name for one in pages.iterdir()) == ["100CANON", "101CANON", "102CANON"]


def test_without_an_output_the_results_stand_in_the_cards_folders(card, made, capsys):
    images.write(card / "101CANON" / "IMG_1-n2n.png", np.zeros((8, 8), np.uint16))
    assert run(card, "--group") == 2
    assert [target.parent.name for _, target in made[0]] == ["100CANON", "own"]
    assert "101CANON/IMG_1-n2n.png': exists" in capsys.readouterr().err


def test_only_group_looks_into_folders(card, made, capsys):
    assert "holds no pictures" in refused(capsys, card)


def test_a_longer_gap_joins(folder, made):
    assert run(folder, "--group", "--gap", 100) == 0
    assert len(made[0]) == 1 and len(made[0][0][0]) == 6


@pytest.mark.parametrize("words", ["(-4:Insufficient memory) Failed", "RESOURCE_EXHAUSTED: x"])
def test_a_burst_without_memory_stops_no_other(folder, made, capsys, words):
    """As OpenCV and jax say it."""
    made[1]["IMG_1.jpg"] = cv2.error(words) if "-4" in words else RuntimeError(words)
    assert run(folder, "--group", "--quiet") == 1
    assert len(made[0]) == 2
    err = capsys.readouterr().err
    assert err.startswith("n2n: out of memory") and err.count("\n") == 1


def test_a_fault_of_n2n_is_not_hidden(folder, made):
    made[1]["IMG_1.jpg"] = cv2.error("(-215:Assertion failed) !empty()")
    with pytest.raises(cv2.error, match="Assertion"):
        run(folder, "--group", "--quiet")


@pytest.mark.parametrize("problem, status", [(Error("no"), 2), (Failure("full"), 1)])
def test_a_burst_that_fails_stops_no_other(folder, made, capsys, problem, status):
    made[1]["IMG_1.jpg"] = problem
    assert run(folder, "--group", "--quiet") == status
    assert len(made[0]) == 2
    assert capsys.readouterr().err == f"n2n: {problem}\n"


def test_a_file_that_cannot_be_read_stops_no_burst(folder, made, capsys):
    (folder / "IMG_2.jpg").write_bytes(b"no picture")
    assert run(folder, "--group") == 2
    assert [names for names, _ in made[0]] == [
        ["IMG_1.jpg", "IMG_3.jpg"],
        ["IMG_4.jpg", "IMG_5.jpg"],
    ]
    assert "IMG_2.jpg" in capsys.readouterr().err


def test_an_interruption_stops_all(folder, made):
    made[1]["IMG_1.jpg"] = KeyboardInterrupt()
    assert run(folder, "--group") == 130
    assert len(made[0]) == 1


def test_frames_without_a_time_are_named(folder, made, capsys):
    for number in (7, 8):
        photograph(folder / f"IMG_{number}.jpg", None, seed=number)
    assert run(folder, "--group") == 0
    assert made[0][-1][0] == ["IMG_7.jpg", "IMG_8.jpg"]
    assert "without EXIF time: IMG_7.jpg, IMG_8.jpg; a file's own date" in capsys.readouterr().out


def test_a_stack_is_a_burst(folder, made):
    tifffile.imwrite(folder / "stack.tif", np.zeros((3, 8, 8), np.uint8), photometric="minisblack")
    assert run(folder, "--group") == 0
    assert made[0][-1][0] == ["stack.tif"]


def test_resume_leaves_what_is_done(folder, made, capsys):
    images.write(folder / "IMG_1-n2n.png", np.zeros((8, 8), np.uint16))
    assert run(folder, "--group", "--resume") == 0
    assert [names[0] for names, _ in made[0]] == ["IMG_4.jpg"]
    assert "is there already" in capsys.readouterr().out
    assert run(folder, "--group") == 2  # without it, an existing picture is a mistake
    assert "IMG_1-n2n.png': exists" in capsys.readouterr().err


def test_what_does_not_go_with_group(folder, tmp_path, made, capsys):
    taken = tmp_path / "taken.png"
    taken.write_bytes(b"mine")
    assert "--reference" in refused(capsys, folder, "--group", "--reference", 1)
    assert "name a folder" in refused(capsys, folder, "--group", "-o", taken)
    assert "--group" in refused(capsys, folder, "--gap", 5)
    assert "name a folder" in refused(capsys, folder, "--group", "--report", "page.html")
    other = tmp_path / "others"
    other.mkdir()
    for number, second in ((1, 200), (2, 201)):
        photograph(other / f"IMG_{number}.jpg", second)
    assert "both become" in refused(capsys, folder, other, "--group", "-o", tmp_path / "out")
    assert not made[0] and taken.read_bytes() == b"mine"


def test_single_pictures_alone_are_no_burst(folder, made, capsys):
    assert run(folder / "IMG_1.jpg", folder / "IMG_4.jpg", "--group") == 2
    out, err = capsys.readouterr()
    assert "left alone: IMG_1.jpg, IMG_4.jpg" in out and "no two pictures belong together" in err


def test_the_gap_agrees_with_the_library(capsys):
    with pytest.raises(SystemExit):
        parser.make().parse_args(["burst", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert f"with --group (default: {images.GAP:.0f})" in text


def test_frames_are_read_and_results_written(tmp_path, monkeypatch, capsys):
    """Two bursts of two frames, one of them the same picture twice; the mean stands for a fit."""

    def work(screen, given, origin, job, options):
        job.out.parent.mkdir(exist_ok=True)
        return burst._Made(Fused(given.mean(), None, None, None, 2.0), "burst", 3)

    monkeypatch.setattr(burst, "_work", work)
    monkeypatch.setenv("N2N_CACHE", str(tmp_path / "cache"))
    for number, second, seed in ((1, 0, 1), (2, 1, 1), (3, 30, 3), (4, 31, 4)):
        photograph(tmp_path / f"IMG_{number}.jpg", second, seed)
    out = tmp_path / "out"
    given = ["-o", out, "--json", tmp_path / "all.json", "--report", tmp_path / "pages"]
    assert run(tmp_path, "--group", *given) == 2
    assert [path.name for path in (tmp_path / "pages").iterdir()] == ["IMG_3-n2n.html"]
    assert [path.name for path in out.iterdir()] == ["IMG_3-n2n.png"]
    assert images.read(out / "IMG_3-n2n.png").array.dtype == np.uint16
    text, err = capsys.readouterr()
    assert "the same picture" in err and "burst 2 of 2: IMG_3.jpg to IMG_4.jpg" in text
    (facts,) = json.loads((tmp_path / "all.json").read_text())
    assert facts["reference"] == "IMG_3.jpg"


# Brackets


def test_a_bracket_is_refused_before_it_is_decoded(tmp_path, monkeypatch, capsys):
    for number, seconds in enumerate((0.01, 0.0025, 0.04), 1):
        photograph(tmp_path / f"IMG_{number}.jpg", number, seconds=seconds)
    monkeypatch.setattr(images, "read_pages", lambda *_: pytest.fail("decoded"))
    text = refused(capsys, tmp_path)
    assert "4.0 stops" in text and "IMG_2.jpg (-2.0)" in text and "--group" in text


def test_exif_tells_that_another_light_is_no_bracket(tmp_path):
    import n2n

    for number in (1, 2):
        photograph(tmp_path / f"IMG_{number}.jpg", number)
    path = tmp_path / "IMG_2.jpg"
    with Image.open(path) as image:
        exif = image.getexif()
        darker = Image.fromarray((np.asarray(image) * 0.7).astype(np.uint8))
    darker.save(path, quality=98, exif=exif)
    assert "is 30" in n2n.align(tmp_path, register=False).checks[0]
    darker.save(path, quality=98)
    with pytest.raises(Error, match="frames of different exposure"):
        n2n.align(tmp_path, register=False)


# RAW ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, options, linear",
    [
        ("a.png", [], True),
        ("a.tif", ["--bits", "32"], True),
        ("a.jpg", [], False),
        ("a.png", ["--bits", "8"], False),
        ("a.png", ["--raw", "srgb"], False),
    ],
)
def test_a_raw_burst_stays_linear_unless_8_bits_or_asked(tmp_path, name, options, linear):
    from n2n.images import colour

    icc = colour.linear_profile(np.eye(3), "x, linear")
    meta = {"linear": tuple(map(tuple, np.eye(3))), "icc": icc}
    picture = Picture(np.zeros((8, 9, 3), np.uint16), meta)
    light = np.full((8, 9, 3), 0.2, np.float32)
    job = burst._Job([], None, tmp_path / name, "uint16")
    given = parser.make().parse_args(["burst", "x", *options])
    dtype = {".jpg": "uint8", ".tif": "float32"}.get(job.out.suffix, "uint16")
    dtype = "uint8" if given.bits == 8 else dtype
    burst.write(job._replace(dtype=dtype), light, picture, given)
    back = images.read(job.out)
    # 0.2 of light is 0.485 on a display.
    assert images.to_float(back.array).mean() == pytest.approx(0.2 if linear else 0.4845, abs=0.003)
    assert (back.meta["icc"] == icc) == linear and back.meta["icc"]


@pytest.mark.parametrize("choice", ["srgb", "linear"])
def test_denoise_develops_raw_unless_told_otherwise(tmp_path, monkeypatch, choice):
    meta = {"linear": tuple(map(tuple, np.eye(3)))}
    light = Picture(np.full((8, 9, 3), 13107, np.uint16), meta)  # 0.2
    monkeypatch.setattr(images, "read", lambda path: light)
    model = SimpleNamespace(denoise=lambda array, **_: array)
    options = ["--raw", choice] if choice == "linear" else []
    given = parser.make().parse_args(["denoise", "x", "-o", str(tmp_path / "a.png"), *options])
    denoise._in_memory(model, tmp_path / "a.dng", tmp_path / "a.png", given, None)
    monkeypatch.undo()
    value = images.read(tmp_path / "a.png").array.mean() / 65535
    assert value == pytest.approx(0.2 if choice == "linear" else 0.4845, abs=0.001)


def test_guarded_names_what_went_wrong(capsys):
    from n2n.cli.screen import Screen

    def fail(error):
        raise error

    assert jobs.guarded(Screen(), fail, MemoryError()) == cli.FAILED
    assert "out of memory" in capsys.readouterr().err
    assert group._taken(images.Shot(folder, (1, 1))) == ""
