"""RAW and HEIC: what libraw and libheif make of files written here, and where EXIF hides."""

from __future__ import annotations

import io
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from n2n import images
from n2n.images import colour, metadata, raw

HEIGHT, WIDTH = 64, 96
BLACK, WHITE = 256, 4095
BALANCE = np.array([0.5, 1.0, 0.625])
"""What a neutral surface looks like to the sensor."""
MATRIX = np.array([[0.6, -0.1, -0.05], [-0.4, 1.2, 0.2], [-0.05, 0.15, 0.6]])
"""XYZ to camera."""


def rationals(values):
    return tuple(part for one in np.ravel(values) for part in (round(one * 10_000), 10_000))


def dng(path, light, orientation=1, **more):
    """Write light H,W,3 (1 = the sensor's white at green) as the mosaic of a camera RGGB."""
    light = light * BALANCE
    y, x = np.mgrid[: light.shape[0], : light.shape[1]]
    mosaic = np.take_along_axis(light, (y % 2 + x % 2)[..., None], axis=2)[..., 0]
    values = np.clip(np.rint(mosaic * (WHITE - BLACK) + BLACK), 0, WHITE).astype(np.uint16)
    tags = [
        (271, "s", 0, more.get("make", "Test")),
        (272, "s", 0, more.get("model", "Camera")),
        (274, "H", 1, orientation),
        (33421, "H", 2, (2, 2)),
        (33422, "B", 4, bytes([0, 1, 1, 2])),
        (50706, "B", 4, bytes([1, 4, 0, 0])),
        (50707, "B", 4, bytes([1, 1, 0, 0])),
        (50708, "s", 0, "Test Camera"),
        (50714, "H", 1, BLACK),
        (50717, "H", 1, WHITE),
        (50728, "2I", 3, rationals(BALANCE)),
    ]
    if "make" not in more:
        tags += [(50721, "2i", 9, rationals(MATRIX)), (50778, "H", 1, 21)]
    extra = [(*tag, True) for tag in tags]
    tifffile.imwrite(path, values, photometric=32803, extratags=extra, metadata=None)
    return path


@pytest.fixture
def rawpy():
    return pytest.importorskip("rawpy", reason="needs the photo extra", exc_type=ImportError)


def ramp(high=1.3):
    return np.repeat(np.tile(np.linspace(0, high, WIDTH), (HEIGHT, 1))[..., None], 3, axis=2)


