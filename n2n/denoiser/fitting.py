"""`fit`: one call from a task, a burst or a pair of pictures to a trained `Denoiser`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from n2n import checkpoints, losses, networks, tasks, training
from n2n import devices as hardware
from n2n.denoiser.model import Denoiser, load_model, show
from n2n.types import Burst, Error, Network, PyTree, Task

BURST_STEPS = 4000
STEPS = 10_000
"""Updates where neither steps nor minutes are given: of a burst, and of all else."""


def fit(
    task: Any,
    *,
    network: Any = None,
    init: Any = None,
    loss: Any = None,
    steps: int | None = None,
    minutes: float | None = None,
    batch: int = 8,
    crop: int = 64,
    learning_rate: float = 1e-3,
    optimizer: str = "muon",
    precision: str = "float32",
    seed: int = 0,
    devices: int | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    keep: bool = False,
    progress: bool | training.Progress = False,
) -> Denoiser:
    """Train a denoiser.

    Args:
        task: a `Task`, a `Burst`, or a tuple (a, b) of noisy pictures, short for `pairs(a, b)`.
        network: a name (`default`, `unet`, `red30`), a configuration, or a `Network`;
            None: that of `init`, else `default`.
        init: weights to start from: a name, a path or a `Denoiser`; further input channels start
            at zero.
        loss: `l2`, `l1`, `l0`, `hdr` or a function; None: the task's own.
        steps: updates; without steps and minutes 4,000 for a burst, else 10,000.
        minutes: time to train for instead.
        batch: crops per step.
        crop: side of a crop, a multiple of the network's lattice.
        learning_rate: the optimizer's rate before it falls.
        optimizer: `muon`, or `adam` as in the paper.
        precision: float32 or bfloat16.
        seed: everything random follows from it.
        devices: how many devices of each process share a batch; None: one on CPU, all on an
            accelerator. The losses do not depend on it.
        out: model file to write (.safetensors); while training, the run is kept in `OUT.run/`.
            For a file of another kind, which the caller writes, only the run is kept.
        resume: continue the run in `OUT.run/`, if there is one.
        overwrite: replace `out` if it exists; resuming its own run does so too.
        keep: keep `OUT.run/` (state and log) after the end.
        progress: True for a line on stderr, or a function of `training.Event`.

    Raises:
        Error: something does not fit together; Failure, Interrupted: see `training.train`.
    """
    ours = overwrite or (resume and out is not None and checkpoints.unfinished(out))
    if out is not None and Path(out).exists() and not ours:
        raise Error(f"out {str(out)!r} exists; choose another name or say overwrite")
    default = BURST_STEPS if _is_burst(task) else STEPS
    steps = default if steps is None and minutes is None else steps
    config = training.TrainConfig(
        steps, minutes, batch, crop, learning_rate, optimizer, precision, seed
    )
    task = _task(task, seed, (batch, crop), network)
    if loss is not None:
        task = _with_loss(task, losses.named(loss) if isinstance(loss, str) else loss)
    origin = None if init is None else load_model(init)
    net = _network(network, origin, task)
    params = None if origin is None else _adopted(net, origin)
    shown = _steps_shown if progress is True else (progress or None)
    trained = training.train(
        task,
        net,
        config,
        params=params,
        out=out,
        resume=resume,
        mesh=hardware.mesh(devices),
        progress=shown,
    )
    card = _card(task, trained, config)
    built = networks.build(net.config) if networks.known(net.config) else net
    model = Denoiser(trained.params, built, task.scale, json.dumps(card, sort_keys=True))
    if out is not None and Path(out).suffix == ".safetensors" and hardware.leads():
        model.save(out)
        if not keep:
            checkpoints.remove(out)
    return model


def _is_burst(task: Any) -> bool:
    return isinstance(task, Burst) or isinstance(task, Task) and task.name.startswith("burst")


def _task(task: Any, seed: int, cut: tuple[int, int], network: Any) -> Task:
    if isinstance(task, Burst):
        return tasks.bursts([task], seed=seed, noise_map=not _blind(network), cut=cut)
    if isinstance(task, tuple) and not isinstance(task, Task) and len(task) == 2:
        return tasks.pairs(*task)
    if not isinstance(task, Task):
        raise Error(
            f"task is {type(task).__name__}; give a Task, a Burst (n2n.align) or a tuple (a, b)"
        )
    return task


def _with_loss(task: Task, loss: Callable) -> Task:
    """Replace the loss, also in the task as cut for another batch; its floor is unknown then."""
    arrange = task.arrange
    again = None if arrange is None else lambda *size: _with_loss(arrange(*size), loss)
    floor = task.floor if loss is task.loss else None
    return dataclasses.replace(task, loss=loss, arrange=again, floor=floor)


def _network(network: Any, init: Denoiser | None, task: Task) -> Network:
    if isinstance(network, Network):
        return network
    inputs, outputs = training.channels(task)
    if network is None and init is not None:
        known, given = networks.known(init.network.config), init.network.channels
        # A task that knows its noise: the weights start without a use for it.
        if known and given == (outputs, outputs) and inputs == outputs + 1:
            return networks.build(init.network.config | {"inputs": inputs})
        return init.network
    if network is None or isinstance(network, str):
        network = networks.named(network or "default", inputs, outputs)
    return networks.build(network)


def _blind(network: Any) -> bool:
    """Say whether a network, given as it is, has no input for a noise map."""
    if network is None or isinstance(network, str):
        return False
    built = network if isinstance(network, Network) else networks.build(network)
    return built.channels[0] == built.channels[1]


def _adopted(network: Network, init: Denoiser) -> PyTree:
    template = jax.eval_shape(network.init, jax.random.key(0))
    arrays = checkpoints.flatten(jax.device_get(init.params))
    return checkpoints.fill(template, arrays, grow=True)


def _card(task: Task, trained: training.Trained, config: training.TrainConfig) -> dict[str, Any]:
    from n2n import __version__

    return {
        "task": task.name,
        "steps": trained.steps,
        "batch": config.batch,
        "crop": config.crop,
        "learning_rate": config.learning_rate,
        "optimizer": config.optimizer,
        "precision": config.precision,
        "seed": config.seed,
        "n2n": __version__,
    }


def _steps_shown(event: training.Event) -> None:
    excess = "" if event.excess is None else f", {event.excess:+.2e} over the noise"
    left = "" if event.left is None else f", {event.left:.0f} s left"
    text = f"step {event.step} of {event.total}: loss {event.loss:.5f}{excess}{left}"
    show(text, event.step >= event.total)
