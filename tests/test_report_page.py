"""The page of a burst: self-contained, escaped, true to the burst; photographed where it can be."""

from __future__ import annotations

import base64
import io
import math
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from n2n import profile, report
from n2n.report import curve, pictures
from n2n.report.page import equivalent
from n2n.report.pictures import Box
from n2n.types import Burst, Error, Failure, Fused, Score

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell")
NASTY = '<script>alert("1")</script>&\u202e\n.jpg'


class Reader(HTMLParser):
    """Collect all elements, and the texts outside style and script."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    def tags(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())


def burst(shape: tuple[int, ...] = (60, 90, 3), count: int = 4, **changes: Any) -> Burst:
    """Return noisy frames of a gradient; frame 2 shows nothing in a corner."""
    rng = np.random.default_rng(0)
    clean = np.linspace(0.2, 0.8, shape[1])[None, :, None] * np.ones(shape)
    frames = (clean + 0.05 * rng.standard_normal((count, *shape))).astype(np.float32)
    weights = np.ones((count, *shape[:2], 1), np.float32)
    weights[1, :20, :30] = 0
    transforms = np.tile(np.eye(3), (count, 1, 1))
    transforms[1, :2, 2] = 2.5, -1.25
    given = {
        "frames": frames,
        "weights": weights,
        "mask": np.ones((*shape[:2], 1), np.float32),
        "transforms": transforms,
        "scale": (0.1, 0.9),
        "names": ("first.jpg", NASTY, *(f"{i}.jpg" for i in range(3, count + 1))),
        "checks": (f"{NASTY} is odd.",),
        "left_out": (("blur.jpg", "shows 22 % of the fine detail"),),
    }
    return Burst(**(given | changes))


def fused(of: Burst, **changes: Any) -> Fused:
    score = Score(41.1, 40.8, math.inf)
    given = {"score": score, "before": Score(39.2, 39.0, 39.4), "gain": Score(1.9, 1.7, 2.1)}
    image = np.full(of.frames.shape[1:], 0.5, np.float32)
    return Fused(**({"image": image, "frames": 6.2} | given | changes))


def page(of: Burst | None = None, **changes: Any) -> str:
    of = burst() if of is None else of
    texts = {
        "title": NASTY,
        "summary": [NASTY],
        "settings": {NASTY: NASTY},
        "versions": {"n2n": "1"},
    }
    return report.page(of, changes.pop("made", None) or fused(of), **(texts | changes))


def decoded(address: str) -> np.ndarray:
    head, data = address.split(",", 1)
    assert head == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def shown(text: str, kind: str = "after") -> np.ndarray:
    """Return the picture that the slider shows: after, mean or frame."""
    found = [
        one for one in Reader(text).tags("img") if kind in (one.get("class"), one.get("data-name"))
    ]
    assert len(found) == 1
    return decoded(found[0]["src"])


def test_nothing_outside_is_referred_to() -> None:
    noise = SimpleNamespace(
        gain=(0.01,) * 3,
        offset=(0.0,) * 3,
        linear=(True, False, True),
        curves=[SimpleNamespace(level=(0.1, 0.5), variance=(0.001, 0.005))] * 3,
    )
    text = page(burst(profile=noise), settings={"seen": "https://example.org/x.js"})
    reader = Reader(text)
    for tag, attributes in reader.elements:
        assert tag not in (
            "link",
            "iframe",
            "object",
            "embed",
            "base",
            "form",
            "a",
            "audio",
            "video",
        )
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "srcset", "poster", "action", "background"):
                assert value.startswith(("data:", "#")), (tag, name, value[:60])
            assert not name.startswith("on"), "a script of the page's own policy only"
            if name == "style":
                assert "url(" not in value
    style, script = (re.findall(f"<{tag}>(.*?)</{tag}>", text, re.S) for tag in ("style", "script"))
    assert len(style) == len(script) == 1
    assert "@import" not in style[0] and "url(" not in style[0]
    for word in ("fetch(", "XMLHttpRequest", "WebSocket", "import(", "src", "://", "sendBeacon"):
        assert word not in script[0]
    # The one address is a text that the user gave.
    bare = re.sub(r"data:image/jpeg;base64,[\w+/=]+", "", text)
    assert re.findall(r"https?:|//\w", bare) == ["https:", "//e"] and "example.org" in reader.text
    policy = next(m for m in reader.tags("meta") if "http-equiv" in m)["content"]
    assert policy.startswith("default-src 'none'; img-src data:;")


def test_every_name_is_escaped() -> None:
    text = page()
    reader = Reader(text)
    assert len(reader.tags("script")) == 1 and "<script>alert" not in text
    assert reader.text.count('<script>alert("1")</script>&\\u202e\\n.jpg') >= 5
    assert "\u202e" not in text
    page(burst(names=("a\udcff.jpg", "b", "c", "d"))).encode()


def test_pictures_are_shown_at_their_own_size() -> None:
    of = burst()
    text = page(of)
    for kind, wanted in (("after", fused(of).image), ("mean", of.mean()), ("frame", of.frames[0])):
        got = shown(text, kind)
        assert got.shape == (60, 90, 3)
        # Of the noise's 0.05 the JPEG changes 0.022, in colour mostly.
        error = got / 255 - np.clip(wanted, 0, 1)
        assert abs(error.mean()) < 0.002 and error.std() < 0.03
    stage = next(one for one in Reader(text).tags("div") if one.get("class") == "stage")
    assert stage["style"] == "width: 90px; height: 60px"
    assert "The whole picture, 90 x 60 pixels, at 100 %" in Reader(text).text


def test_frames_and_what_became_of_them() -> None:
    rng = np.random.default_rng(1)
    scene = np.kron(rng.random((30, 45, 1)), np.ones((3, 3, 1))).astype(np.float32)
    frames = np.stack([scene + 0.02 * rng.standard_normal(scene.shape) for _ in range(4)])
    of = burst((90, 135, 1), frames=frames.astype(np.float32), reference=2)
    rows = re.findall(r"<tr>(.*?)</tr>", page(of), re.S)
    cells = [[Reader(f"<p>{c}</p>").text for c in re.findall("<td.*?>(.*?)</td>", r)] for r in rows]
    table = {row[0]: row[1:] for row in cells if len(row) == 6}
    assert table["first.jpg"][:2] == ["+0.0", "+0.0"] and table["first.jpg"][4] == "kept"
    moved = next(row for name, row in table.items() if "alert" in name)
    assert moved[:2] == ["-1.2", "+2.5"] and moved[3] == "95 %"
    assert table["3.jpg"][2:] == ["100 %", "100 %", "kept; all others are laid on it"]
    assert 80 < int(table["4.jpg"][2].removesuffix(" %")) < 120
    assert table["blur.jpg"][3:] == ["0 %", "left out: shows 22 % of the fine detail"]


def test_where_frames_were_not_used() -> None:
    of = burst()
    text = page(of)
    assert text.count("Where frames were not used") == 1
    small = np.asarray(pictures.marked(of.frames[1], of.weights[1], (0.0, 1.0)), int)
    orange = small[..., 0] - small[..., 2] > 60
    assert np.array_equal(orange, of.weights[1, ..., 0] == 0)
    assert pictures.unused(of) == [1]
    even = burst(weights=np.ones_like(of.weights))
    assert "Where frames were not used" not in page(even)
    clipped = np.ones_like(of.mask)
    clipped[:6] = 0
    assert "clipped, 10.0 %" in page(burst(weights=even.weights, mask=clipped))


def test_what_was_removed_is_amplified_around_grey() -> None:
    of = burst()
    text = page(of)
    removed = decoded(
        next(i for i in Reader(text).tags("img") if "less the mean" in i["alt"])["src"]
    )
    difference = fused(of).image - of.mean()
    factor = pictures.amplification(difference)
    assert factor == 2 ** round(math.log2(factor)) and 0.125 < factor * difference.std() <= 0.25
    wanted = np.clip(0.5 + factor * difference, 0, 1) * 255
    assert np.corrcoef(removed.ravel(), wanted.ravel())[0, 1] > 0.95
    assert pictures.amplification(np.zeros((2, 2, 1))) == 1
    assert pictures.amplification(np.ones((2, 2, 1)) * [[[3.0], [-3.0]]]) == 1


def test_quality_in_words() -> None:
    text = Reader(page()).text
    assert "mean of 2 of 4 frames" in text and "not bounded" in text
    assert "As good as the mean of 6.2 frames, +0.6 stops of light against the 4 taken." in text
    assert equivalent(2.0, 8).count("-2.0 stops") == 1
    for frames in (math.nan, math.inf, 0.0):
        assert "cannot tell" in equivalent(frames, 8)
    of = burst(count=2)
    assert "n2n of one frame" in Reader(page(of)).text
    none = fused(of, score=None, before=None, gain=None, frames=math.nan)
    assert "Too small or too clipped" in Reader(page(of, made=none)).text


def test_a_large_picture_is_shown_in_part(monkeypatch) -> None:
    monkeypatch.setattr(pictures, "WHOLE", 100_000)
    monkeypatch.setattr(pictures, "CROP", (400, 300))
    monkeypatch.setattr(pictures, "OVERVIEW", 200)
    rng = np.random.default_rng(0)
    image = np.full((525, 600, 1), 0.5, np.float32)
    image[225:, :400] += 0.1 * rng.standard_normal((300, 400, 1)).astype(np.float32)
    assert pictures.shown_part(image) == Box(225, 525, 0, 400)
    tall = pictures.shown_part(np.ascontiguousarray(image.swapaxes(0, 1)))
    assert tall == Box(0, 400, 225, 525)
    assert pictures.shown_part(image[:100]) == Box(0, 100, 0, 600)
    of = burst((525, 600, 1), count=2)
    text = page(of, made=fused(of, image=image))
    assert shown(text).shape == (300, 400)
    assert "The most detailed 400 x 300 of 600 x 525 pixels" in Reader(text).text
    assert "The whole, reduced to 200 x 175." in Reader(text).text
    drawn = np.asarray(pictures.overview(image, Box(225, 525, 0, 400), (0.0, 1.0)), int)
    assert (drawn[100, :2, 0] - drawn[100, :2, 2] > 100).all()


def test_the_size_of_a_file_is_bounded() -> None:
    """Noise that fills all pictures takes at most 2 bytes for a pixel and picture, and base64."""
    rng = np.random.default_rng(0)
    noise = rng.random((300, 400, 3), np.float32)
    assert len(pictures.data_uri(pictures.pixels(0.5 + 0.2 * (noise - 0.5)))) < 2.7 * 300 * 400
    # The whole slider: three pictures of 4 MP, or of a crop below that.
    assert 3 * 2.7 * pictures.WHOLE < 33e6 and np.prod(pictures.CROP) < pictures.WHOLE


@pytest.mark.parametrize(
    "scale, wanted",
    [
        ((0.02, 0.97), (0.0, 1.0)),
        ((0.002, 0.13), (0.002, 0.13)),
        ((0.0, 9.0), (0.0, 9.0)),
        ((0.1, 0.1), (0.0, 1.0)),
    ],
)
def test_a_sensor_that_does_not_fill_its_file_is_not_black(scale: Any, wanted: Any) -> None:
    assert pictures.window(scale) == wanted
    of = burst(scale=scale)
    told = "From black to white: " in page(of)
    assert told == (wanted != (0.0, 1.0))


def test_colours_keep_their_profile() -> None:
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

    def held(text: str) -> bytes | None:
        address = next(i for i in Reader(text).tags("img") if i.get("class") == "after")["src"]
        return Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))).info.get(
            "icc_profile"
        )

    assert held(page(icc=icc)) == icc
    assert held(page(burst((60, 90, 1)), icc=icc)) is None


def test_the_noise_curve_is_drawn_where_there_is_one() -> None:
    assert "<svg" not in page()
    level = np.linspace(0.1, 0.9, 5)
    noise = SimpleNamespace(
        gain=(0.01,),
        offset=(-1e-4,),
        linear=(True,),
        curves=[SimpleNamespace(level=level, variance=0.01 * level - 1e-4)],
    )
    drawn = curve.noise_curve(noise)
    dots = [(float(a), float(b)) for a, b in re.findall(r'cx="(.*?)" cy="(.*?)"', drawn)]
    points = re.search(r'points="(.*?)"', drawn)
    assert points is not None
    line = [tuple(map(float, each.split(","))) for each in points[1].split()]
    assert len(dots) == 5 and dots == line
    assert [y for _, y in dots] == sorted((y for _, y in dots), reverse=True)
    assert "variance = 0.01 x brightness -0.0001" in curve.fitted(noise)[0]
    bent = SimpleNamespace(**(vars(noise) | {"linear": (False,)}))
    assert "polyline" not in curve.noise_curve(bent) and "no line fits" in curve.fitted(bent)[0]
    assert "<svg" in page(burst(profile=noise))


def test_a_measured_profile_is_drawn() -> None:
    rng = np.random.default_rng(0)
    level = np.linspace(0.1, 0.9, 256, dtype=np.float32)[None, :, None] * np.ones((256, 1, 3), "f4")
    frames = level + np.sqrt(0.002 * level) * rng.standard_normal((2, *level.shape))
    measured = profile.measure(frames.astype(np.float32))
    drawn = curve.noise_curve(measured)
    assert drawn.count("<polyline") == 3 and drawn.count("<circle") > 20
    told = [float(each.split(" = ")[1].split()[0]) for each in curve.fitted(measured)]
    assert told == pytest.approx([0.002] * 3, rel=0.05)


@pytest.mark.parametrize("end, wanted", [(1.0, 6), (90.0, 5), (0.037, 4), (5.0, 6), (2e-9, 5)])
def test_axes_have_round_numbers(end: float, wanted: int) -> None:
    found = curve.ticks(end)
    assert len(found) == wanted and found[0] == 0 and found[-1] <= end * (1 + 1e-9)
    step = found[1]
    assert round(step / 10 ** math.floor(math.log10(step) + 1e-9)) in (1, 2, 5)


def test_two_channels_are_refused() -> None:
    with pytest.raises(Error, match="2 channels; a report shows grey"):
        page(burst((60, 90, 2)))


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch) -> None:
    of, path = burst(), tmp_path / "report.html"
    report.write_page(path, of, fused(of), title="one")
    whole = path.read_bytes()
    assert whole.startswith(b"<!DOCTYPE html>") and whole.endswith(b"</html>\n")
    with pytest.raises(Error, match="exists; say overwrite"):
        report.write_page(path, of, fused(of), title="two")
    assert path.read_bytes() == whole
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(Failure, match="cannot write .*report.html.* full"):
        report.write_page(path, of, fused(of), title="two", overwrite=True)
    assert path.read_bytes() == whole


def browser() -> str:
    """Return a Chromium, installed or playwright's, or skip."""
    found = [path for name in BROWSERS if (path := shutil.which(name))]
    own = Path.home() / ".cache" / "ms-playwright"
    found += map(str, [*own.glob("chromium*/*/chrome"), *own.glob("chromium*/*/headless_shell")])
    if not found:
        pytest.skip(f"needs a browser to photograph the page: none of {', '.join(BROWSERS)}")
    return found[0]


