"""The types that pass between n2n's parts, and the one error it raises.

Pictures are float32 arrays of shape H,W,C; batches put n in front. Values are in display units
(1.0 is the white of the file) until a task builder or a `Denoiser` applies a model's affine scale
(low, high); nothing between stages clips. A weight is H,W,1: 0 means "ignore this pixel".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from jax import Array

PyTree = Any


class Error(ValueError):
    """Report bad input in one line: name, value, rule, remedy."""


class Failure(RuntimeError):
    """Report work that could not be finished (disk, memory, non-finite numbers) in one line."""


class Interrupted(KeyboardInterrupt):
    """Report that a run was stopped by a signal after its state was saved; the text says where."""


class Observation(NamedTuple):
    """Hold what a corruption makes of one picture."""

    image: Array
    """H,W,C float32, not clipped."""
    weight: Array
    """H,W,1 float32; 0 where the pixel is unknown."""


class Batch(NamedTuple):
    """Hold all that a training step sees; every leaf has the leading axis n."""

    input: Array
    """n,h,w,ci: the picture first, then extra channels (noise map, albedo, normals)."""
    target: Array
    """n,h,w,ct: another noisy picture of the same scene."""
    weight: Array
    """n,h,w,1: 0 = ignore."""
    context: PyTree = ()
    """Facts per example for `Network.apply` or `Task.measure`: flow, k-space samples, a PSF."""


@dataclass(frozen=True, eq=False)
class Network:
    """Hold a network as pure functions; `networks.build(config)` makes one."""

    init: Callable[..., PyTree]
    """(key) -> params."""
    apply: Callable[..., Array]
    """(params, input n,h,w,ci, context=()) -> n,h,w,co float32; h and w multiples of `lattice`."""
    channels: tuple[int, int]
    """Channels read and written. Fewer in the input are completed by zeros ("unknown")."""
    halo: int | None
    """Pixels per side that an output pixel may look away from its lattice cell, as a multiple of
    `lattice`; None: never tiled."""
    lattice: int
    """Period of the pooling grid: tile origins and sides are multiples of it."""
    config: dict[str, Any]
    """JSON from which `networks.build` makes the same network again."""
    inner: Callable[..., Array] | None = None
    """(params, input n,h,w,ci) -> what `apply` yields, less `halo` pixels per side, for less work;
    None: there is no such form."""


def identity(prediction: Array, context: PyTree) -> Array:
    """Return the prediction: the target's camera saw the picture itself."""
    del context
    return prediction


@dataclass(frozen=True, eq=False)
class Task:
    """Hold all that the trainer knows about a problem.

    The objective is weighted_mean(loss(measure(apply(params, input, context), context), target,
    progress), weight) + mean(penalty(prediction)).
    """

    pool: PyTree
    """Host arrays; the leading axis is stripes: 1 (all examples draw from it) or the batch size."""
    sample: Callable[[Array, PyTree, Array], Batch]
    """(key, stripe, progress) -> Batch of ONE example, without n; pure, vmapped by the trainer."""
    loss: Callable[[Array, Array, Array], Array]
    """(prediction, target, progress) -> elementwise; progress runs from 0 to 1."""
    measure: Callable[[Array, PyTree], Array] = identity
    """(prediction, context) -> what the target's camera saw (blur, warp, sampling), ONE example."""
    penalty: Callable[[Array], Array] | None = None
    """(prediction) -> elementwise, added to the loss."""
    score: Callable[[Callable[[Array], Array]], float] | None = None
    """(predict) -> higher is better; on the host, 32 times in a run; chooses the best weights."""
    patience: float | None = None
    """Share of the run without a better score after which the rate falls at once; None: never."""
    arrange: Callable[[int, int], Task] | None = None
    """(batch, crop) -> this task cut for that batch and crop; None: the pool is fixed."""
    cut: tuple[int, int] | None = None
    """The batch and crop that the pool is cut for already."""
    refresh: Callable[[int], PyTree] | None = None
    """(number) -> another pool of the same shapes, for data larger than the pool's budget; `pool`
    itself is number 0."""
    scale: tuple[float, float] = (0.0, 1.0)
    """The values that the builder mapped to 0 and 1; goes into the weights."""
    floor: float | None = None
    """Mean of the elementwise loss at the true picture (the targets' noise), where it is known."""
    name: str = "task"
    """Goes into checkpoints and weights: which data and noise this is."""


