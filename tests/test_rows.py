"""TIFFs by their rows: what is read piece by piece is what is read at once."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from n2n import images
from n2n.images import rows as module
from n2n.images.rows import TiffRows
from n2n.types import Error

HEIGHT, WIDTH = 75, 50
KINDS = {
    "plain": {},
    "big": {"bigtiff": True},
    "motorola": {"byteorder": ">"},
    "strips": {"rowsperstrip": 7},
    "packed strips": {"rowsperstrip": 7, "compression": "zlib"},
    "one packed strip": {"rowsperstrip": HEIGHT, "compression": "zlib"},
    "tiles": {"tile": (32, 16)},
    "packed tiles": {"tile": (16, 32), "compression": "zlib"},
}


def noise(shape, dtype, seed=0):
    drawn = np.random.default_rng(seed).random(shape)
    return images.from_float(drawn, dtype)


def same(path) -> TiffRows:
    """Check a file's rows against the picture read at once; returns them, open."""
    picture, rows = images.read(path), TiffRows(path)
    assert rows.shape == picture.array.shape and rows.dtype == picture.array.dtype
    for first, last in [(0, 1), (0, HEIGHT), (5, 20), (31, 33), (HEIGHT - 1, HEIGHT), (70, 900)]:
        assert np.array_equal(rows[first:last], picture.array[first:last])
        alpha = rows.alpha(slice(first, last))
        if alpha is None:
            assert picture.meta["alpha"] is None
        else:
            assert np.array_equal(alpha, picture.meta["alpha"][first:last])
    assert rows.meta == {name: picture.meta[name] for name in rows.meta}
    return rows


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_the_pictures(tmp_path, kind: str, dtype: str) -> None:
    path = tmp_path / "a.tif"
    for shape, photometric in [((HEIGHT, WIDTH), "minisblack"), ((HEIGHT, WIDTH, 3), "rgb")]:
        tifffile.imwrite(path, noise(shape, dtype), photometric=photometric, **KINDS[kind])
        with same(path) as rows:
            assert rows.big == (kind == "big")
            assert rows.nbytes == np.prod(shape) * np.dtype(dtype).itemsize


@pytest.mark.parametrize("kind", KINDS)
def test_planes_that_follow_one_another(tmp_path, kind: str) -> None:
    path, array = tmp_path / "a.tif", noise((3, HEIGHT, WIDTH), "uint16")
    tifffile.imwrite(path, array, photometric="rgb", planarconfig="separate", **KINDS[kind])
    same(path).__exit__()


@pytest.mark.parametrize("kind", ["plain", "packed tiles"])
@pytest.mark.parametrize("extra", ["unassalpha", "assocalpha"])
@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_goes_beside(tmp_path, kind: str, extra: str, channels: int) -> None:
    path, array = tmp_path / "a.tif", noise((HEIGHT, WIDTH, channels), "uint8")
    photometric = "rgb" if channels == 4 else "minisblack"
    tifffile.imwrite(
        path, array, photometric=photometric, planarconfig="contig", extrasamples=[extra],
        **KINDS[kind],
    )  # fmt: skip
    with same(path) as rows:
        assert rows.alpha(slice(0, 2)) is not None


def test_white_may_be_nought(tmp_path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise((HEIGHT, WIDTH), "uint8"), photometric="miniswhite")
    same(path).__exit__()


def test_what_cannot_be_read_in_pieces(tmp_path, monkeypatch) -> None:
    path, array = tmp_path / "a.tif", noise((HEIGHT, WIDTH, 3), "uint8")
    turned = [(274, 3, 1, 6, True)]
    tifffile.imwrite(path, array, photometric="rgb", extratags=turned, metadata=None)
    with pytest.raises(Error, match="turned by its orientation tag, so it cannot be read in piec"):
        TiffRows(path)
    tifffile.imwrite(path, noise((2, HEIGHT, WIDTH), "uint8"), photometric="minisblack")
    with pytest.raises(Error, match="holds 2 pages"):
        TiffRows(path)
    tifffile.imwrite(path, array, photometric="rgb", rowsperstrip=HEIGHT, compression="zlib")
    monkeypatch.setattr(module, "SEGMENT", 1000)
    with pytest.raises(Error, match="its strips or tiles are larger than"):
        TiffRows(path)
    images.write(tmp_path / "a.png", array)
    with pytest.raises(Error, match="is no TIFF"):
        TiffRows(tmp_path / "a.png")
    with pytest.raises(Error, match="no such file"):
        TiffRows(tmp_path / "b.tif")


def test_a_truncated_file_is_refused(tmp_path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise((HEIGHT, WIDTH, 3), "uint16"), photometric="rgb")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(Error, match="truncated"):
        TiffRows(path)


def test_pictures_beyond_the_limit_have_rows(tmp_path, monkeypatch) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise((HEIGHT, WIDTH), "uint16"))
    monkeypatch.setattr("n2n.images.quiet.PIXELS", 1000)
    with pytest.raises(Error, match="the limit is"):
        images.read(path)
    with TiffRows(path) as rows:
        assert rows[10:12].shape == (2, WIDTH)


@pytest.mark.parametrize("big", [False, True])
def test_a_file_made_for_rows_takes_them(tmp_path, big: bool) -> None:
    source, target = tmp_path / "a.tif", tmp_path / "b.tif"
    array = noise((HEIGHT, WIDTH, 4), "uint16")
    tifffile.imwrite(source, array, photometric="rgb", extrasamples=["unassalpha"], bigtiff=big)
    with TiffRows(source) as rows:
        start = images.create(target, rows, array.shape, "uint16", alpha=True)
    assert not images.read(target).array.any()
    with target.open("r+b") as file:
        file.seek(start)
        file.write(array.tobytes())
    picture = images.read(target)
    assert np.array_equal(np.dstack([picture.array, picture.meta["alpha"]]), array)
    with tifffile.TiffFile(target) as file:
        assert file.is_bigtiff == big
        assert file.pages.first.software.startswith("n2n ")
