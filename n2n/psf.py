"""Find the blur of a picture from the picture alone: its kind and its parameters.

A blur multiplies the power spectrum S of the scene by its own, |H|^2, and white noise adds N to it.
Scenes are alike: log S of photographs is a low polynomial in log f with a little direction to it.
The spectrum is averaged over overlapping Hann windows (Welch 1967) of 128 pixels, 64 in pictures
whose shorter side has no 128, and log(S |H|^2 + N) is fitted to its logarithm, S by Gauss-Newton
steps under a prior, residuals weighed by Cauchy's law (spectra have lines of their own). H is that
of n2n's own kernels, seen through the window, which fills its zeros. For each kind this is done on
a grid of parameters and refined (Nelder and Mead 1965) from the best two places; the kind of the
least loss, a handicap for its parameters added, wins. The idea is old (Cannon 1976, by the zeros).

The prior is that of 170 sharp pictures of BSD300 and CID22; 300, the number of independent bins
that a spectrum is trusted to have, and the handicaps were checked on the same pictures, blurred.
What is found: a Gaussian of 0.4 to 6.4 px, a line of 3 to 40 px, a disc with a radius of 1 to 16 px
(windows of 64: half of the largest, and little is sure in pictures that small). What is larger
comes out at the limit or as no blur, and so does what lies in the noise or is smaller. Blurs that
differ over the picture are averaged.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize

from n2n.corruptions.blur import PSF, Blur, Defocus, Motion
from n2n.types import Error

_SIDES = (128, 64)
"""Sides of the windows in pixels; the first that the picture holds is taken."""
_PLACES = 20
"""Windows along either axis, at most: a picture of 24 MP is as fast as one of 6."""
_TRUST = 300.0
"""Independent bins that a spectrum counts for; from `_ENOUGH` pixels on, below in proportion."""
_ENOUGH = 1e5
_CUT = 1.0
"""Residual, natural logarithm of a power, at which a bin counts for half."""
_FLOOR = (0.29 / 255) ** 2 / 3
"""The least power that counts: the rounding to 8 bits of the mean of three channels."""
_DARK = 1e-5
"""The least |H|^2: below it the kernels' own rounding shows."""
_FINE = 8
"""Parts of a pixel in which discs are drawn, as in `n2n.corruptions.blur`."""
_TRIES = 2
"""Places of the grid that are refined, for each kind."""
_PRIOR = np.array(
    [
        # mean, deviation: 1, x, x^2, x^3 with x = log(f / 0.1); softness (f / 0.25)^2
        *[(-3.27, 0.85), (-2.09, 0.5), (0.28, 0.42), (-0.06, 0.28), (-0.46, 0.45)],
        # cos and sin of 2, 4, 6 and 8 times the direction: more of what is upright or level
        *[(-0.06, 0.40), (0, 0.25), (0.28, 0.27), (0, 0.12), (0, 0.12), (0, 0.08)],
        *[(0.09, 0.13), (0, 0.07)],
        # x times cos 2, sin 2, cos 4 of the direction
        *[(0, 0.21), (0, 0.11), (-0.03, 0.10)],
    ],
    np.float32,
)


class Found(NamedTuple):
    """Hold the blur that a picture shows."""

    psf: PSF | None
    """Blur(sigma), Motion(length, angle) or Defocus(radius); None: no blur that can be seen."""
    kind: str
    """none, gaussian, motion or defocus."""
    confidence: float
    """0 to 1: 1 - exp(-d), d the difference in loss to the next best kind; 0 also where nothing is
    to be seen. On training pictures with more noise or less to see (6/255, 128 px, blurs up to the
    limits) the kind was right in half of those below 0.4, nine in ten up to 0.7, 98 % above. `none`
    stays near 0.9 at most, since a Gaussian may always be too small to be seen."""


