"""The MRI experiment: the law of sampling, the scan's two pictures, consistency, the loader."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import n2n
from experiments import mri

pytestmark = pytest.mark.usefixtures("hasty")


def picture(seed: int = 0) -> np.ndarray:
    """Return a smooth picture 255,255,1 in [0, 1]."""
    spectrum = np.fft.rfft2(np.random.default_rng(seed).standard_normal((255, 255)))
    line = np.hypot(np.fft.fftfreq(255)[:, None], np.fft.rfftfreq(255))
    smooth = np.fft.irfft2(spectrum * np.exp(-60 * line), s=(255, 255))
    return ((smooth - smooth.min()) / np.ptp(smooth))[..., None].astype(np.float32)


@functools.cache
def draws(count: int = 100) -> np.ndarray:
    """Return masks n,255,255."""
    return np.asarray(jax.jit(jax.vmap(mri.draw))(jax.random.split(jax.random.key(3), count)))


def test_the_law_has_the_reference_figures() -> None:
    law = np.fft.fftshift(mri.law())  # frequency 0 in the middle, pixel 127
    assert law[127, 127] == 1
    assert law.mean() == pytest.approx(0.10477, abs=5e-6)  # reference 1.6
    assert law[127, 254] == law[0, 127] == pytest.approx(0.025)
    assert law[0, 0] == pytest.approx(0.00542, abs=5e-6)
    # The form of the paper: e^(-0.02905 |k|).
    assert law[127 + 30, 127 - 40] == pytest.approx(np.exp(-0.029046 * 50), rel=1e-4)


def test_masks_follow_the_law() -> None:
    kept, law = draws(), mri.law().astype(float)
    # Every pair k, -k is one draw of variance m(1-m), of 255^2 coefficients in 100 masks.
    sigma = np.sqrt(2 * (law * (1 - law)).sum() / len(kept)) / law.size
    assert kept.mean() == pytest.approx(0.10477, abs=4 * sigma)
    for low, high in ((0.005, 0.01), (0.02, 0.03), (0.1, 0.2), (0.5, 0.9)):
        ring = (law >= low) & (law < high)
        sigma = np.sqrt(2 * (law * (1 - law))[ring].sum() / len(kept)) / ring.sum()
        assert kept[:, ring].mean() == pytest.approx(law[ring].mean(), abs=4 * sigma)


def test_masks_are_symmetric_and_keep_the_mean() -> None:
    kept = draws()[:20]
    k = np.arange(255)
    mirrored = kept[:, -k % 255][:, :, -k % 255]
    np.testing.assert_array_equal(kept, mirrored)
    assert kept[:, 0, 0].all()
    assert (kept[0] != kept[1]).any()


def test_a_scan_keeps_the_spectrum_of_a_real_picture() -> None:
    clean = picture()
    seen = mri.scan(jax.random.key(1), jnp.asarray(clean))
    kept = np.asarray(seen["kept"])
    expected = np.where(kept, np.fft.fft2(clean[..., 0].astype(float)), 0)
    np.testing.assert_allclose(seen["samples"], expected, atol=1e-2)  # of up to 3e4
    raw = np.fft.ifft2(expected / mri.law())
    assert np.abs(raw.imag).max() < 1e-12  # the mirror images keep it real
    np.testing.assert_allclose(mri.weighted(seen)[..., 0], raw.real, atol=1e-4)
    np.testing.assert_allclose(mri.unweighted(seen)[..., 0], np.fft.ifft2(expected).real, atol=1e-5)


def test_the_weighted_scan_is_unbiased() -> None:
    clean, count = picture(), 100

    @jax.jit
    def one(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        seen = mri.scan(key, jnp.asarray(clean))
        return mri.weighted(seen), mri.unweighted(seen)

    scans = [one(key) for key in jax.random.split(jax.random.key(5), count)]
    weighted = np.mean([first for first, _ in scans], axis=0, dtype=float)
    # The mean's squared error is the spectrum's variance, |F|^2 (1/m - 1), over the draws.
    power = np.abs(np.fft.fft2(clean[..., 0].astype(float))) ** 2
    expected = (power * (1 / mri.law() - 1)).sum() / clean.size**2 / count
    assert np.mean((weighted - clean) ** 2) == pytest.approx(expected, rel=0.3)
    unweighted = np.mean([second for _, second in scans], axis=0, dtype=float)
    assert np.mean((unweighted - clean) ** 2) > 5 * expected  # what a bias looks like


def test_consistency_puts_the_samples_back() -> None:
    clean = picture()
    seen = mri.scan(jax.random.key(2), jnp.asarray(clean))
    kept = np.asarray(seen["kept"])
    guess = np.random.default_rng(1).random((256, 256, 1)).astype(np.float32)
    out = mri.consistent(jnp.asarray(guess), seen)
    assert out.shape == (255, 255, 1)
    spectrum = np.fft.fft2(np.asarray(out, float)[..., 0])
    np.testing.assert_allclose(spectrum[kept], np.asarray(seen["samples"])[kept], atol=2e-2)
    ours = np.fft.fft2(guess[:255, :255, 0].astype(float))
    np.testing.assert_allclose(spectrum[~kept], ours[~kept], atol=2e-2)
    again = mri.consistent(jnp.pad(out, ((0, 1), (0, 1), (0, 0))), seen)
    np.testing.assert_allclose(again, out, atol=1e-5)
    perfect = mri.consistent(jnp.pad(clean, ((0, 1), (0, 1), (0, 0)), mode="edge"), seen)
    np.testing.assert_allclose(perfect, clean, atol=1e-5)


def test_an_example_is_two_scans_of_one_shifted_slice() -> None:
    slices = np.round(255 * picture())[None].astype(np.uint8)
    noisy = mri.task(slices, "noisy")
    assert noisy.name != mri.task(slices, "clean").name
    clean, other = (
        sample(jax.random.key(7), jnp.asarray(slices), jnp.float32(0))
        for sample in (mri.Scans(clean=True), mri.Scans())
    )
    np.testing.assert_array_equal(clean.input, other.input)  # the rows share their inputs
    assert clean.input.shape == (256, 256, 1) and clean.target.shape == (255, 255, 1)
    assert np.all(clean.input[255] == 0) and np.all(clean.input[:, 255] == 0)
    shifts = [np.argmax(np.asarray(v).sum(a)) for v in (clean.target,) for a in (1, 0)]
    unmoved = [np.argmax(slices[0].sum(a)) for a in (1, 0)]
    shift = np.subtract(shifts, unmoved)
    np.testing.assert_allclose(clean.target, np.roll(slices[0], shift, (0, 1)) / 255.0, atol=1e-6)
    # Input and target have scans of their own, the context is the input's.
    np.testing.assert_allclose(clean.input[:255, :255], mri.weighted(other.context), atol=1e-6)
    assert np.abs(other.target - other.input[:255, :255]).max() > 0.01


def test_a_model_is_trained_and_used_with_the_samples() -> None:
    slices = np.round(255 * picture())[None].astype(np.uint8)
    square = n2n.types.Network(  # gives coefficients where the scan has none
        lambda key: jnp.float32(2), lambda p, x, _=(): p * x**2, (1, 1), None, 1, {"kind": "square"}
    )
    model = n2n.fit(mri.task(slices, "noisy"), network=square, steps=2, batch=1, crop=256)
    assert model.params != 2 and "MRI" in model.card["task"]
    seen = mri.scan(jax.random.key(0), jnp.asarray(picture()))
    spectrum = np.fft.fft2(np.asarray(mri.reconstruct(model, seen), float)[..., 0])
    kept = np.asarray(seen["kept"])
    np.testing.assert_allclose(spectrum[kept], np.asarray(seen["samples"])[kept], atol=2e-2)
    squares = np.asarray(model.params) * np.asarray(mri.weighted(seen), float)[..., 0] ** 2
    np.testing.assert_allclose(spectrum[~kept], np.fft.fft2(squares)[~kept], atol=2e-2)


def test_scores_clamp_both() -> None:
    slices = np.full((1, 255, 255, 1), 255, np.uint8)
    found = mri.score(lambda seen: np.full((255, 255, 1), 1.5), {"white": slices}, 1)
    assert found == {"white": np.inf}
    found = mri.score(lambda seen: np.full((255, 255, 1), 0.9), {"white": slices}, 2)
    assert found == {"white": pytest.approx(20, abs=1e-2)}


def test_planes_are_centred() -> None:
    small = mri.framed(np.ones((150, 256), np.float32))
    assert small.shape == (255, 255, 1) and small.dtype == np.uint8
    rows = np.flatnonzero(small[:, 100, 0])
    assert (rows[0], rows[-1]) == (53, 202) and small.max() == 255
    large = np.zeros((300, 10), np.float32)
    large[22] = 1  # the first row of the central 256
    assert mri.framed(large)[0, 123:133].all()


def nifti(path: Path, voxels: np.ndarray) -> Path:
    nibabel = pytest.importorskip("nibabel", reason="needs nibabel, which is not installed")
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)
    return path


def test_a_volume_of_ixi_gives_slices_25_to_124(tmp_path) -> None:
    voxels = np.zeros((20, 10, 130), np.int16)
    voxels[5, 5] = np.arange(130)  # a slice says where it comes from
    voxels[0, 0, 0] = 510  # the volume's largest
    voxels[:, :, 30] = 1  # black at 8 bits: left out
    paths = [nifti(tmp_path / f"IXI00{i}-Guys-0001-T1.nii.gz", voxels) for i in (2, 3)]
    slices = mri.ixi_slices(paths)
    assert slices.shape == (2 * 99, 255, 255, 1) and slices.dtype == np.uint8
    values = [z for z in range(25, 125) if z != 30]
    np.testing.assert_array_equal(slices[:99].max((1, 2, 3)), np.rint(np.array(values) / 2))
    assert slices[0, 118 + 5, 123 + 5, 0] == 12  # 25 / 510 of 255, in the middle of 256


def test_heads_are_parted_by_number(tmp_path) -> None:
    names = ["IXI002-Guys-0828-T1", "IXI063-Guys-0742-T1", "IXI064-Guys-0743-T1", "IXI074-X-T1"]
    for name in names:
        (tmp_path / f"{name}.nii.gz").touch()
    training, tests = mri.ixi_heads(tmp_path)
    assert [path.name[:6] for path in training] == ["IXI002", "IXI063"]
    assert [path.name[:6] for path in tests] == ["IXI064"]
    with pytest.raises(n2n.Error, match="IXI002 to IXI063"):
        mri.ixi_heads(tmp_path / "nothing")


def test_a_missing_reader_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "nibabel", None)
    with pytest.raises(n2n.Error, match="pip install"):
        mri.volume(tmp_path / "head.nii.gz")


def test_heads_are_cut_along_three_axes(tmp_path) -> None:
    voxels = np.zeros((40, 200, 200), np.uint8)
    voxels[10:30, 20:180, 20:180] = 200
    slices = mri.head_slices(nifti(tmp_path / "head.nii.gz", voxels))
    # Only planes along the first axis are a tenth full: 160^2 of 255^2, against 20 x 160.
    assert slices.shape == (10, 255, 255, 1)
    assert slices.max() == 255
