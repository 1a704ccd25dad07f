"""The loop around the step: clock, progress, checkpoints, signals, the best weights."""

from __future__ import annotations

import contextlib
import functools
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from n2n import checkpoints, devices
from n2n.training.guard import SETBACKS, Guard
from n2n.training.identity import identity, same_run
from n2n.training.memory import too_large
from n2n.training.step import (
    Chunk,
    TrainState,
    fall,
    learning_rate,
    make_chunk,
    start,
)
from n2n.types import Error, Failure, Interrupted, Network, PyTree

MARKS = 32
"""A task's score is taken when so many equal parts of the run are done."""
_CHUNK_SECONDS = 1.0
_CHECKPOINT_SECONDS = 30.0


class Event(NamedTuple):
    """Report progress after a chunk of steps."""

    step: int
    total: int
    loss: float
    """Averaged over about a hundred steps."""
    excess: float | None
    """Loss above the task's noise floor, where that is known: a flat loss is normal."""
    rate: float
    """Learning rate."""
    crops: float
    """Crops per second."""
    seconds: float
    left: float | None
    """Seconds; None after the first chunk, whose time is that of loading and compiling, too."""
    score: float | None = None


class Trained(NamedTuple):
    """Hold what a run gives."""

    params: PyTree
    """The average, or the best where the task has a score."""
    steps: int
    loss: float
    seconds: float
    score: float | None = None


Progress = Callable[[Event], None]


