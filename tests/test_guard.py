"""The guard: when a run is lost, where it goes back to, and that it ends well."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from test_training import LINE, config, lines

from n2n import training
from n2n.training import guard, loop
from n2n.training.guard import Guard
from n2n.types import Failure, Network

pytestmark = pytest.mark.usefixtures("hasty")


class State(NamedTuple):
    params: Any


def state(value: float) -> State:
    return State({"weight": jnp.float32(value)})


def fed(watch: Guard, levels: list[float], cut: int = guard.WINDOW) -> int | None:
    """Feed windows of losses in chunks of `cut`; return the window that is called lost."""
    noise = np.random.default_rng(0)
    for number, level in enumerate(levels):
        losses = level * noise.uniform(0.5, 1.5, guard.WINDOW)
        for first in range(0, guard.WINDOW, cut):
            part = losses[first : first + cut]
            step = number * guard.WINDOW + first + len(part)
            if watch.lost(part, step, state(number)):
                return number
    return None


@pytest.mark.parametrize("cut", [1, 20, 100])
def test_a_run_is_lost_when_it_is_far_above_its_recent_best_and_its_beginning(cut) -> None:
    watch = Guard(state(-1))
    assert fed(watch, [1.0, 0.1, 0.05, 0.06, 0.3, 2.0], cut) == 5
    # 0.3 is above twice the recent best, 0.06 is not: window 3 was the last sound one.
    assert watch.back().params["weight"] == 3


@pytest.mark.parametrize(
    "levels",
    [
        [1, 0.01, 0.5, 0.02],  # worse than its best by far, but not than its beginning
        [1, 2, 4, 8, 16, 32, 64],  # an annealed loss that rises slowly
        [0.01] * 10 + [0.05, 0.09],
        [0.0, 0.0, 0.0],
    ],
)
def test_other_runs_are_left_alone(levels) -> None:
    assert fed(Guard(state(-1)), levels) is None


def test_single_losses_may_be_any_number_but_not_none() -> None:
    watch = Guard(state(-1))
    assert fed(watch, [0.01, 0.01]) is None
    losses = np.full(guard.WINDOW, 0.01)
    losses[::3] = 1e6  # a few photons at a rate of 0.01
    assert not watch.lost(losses, 3 * guard.WINDOW, state(3))
    losses[0] = np.nan
    assert watch.lost(losses[:1], 3 * guard.WINDOW + 1, state(3))


@pytest.mark.parametrize("late", [30, 60])
def test_a_state_after_the_explosion_is_not_sound(late) -> None:
    """A window's median may be low while its end, which is the state, is not."""
    watch = Guard(state(-1))
    assert fed(watch, [0.1, 0.05]) is None
    losses = np.full(guard.WINDOW, 0.05)
    losses[-late:] = 1e5
    lost = watch.lost(losses, 3 * guard.WINDOW, state(2))
    assert lost == (late > guard.WINDOW / 2)
    assert lost or watch.lost(np.full(guard.WINDOW, 1e4), 4 * guard.WINDOW, state(3))
    assert watch.back().params["weight"] == 1


def test_a_state_that_is_not_finite_is_not_sound() -> None:
    watch = Guard(state(-1))
    assert not watch.lost(np.full(guard.WINDOW, 0.01), guard.WINDOW, state(np.inf))
    assert watch.back().params["weight"] == -1


def cliff() -> Network:
    """Return a network that solves `lines` but beyond a weight of 0.05, where it runs away."""

    def apply(params, x, context=()):
        del context
        weight = params["weight"]
        fallen = jnp.sign(weight) * (jnp.abs(weight) > 0.05)
        return 2 * x[..., :1] - 1 + weight - 10 * fallen

    return Network(lambda key: START, apply, (1, 1), 0, 1, {})


START = {"weight": jnp.float32(0)}
CLIFF = cliff()
FAST = config(steps=1500, warmup=800, learning_rate=0.2)
"""Fast enough to fall off it as the rate rises."""


def test_a_lost_run_goes_back_and_ends_well(tmp_path) -> None:
    events = []
    out = tmp_path / "m"
    done = training.train(lines(), CLIFF, FAST, out=out, progress=events.append)
    rows = [json.loads(row) for row in (tmp_path / "m.run" / "log.jsonl").read_text().splitlines()]
    lost = [row for row in rows if "lost" in row]
    assert 1 <= len(lost) <= guard.SETBACKS
    assert [row["gear"] for row in lost] == [0.5 ** (n + 1) for n in range(len(lost))]
    assert all(row["back"] < row["lost"] and row["back"] % guard.WINDOW == 0 for row in lost)
    assert done.steps == 1500 and events[-1].step == 1500
    assert abs(done.params["weight"]) < 0.05
    # The rate that is told is the one that is used.
    assert max(event.rate for event in events if event.step > lost[-1]["lost"]) < 0.2 / 2


def test_how_a_lost_run_is_cut_does_not_change_it(monkeypatch) -> None:
    ends = []
    for seconds in (0.0, 1e9):
        monkeypatch.setattr(loop, "_CHUNK_SECONDS", seconds)
        ends.append(training.train(lines(), CLIFF, FAST).params)
    assert all(np.array_equal(ends[0][name], ends[1][name]) for name in START)


def test_a_run_that_finds_no_way_gives_up(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(guard, "LOST", 0.0)
    with pytest.raises(Failure, match=r"lost its way between steps .* even at 0.03125 times"):
        training.train(
            lines(loss=lambda p, t, progress: (p - t) ** 2 * (1 + 1e6 * (progress > 0.3))),
            LINE,
            config(steps=1000),
            out=tmp_path / "m",
        )
