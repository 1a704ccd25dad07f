"""The step: draw a batch, predict, compare, update; pure and jitted."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from n2n import devices
from n2n.losses import weighted_mean
from n2n.training.optimizer import NAMES, optimizer
from n2n.types import Batch, Error, Network, PyTree, Task


@dataclass(frozen=True)
class TrainConfig:
    """Configure a run. Either `steps` or `minutes` ends it."""

    steps: int | None = None
    """Updates; the rate falls over the last `ramp` of them."""
    minutes: float | None = None
    """Wall-clock time; the rate falls over its last quarter."""
    batch: int = 8
    """Crops per step."""
    crop: int = 64
    """Side of a crop in pixels, a multiple of the network's lattice."""
    learning_rate: float = 1e-3
    """The optimizer's rate before it falls."""
    optimizer: str = "muon"
    """`muon`, or `adam` as in the paper."""
    precision: str = "float32"
    """What the network computes in: float32 or bfloat16."""
    seed: int = 0
    """Everything random follows from it."""
    warmup: int = 50
    """Steps over which the rate rises from 0."""
    ramp: float = 0.5
    """Share of the steps over which the rate falls to 0, as (1/2 + 1/2 cos)^2 (reference 1.3)."""
    refresh: int = 1000
    """Steps after which a pool that is only part of its data is drawn anew."""

    def __post_init__(self) -> None:
        _check(self)


def _check(config: TrainConfig) -> None:
    if (config.steps is None) == (config.minutes is None):
        raise Error(
            f"steps is {config.steps} and minutes is {config.minutes}; give exactly one of them"
        )
    for name in ("steps", "batch", "crop", "refresh"):
        value = getattr(config, name)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise Error(f"{name} is {value!r}; it must be a whole number of at least 1")
    if config.minutes is not None and not 0 < config.minutes < math.inf:
        raise Error(f"minutes is {config.minutes!r}; it must be above 0")
    if not 0 < config.learning_rate < 1:
        raise Error(f"learning_rate is {config.learning_rate!r}; it must lie between 0 and 1")
    if config.optimizer not in NAMES:
        raise Error(f"optimizer is {config.optimizer!r}; known are {', '.join(NAMES)}")
    if not 0 <= config.ramp <= 1:
        raise Error(f"ramp is {config.ramp!r}; it is a share of the steps, 0 to 1")
    if not isinstance(config.seed, int) or not 0 <= config.seed < 2**32:
        raise Error(f"seed is {config.seed!r}; it must be a whole number from 0 to 4294967295")


class TrainState(NamedTuple):
    """Hold what a step changes."""

    step: jax.Array
    """int32: updates done."""
    total: jax.Array
    """int32: updates planned; progress is step / total."""
    params: PyTree
    average: PyTree
    """Running average of params over about the last tenth of the run: what is used and saved."""
    moments: PyTree
    """The optimizer's."""
    gear: jax.Array
    """float32: factor of the rate, 1 unless the run was lost and went back."""


def learning_rate(config: TrainConfig, step: jax.Array, progress: jax.Array) -> jax.Array:
    """Return the rate at a step: a linear rise, a plateau, a squared-cosine fall to 0."""
    share = fall(config)
    fallen = jnp.clip((progress - (1 - share)) / max(share, 1e-9), 0, 1)
    rise = jnp.minimum(1.0, (step + 1) / max(config.warmup, 1))
    return config.learning_rate * rise * (0.5 + 0.5 * jnp.cos(jnp.pi * fallen)) ** 2


def fall(config: TrainConfig) -> float:
    """Return the share of the run over which the rate falls."""
    return config.ramp if config.steps is not None else 0.25


def start(network: Network, config: TrainConfig, params: PyTree | None = None) -> TrainState:
    """Return the state before the first step; `params` replace the network's random ones."""
    if params is None:
        params = devices.jit(network.init)(jax.random.fold_in(jax.random.key(config.seed), 0))
    # Copies, since the step takes the buffers over: the caller's stay, and no two are one.
    params, average = (jax.tree.map(jnp.array, params) for _ in range(2))
    total = jnp.asarray(config.steps or 2**30, jnp.int32)
    moments = optimizer(config.optimizer).init(params)
    return TrainState(jnp.int32(0), total, params, average, moments, jnp.float32(1))


