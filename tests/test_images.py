"""Pictures: what is read, refused, written and chosen; files are made here, or come from odd."""

from __future__ import annotations

import io
import itertools
import logging
import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import ExifTags, Image, ImageCms, ImageOps

import n2n
from n2n import images
from n2n.images import metadata, quiet, reading, writing
from n2n.types import Error, Failure, Picture

DATA = Path(__file__).parents[2] / "shared" / "data"
ODD = sorted(file for file in (DATA / "odd").rglob("*") if file.is_file())
needs_data = pytest.mark.skipif(not ODD, reason="needs ../shared/data/odd, which is not here")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
DEPTHS = [
    *[(".png", dtype) for dtype in ("uint8", "uint16")],
    *[(".tif", dtype) for dtype in ("uint8", "uint16", "float32")],
    (".TIFF", "uint16"),
    (".webp", "uint8"),
]


def sample(dtype="uint8", shape=(23, 31, 3), seed=0):
    values = np.random.default_rng(seed).random(shape)
    return images.from_float(values, dtype)


def exif(orientation=1, **tags):
    made = Image.Exif()
    made[271], made[274], made[282], made[283], made[296] = "Maker", orientation, 300.0, 300.0, 2
    made.get_ifd(34665).update({33434: 0.008, 36867: "2026:01:02 03:04:05", 34855: 800})
    made.get_ifd(34853).update({1: "N", 2: (47.0, 30.0, 0.0)})
    made.update({int(tag[1:]): value for tag, value in tags.items()})
    return made.tobytes()


def like(**meta):
    return Picture(np.zeros((1, 1), np.uint8), meta)


def error_of(call, *arguments, kind=Error, **options):
    with pytest.raises(kind) as caught:
        call(*arguments, **options)
    text = str(caught.value)
    assert len(text.splitlines()) == 1 and text
    return text


def saved(path, array=None, **options):
    Image.fromarray(sample() if array is None else array).save(path, **options)
    return path


# Round trips


@pytest.mark.parametrize("extension, dtype", DEPTHS)
@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize("transparent", [False, True])
def test_lossless_formats_give_back_the_same_array_and_alpha(
    tmp_path, extension, dtype, channels, transparent
):
    array = sample(dtype, (23, 31) if channels is None else (23, 31, channels))
    alpha = sample(dtype, (23, 31), seed=1) if transparent else None
    path = tmp_path / f"a{extension}"
    images.write(path, array, like=like(alpha=alpha))
    back = images.read(path)
    expected = array[..., 0] if channels == 1 else array
    # WebP stores grey as RGB; PNG of 16 bits stores grey with alpha as RGB with alpha.
    if back.array.ndim > expected.ndim:
        assert extension == ".webp" or (extension == ".png" and transparent)
        expected = np.repeat(expected[..., None], 3, axis=-1)
    np.testing.assert_array_equal(back.array, expected)
    assert back.array.dtype == dtype == back.meta["dtype"]
    assert (back.meta["alpha"] is None) == (alpha is None)
    if alpha is not None:
        np.testing.assert_array_equal(back.meta["alpha"], alpha)
    assert back.meta["path"] == str(path)
    assert back.meta["software"] == f"n2n {n2n.__version__}"
    assert images.declared_size(path)[:2] == (31, 23)


@pytest.mark.parametrize("extension, dtype", [*DEPTHS, (".jpg", "uint8")])
def test_exif_and_icc_are_kept_and_software_set(tmp_path, extension, dtype):
    path = tmp_path / f"a{extension}"
    images.write(path, sample(dtype), like={"exif": exif(6, _305="Camera 1.0"), "icc": SRGB})
    meta = images.read(path).meta
    assert meta["icc"] == SRGB
    kept = metadata.loads(meta["exif"])
    assert kept[271] == "Maker" and kept[274] == 1
    assert kept[305] == meta["software"] == f"n2n {n2n.__version__}"
    assert float(kept[282]) == 300.0
    assert float(kept.get_ifd(34665)[33434]) == pytest.approx(0.008)
    assert kept.get_ifd(34665)[34855] == 800
    assert kept.get_ifd(34853)[1] == "N"
    assert [float(part) for part in kept.get_ifd(34853)[2]] == [47, 30, 0]


def test_a_second_generation_keeps_the_metadata(tmp_path):
    images.write(tmp_path / "a.tif", sample("uint16"), like={"exif": exif(), "icc": SRGB})
    first = images.read(tmp_path / "a.tif")
    images.write(tmp_path / "b.png", first.array, like=first)
    second = images.read(tmp_path / "b.png")
    np.testing.assert_array_equal(second.array, first.array)
    assert metadata.loads(second.meta["exif"]).get_ifd(34665)[34855] == 800


def test_jpeg_is_4_4_4_of_the_quality_asked(tmp_path):
    images.write(tmp_path / "a.jpg", sample())
    images.write(tmp_path / "b.jpg", sample(), quality=30)
    with Image.open(tmp_path / "a.jpg") as image:
        assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3
    assert (tmp_path / "b.jpg").stat().st_size < (tmp_path / "a.jpg").stat().st_size / 2
    smooth = np.full((32, 32, 3), 77, np.uint8)
    images.write(tmp_path / "c.jpg", smooth)
    assert np.abs(images.read(tmp_path / "c.jpg").array.astype(int) - 77).max() <= 1