class Loop:
    """Hold the host's side of a run: clock, checkpoint, best weights."""

    def __init__(self, task, network, config, mesh, run, progress, params):
        self.task, self.network, self.config, self.mesh = task, network, config, mesh
        self.run, self.progress = run, progress
        self.best: tuple[PyTree, float, int] | None = None
        self.bound = config.steps or 60 * config.minutes  # steps or seconds; less after a plateau
        self.before, self.loss = 0.0, math.nan  # seconds of earlier sessions, last chunk's loss
        self.elapsed = 0.0  # seconds at the end of the last chunk, the same in all processes
        self.paced: tuple[int, float] | None = None  # step and seconds from which the pace is told
        self.part, self.better = 0, 0.0  # marks passed, and when the best was found
        self.identity = identity(task, network, config, params) if run else {}
        self.state = start(network, config, params)
        self._restore()
        self.state = devices.copied(self.state, mesh)
        self.guard, self.setbacks = Guard(self.state), 0
        self.need: int | None = None  # bytes that a step works with

    def run_to_end(self) -> Trained:
        chunk = make_chunk(self.task, self.network, self.config, self.mesh)
        key = jax.random.key(self.config.seed)
        step, pool, number = self._first_step(), None, -1
        self.began = self.saved = time.monotonic()
        length = 1
        with _signals() as stop:
            while not self._done(step):
                if pool is None or (self.task.refresh and step // self.config.refresh != number):
                    number, pool = step // self.config.refresh, None
                    pool = self._pool(number)
                length = self._length(step, length)
                self._plan(step)
                clock = time.monotonic()
                state, losses = self._steps(chunk, key, pool, length)
                self.state, step = state, step + length
                if self.guard.lost(losses, step, state):
                    step = self._go_back(step - length, losses)
                    continue
                self._smooth(losses, step)
                seconds = time.monotonic() - clock
                self._report(step, length, seconds)
                length = max(1, min(100, round(length * _CHUNK_SECONDS / max(seconds, 1e-3))))
                length, stopped = self._agreed(length, stop)
                if stopped:
                    self._interrupted(step, stopped)
                if self.run and time.monotonic() - self.saved > _CHECKPOINT_SECONDS:
                    self._save()
        params, score = jax.device_get(self.state.average), None
        if not np.isfinite([leaf.sum() for leaf in jax.tree.leaves(params)]).all():
            self._give_up(step - 1, np.array([math.nan]), float(self.state.gear))
        if self.run:
            self._save()
        if self.best is not None:
            params, score = self.best[0], self.best[1]
        return Trained(params, step, self.loss, self._seconds(), score)

    def _steps(
        self, chunk: Chunk, key: jax.Array, pool: PyTree, length: int
    ) -> tuple[TrainState, np.ndarray]:
        """Do steps; where they do not fit the memory, say what would."""
        try:
            if self.need is None:
                self.need = chunk.bytes(self.state, key, pool)
                free = devices.free_memory()
                if free is not None and self.need > free:  # else Linux would end the process
                    raise Failure(self._too_large(free))
            state, losses = chunk.run(self.state, key, pool, length)
            return state, np.asarray(jax.device_get(jax.block_until_ready(losses)), np.float64)
        except (MemoryError, RuntimeError) as error:
            if not devices.out_of_memory(error):
                raise
            raise Failure(self._too_large(None)) from error

    def _too_large(self, free: int | None) -> str:
        return too_large(self.config, self.network.lattice, self.mesh.size, self.need or 0, free)

    def _pool(self, number: int) -> PyTree:
        fresh = self.task.refresh(number) if self.task.refresh and number else self.task.pool
        return devices.place(devices.own(fresh, self.config.batch), self.mesh)

    def _first_step(self) -> int:
        """Return where to begin, which all processes must see alike."""
        steps = devices.gather(np.asarray(self.state.step)).tolist()
        if len(set(steps)) > 1:
            raise Error(
                f"the processes of this run begin at steps {steps}; they must all see the same "
                f"{str(self.run.folder)!r}: put the output where all machines can read it"
            )
        return steps[0]

    def _agreed(self, length: int, stop: list[int]) -> tuple[int, int]:
        """Take the clock and the next chunk's length from process 0, a signal from any (0: none).

        Where processes differed in these, one would wait for ever in a step that others never take.
        """
        mine = np.array([self._seconds(), length, stop[0] if stop else 0])
        rows = devices.gather(mine)
        self.elapsed = float(rows[0, 0])
        return int(rows[0, 1]), int(rows[:, 2].max())

    def _seconds(self) -> float:
        return self.before + time.monotonic() - self.began

    def _done(self, step: int) -> bool:
        return step > 0 and self._now(step) >= self.bound

    def _now(self, step: int) -> float:
        """Return how far the run is in the unit of its bound."""
        return step if self.config.steps is not None else self.elapsed

    def _length(self, step: int, length: int) -> int:
        """Return the next chunk's length, which ends at the next event at the latest."""
        if self.config.steps is not None:
            length = min(length, self.bound - step)
            if self.task.score is not None:
                part = MARKS * step // self.bound + 1
                length = min(length, -(-part * self.bound // MARKS) - step)
        if self.task.refresh:
            length = min(length, self.config.refresh - step % self.config.refresh)
        return min(length, self.guard.left(step))

    def _plan(self, step: int) -> None:
        """With `minutes`, plan as many steps as the time will hold at the pace so far."""
        if self.config.minutes is None:
            return
        share = min(1.0, max(1e-3, self.elapsed / self.bound))
        total = np.int32(min(2**30, max(step + 1, round((step + 1) / share))))
        self.state = self.state._replace(total=devices.copied(total, self.mesh))

    def _go_back(self, first: int, losses: np.ndarray) -> int:
        """Take up the last sound state at half the rate; return its step."""
        self.setbacks += 1
        gear, sound = float(self.state.gear), self.guard.back()
        if self.setbacks > SETBACKS:
            self._give_up(first, losses, gear)
        self.state = self._placed(sound._replace(gear=np.float32(gear / 2)))
        if self.run:
            lost = {"lost": first + len(losses), "back": int(sound.step), "gear": gear / 2}
            self.run.log(lost)
            self._save()
        return int(sound.step)

    def _give_up(self, first: int, losses: np.ndarray, gear: float) -> None:
        saved = self.run is not None and self.run.checkpoint.exists()
        kept = f"; the last good state is in {str(self.run.folder)!r}" if saved else ""
        what = "has lost its way" if np.isfinite(losses).all() else "is not finite"
        tried = f", even at {gear:g} times the rate" if gear < 1 else ""
        raise Failure(
            f"training {what} between steps {first} and {first + len(losses)}{tried}{kept}; "
            f"try a lower learning rate than {self.config.learning_rate:g}, and look at the data"
        )

    def _placed(self, state: TrainState) -> TrainState:
        return devices.copied(jax.tree.map(jnp.asarray, state), self.mesh)

    def _smooth(self, losses: np.ndarray, step: int) -> None:
        """Average the loss over about a hundred steps: that of a few crops says little."""
        share = 1.0 if math.isnan(self.loss) else min(1.0, len(losses) / min(100, step))
        before = 0.0 if math.isnan(self.loss) else self.loss
        self.loss = before + share * (float(losses.mean()) - before)

    def _report(self, step: int, length: int, seconds: float) -> None:
        elapsed = self._seconds()
        score = self._score(step)
        total = int(self.state.total)
        left = self._left(step, total, elapsed)
        floor = self.task.floor
        excess = None if floor is None else self.loss - floor
        rate = float(learning_rate(self.config, jnp.float32(step), jnp.float32(step / total)))
        rate *= float(self.state.gear)
        crops = length * self.config.batch / max(seconds, 1e-9)
        event = Event(step, total, self.loss, excess, rate, crops, elapsed, left, score)
        if self.run:
            self.run.log(event._asdict())
        if self.progress:
            self.progress(event)

    def _left(self, step: int, total: int, elapsed: float) -> float | None:
        if self.config.minutes is not None:
            return max(0.0, self.bound - elapsed)
        if self.paced is None or step <= self.paced[0]:
            self.paced = step, elapsed
            return 0.0 if step == total else None
        since, then = self.paced
        return (elapsed - then) * (total - step) / (step - since)

    def _score(self, step: int) -> float | None:
        """Return the task's score if a mark was passed; keep the weights if they are the best."""
        now = self._now(step)
        part = int(MARKS * now // self.bound)
        if self.task.score is None or part <= self.part:
            return None
        self.part = part
        average = devices.local(self.state.average)
        value = float(self.task.score(functools.partial(_predict(self.network), average)))
        if self.best is None or value > self.best[1]:
            self.best, self.better = (jax.device_get(average), value, step), now
        elif (
            self.task.patience is not None and now - self.better >= self.task.patience * self.bound
        ):
            self._fall(now)
        return value

    def _fall(self, now: float) -> None:
        """Let the rate fall from now on, as it does at the end of every run, unless it does."""
        share = fall(self.config)
        bound = now / (1 - share) if share < 1 else self.bound
        if bound < self.bound:
            self.bound = math.ceil(bound) if self.config.steps else bound
            if self.config.steps:
                total = devices.copied(np.int32(self.bound), self.mesh)
                self.state = self.state._replace(total=total)

    def _interrupted(self, step: int, number: int) -> None:
        name = signal.Signals(number).name
        if not self.run:
            raise Interrupted(f"stopped by {name} at step {step}; nothing was to be kept")
        self._save()
        raise Interrupted(
            f"stopped by {name} at step {step}; the state is in {str(self.run.folder)!r}: "
            "continue with --resume (resume=True)"
        )

    def _save(self) -> None:
        tree = {
            "step": self.state.step,
            "params": self.state.params,
            "average": self.state.average,
            "moments": _as_dict(self.state.moments),
        }
        meta: dict[str, Any] = {
            "run": self.identity,
            "seconds": self._seconds(),
            "plan": [self.bound, self.part, self.better],
            "gear": float(self.state.gear),
            "asked": self.config.steps or 60 * self.config.minutes,
        }
        if self.best is not None:
            tree["best"] = self.best[0]
            meta["best"] = [self.best[1], self.best[2]]
        self.run.save(checkpoints.flatten(jax.device_get(tree)), meta)
        self.saved = time.monotonic()

    def _restore(self) -> None:
        kept = self.run.load() if self.run else None
        if kept is None:
            return
        arrays, meta = kept
        same_run(self.identity, meta.get("run", {}), self.run.folder)
        template = {
            "step": self.state.step,
            "params": self.state.params,
            "average": self.state.average,
            "moments": _as_dict(self.state.moments),
        }
        if "best" in meta:
            template["best"] = self.state.params
        tree = checkpoints.fill(template, arrays)
        if "best" in meta:
            self.best = (tree["best"], *meta["best"])
        self.before = self.elapsed = float(meta["seconds"])
        total = self.state.total
        if self.task.score is not None and "plan" in meta:
            bound, self.part, self.better = meta["plan"]
            # A run that is to be longer or shorter than before is planned anew.
            if self.bound > bound and meta.get("asked") == self.bound:
                self.bound = bound
                total = jnp.int32(bound) if self.config.steps else total
        self.state = TrainState(
            jnp.asarray(tree["step"]),
            total,
            jax.tree.map(jnp.asarray, tree["params"]),
            jax.tree.map(jnp.asarray, tree["average"]),
            jax.tree.map(jnp.asarray, _from_dict(self.state.moments, tree["moments"])),
            jnp.float32(meta.get("gear", 1.0)),
        )


@functools.lru_cache(maxsize=8)
def _predict(network: Network) -> Callable:
    return devices.jit(network.apply)


def _as_dict(tree: PyTree) -> dict[str, Any]:
    return {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(tree))}


def _from_dict(template: PyTree, leaves: dict[str, Any]) -> PyTree:
    ordered = [leaves[str(i)] for i in range(len(leaves))]
    return jax.tree.unflatten(jax.tree.structure(template), ordered)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT in a list for as long as the block lasts; a later one kills.

    Not one in the same second: schedulers signal a process and its parent, which passes it on.
    """
    seen: list[int] = []
    first = [math.inf]
    if threading.current_thread() is not threading.main_thread():
        yield seen
        return

    def note(number: int, frame: Any) -> None:
        del frame
        if time.monotonic() - first[0] > 1:
            raise KeyboardInterrupt
        first[0] = min(first[0], time.monotonic())
        seen.append(number)

    old = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield seen
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
