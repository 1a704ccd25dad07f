"""Point spread functions: their moments, their direction, the convolution and its border."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from n2n.corruptions import PSF, Blur, Defocus, Measured, Motion
from n2n.corruptions.blur import convolve
from n2n.types import Error

pytestmark = pytest.mark.usefixtures("hasty")
KEY = jax.random.key(0)


def moments(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean (x, y) of a kernel and its covariance, y upwards."""
    reach = len(kernel) // 2
    y, x = np.mgrid[reach : -reach - 1 : -1, -reach : reach + 1]
    places = np.stack([x, y]).reshape(2, -1).astype(np.float64)
    weights = np.asarray(kernel, np.float64).ravel()
    mean = places @ weights
    return mean, (places - mean[:, None]) * weights @ (places - mean[:, None]).T


@pytest.mark.parametrize(
    "psf, covariance",
    [
        (Blur(1.6), np.diag([1.6**2, 1.6**2])),
        (Defocus(4), np.diag([4.0, 4.0])),
        (Motion(15, 0), np.diag([225 / 12, 0])),
        (Motion(15, 90), np.diag([0, 225 / 12])),
        (Motion(12, 30), 12 * np.array([[3 / 4, 3**0.5 / 4], [3**0.5 / 4, 1 / 4]])),
    ],
)
def test_kernels_have_the_moments_of_their_law(psf: PSF, covariance: np.ndarray) -> None:
    kernel = np.asarray(psf.kernel(KEY))
    assert kernel.shape == (2 * psf.reach + 1,) * 2 and kernel.dtype == np.float32
    assert kernel.min() >= 0 and kernel.sum() == pytest.approx(1, abs=1e-6)
    mean, found = moments(kernel)
    np.testing.assert_allclose(mean, 0, atol=1e-4)
    # Sharing a point between pixels adds at most a quarter of a pixel squared.
    np.testing.assert_allclose(found, covariance, atol=0.26)


def test_a_line_leans_to_the_side_that_it_says() -> None:
    kernel = np.asarray(Motion(15, 30).kernel(KEY))
    middle = len(kernel) // 2
    assert kernel[middle - 3, middle + 5] > 0.02 > kernel[middle + 3, middle + 5]


@pytest.mark.parametrize("psf", [Blur(0), Motion(0, 20), Defocus(0)])
def test_no_blur_leaves_the_picture(psf: PSF) -> None:
    clean = jax.random.uniform(KEY, (9, 12, 3))
    np.testing.assert_allclose(psf(KEY, clean).image, clean, atol=1e-5)


@pytest.mark.parametrize("height, width, reach", [(1, 3, 2), (2, 7, 4), (24, 17, 0), (13, 16, 3)])
def test_convolution_is_scipys(height: int, width: int, reach: int) -> None:
    rng = np.random.default_rng(reach)
    image, kernel = rng.random((height, width, 2)), rng.random((2 * reach + 1,) * 2)
    planes = [ndimage.convolve(image[..., c], kernel, mode="mirror") for c in range(2)]
    found = convolve(jnp.asarray(image, jnp.float32), jnp.asarray(kernel, jnp.float32))
    np.testing.assert_allclose(found, np.stack(planes, -1), atol=2e-5 * kernel.sum())


def test_ranges_are_drawn_once_per_picture() -> None:
    keys = jax.random.split(KEY, 300)
    for psf in (Blur((1, 3)), Defocus((2, 8)), Motion((9, 25), 0)):
        kernels = np.asarray(jax.jit(jax.vmap(psf.kernel))(keys), np.float64)
        spread = np.array([np.sqrt(moments(kernel)[1][0, 0]) for kernel in kernels])
        ends = [
            np.sqrt(moments(np.asarray(type(psf)(end, *[0] * isinstance(psf, Motion)).kernel(KEY)))
                    [1][0, 0]) for end in getattr(psf, ("sigma", "radius", "length")
                    [(Blur, Defocus, Motion).index(type(psf))])
        ]  # fmt: skip
        place = (spread - ends[0]) / (ends[1] - ends[0])
        # The deviation goes with the parameter; 300 uniform numbers.
        assert abs(place.mean() - 0.5) < 5 * np.sqrt(1 / 12 / 300) + 0.01
        assert place.min() < 0.05 and place.max() > 0.95


def test_a_line_without_an_angle_points_anywhere() -> None:
    keys = jax.random.split(KEY, 300)
    kernels = np.asarray(jax.jit(jax.vmap(Motion(11).kernel))(keys))
    angles = []
    for kernel in kernels:
        covariance = moments(kernel)[1]
        angles.append(np.arctan2(2 * covariance[0, 1], covariance[0, 0] - covariance[1, 1]))
    assert abs(np.mean(np.exp(1j * np.array(angles)))) < 5 / np.sqrt(300)


def test_a_measured_kernel_is_itself() -> None:
    rows = ((0, 1, 0), (2, 4, 1), (0, 0, 0))
    psf = Measured(rows)
    np.testing.assert_allclose(psf.kernel(KEY), np.array(rows) / 8, atol=1e-6)
    assert psf.reach == 1 and psf == Measured(psf.values) and str(psf) == "psf of 3x3"
    point = np.zeros((5, 5, 1), np.float32)
    point[2, 2] = 8
    np.testing.assert_allclose(psf(KEY, point).image[1:4, 1:4, 0], rows, atol=1e-5)


@pytest.mark.parametrize(
    "rows, words",
    [
        (((1, 2), (3, 4)), "must be square and odd"),
        (((1, 2, 3),), "must be square and odd"),
        (np.zeros((3, 3)).tolist(), "not all 0"),
        (((0, 0, 0), (0, -1, 0), (0, 0, 3)), "not negative"),
        (((0, 0, 0), (0, np.nan, 0), (0, 0, 3)), "finite"),
    ],
)
def test_what_is_no_kernel_is_refused(rows, words: str) -> None:
    with pytest.raises(Error, match=words) as caught:
        Measured(rows)
    assert "\n" not in str(caught.value)