class _Kind(NamedTuple):
    """Hold what is known of a kind of blur; its first parameter is a size in pixels."""

    name: str
    psf: Callable[..., PSF] | None
    response: Callable[..., np.ndarray]
    """(rows, columns, *parameters) -> the transfer function, real, at these frequencies."""
    sizes: tuple[float, float]
    """The least size that is looked for, and the greatest as a share of the window's side."""
    steps: int
    """Sizes in the grid."""
    angles: int
    """Angles in the grid; 0: the kind has none."""
    handicap: float
    """Loss by which it has to be better than no blur."""


@dataclass(frozen=True, eq=False)
class _Plane:
    """Hold the frequencies of a window's spectrum that are looked at."""

    side: int
    used: np.ndarray
    """side,side/2+1 bool."""
    basis: np.ndarray
    """bins,coefficients float32: what log S is made of; see `_PRIOR`."""
    squares: np.ndarray
    """bins,coefficients^2 float32: products of the basis with itself, for the normal equations."""


class _View(NamedTuple):
    """Hold what is fitted."""

    seen: np.ndarray
    """bins float32, log power."""
    noise: np.float32
    """Log power of the noise."""
    trust: float
    """Independent bins."""


def estimate(image: np.ndarray, *, sigma: float | None = None) -> Found:
    """Find the blur of a picture, H,W or H,W,C of floats in display units.

    `sigma` is the standard deviation of its white noise in display units; None: taken from the
    highest frequencies. Half a second on one core, whatever the size. Pictures with a side below
    64 px, flat ones and those that are nothing but noise are of kind `none` with confidence 0.
    Error where the image is not of finite floats in two or three axes, or sigma is negative or not
    finite.
    """
    image = _checked(image, sigma)
    side = next((side for side in _SIDES if side <= min(image.shape[:2])), None)
    if side is None:
        return Found(None, "none", 0.0)
    power = _welch(image, side)
    noise = _noise(power, image, sigma)
    view, rough = (_view(power, noise, image, _plane(side, step)) for step in (1, 2))
    if not _shows(view, _plane(side, 1)):
        return Found(None, "none", 0.0)
    return _best([(kind, *_search(kind, side, view, rough)) for kind in _KINDS])


def _checked(image: np.ndarray, sigma: float | None) -> np.ndarray:
    """Return the image as H,W,C floats; Error where it is none, or sigma is no deviation."""
    image = np.asarray(image)
    if image.ndim not in (2, 3) or image.size == 0:
        raise Error(f"image has shape {image.shape}: give one picture, H,W or H,W,C, not empty")
    if not np.issubdtype(image.dtype, np.floating):
        raise Error(
            f"image is {image.dtype}: give floats, 0 black and 1 white; divide by its white"
        )
    if not np.isfinite(image).all():
        raise Error("image has values that are not finite: replace them, numpy.nan_to_num does")
    if sigma is not None and not (math.isfinite(sigma) and sigma >= 0):
        raise Error(f"sigma={sigma!r} must be a finite number of at least 0, or None to measure it")
    return image[..., None] if image.ndim == 2 else image


def _best(tried: list[tuple[_Kind, float, tuple[float, ...]]]) -> Found:
    """Return the kind of the least loss, handicaps included."""
    ranked = sorted(((loss + kind.handicap, kind, at) for kind, loss, at in tried),
                    key=lambda each: each[0])  # fmt: skip
    (least, kind, at), (second, *_) = ranked[:2]
    psf = kind.psf(*at) if kind.psf else None
    return Found(psf, kind.name, 1 - math.exp(least - second))


# The spectrum


