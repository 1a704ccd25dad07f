"""The trainer: one pure, jitted, donated step for every task, and the loop around it.

All randomness is folded from (seed, step), so that neither the chunk length nor a stop changes a
run. Nothing here knows a task by name, a burst, or how progress is shown.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from n2n import checkpoints, devices, networks
from n2n.training.loop import Event as Event
from n2n.training.loop import Loop, Progress, Trained
from n2n.training.step import TrainConfig as TrainConfig
from n2n.training.step import TrainState as TrainState
from n2n.types import Error, Network, PyTree, Task


def train(
    task: Task,
    network: Network,
    config: TrainConfig,
    *,
    params: PyTree | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    mesh: Mesh | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train a network on a task.

    Args:
        task: what to learn.
        network: its `config` and the task's name and data identify the run.
        config: how long, how fast, which seed.
        params: where to start; None: the network's own random start.
        out: the file that the run is for; its state is kept in `OUT.run/`, by process 0 of several.
        resume: continue the run there, or start afresh where there is none.
        mesh: the devices; None: `devices.mesh()`.
        progress: called with an `Event` after each chunk of steps.

    Raises:
        Error: something does not fit, or `OUT.run/` belongs to another run.
        Failure: loss or parameters are not finite any more, the disk refuses, a step does not fit
            the memory, or another process of the run has gone.
        Interrupted: SIGTERM or Ctrl-C came; the state is saved if there is an `out`.
    """
    mesh = mesh or devices.mesh()
    if networks.known(network.config):
        network = networks.build(network.config, config.precision)
    devices.check_batch(config.batch, mesh)
    task = prepare(task, network, config)
    writes = devices.leads()
    with checkpoints.running(out, resume=resume, writes=writes) as run, devices.blamed():
        return Loop(task, network, config, mesh, run, progress, params).run_to_end()


def prepare(task: Task, network: Network, config: TrainConfig) -> Task:
    """Cut the task for this batch and crop, and check that task, network and config fit together.

    Raises:
        Error: naming what does not fit.
    """
    if config.crop % network.lattice:
        raise Error(
            f"crop is {config.crop}; the network's lattice asks for a multiple of {network.lattice}"
        )
    if task.arrange is not None and task.cut != (config.batch, config.crop):
        task = task.arrange(config.batch, config.crop)
    task = dataclasses.replace(task, pool=devices.own(task.pool, config.batch))
    stripes = {leaf.shape[0] for leaf in jax.tree.leaves(task.pool)}
    own = len(range(config.batch)[devices.share(config.batch)])
    if len(stripes) != 1 or not stripes <= {1, own}:
        raise Error(
            f"task.pool has stripes {sorted(stripes)}; every leaf must begin with one axis of 1 or "
            f"of the batch, {config.batch}"
        )
    inputs, outputs = channels(task)
    if (
        inputs > network.channels[0]
        or outputs != network.channels[1]
        and task.measure is Task.measure
    ):
        raise Error(
            f"the task has {inputs} channels in and {outputs} out, the network {network.channels}; "
            "give a network with these channels"
        )
    return task


def channels(task: Task) -> tuple[int, int]:
    """Return how many channels a task's inputs and targets have."""
    stripe = jax.tree.map(lambda leaf: leaf[0], task.pool)
    example = jax.eval_shape(task.sample, jax.random.key(0), stripe, jnp.float32(0))
    return example.input.shape[-1], example.target.shape[-1]