def test_a_browser_sees_before_and_after(tmp_path) -> None:
    """Red before, blue after: the line, at the address's percent of 300 px, parts them."""
    program = browser()
    of = burst((200, 300, 3), count=2)
    of.frames[:] = np.array([0.8, 0.1, 0.1], np.float32)
    blue = np.broadcast_to(np.array([0.1, 0.1, 0.8], np.float32), (200, 300, 3))
    report.write_page(tmp_path / "a.html", of, fused(of, image=blue), title="a")
    shares = {}
    for place in ("0", "100", "25-frame"):
        picture = tmp_path / f"{place}.png"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        options += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=500,400"]
        address = f"{(tmp_path / 'a.html').as_uri()}#{place}"
        subprocess.run(
            [program, *options, f"--screenshot={picture}", address],
            check=True,
            capture_output=True,
            timeout=60,
        )
        pixels = np.asarray(Image.open(picture).convert("RGB"), int)
        red, green, blueness = np.moveaxis(pixels, -1, 0)
        shares[place] = [
            int(((a > 180) & (b < 60) & (green < 60)).sum()) / (200 * 300)
            for a, b in ((red, blueness), (blueness, red))
        ]
    # Line and handle hide a part of both.
    assert shares["0"][0] < 0.01 and shares["0"][1] > 0.95
    assert shares["25-frame"] == pytest.approx([0.25, 0.75], abs=0.03)
    assert shares["100"][0] > 0.95 and shares["100"][1] < 0.01