def _welch(image: np.ndarray, side: int) -> np.ndarray:
    """Return the mean power spectrum of the channels' mean; white noise has its variance."""
    line = np.hanning(side + 1)[:-1].astype(np.float32)
    window = np.outer(line, line) / np.square(line).sum()
    power, count = np.zeros((side, side // 2 + 1)), 0
    for row in _starts(image.shape[0], side):
        for column in _starts(image.shape[1], side):
            block = image[row : row + side, column : column + side].mean(-1, dtype=np.float32)
            power += np.square(np.abs(np.fft.rfft2((block - block.mean()) * window)))
            count += 1
    return power / count


def _starts(length: int, side: int) -> np.ndarray:
    """Return where windows start: they overlap by three quarters, or are spread over the length."""
    count = min(_PLACES, math.ceil(4 * (length - side) / side) + 1)
    return np.linspace(0, length - side, count).astype(int)


def _noise(power: np.ndarray, image: np.ndarray, sigma: float | None) -> float:
    """Return the mean log power of the noise in the spectrum of the channels' mean."""
    side = len(power)
    if sigma is None:
        level = np.median(power[side * 2 // 5 : side * 3 // 5 + 1, side * 2 // 5 :])
    else:
        windows = max(1.0, 1.5 * image.shape[0] * image.shape[1] / side**2)
        # The logarithm of a mean of n exponential draws lies below that of their expectation.
        bias = -1 / (2 * windows) - 1 / (12 * windows**2)
        level = sigma**2 / image.shape[2] * math.exp(bias)
    return math.log(max(level, _FLOOR))


def _view(power: np.ndarray, noise: float, image: np.ndarray, plane: _Plane) -> _View:
    seen = np.log(np.maximum(power[plane.used], _FLOOR)).astype(np.float32)
    trust = _TRUST * min(1.0, image.shape[0] * image.shape[1] / _ENOUGH)
    return _View(seen, np.float32(noise), trust)


def _shows(view: _View, plane: _Plane) -> bool:
    """Say whether the scene is as strong as the noise at frequencies below 0.1."""
    low = plane.basis[:, 1] < 0
    return bool(np.median(view.seen[low]) > view.noise + math.log(2))


@functools.cache
def _plane(side: int, step: int) -> _Plane:
    """Return every `step`-th frequency of a window of `side` pixels; up to 0.4 if not every one.

    The lowest are left out, and what lies on the axes, where pictures keep their borders, their
    horizons and what stands upright.
    """
    rows, columns = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)
    f = np.hypot(rows, columns)
    used = (f >= 2.5 / side) & (f <= (0.5 if step == 1 else 0.4))
    for line in np.rint(rows * side), np.rint(columns * side):
        used &= (np.abs(line) > 1) & (line % step == 0)
    basis = _basis(f[used], np.broadcast_to(np.arctan2(rows, columns), f.shape)[used])
    squares = basis[:, :, None] * basis[:, None]
    return _Plane(side, used, basis, squares.reshape(len(basis), -1))


def _basis(f: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Return what log S is made of, bins,coefficients; the order is that of `_PRIOR`."""
    x = np.log(f / 0.1)
    turns = [wave(k * direction) for k in (2, 4, 6, 8) for wave in (np.cos, np.sin)]
    bent = [x * turns[0], x * turns[1], x * turns[2]]
    columns = [x**0, x, x**2, x**3, (f / 0.25) ** 2, *turns, *bent]
    return np.stack(columns, 1).astype(np.float32)


# The kinds' transfer functions, of the kernels in n2n.corruptions.blur


def _sharp(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    return np.ones((len(rows), len(columns)))


def _gaussian(rows: np.ndarray, columns: np.ndarray, sigma: float) -> np.ndarray:
    places = np.arange(math.ceil(4 * sigma) + 1)
    weights = np.exp(-np.square(places / sigma) / 2) * np.where(places == 0, 1, 2)
    lines = [np.cos(2 * np.pi * np.outer(f, places)) @ weights for f in (rows, columns)]
    return np.outer(*lines) / weights.sum() ** 2


def _motion(rows: np.ndarray, columns: np.ndarray, length: float, angle: float) -> np.ndarray:
    count = max(24, math.ceil(4 * length))
    along = length * ((np.arange(count) + 0.5) / count - 0.5)
    turn = math.radians(angle)
    return _sum(_shared(rows, -along * math.sin(turn)), _shared(columns, along * math.cos(turn)))


def _shared(f: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the waves of points that are shared by the two pixels around them, f,points."""
    whole = np.floor(places)
    rest = places - whole
    next_pixel = np.exp(-2j * np.pi * f)[:, None]
    return _waves(f, whole) * (1 - rest + rest * next_pixel)


def _defocus(rows: np.ndarray, columns: np.ndarray, radius: float) -> np.ndarray:
    reach = math.ceil(radius) + 1
    side = 2 * reach + 1
    line = (np.arange(_FINE * side) + 0.5) / _FINE - side / 2
    # Parts on the edge count by their share, so that the loss is smooth in the radius.
    inside = np.clip((radius - np.hypot(line[:, None], line)) * _FINE + 0.5, 0, 1)
    kernel = inside.reshape(side, _FINE, side, _FINE).sum((1, 3))
    places = np.arange(-reach, reach + 1)
    return _sum(_waves(rows, places) @ (kernel / kernel.mean()), _waves(columns, places)) / side


def _waves(f: np.ndarray, places: np.ndarray) -> np.ndarray:
    return np.exp(-2j * np.pi * np.outer(f, places))


def _sum(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the mean over points of products of waves; kernels are symmetric, so it is real."""
    return (rows.astype(np.complex64) @ columns.T.astype(np.complex64)).real / rows.shape[1]


def _seen(kind: _Kind, at: tuple[float, ...], plane: _Plane) -> np.ndarray:
    """Return log |H|^2 through the window at the frequencies of a plane, float32."""
    response = kind.response(np.fft.fftfreq(plane.side), np.fft.rfftfreq(plane.side), *at)
    power = _leaked(np.square(response))
    return np.log(power[plane.used] + _DARK).astype(np.float32)


def _leaked(power: np.ndarray) -> np.ndarray:
    """Return a power spectrum as a Hann window sees it: a third of each bin is its neighbours'."""
    power = (np.roll(power, 1, 0) + np.roll(power, -1, 0)) / 6 + power * (2 / 3)
    wide = np.concatenate([power[:, 1:2], power, power[:, -2:-1]], 1)
    return (wide[:, :-2] + wide[:, 2:]) / 6 + power * (2 / 3)


# The fit


def _fit(
    view: _View, responses: np.ndarray, plane: _Plane, start: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the losses of blurs whose log |H|^2 is n,bins, and the scenes' coefficients."""
    precision = np.diag(1 / np.square(_PRIOR[:, 1]))
    scale = view.trust / responses.shape[1]
    scene = start
    for _ in range(steps):
        share, residual = _residual(view, responses, plane, scene)
        weight = share / (1 + np.square(residual / _CUT))
        normal = ((weight * share) @ plane.squares).reshape(-1, *precision.shape) * scale
        slope = (weight * residual) @ plane.basis * scale - (scene - _PRIOR[:, 0]) @ precision
        step = np.linalg.solve(normal + precision, slope[..., None])[..., 0]
        scene = (scene + np.clip(step, -3, 3)).astype(np.float32)
    _, residual = _residual(view, responses, plane, scene)
    misfit = np.log1p(np.square(residual / _CUT)).mean(1) * _CUT**2 * view.trust
    far = np.square((scene - _PRIOR[:, 0]) / _PRIOR[:, 1]).sum(1)
    return (misfit + far) / 2, scene


def _residual(
    view: _View, responses: np.ndarray, plane: _Plane, scene: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the scene's share of the power and the residual of its logarithm, both n,bins."""
    ratio = np.exp(np.minimum(scene @ plane.basis.T + responses - view.noise, 80))
    return ratio / (1 + ratio), view.seen - view.noise - np.log(1 + ratio)


def _grid(kind: _Kind, side: int) -> list[tuple[float, ...]]:
    """Return the places that are tried first; sizes in equal ratios."""
    if not kind.steps:
        return [()]
    sizes = np.geomspace(kind.sizes[0], kind.sizes[1] * side, kind.steps).tolist()
    if not kind.angles:
        return [(size,) for size in sizes]
    return [(size, 180 * i / kind.angles) for size in sizes for i in range(kind.angles)]


@functools.cache
def _table(kind: _Kind, side: int) -> np.ndarray:
    """Return log |H|^2 of the whole grid, places,bins: 8 MB for the lines, a second once."""
    return np.stack([_seen(kind, at, _plane(side, 2)) for at in _grid(kind, side)])


def _search(kind: _Kind, side: int, view: _View, rough: _View) -> tuple[float, tuple[float, ...]]:
    """Return the least loss of a kind and the parameters it is reached with."""
    grid, table, plane = _grid(kind, side), _table(kind, side), _plane(side, 2)
    # In slices that stay in the cache.
    parts = [table[i : i + 64] for i in range(0, len(table), 64)]
    start = _PRIOR[None, :, 0]
    fits = [_fit(rough, part, plane, start.repeat(len(part), 0), 4) for part in parts]
    losses, scenes = (np.concatenate(each) for each in zip(*fits, strict=True))
    chosen = _apart(losses, grid)
    return min(_refined(kind, grid[i], view, _plane(side, 1), scenes[i : i + 1]) for i in chosen)


def _apart(losses: np.ndarray, grid: list[tuple[float, ...]]) -> list[int]:
    """Return the best places of a grid of which none is a neighbour of another."""
    chosen: list[int] = []
    for index in np.argsort(losses):
        if len(chosen) < _TRIES and not any(_near(grid[index], grid[i]) for i in chosen):
            chosen.append(int(index))
    return chosen


def _near(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return abs(math.log(a[0] / b[0])) < 0.15 and all(
        abs((one - other + 90) % 180 - 90) < 10 for one, other in zip(a[1:], b[1:], strict=True)
    )


def _refined(
    kind: _Kind, at: tuple[float, ...], view: _View, plane: _Plane, scene: np.ndarray
) -> tuple[float, tuple[float, ...]]:
    """Return the least loss near a place, and where it is; steps of 5 % and 2 degrees at first."""
    scene = _fit(view, _seen(kind, at, plane)[None], plane, scene, 2)[1]

    def loss(moved: np.ndarray) -> float:
        response = _seen(kind, _moved(kind, at, moved, plane.side), plane)
        return float(_fit(view, response[None], plane, scene, 3)[0][0])

    start = np.zeros(len(at))
    if not at:
        return loss(start), at
    corners = np.vstack([start, np.eye(len(at))])
    options = {"initial_simplex": corners, "maxfev": 15 * len(at), "xatol": 0.02, "fatol": 1e-3}
    found = minimize(loss, start, method="Nelder-Mead", options=options)
    return float(found.fun), _moved(kind, at, found.x, plane.side)


def _moved(kind: _Kind, at: tuple[float, ...], moved: np.ndarray, side: int) -> tuple[float, ...]:
    """Return the parameters so many steps from a place; the size stays within its limits."""
    if not at:
        return at
    low, high = 0.7 * kind.sizes[0], kind.sizes[1] * side
    size = min(max(at[0] * math.exp(0.05 * moved[0]), low), high)
    return (
        size,
        *(float(angle + 2 * turn) % 180 for angle, turn in zip(at[1:], moved[1:], strict=True)),
    )


_KINDS = (
    _Kind("none", None, _sharp, (0, 0), 0, 0, 0),
    _Kind("gaussian", Blur, _gaussian, (0.6, 1 / 20), 14, 0, 2),
    _Kind("motion", Motion, _motion, (4, 1 / 3.2), 28, 30, 3),
    _Kind("defocus", Defocus, _defocus, (1.3, 1 / 8), 46, 0, 2),
)