def test_jpeg_leaves_alpha_out_and_other_depths_of_alpha_are_converted(tmp_path):
    alpha = sample("uint8", (23, 31))
    images.write(tmp_path / "a.jpg", sample(), like={"alpha": alpha})
    assert images.read(tmp_path / "a.jpg").meta["alpha"] is None
    images.write(tmp_path / "a.png", sample("uint16"), like={"alpha": alpha})
    np.testing.assert_array_equal(
        images.read(tmp_path / "a.png").meta["alpha"], alpha.astype(np.uint16) * 257
    )
    assert "alpha is (5, 5)" in error_of(
        images.write, tmp_path / "b.png", sample(), like={"alpha": alpha[:5, :5]}
    )


def test_a_jpeg_drops_what_exif_does_not_fit_its_64_kilobytes(tmp_path):
    large = Image.Exif()
    large[271] = "Maker"
    large.get_ifd(34665).update({37500: b"m" * 70_000, 34855: 800})
    images.write(tmp_path / "a.jpg", sample(), like={"exif": large.tobytes()})
    kept = metadata.loads(images.read(tmp_path / "a.jpg").meta["exif"])
    assert kept[271] == "Maker" and kept.get_ifd(34665)[34855] == 800
    large[315] = "x" * 70_000
    images.write(tmp_path / "b.jpg", sample(), like={"exif": large.tobytes()})
    assert images.read(tmp_path / "b.jpg").meta["software"].startswith("n2n")


def test_senseless_metadata_does_not_stop_a_picture(tmp_path):
    for extension in (".png", ".tif", ".jpg", ".webp"):
        path = tmp_path / f"a{extension}"
        images.write(path, sample(), like={"exif": b"nonsense", "icc": b"nonsense"})
        assert images.read(path).meta["icc"] is None
        assert images.read(path).meta["software"].startswith("n2n")


def test_tags_that_cannot_be_written_again_cost_only_themselves():
    bad = Image.Exif()
    bad[271], bad[282] = "Maker", "no number"
    kept = metadata.loads(metadata.packed(bad))
    assert kept[271] == "Maker" and 282 not in kept