def draw(task: Task, key: jax.Array, pool: PyTree, batch: int, progress: jax.Array) -> Batch:
    """Draw a batch: example i from stripe i, or all from the only one."""
    stripes = jax.tree.leaves(pool)[0].shape[0]
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(batch))
    if stripes == 1:
        only = jax.tree.map(lambda leaf: leaf[0], pool)
        return jax.vmap(lambda k: task.sample(k, only, progress))(keys)
    return jax.vmap(lambda k, s: task.sample(k, s, progress))(keys, pool)


def objective(
    task: Task, network: Network, params: PyTree, batch: Batch, progress: jax.Array
) -> jax.Array:
    """Return the weighted mean loss of a batch, plus the mean penalty; a float32 scalar."""
    clean = network.apply(params, batch.input, batch.context)
    seen = jax.vmap(task.measure)(clean, batch.context)
    value = weighted_mean(task.loss(seen, batch.target, progress), batch.weight)
    return value if task.penalty is None else value + task.penalty(clean).mean()


def make_step(task: Task, network: Network, config: TrainConfig, mesh: Mesh) -> Callable:
    """Return the pure step (state, key, pool) -> (state, loss)."""
    update = optimizer(config.optimizer).update

    def step(state: TrainState, key: jax.Array, pool: PyTree) -> tuple[TrainState, jax.Array]:
        progress = state.step / state.total
        batch = draw(task, jax.random.fold_in(key, state.step), pool, config.batch, progress)
        batch = jax.lax.with_sharding_constraint(batch, devices.split(mesh))
        loss, gradients = jax.value_and_grad(
            lambda params: objective(task, network, params, batch, progress)
        )(state.params)
        updates, moments = update(gradients, state.moments, state.params)
        rate = state.gear * learning_rate(config, state.step, progress)
        params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
        share = jnp.maximum(10 / (state.step + 10), 1e-3)
        average = jax.tree.map(lambda a, p: a + share * (p - a), state.average, params)
        done = TrainState(state.step + 1, state.total, params, average, moments, state.gear)
        return done, loss

    return step


class Chunk(NamedTuple):
    """Hold a compiled run of steps."""

    run: Callable
    """(state, key, pool, n) -> (state, n losses): one dispatch where that is fast."""
    bytes: Callable
    """(state, key, pool) -> what a step works with beside them, on a device; 0: nobody knows."""


def make_chunk(task: Task, network: Network, config: TrainConfig, mesh: Mesh) -> Chunk:
    """Return the compiled steps of a task.

    Equal laws of sampling, losses, networks, configurations and devices share one compiled program,
    so that a run resumed in the same process compiles nothing.
    """
    law = (task.sample, task.loss, task.measure, task.penalty)
    try:
        return _chunk(law, network, config, mesh, devices.scans())
    except TypeError:  # a callable of the user's own that cannot be hashed
        return _chunk.__wrapped__(law, network, config, mesh, devices.scans())


@functools.lru_cache(maxsize=4)
def _chunk(law: tuple, network: Network, config: TrainConfig, mesh: Mesh, scans: bool) -> Chunk:
    sample, loss, measure, penalty = law
    step = make_step(Task((), sample, loss, measure, penalty), network, config, mesh)
    compiled = functools.partial(
        devices.jit, donate_argnums=0, out_shardings=devices.replicated(mesh)
    )
    if not scans:
        single = compiled(step)

        def unrolled(state: TrainState, key: jax.Array, pool: PyTree, n: int) -> tuple:
            losses = []
            for _ in range(n):
                state, loss = single(state, key, pool)
                losses.append(loss)
            return state, losses

        return Chunk(unrolled, lambda *given: _bytes(single.lower(*given)))

    @functools.partial(compiled, static_argnums=3)
    def scanned(state: TrainState, key: jax.Array, pool: PyTree, n: int) -> tuple:
        return jax.lax.scan(lambda s, _: step(s, key, pool), state, length=n)

    return Chunk(scanned, lambda *given: _bytes(scanned.lower(*given, 1)))


def _bytes(lowered: jax.stages.Lowered) -> int:
    """Compile a program, which a later call of it takes over, and return what it works with."""
    return devices.temporaries(lowered.compile())