@dataclass(frozen=True, eq=False)
class Burst:
    """Hold a burst in the geometry, exposure and white balance of its reference frame."""

    frames: np.ndarray
    """N,H,W,C float32: every frame resampled once (Lanczos4); outside a frame its mirror image."""
    weights: np.ndarray
    """N,H,W,1 float32 in [0, 1]: 0 where a frame shows nothing of this place (overlap, motion)."""
    mask: np.ndarray
    """H,W,1 float32: 0 where a place is clipped in the burst, so that the loss is off there."""
    transforms: np.ndarray
    """N,3,3 float64: reference pixel (x, y, 1) -> frame pixel; the reference's is the identity."""
    reference: int = 0
    """Index of the reference frame."""
    scale: tuple[float, float] = (0.0, 1.0)
    """Robust range (0.1 %, 99.9 %) of all frames."""
    profile: Any = None
    """The noise of one frame as it was taken, an `n2n.profile.Profile`; None where the frames are
    too small to measure it."""
    checks: tuple[str, ...] = ()
    """Plain sentences about what is wrong with the frames, worst first."""
    names: tuple[str, ...] = ()
    """One name per frame."""
    left_out: tuple[tuple[str, str], ...] = ()
    """Name of each frame that is not used, and why: a sentence without its subject."""
    margin: int = 16
    """Pixels at the border that scores leave out: 16 plus the largest shift."""

    @property
    def shifts(self) -> np.ndarray:
        """N,2 float64: displacement (dy, dx) in pixels of the picture's centre in each frame."""
        import numpy as np

        height, width = self.frames.shape[1:3]
        centre = np.array([(width - 1) / 2, (height - 1) / 2, 1.0])
        moved = self.transforms @ centre
        return (moved[:, :2] / moved[:, 2:] - centre[:2])[:, ::-1]

    def mean(self) -> np.ndarray:
        """Average the registered frames by their weights; H,W,C float32."""
        import numpy as np

        total = np.zeros(self.frames.shape[1:], np.float64)
        count = np.zeros(self.weights.shape[1:], np.float64)
        for frame, weight in zip(self.frames, self.weights, strict=True):
            total += frame * weight
            count += weight
        return (total / np.maximum(count, 1e-6)).astype(np.float32)


class Picture(NamedTuple):
    """Hold a picture as read from a file."""

    array: np.ndarray
    """H,W or H,W,C in the file's own dtype, upright, without alpha."""
    meta: Mapping[str, Any]
    """What `write(..., like=)` carries over: exif, icc, alpha, dtype, format, path."""


class Score(NamedTuple):
    """Hold a clean-free quality in dB with its 95 % interval; inf where it cannot be bounded."""

    db: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Fused:
    """Hold what `Denoiser.fuse` makes of a burst."""

    image: np.ndarray
    """H,W,C float32 in the frames' units."""
    score: Score | None
    """Clean-free quality of the network applied once to N-2 of the N frames (one of two); the
    picture itself is better."""
    before: Score | None
    """The same for the plain mean of the same frames."""
    gain: Score | None
    """Difference of the two in dB with its own, paired interval."""
    frames: float
    """Equivalent frames: how long a burst would need to be for its mean to be as good."""
    table: tuple[dict[str, Any], ...] = field(default=())
    """One row per frame: name, shift, weight."""
    borrowed: float = 0.0
    """Share of the picture that the weights made which training started from, since the reference
    alone shows it."""