# Reading


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", [".jpg", ".png", ".webp", ".tif"])
def test_orientation_is_applied_once_as_pillow_does(tmp_path, orientation, extension):
    path = saved(tmp_path / f"a{extension}", exif=exif(orientation))
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    picture = images.read(path)
    np.testing.assert_array_equal(picture.array, expected)
    assert metadata.loads(picture.meta["exif"])[274] == 1
    images.write(tmp_path / "again.png", picture.array, like=picture)
    np.testing.assert_array_equal(images.read(tmp_path / "again.png").array, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_turns_16_bits_and_alpha(tmp_path, orientation):
    import cv2

    bgra = sample("uint16", (5, 7, 4))
    block = np.frombuffer(metadata.bare(exif(orientation)), np.uint8)
    data = cv2.imencodeWithMetadata(".png", bgra, [cv2.IMAGE_METADATA_EXIF], [block])[1]
    (tmp_path / "a.png").write_bytes(data.tobytes())
    picture = images.read(tmp_path / "a.png")
    for channel, ours in [(2, picture.array[..., 0]), (3, picture.meta["alpha"])]:
        stored = Image.fromarray(bgra[..., channel].astype(np.int32))
        stored.getexif()[274] = orientation
        np.testing.assert_array_equal(ours, np.asarray(ImageOps.exif_transpose(stored)))


def test_the_thumbnail_is_dropped_and_sides_in_exif_turn(tmp_path):
    small = io.BytesIO()
    Image.fromarray(sample()).save(small, "JPEG")
    made = Image.Exif()
    made.load(exif(6))
    made.get_ifd(34665).update({40962: 31, 40963: 23})
    with_thumbnail = io.BytesIO()
    Image.fromarray(sample()).save(with_thumbnail, "JPEG", exif=made.tobytes())
    # Pillow writes no thumbnail directory: link one (offset and length of a JPEG) by hand.
    block = bytearray(made.tobytes()[6:])
    order = "little" if block[:2] == b"II" else "big"
    count = int.from_bytes(block[8:10], order)
    link = 10 + 12 * count
    at = len(block)
    block[link : link + 4] = at.to_bytes(4, order)
    ifd = (2).to_bytes(2, order)
    for tag, value in [(513, at + 30), (514, len(small.getvalue()))]:
        ifd += tag.to_bytes(2, order) + (4).to_bytes(2, order)
        ifd += (1).to_bytes(4, order) + value.to_bytes(4, order)
    block += ifd + bytes(4) + small.getvalue()
    path = saved(tmp_path / "a.jpg", exif=b"Exif\0\0" + bytes(block))
    with Image.open(path) as image:
        assert image.getexif().get_ifd(ExifTags.IFD.IFD1)[514] == len(small.getvalue())
    kept = images.read(path).meta["exif"]
    assert b"\xff\xd8\xff" not in kept
    assert metadata.loads(kept).get_ifd(ExifTags.IFD.IFD1) == {}
    ifd_of = metadata.loads(kept).get_ifd(34665)
    assert (ifd_of[40962], ifd_of[40963]) == (23, 31)


def test_palettes_become_rgb_and_bits_uint8(tmp_path):
    colours = np.array([[[255, 0, 0], [0, 0, 255]], [[0, 255, 0], [9, 9, 9]]], np.uint8)
    palette = Image.fromarray(colours).convert("P", palette=Image.Palette.ADAPTIVE)
    for extension in (".png", ".tif", ".bmp"):
        palette.save(tmp_path / f"p{extension}")
        np.testing.assert_array_equal(images.read(tmp_path / f"p{extension}").array, colours)
    bits = np.array([[True, False, True]])
    for extension in (".png", ".tif", ".bmp"):
        saved(tmp_path / f"b{extension}", bits)
        back = images.read(tmp_path / f"b{extension}")
        np.testing.assert_array_equal(back.array, np.array([[255, 0, 255]], np.uint8))


def test_a_transparent_colour_becomes_alpha(tmp_path):
    grey = np.array([[0, 7, 255]], np.uint8)
    path = saved(tmp_path / "a.png", grey, transparency=7)
    picture = images.read(path)
    np.testing.assert_array_equal(picture.array, grey)
    np.testing.assert_array_equal(picture.meta["alpha"], [[255, 0, 255]])


@pytest.mark.parametrize("mode", ["CMYK", "LAB"])
def test_cmyk_and_lab_are_refused(tmp_path, mode):
    for extension in (".tif", ".jpg") if mode == "CMYK" else (".tif",):
        Image.new(mode, (8, 8)).save(tmp_path / f"a{extension}")
        assert f"is {mode}" in error_of(images.read, tmp_path / f"a{extension}")


def test_a_stack_is_refused_by_read_and_read_by_read_pages(tmp_path):
    stack = sample("uint16", (4, 9, 11))
    tifffile.imwrite(tmp_path / "s.tif", stack, photometric="minisblack")
    text = error_of(images.read, tmp_path / "s.tif")
    assert "4 pages" in text and "read_pages" in text
    pages = images.read_pages(tmp_path / "s.tif")
    np.testing.assert_array_equal(np.stack([page.array for page in pages]), stack)
    single = saved(tmp_path / "one.png")
    assert len(images.read_pages(single)) == 1


def test_animations_are_stacks_too(tmp_path):
    frames = [Image.fromarray(sample(seed=seed)) for seed in range(3)]
    options = {"save_all": True, "append_images": frames[1:]}
    for name, more in [("a.webp", {"lossless": True}), ("a.png", {})]:
        frames[0].save(tmp_path / name, **options, **more)
        assert "3 pages" in error_of(images.read, tmp_path / name)
        for page, frame in zip(images.read_pages(tmp_path / name), frames, strict=True):
            np.testing.assert_array_equal(page.array, np.asarray(frame))


def test_the_previews_in_a_phones_jpeg_are_no_burst(tmp_path):
    path = tmp_path / "a.jpg"
    small = Image.fromarray(sample(shape=(8, 8, 3)))
    Image.fromarray(sample()).save(path, "MPO", save_all=True, append_images=[small])
    assert images.read(path).array.shape == (23, 31, 3)


def test_tiffs_of_all_kinds(tmp_path):
    path, rgb = tmp_path / "a.tif", sample("uint16", (6, 7, 3))
    for options in [{"compression": "zlib"}, {"byteorder": ">"}, {"tile": (16, 16)}, {}]:
        tifffile.imwrite(path, rgb, photometric="rgb", **options)
        back = images.read(path).array
        np.testing.assert_array_equal(back, rgb)
        assert back.dtype.isnative
    tifffile.imwrite(path, np.moveaxis(rgb, -1, 0), photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(images.read(path).array, rgb)
    tifffile.imwrite(path, rgb[..., 0], photometric="miniswhite")
    np.testing.assert_array_equal(images.read(path).array, 65535 - rgb[..., 0])
    for dtype in ("float16", "float64", "int16", "uint32"):
        tifffile.imwrite(path, sample(dtype, (6, 7)), photometric="minisblack")
        np.testing.assert_array_equal(images.read(path).array, sample(dtype, (6, 7)))
    channels = sample("uint8", (6, 7, 5))
    tifffile.imwrite(path, channels, photometric="minisblack", planarconfig="contig")
    np.testing.assert_array_equal(images.read(path).array, channels)


def test_a_tiff_without_a_page_is_refused(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"II*\0" + bytes(4))
    for call in (images.read, images.read_pages, images.declared_size):
        assert "without a page" in error_of(call, tmp_path / "a.tif")


def test_reduced_pages_of_a_tiff_are_no_pictures(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(sample("uint16"), photometric="rgb")
        file.write(sample("uint16")[::4, ::4], photometric="rgb", subfiletype=1)
    assert images.read(tmp_path / "a.tif").array.shape == (23, 31, 3)


def test_premultiplied_alpha_is_divided_out(tmp_path):
    stored = np.array([[[100, 50, 0, 128], [0, 0, 0, 0], [255, 1, 2, 255]]], np.uint8)
    for dtype, factor in (("uint8", 1), ("uint16", 257)):
        array = stored.astype(dtype) * np.asarray(factor, dtype)
        tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", extrasamples=["assocalpha"])
        picture = images.read(tmp_path / "a.tif")
        colours = np.rint(picture.array / factor)
        np.testing.assert_allclose(colours, [[[199, 100, 0], [0, 0, 0], [255, 1, 2]]], atol=1)
        np.testing.assert_array_equal(picture.meta["alpha"], array[..., 3])


@pytest.mark.parametrize("predictor", [1, 2])
def test_lzw_tiffs_are_read(tmp_path, predictor):
    import cv2

    for array in (sample("uint16"), sample("uint16", (23, 31)), sample("uint8")):
        options = [cv2.IMWRITE_TIFF_COMPRESSION, 5, cv2.IMWRITE_TIFF_PREDICTOR, predictor]
        cv2.imwrite(str(tmp_path / "a.tif"), array, options)
        expected = array[..., ::-1] if array.ndim == 3 else array
        np.testing.assert_array_equal(images.read(tmp_path / "a.tif").array, expected)


@pytest.mark.parametrize(
    "mode, compression",
    [
        *itertools.product(["RGB", "L", "RGBA", "P"], ["tiff_lzw", "packbits"]),
        *[("RGB", "jpeg"), ("L", "jpeg"), ("1", "group4")],
    ],
)
def test_compressed_tiffs_of_8_bits_are_read(tmp_path, mode, compression):
    image = Image.fromarray(sample(shape=(23, 31, 4))).convert(mode)
    image.save(tmp_path / "a.tif", compression=compression)
    with Image.open(tmp_path / "a.tif") as stored:
        expected = np.asarray(stored.convert("L" if mode in "1L" else "RGB"))
    picture = images.read(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture.array, expected)
    assert (picture.meta["alpha"] is not None) == (mode == "RGBA")


def test_an_undeclared_fourth_channel_of_rgb_is_alpha(tmp_path):
    import cv2

    bgra = sample("uint16", (23, 31, 4))
    cv2.imwrite(str(tmp_path / "a.tif"), bgra)
    picture = images.read(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture.array, bgra[..., 2::-1])
    np.testing.assert_array_equal(picture.meta["alpha"], bgra[..., 3])


def test_portable_maps_of_16_bits_reach_white(tmp_path):
    grey = np.array([[0, 512, 1023]])
    (tmp_path / "a.pgm").write_bytes(b"P5\n# 1\n3 1\n1023\n" + grey.astype(">u2").tobytes())
    (tmp_path / "b.pgm").write_bytes(b"P2\n3 1\n1023\n0 512 1023\n")
    for name in ("a.pgm", "b.pgm"):
        array = images.read(tmp_path / name).array
        assert array.dtype == np.uint16
        np.testing.assert_array_equal(array, np.rint(grey * (65535 / 1023)))
    rgb = sample("uint16", (4, 5, 3))
    (tmp_path / "a.ppm").write_bytes(b"P6 5 4 65535\n" + rgb.astype(">u2").tobytes())
    np.testing.assert_array_equal(images.read(tmp_path / "a.ppm").array, rgb)
    saved(tmp_path / "c.ppm")
    np.testing.assert_array_equal(images.read(tmp_path / "c.ppm").array, sample())


@pytest.mark.parametrize(
    "extension, dtype", [(".ppm", "uint8"), (".bmp", "uint8"), (".jpg", "uint8"), *DEPTHS]
)
def test_a_truncated_file_is_refused(tmp_path, extension, dtype):
    path = tmp_path / f"a{extension}"
    if extension in (".ppm", ".bmp"):
        saved(path)
    else:
        images.write(path, sample(dtype))
    whole = path.read_bytes()
    for length in (0, 3, 20, len(whole) // 2, len(whole) - 150):
        path.write_bytes(whole[:length])
        assert path.name in error_of(images.read, path)


def test_what_is_no_picture_file_is_refused(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    assert "folder" in error_of(images.read, tmp_path)
    assert "no such file" in error_of(images.read, tmp_path / "none.png")
    assert "unknown format" in error_of(images.read, tmp_path / "text.png")
    error_of(images.read, "nul\0byte.png")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        assert "no such file" in error_of(images.read, tmp_path / "pipe.png")


@pytest.mark.skipif(os.name == "nt", reason="Windows allows no line break in a file name")
def test_a_line_break_in_a_name_stays_out_of_the_message(tmp_path):
    path = tmp_path / "two\nlines.png"
    path.write_text("no picture")
    assert r"two\nlines.png" in error_of(images.read, path)
    assert r"three\nlines" in error_of(images.frames_in, tmp_path / "three\nlines")
    assert r"two\nlines.gif" in error_of(images.write, tmp_path / "two\nlines.gif", sample())


def _png_header(width, height, depth=8):
    import struct
    import zlib

    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    blocks = [chunk, data, b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(b) - 4) + b + struct.pack(">I", zlib.crc32(b)) for b in blocks
    )


@pytest.mark.parametrize("size", [(40_000, 30_000, 8), (30_000, 30_000, 16), (2**31 - 1, 1, 8)])
def test_declared_bombs_are_refused_before_decoding(tmp_path, monkeypatch, size):
    path = tmp_path / "bomb.png"
    path.write_bytes(_png_header(*size))
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    for call in (images.read, images.read_pages, images.declared_size):
        assert "declares" in error_of(call, path)
    assert images.frames_in(tmp_path) == [path]


def test_tiff_bombs_are_refused_before_decoding(tmp_path, monkeypatch):
    path = tmp_path / "bomb.tif"
    tifffile.imwrite(path, sample("uint16"), photometric="rgb")
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags[256].overwrite(10**6)
        file.pages[0].tags[257].overwrite(10**6)
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda *_: pytest.fail("decoded"))
    assert "declares" in error_of(images.read, path)
    assert "declares" in error_of(images.declared_size, path)


def test_pictures_above_pillows_own_limit_are_declared(tmp_path):
    path = tmp_path / "large.png"
    path.write_bytes(_png_header(20_000, 20_000))
    before = Image.MAX_IMAGE_PIXELS
    assert images.declared_size(path) == (20_000, 20_000, 3)
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    "name, module", [("a.cr3", "rawpy"), ("a.NEF", "rawpy"), ("a.heic", "pillow_heif")]
)
def test_a_missing_reader_names_the_extra(tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / name).write_bytes(b"contents")
    assert "pip install 'n2n[photo]'" in error_of(images.read, tmp_path / name)


def test_a_missing_opencv_is_one_line_of_advice(tmp_path, monkeypatch):
    images.write(tmp_path / "a.png", sample("uint16"))
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert "opencv-python-headless" in error_of(images.read, tmp_path / "a.png")
    assert "opencv-python-headless" in error_of(images.write, tmp_path / "b.png", sample("uint16"))


# The strange files


@needs_data
@pytest.mark.parametrize("path", ODD, ids=lambda path: path.name)
def test_a_strange_file_is_read_or_refused_in_one_line(path, capfd, caplog):
    start = time.perf_counter()
    try:
        picture = images.read(path)
    except Error as error:
        assert path.name in str(error) and len(str(error).splitlines()) == 1
    else:
        assert picture.array.size and picture.array.dtype.kind in "uif"
        channels = 1 if picture.array.ndim == 2 else picture.array.shape[2]
        assert channels in (1, 3)
        width, height, declared = images.declared_size(path)
        assert picture.array.shape[:2] in ((height, width), (width, height))
        assert declared >= channels
        wide = picture.array.dtype.kind in "iu" and picture.array.dtype.itemsize > 2
        image = images.to_float(picture.array, (0, 65535) if wide else None)
        assert image.shape == (*picture.array.shape[:2], channels)
        alpha = picture.meta["alpha"]
        assert alpha is None or alpha.shape == picture.array.shape[:2]
    assert time.perf_counter() - start < 5
    assert capfd.readouterr() == ("", "") and not caplog.records


@needs_data
@pytest.mark.parametrize("path", ODD, ids=lambda path: path.name)
def test_a_strange_file_is_scanned_for_pages_and_software_quietly(path, capfd):
    assert isinstance(reading.software(path), str)
    try:
        assert images.read_pages(path)
    except Error as error:
        assert path.name in str(error)
    assert capfd.readouterr() == ("", "")


@needs_data
def test_strange_files_that_must_be_read():
    def read(name):
        return images.read(next(path for path in ODD if path.name == name))

    assert read("rgb32f_color.tiff").array.dtype == np.float32
    assert read("Nikon-D300-12bit_2020_g1_dt.png").array.dtype == np.uint16
    assert read("tiff_16bit_RGBa.tiff").meta["alpha"].dtype == np.uint16
    assert read("basn4a16.png").array.shape == (32, 32)
    assert read("broken_exif_dpi.jpg").meta["software"].startswith("Adobe")
    assert read("Nikon-D300-12bit_2020_g1_dt.png").meta["icc"]


@needs_data
def test_the_lzw_burst_is_read():
    folder = DATA / "burst_neif_pair"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/burst_neif_pair")
    arrays = [images.read(frame).array for frame in images.frames_in(folder)]
    assert [array.shape for array in arrays] == [(1080, 1920)] * 2
    assert arrays[0].dtype == np.uint16 and 1000 < np.median(arrays[0]) < 10_000


@pytest.mark.parametrize("extension, dtype", [*DEPTHS, (".jpg", "uint8")])
def test_damaged_bytes_give_a_picture_or_one_line(tmp_path, capfd, extension, dtype):
    path = tmp_path / f"a{extension}"
    images.write(path, sample(dtype), like={"exif": exif(6), "icc": SRGB})
    whole, generator = path.read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for place in generator.integers(0, 400, 4):
            damaged[place] = generator.integers(0, 256)
        path.write_bytes(damaged)
        try:
            assert images.read_pages(path)
        except Error as error:
            assert path.name in str(error) and len(str(error).splitlines()) == 1
    assert capfd.readouterr() == ("", "")


# Silence


def test_c_libraries_loggers_and_warnings_are_silent_inside_and_heard_outside(capfd, caplog):
    filters, level = warnings.filters[:], logging.getLogger("tifffile").level
    with quiet.quiet(), quiet.quiet():
        os.write(2, b"from C")
        warnings.warn("from Python", stacklevel=1)
        logging.getLogger("PIL.TiffImagePlugin").error("from a logger")
    os.write(2, b"outside")
    assert capfd.readouterr().err == "outside"
    assert not caplog.records
    assert warnings.filters == filters and logging.getLogger("tifffile").level == level


def test_threads_that_overlap_leave_stderr_as_it_was(tmp_path, capfd):
    path = saved(tmp_path / "a.png")
    threads = [
        threading.Thread(target=lambda: [images.read(path) for _ in range(20)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.write(2, b"heard")
    assert capfd.readouterr().err == "heard"


def test_importing_is_cheap():
    code = "import sys, n2n.images; print([m for m in ('jax', 'cv2', 'tifffile', 'imageio', 'PIL')"
    code += " if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Writing


@pytest.mark.parametrize(
    "name, dtype, remedy",
    [
        ("a.jpg", "uint16", "from_float(image, 'uint8') or write .tif"),
        ("a.png", "float32", "from_float(image, 'uint16') or write .tif"),
        ("a.webp", "uint16", "from_float(image, 'uint8')"),
        ("a.tif", "float64", "from_float(image, 'float32')"),
        ("a.tif", "bool", "from_float(image, 'float32')"),
        ("a.bmp", "uint8", ".png"),
        ("a", "uint8", ".png"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_with_the_remedy(tmp_path, name, dtype, remedy):
    assert remedy in error_of(images.write, tmp_path / name, sample(dtype))
    assert not list(tmp_path.iterdir())


def test_the_depths_of_a_format_can_be_asked():
    assert images.dtypes_for("a.PNG") == ("uint8", "uint16")
    assert images.dtypes_for("a.tif")[-1] == "float32"
    assert images.dtypes_for("a.jpg") == ("uint8",) and images.dtypes_for("a.cr3") == ()


@pytest.mark.parametrize("shape", [(4,), (4, 4, 2), (4, 4, 4), (2, 4, 4, 3), (0, 4, 3)])
def test_what_is_no_picture_is_not_written(tmp_path, shape):
    assert "shape" in error_of(images.write, tmp_path / "a.png", np.zeros(shape, np.uint8))
    wide = np.zeros((1, 20_000), np.uint8)
    assert "write .png" in error_of(images.write, tmp_path / "a.webp", wide)


def test_an_output_is_replaced_only_when_told(tmp_path):
    path = tmp_path / "a.png"
    images.write(path, sample())
    assert "exists" in error_of(images.write, path, sample(seed=1))
    np.testing.assert_array_equal(images.read(path).array, sample())
    images.write(path, sample(seed=1), overwrite=True)
    np.testing.assert_array_equal(images.read(path).array, sample(seed=1))
    assert "is a folder" in error_of(images.write, _folder(tmp_path / "d.png"), sample())
    assert "does not exist" in error_of(images.write, tmp_path / "x" / "a.png", sample())


def _folder(path):
    path.mkdir()
    return path


@pytest.mark.skipif(os.name == "nt", reason="Windows makes links for administrators only")
def test_an_input_is_never_overwritten(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.png")
    before = path.read_bytes()
    (tmp_path / "link.png").symlink_to(path)
    (tmp_path / "hard.png").hardlink_to(path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    source = images.read(path)
    for name in ("a.png", "./a.png", "sub/../a.png", path, "link.png", "hard.png"):
        text = error_of(images.write, name, sample(seed=1), like=source, overwrite=True)
        assert "choose another name" in text
    through_link = images.read("link.png")
    error_of(images.write, path, sample(), like=through_link, overwrite=True)
    assert path.read_bytes() == before and (tmp_path / "link.png").is_symlink()


@pytest.mark.parametrize("broken", ["fsync", "replace"])
@pytest.mark.parametrize("raised, seen", [(OSError, Failure), (KeyboardInterrupt,) * 2])
def test_a_failure_leaves_nothing_half_written(tmp_path, monkeypatch, broken, raised, seen):
    def fail(*_):
        raise raised("disk full")

    images.write(tmp_path / "old.png", sample())
    before = (tmp_path / "old.png").read_bytes()
    monkeypatch.setattr(writing.os, broken, fail)
    for name in ("old.png", "new.png"):
        with pytest.raises(seen):
            images.write(tmp_path / name, sample(seed=1), overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["old.png"]
    assert (tmp_path / "old.png").read_bytes() == before


def test_an_encoder_that_raises_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(writing, "_imageio", fail)
    assert "could not be written" in error_of(
        images.write, tmp_path / "a.png", sample(), kind=Failure
    )
    assert not list(tmp_path.iterdir())


def test_the_aside_file_is_hidden_and_in_the_same_folder(tmp_path, monkeypatch):
    seen = []
    replace = os.replace
    monkeypatch.setattr(writing.os, "replace", lambda a, b: (seen.append(Path(a)), replace(a, b)))
    images.write(tmp_path / ("n" * 251 + ".png"), sample())
    assert seen[0].parent == tmp_path and seen[0].name.startswith(".")


# Numbers


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64", "int16", "int64", "bool"])
def test_white_is_one_and_comes_back(dtype):
    most = 1 if dtype == "bool" else np.iinfo(dtype).max
    array = np.array([[0, most]], dtype)
    image = images.to_float(array)
    assert image.dtype == np.float32 and image.shape == (1, 2, 1)
    np.testing.assert_array_equal(image[..., 0], [[0, 1]])
    np.testing.assert_array_equal(images.from_float(image, dtype)[..., 0], array)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
@pytest.mark.parametrize("data_range", [None, 4095, (115, 8529)])
def test_every_integer_survives(dtype, data_range):
    info = np.iinfo(dtype)
    array = np.arange(info.min, info.max + 1, dtype=dtype).reshape(256 if info.bits > 8 else 16, -1)
    back = images.from_float(images.to_float(array, data_range), dtype, data_range)
    np.testing.assert_array_equal(back[..., 0], array)


def test_data_range_maps_its_ends_for_integers_and_floats():
    for dtype in ("uint16", ">u2", "float32", "float64"):
        array = np.array([[100, 2100, 4100]], dtype)
        np.testing.assert_allclose(images.to_float(array, (100, 4100))[..., 0], [[0, 0.5, 1]])
        np.testing.assert_allclose(images.to_float(array, 4100)[0, 2, 0], 1)
    for bad in (0, -1, (1, 1), (2, 1), (1, 2, 3), "x", (0, np.inf)):
        assert "data_range" in error_of(images.to_float, np.ones((2, 2)), bad)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32", "float64"])
@pytest.mark.parametrize("data_range", [None, (-1.0, 3.0), 4095])
def test_settled_once_parts_are_converted_as_the_whole(dtype, data_range):
    array = sample(dtype)
    low_high = images.settle(array, data_range, rows=5)
    whole = images.to_float(array, data_range)
    parts = [images.to_float(array[y : y + 4], low_high) for y in range(0, 23, 4)]
    assert np.array_equal(np.concatenate(parts), whole)
    back = images.from_float(whole, dtype, data_range)
    assert np.array_equal(images.from_float(whole, dtype, low_high), back)


@pytest.mark.parametrize("dtype", ["int32", "uint32", "int64"])
def test_wide_integers_that_use_a_sliver_of_their_range_are_no_black_picture(dtype):
    array = np.arange(256, dtype=dtype).reshape(16, 16)
    message = f"{dtype} values from 0 to 255, a sliver of what the type holds; say which"
    assert message in error_of(images.to_float, array) and message in error_of(images.settle, array)
    assert images.to_float(array, 255).max() == 1 and images.settle(array, 255) == (0, 255)
    assert images.settle(0 * array)[0] == 0 and images.to_float(0 * array).max() == 0


def test_a_picture_is_settled_by_all_its_parts():
    dark = np.zeros((400, 2), np.float32)
    dark[7] = 50  # one row of many, beyond the usual: as for the whole picture no fault
    assert images.settle(dark, rows=10) == (0.0, 1.0)
    images.to_float(dark)
    with pytest.raises(Error, match="floats from 0 to 50, where 99 %"):
        images.settle(dark[:90], rows=10)
    assert images.settle(dark[:90], (0, 50), rows=10) == (0.0, 50.0)
    dark[3, 1] = np.nan
    with pytest.raises(Error, match="1 of 800 values are not finite"):
        images.settle(dark, (0, 50), rows=10)
    with pytest.raises(Error, match="shape"):
        images.settle(np.zeros(3))


def test_floats_of_unknown_range_are_refused_with_the_range_found():
    text = error_of(images.to_float, np.full((4, 4), 4000.0))
    assert "4000" in text and "data_range=" in text
    mostly = np.full((10, 20, 1), 0.5)
    mostly[0, :2] = 70.0
    assert images.to_float(mostly).max() == 70
    mostly[0, :3] = 70.0
    error_of(images.to_float, mostly)


def test_odd_memory_layouts_and_no_alias():
    array = sample("float32")
    turned = array[::-1, ::-2]
    array.flags.writeable = False
    image = images.to_float(turned)
    np.testing.assert_array_equal(image, turned)
    assert image.flags.writeable and not np.shares_memory(image, array)
    np.testing.assert_allclose(images.to_float(sample("uint16").astype(">u2")), array, atol=1e-5)


@pytest.mark.parametrize(
    "array, word",
    [
        (np.full((2, 2), np.nan), "4 of 4"),
        (np.array([[0.5, np.inf]]), "1 of 2"),
        (np.zeros((2, 2), complex), "complex"),
        (np.zeros((2, 2), object), "object"),
        (np.zeros((0, 2)), "empty"),
        (np.zeros(3), "shape"),
        (np.zeros((1, 2, 3, 4)), "shape"),
    ],
)
def test_senseless_arrays_are_refused(array, word):
    assert word in error_of(images.to_float, array)


def test_values_too_large_for_float32_are_refused():
    error_of(images.to_float, np.array([[0.0, 1e300]]), 1.0)


def test_from_float_rounds_clips_integers_and_leaves_floats():
    image = np.array([[-0.5, 0.5, 0.1 / 255, 1.7]], np.float32)
    np.testing.assert_array_equal(images.from_float(image, "uint8"), [[0, 128, 0, 255]])
    np.testing.assert_array_equal(images.from_float(image, np.float32), image)
    np.testing.assert_array_equal(images.from_float(image, np.float32, (0, 10)), image * 10)
    error_of(images.from_float, image, complex)
    error_of(images.from_float, np.array([[np.nan]]), "uint8")
    before = image.copy()
    np.testing.assert_array_equal(image, before)


@settings(deadline=None, max_examples=50)
@given(
    hnp.arrays(
        st.sampled_from(["u1", ">u2", "i2", "f4", "f8", "?"]),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
    )
)
def test_any_array_gives_floats_or_one_line(array):
    try:
        image = images.to_float(array)
    except Error as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert image.dtype == np.float32 and image.ndim == 3 and np.isfinite(image).all()


# Frames and outputs


def touched(folder, *names):
    for name in names:
        saved(folder / name, format=None if images.is_picture(name) else "PNG")
    return folder


def test_pictures_are_known_by_extension():
    for name in ("a.png", "A.JPG", "b.tiff", "c.CR3", "d.heic", "e.pgm", "f.webp", "g.bmp"):
        assert images.is_picture(name)
    for name in ("a.txt", "png", ".DS_Store", "a.xmp", "Thumbs.db", "a.safetensors"):
        assert not images.is_picture(name)


def test_a_folder_gives_its_pictures_in_natural_order(tmp_path):
    touched(tmp_path, "IMG_10.png", "IMG_2.png", "img_1.png", ".hidden.png")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "OUT.png").mkdir()
    found = [file.name for file in images.frames_in(tmp_path)]
    assert found == ["img_1.png", "IMG_2.png", "IMG_10.png"]
    assert images.frames_in([str(tmp_path)]) == images.frames_in(tmp_path)


@pytest.mark.parametrize("extension, dtype", [*DEPTHS, (".jpg", "uint8")])
def test_a_second_run_ignores_n2ns_result(tmp_path, extension, dtype):
    touched(tmp_path, "a.png")
    source = images.read(tmp_path / "a.png")
    images.write(tmp_path / f"result{extension}", sample(dtype), like=source)
    assert images.frames_in(tmp_path) == [tmp_path / "a.png"]
    assert images.frames_in(tmp_path / f"result{extension}")
    (tmp_path / "a.png").unlink()
    assert "results of n2n" in error_of(images.frames_in, tmp_path)


def test_scanning_for_results_decodes_no_png(tmp_path, monkeypatch):
    touched(tmp_path, "a.png")
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    assert images.frames_in(tmp_path)


def test_raw_wins_over_jpeg_where_it_can_be_read(tmp_path, monkeypatch):
    for name in ("a.CR3", "b.NEF", "c.dng"):
        (tmp_path / name).write_bytes(b"raw")
    touched(tmp_path, "A.jpg", "b.JPEG", "d.jpg", "c.png")
    monkeypatch.setitem(sys.modules, "rawpy", object())
    names = [file.name for file in images.frames_in(tmp_path)]
    assert names == ["a.CR3", "b.NEF", "c.dng", "c.png", "d.jpg"]
    monkeypatch.setitem(sys.modules, "rawpy", None)
    names = [file.name for file in images.frames_in(tmp_path)]
    assert names == ["A.jpg", "b.JPEG", "c.dng", "c.png", "d.jpg"]


@pytest.mark.parametrize(
    ("given", "missing", "kept"),
    [
        ("A.cr3 a.hif", [], "A.cr3"),
        ("A.cr3 A.HIF A.jpg A.png", [], "A.cr3 A.png"),
        ("B.heic b.jpg", [], "B.heic"),
        ("B.avif b.jpeg C.jpg", [], "B.avif C.jpg"),
        ("A.cr3 A.hif A.jpg", ["rawpy"], "A.hif"),
        ("A.cr3 A.hif A.jpg", ["rawpy", "pillow_heif"], "A.jpg"),
        ("A.cr3 A.hif", ["rawpy", "pillow_heif"], "A.cr3"),
        ("A.cr3 A.dng A.hif", [], "A.cr3 A.dng"),
    ],
)
def test_of_one_shot_the_best_file_that_can_be_read_wins(
    tmp_path, monkeypatch, given, missing, kept
):
    for name in given.split():
        (tmp_path / name).write_bytes(b"picture")
    for module in ("rawpy", "pillow_heif"):
        monkeypatch.setitem(sys.modules, module, None if module in missing else object())
    monkeypatch.setattr("n2n.images.frames.software", lambda _: "")
    assert [file.name for file in images.frames_in(tmp_path)] == kept.split()


def test_folders_below_are_looked_into_where_asked(tmp_path):
    card = tmp_path / "DCIM"
    for inner in ("100CANON/deep", "101CANON", "99CANON", ".Trashes", "out.png.run"):
        (card / inner).mkdir(parents=True)
        touched(card / inner, "IMG_10.png", "IMG_9.png", ".hidden.png")
    touched(card / "100CANON", "IMG_1.jpg")
    os.symlink(card, card / "101CANON" / "round", target_is_directory=True)
    os.symlink(card / "99CANON", card / "link", target_is_directory=True)
    assert "no pictures" in error_of(images.frames_in, card)
    found = [str(one.relative_to(card)) for one in images.frames_in(card, below=True)]
    expected = ["99CANON/IMG_9.png", "99CANON/IMG_10.png", "100CANON/IMG_1.jpg"]
    expected += [f"100CANON/deep/IMG_{n}.png" for n in (9, 10)]
    assert found == [*expected, "101CANON/IMG_9.png", "101CANON/IMG_10.png"]
    (tmp_path / "empty").mkdir()
    assert "no pictures" in error_of(images.frames_in, tmp_path / "empty", below=True)


def test_equal_stems_in_two_folders_are_two_shots(tmp_path):
    for name in ("a/IMG_1.jpg", "b/IMG_1.CR3"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"picture")
    assert len(images.frames_in(tmp_path, below=True)) == 2


def test_named_files_keep_their_order_and_patterns_are_expanded(tmp_path):
    touched(tmp_path, "IMG_10.png", "IMG_2.png", "other.png")
    named = [tmp_path / "other.png", tmp_path / "IMG_2.png"]
    assert images.frames_in(named) == named
    found = images.frames_in([str(tmp_path / "IMG_*.png"), tmp_path / "other.png"])
    assert [file.name for file in found] == ["IMG_2.png", "IMG_10.png", "other.png"]
    touched(tmp_path, "[1].png")
    assert images.frames_in([tmp_path / "[1].png"]) == [tmp_path / "[1].png"]


def test_missing_frames_are_refused(tmp_path):
    assert "no such file" in error_of(images.frames_in, [tmp_path / "none.png"])
    assert "no such file" in error_of(images.frames_in, str(tmp_path / "*.png"))
    assert "no pictures" in error_of(images.frames_in, tmp_path)
    assert "none are given" in error_of(images.frames_in, [])


@pytest.mark.parametrize(
    "source, out, options, expected",
    [
        ("d/a.jpg", None, {}, "d/a-n2n.jpg"),
        ("d/a.JPG", None, {}, "d/a-n2n.JPG"),
        ("d/a.bmp", None, {}, "d/a-n2n.png"),
        ("d/a.cr3", None, {"extension": "tif"}, "d/a-n2n.tif"),
        ("d/a.jpg", None, {"extension": ".png", "suffix": "-x"}, "d/a-x.png"),
        ("d/a.jpg", "o.tif", {}, "o.tif"),
        ("d/a.jpg", "new/", {}, "new/a-n2n.jpg"),
        ("d/a.jpg", "new", {"several": True}, "new/a-n2n.jpg"),
        ("d/a.jpg", "folder", {}, "folder/a-n2n.jpg"),
        ("d/a.b.jpg", None, {}, "d/a.b-n2n.jpg"),
    ],
)
def test_where_results_go(tmp_path, monkeypatch, source, out, options, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    assert images.output_path(source, out, **options) == Path(expected)


def test_several_results_do_not_go_into_one_file(tmp_path):
    path = saved(tmp_path / "o.png")
    assert "name a folder" in error_of(images.output_path, "a.png", path, several=True)