def colours():
    """Three smooth channels that never clip."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([0.9 * x / WIDTH, 0.5 + 0 * x, 0.2 + 0.6 * y / HEIGHT], axis=-1)


# Development


def test_raw_is_linear_and_balanced(tmp_path, rawpy):
    picture = images.read(dng(tmp_path / "a.dng", ramp()))
    assert picture.array.dtype == np.uint16 and picture.array.shape == (HEIGHT, WIDTH, 3)
    expected = np.minimum(65535 * ramp(), 65535)
    # Half a level of 12 bits, twice that in the channel amplified twofold, and rounding; where a
    # neighbour is clipped, interpolation is not exact.
    inner = np.s_[4:-4, np.flatnonzero(np.abs(ramp()[0, :, 0] - 1) > 0.04)[4:-4]]
    assert np.abs(picture.array[inner] - expected[inner]).max() < 1.2 * 65535 / (WHITE - BLACK)


def test_highlights_are_clipped_white_in_all_channels(tmp_path, rawpy):
    picture = images.read(dng(tmp_path / "a.dng", ramp()))
    clipped = ramp()[0, :, 0] > 1.02
    assert (picture.array[4:-4, clipped] == 65535).all()


def test_exposure_does_not_follow_the_brightest_sample(tmp_path, rawpy):
    """A brightest sample at 0.85 or 0.95 of white must not become white."""
    for high in (0.85, 0.95):
        array = images.read(dng(tmp_path / f"{high}.dng", ramp(high))).array
        assert array[20, -6, 1] == pytest.approx(65535 * ramp(high)[20, -6, 1], rel=0.002)


@pytest.mark.parametrize("orientation, turns", [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_orientation_is_applied_once(tmp_path, rawpy, orientation, turns):
    plain = images.read(dng(tmp_path / "a.dng", colours())).array
    picture = images.read(dng(tmp_path / "b.dng", colours(), orientation))
    assert picture.array.shape == np.rot90(plain, turns).shape
    # Which of the corners is red and which is blue.
    rest = picture.array.astype(float) - np.rot90(plain, turns)
    assert np.abs(rest[8:-8, 8:-8]).max() < 700
    assert metadata.loads(picture.meta["exif"])[274] == 1
    images.write(tmp_path / "again.png", picture.array, like=picture)
    np.testing.assert_array_equal(images.read(tmp_path / "again.png").array, picture.array)


@pytest.mark.parametrize("model", [{}, {"make": "NIKON CORPORATION", "model": "NIKON D90"}])
def test_profile_and_development_agree_with_libraws_srgb(tmp_path, rawpy, model):
    """The matrix of the file, or of libraw's own table; three ways to the same colours."""
    path = dng(tmp_path / "a.dng", 0.2 + 0.5 * colours(), **model)
    with rawpy.imread(str(path)) as file:
        saturation = raw._saturation(file)
        linear = file.postprocess(
            use_camera_wb=True, no_auto_bright=True, adjust_maximum_thr=0, gamma=(1, 1),
            user_sat=saturation, output_bps=16, output_color=rawpy.ColorSpace.sRGB,
        )  # fmt: skip
    picture = images.read(path)
    matrix = np.array(picture.meta["linear"])
    assert not np.allclose(matrix, np.eye(3), atol=0.1)
    inner = np.s_[4:-4, 4:-4]
    mine = np.clip(picture.array @ matrix.T, 0, 65535)
    # libraw interpolates with the matrix at hand, so its choices may differ here and there.
    assert np.median(np.abs(mine - linear)[inner]) < 2

    shown = images.developed(picture)
    assert shown.array.dtype == np.uint16 and "linear" not in shown.meta
    light = images.to_float(linear)
    curve = np.where(light < 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    assert np.median(np.abs(shown.array / 65535 - curve)[inner]) < 0.002

    profile = ImageCms.ImageCmsProfile(io.BytesIO(picture.meta["icc"]))
    source = Image.fromarray((picture.array >> 8).astype(np.uint8))
    managed = ImageCms.profileToProfile(source, profile, ImageCms.createProfile("sRGB"))
    # Eight linear bits: half a level is several of display where red is nearly 0.
    assert np.percentile(np.abs(np.asarray(managed) - shown.array / 257.0)[inner], 95) < 2


def test_white_stays_white_in_the_profile():
    white = np.full((4, 4, 3), 255, np.uint8)
    matrix = colour.srgb_from_camera(MATRIX)
    np.testing.assert_allclose(matrix.sum(1), 1)
    profile = ImageCms.ImageCmsProfile(io.BytesIO(colour.linear_profile(matrix, "x, linear")))
    assert ImageCms.getProfileDescription(profile).strip() == "x, linear"
    shown = ImageCms.profileToProfile(
        Image.fromarray(white), profile, ImageCms.createProfile("sRGB")
    )
    assert np.asarray(shown).min() >= 254


@pytest.mark.parametrize("extension", [".png", ".tif"])
def test_the_profile_and_exif_go_into_the_result(tmp_path, rawpy, extension):
    picture = images.read(dng(tmp_path / "a.dng", colours()))
    images.write(tmp_path / f"b{extension}", picture.array, like=picture)
    back = images.read(tmp_path / f"b{extension}")
    assert back.meta["icc"] == picture.meta["icc"]
    assert metadata.loads(back.meta["exif"])[272] == "Camera"
    assert "linear" not in back.meta


def test_other_pictures_are_developed_already():
    picture = images.colour.Picture(np.zeros((2, 2, 3), np.uint8), {"icc": b"x"})
    assert images.developed(picture) is picture


def test_floats_are_developed_like_integers():
    rng = np.random.default_rng(0)
    deep = rng.integers(0, 65536, (20, 30, 3), dtype=np.uint16)
    meta = {"linear": tuple(map(tuple, colour.srgb_from_camera(MATRIX)))}
    shown = images.developed(images.colour.Picture(deep, meta)).array
    floats = images.colour.Picture((deep / 65535).astype(np.float32), meta)
    np.testing.assert_allclose(images.developed(floats).array, shown / 65535, atol=1e-4)


def test_a_size_beyond_the_limit_is_refused_before_decoding(tmp_path, rawpy, monkeypatch):
    from n2n.images import quiet
    from n2n.types import Error

    path = dng(tmp_path / "a.dng", colours())
    monkeypatch.setattr(quiet, "PIXELS", 1000)
    monkeypatch.setattr(raw, "_developed", lambda *_: pytest.fail("decoded"))
    for call in (images.read, images.declared_size):
        with pytest.raises(Error, match="declares 96 x 64"):
            call(path)


def test_a_damaged_raw_is_one_line(tmp_path, rawpy):
    from n2n.types import Error

    path = dng(tmp_path / "a.dng", colours())
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(Error) as caught:
        images.read(path)
    assert "a.dng" in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_the_clipping_of_a_camera_is_its_least_saturated_channel():
    class File:
        white_level = 16383
        raw_image = np.array([[70, 15000]], np.uint16)
        black_level_per_channel = [2048, 2048, 2048, 2050]
        camera_white_level_per_channel = None

    assert raw._saturation(File()) is None
    File.camera_white_level_per_channel = [15000, 15200, 0, 15100]
    assert raw._saturation(File()) == 15000 - 2048
    File.camera_white_level_per_channel = [16383] * 4
    assert raw._saturation(File()) is None
    File.camera_white_level_per_channel = [3000] * 4  # another unit than the samples'
    assert raw._saturation(File()) is None
    File.white_level = 255
    assert raw._saturation(File()) == 65535


def test_saturation_is_counted_above_black(tmp_path, rawpy, monkeypatch):
    monkeypatch.setattr(raw, "_saturation", lambda _: (WHITE - BLACK) // 2)
    array = images.read(dng(tmp_path / "a.dng", ramp(0.45))).array
    assert array[20, -6, 1] == pytest.approx(2 * 65535 * ramp(0.45)[20, -6, 1], rel=0.003)


@pytest.mark.parametrize("orientation, size", [(1, (WIDTH, HEIGHT)), (6, (HEIGHT, WIDTH))])
def test_a_raw_shot_is_read_from_the_header(tmp_path, rawpy, monkeypatch, orientation, size):
    monkeypatch.setattr(raw, "_developed", lambda *_: pytest.fail("decoded"))
    shot = images.shot(dng(tmp_path / "a.dng", colours(), orientation))
    assert shot.size == size and shot.camera == "Test Camera" and shot.pages == 1


# EXIF ---------------------------------------------------------------------------------------------


def exif():
    made = Image.Exif()
    made[271], made[272] = "Maker", "Model"
    made.get_ifd(34665).update({33434: 0.008, 36867: "2026:01:02 03:04:05", 34855: 800})
    return made


def tiff_bytes(made):
    made.endian = "<"
    return made.tobytes().removeprefix(b"Exif\0\0")


def box(kind, data):
    return struct.pack(">I4s", 8 + len(data), kind) + data


def cr3():
    """Boxes as Canon nests them: moov, uuid, and a TIFF for each directory."""
    camera, shot = Image.Exif(), Image.Exif()
    camera[271], camera[272] = "Maker", "Model"
    shot.update({33434: 0.008, 36867: "2026:01:02 03:04:05", 34855: 800})
    inner = box(b"CMT1", tiff_bytes(camera)) + box(b"CMT2", tiff_bytes(shot))
    moov = box(b"moov", box(b"uuid", bytes(16) + inner) + box(b"trak", bytes(12)))
    return box(b"ftyp", b"crx \0\0\0\1crx isom") + moov + box(b"mdat", bytes(40))


def raf():
    preview = io.BytesIO()
    Image.new("RGB", (8, 8)).save(preview, "JPEG", exif=exif().tobytes())
    data = preview.getvalue()
    return b"FUJIFILMCCD-RAW 0201".ljust(84, b"\0") + struct.pack(">II", 92, len(data)) + data


@pytest.mark.parametrize(
    "name, contents",
    [
        ("a.nef", lambda: tiff_bytes(exif())),
        ("a.orf", lambda: b"IIRO" + tiff_bytes(exif())[4:]),
        ("a.rw2", lambda: b"IIU\0" + tiff_bytes(exif())[4:]),
        ("a.raf", raf),
        ("a.cr3", cr3),
    ],
)
def test_exif_is_found_wherever_it_hides(tmp_path, name, contents):
    (tmp_path / name).write_bytes(contents())
    with raw.exif_of(tmp_path / name) as found:
        packed = metadata.packed(found, metadata.DESCRIPTIVE)
    kept = metadata.loads(packed)
    assert (kept[271], kept[272]) == ("Maker", "Model")
    ifd = kept.get_ifd(34665)
    assert ifd[36867] == "2026:01:02 03:04:05" and ifd[34855] == 800
    assert float(ifd[33434]) == pytest.approx(0.008)


@pytest.mark.parametrize("start", [b"", b"II*\0", b"IIRO", b"FUJIFILMCCD-RAW ", cr3()[:40]])
def test_damaged_exif_is_none(tmp_path, start):
    path = tmp_path / "a.raw"
    for rest in (b"", b"\xff" * 200):
        path.write_bytes(start + rest)
        with raw.exif_of(path) as found:
            assert metadata.packed(found, metadata.DESCRIPTIVE) == b""


# HEIC ---------------------------------------------------------------------------------------------


@pytest.fixture
def heif():
    module = pytest.importorskip("pillow_heif", reason="needs the photo extra")
    module.register_heif_opener()
    return module


def test_heic_is_turned_once_and_keeps_exif(tmp_path, heif):
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[:20, :30] = 200
    made = exif()
    made[274] = 6
    Image.fromarray(picture).save(tmp_path / "a.heic", exif=made.tobytes(), quality=90)
    read = images.read(tmp_path / "a.heic")
    assert read.array.shape == (60, 40, 3)
    assert read.array[5, 35].min() > 180 and read.array[5, 5].max() < 20
    kept = metadata.loads(read.meta["exif"])
    assert kept[274] == 1 and kept[271] == "Maker" and kept.get_ifd(34665)[34855] == 800
    shot = images.shot(tmp_path / "a.heic")
    assert shot.size == (40, 60) and shot.camera == "Maker Model" and shot.time
    assert shot.seconds == pytest.approx(0.008)


def test_ten_bits_of_a_heic_are_kept(tmp_path, heif):
    deep = np.linspace(0, 65535, 40 * 60 * 3).reshape(40, 60, 3).astype(np.uint16)
    file = heif.from_bytes(mode="RGB;16", size=(60, 40), data=deep.tobytes())
    file.save(tmp_path / "a.heic", quality=-1)
    array = images.read(tmp_path / "a.heic").array
    assert array.dtype == np.uint16 and array.max() == 65535 and array.min() == 0
    assert np.abs(array.astype(int) - deep).max() <= 2 * 65535 / 1023


def test_the_main_picture_of_several_in_a_heic_is_read(tmp_path, heif):
    dark, bright = (Image.new("L", (40, 32), value).convert("RGB") for value in (20, 220))
    file = heif.HeifFile()
    file.add_from_pillow(dark)
    file.add_from_pillow(bright)
    file.save(tmp_path / "a.heic", primary_index=1, quality=90)
    assert images.read(tmp_path / "a.heic").array.min() > 200
    assert len(images.read_pages(tmp_path / "a.heic")) == 1


# A file that a camera has written -----------------------------------------------------------------


def test_a_real_raw_file_is_read(data: Path, rawpy):
    path = data / "odd" / "raw_imageio" / "Nikon_uncompressed.nef"
    if not path.is_file():
        pytest.skip("needs ../shared/data/odd/raw_imageio")
    picture = images.read(path)
    assert picture.array.shape == (593, 869, 3) and picture.array.dtype == np.uint16
    assert (
        0.1 < picture.array.mean() / 65535 < 0.4
    )  # and not white, as its white level would have it
    assert metadata.loads(picture.meta["exif"])[272].startswith("Nikon COOLSCAN")
    assert images.declared_size(path) == (869, 593, 3)


def test_nothing_is_needed_for_raw_but_its_extra(tmp_path, monkeypatch):
    from n2n.types import Error

    monkeypatch.setitem(sys.modules, "rawpy", None)
    path = dng(tmp_path / "a.dng", colours())
    for call in (images.read, images.declared_size):
        with pytest.raises(Error, match="pip install 'n2n"):
            call(path)
