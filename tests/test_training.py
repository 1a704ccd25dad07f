"""The step and the loop: the schedule, and that nothing about how a run is cut changes it."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import n2n
from n2n import devices, losses, networks, training
from n2n.networks import UNet
from n2n.training import TrainConfig, loop, step
from n2n.types import Batch, Error, Failure, Interrupted, Network, Task

pytestmark = pytest.mark.usefixtures("hasty")


def line() -> Network:
    """Return a network of two parameters, f(x) = gain x + offset: compiled in no time."""

    def apply(params, x, context=()):
        del context
        return params["gain"] * x[..., :1] + params["offset"]

    start = {"gain": jnp.float32(0.5), "offset": jnp.float32(0.2)}
    return Network(lambda key: start, apply, (2, 1), 0, 1, {})


LINE = line()


def lines(stripes: int = 1, **fields) -> Task:
    """Return a task with target 2 x - 1 plus noise; x is drawn from a pool of 8 values a stripe."""
    pool = np.linspace(-1, 1, 8 * stripes, dtype=np.float32).reshape(stripes, 8)

    def sample(key, stripe, progress) -> Batch:
        del progress
        keys = jax.random.split(key)
        x = jnp.full((4, 4, 1), jax.random.choice(keys[0], stripe))
        noise = 0.1 * jax.random.normal(keys[1], (16,)).reshape(4, 4, 1)
        return Batch(x, 2 * x - 1 + noise, jnp.ones((4, 4, 1)))

    return Task(**{"pool": pool, "sample": sample, "loss": losses.l2, "name": "lines"} | fields)


def config(**fields) -> TrainConfig:
    return TrainConfig(**{"steps": 12, "batch": 8, "crop": 4, "warmup": 1} | fields)


@pytest.fixture
def raw(monkeypatch) -> list[float]:
    """Return the list that every step's loss is appended to; events tell a running average."""
    seen: list[float] = []

    def recorded(*arguments):
        chunk = step.make_chunk(*arguments)

        def run(*state):
            found = chunk.run(*state)
            seen.extend(float(loss) for loss in jax.device_get(found[1]))
            return found

        return chunk._replace(run=run)

    monkeypatch.setattr(loop, "make_chunk", recorded)
    return seen


def equal(a, b) -> bool:
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


# Schedule ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "share, factor", [(0, 1), (0.25, 0.729), (0.5, 0.25), (0.75, 0.0214), (1, 0)]
)
@pytest.mark.parametrize("ramp", [0.3, 0.5, 1.0])
def test_the_ramp_is_the_papers(share: float, factor: float, ramp: float) -> None:
    # Reference 1.3: factors 1, .729, .25, .021, 0 within the ramp.
    settings = config(steps=1000, ramp=ramp, learning_rate=3e-4)
    progress = 1 - ramp + share * ramp
    rate = step.learning_rate(settings, jnp.float32(1000), jnp.float32(progress))
    assert float(rate) == pytest.approx(3e-4 * factor, abs=3e-4 * 5e-4)


def test_the_rate_rises_over_the_warm_up_and_stays() -> None:
    settings = config(steps=1000, warmup=50, ramp=0.5, learning_rate=1e-3)
    rates = [float(step.learning_rate(settings, jnp.float32(s), s / 1000)) for s in range(0, 501)]
    np.testing.assert_allclose(rates[:50], 1e-3 * np.arange(1, 51) / 50, rtol=1e-5)
    np.testing.assert_allclose(rates[50:], 1e-3, rtol=1e-5)


def test_with_minutes_the_ramp_is_the_last_quarter() -> None:
    settings = config(steps=None, minutes=1.0, ramp=1.0)
    for progress, factor in [(0.7, 1), (0.75, 1), (0.875, 0.25), (1.0, 0)]:
        rate = step.learning_rate(settings, jnp.float32(99), jnp.float32(progress))
        assert float(rate) == pytest.approx(1e-3 * factor, abs=1e-8)


# The run -----------------------------------------------------------------------------------------


def test_it_learns_what_the_targets_say(raw) -> None:
    settings = config(steps=400, learning_rate=0.05)
    trained = training.train(lines(), LINE, settings)
    # Noise of 0.1 on 12,800 draws for each of the last 100 steps: known to 1e-3; ten times that.
    assert float(trained.params["gain"]) == pytest.approx(2, abs=0.02)
    assert float(trained.params["offset"]) == pytest.approx(-1, abs=0.02)
    # 100 means of 128 squares: known to sqrt(2 / 12800) = 1.3 %, six of these.
    assert trained.steps == 400 and np.mean(raw[-100:]) == pytest.approx(0.01, rel=0.08)


@pytest.mark.slow
def test_it_overfits_one_pair(raw) -> None:
    rng = np.random.default_rng(0)
    pool = {"a": rng.random((1, 32, 32, 1), np.float32)}
    target = jnp.asarray(1 - pool["a"][0])

    def sample(key, stripe, progress) -> Batch:
        del key, progress
        return Batch(stripe["a"], target, jnp.ones((32, 32, 1)))

    training.train(
        Task(pool, sample, losses.l2),
        networks.build(UNet(1, 1, width=4, depth=2)),
        TrainConfig(steps=200, batch=1, crop=32, warmup=5, learning_rate=1e-2),
    )
    # White noise of variance 1/12: a network that learnt nothing but its mean stays there.
    assert raw[-1] < 0.3 / 12


@pytest.fixture(scope="module")
def plain():
    return training.train(lines(), LINE, config())


def test_equal_seeds_are_equal_bits(plain) -> None:
    again = training.train(lines(), LINE, config())
    assert equal(plain.params, again.params)
    other = training.train(lines(), LINE, config(seed=1))
    assert not equal(plain.params, other.params)


@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_the_length_of_chunks_changes_no_bit(monkeypatch, plain, seconds: float) -> None:
    monkeypatch.setattr(loop, "_CHUNK_SECONDS", seconds)
    steps: list[int] = []
    again = training.train(lines(), LINE, config(), progress=lambda e: steps.append(e.step))
    assert steps == (list(range(1, 13)) if seconds == 0 else [1, 12])
    assert equal(plain.params, again.params)


def test_a_scanned_chunk_computes_the_same(monkeypatch, plain) -> None:
    monkeypatch.setattr(devices, "scans", lambda: True)
    again = training.train(lines(), LINE, config())
    for a, b in zip(jax.tree.leaves(plain.params), jax.tree.leaves(again.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)  # another program, other roundings


def test_the_step_is_traced_once() -> None:
    traced: list[int] = []
    task = lines()

    def sample(*arguments):
        traced.append(1)
        return task.sample(*arguments)

    counted = dataclasses.replace(task, sample=sample)
    prepared = training.prepare(counted, LINE, config())
    mesh = devices.mesh()
    chunk = step.make_chunk(prepared, LINE, config(), mesh)
    state = jax.device_put(step.start(LINE, config()), devices.replicated(mesh))
    pool = devices.place(prepared.pool, mesh)
    traced.clear()
    for length in (1, 3, 2):
        state, values = chunk.run(state, jax.random.key(0), pool, length)
        assert len(values) == length
    assert len(traced) == 1 and int(state.step) == 6


def test_the_loop_traces_the_step_once() -> None:
    traced: list[int] = []

    def apply(params, x, context=()):
        traced.append(1)
        return LINE.apply(params, x, context)

    training.train(lines(), dataclasses.replace(LINE, apply=apply), config(steps=30))
    assert len(traced) == 1


@pytest.mark.parametrize("stripes", [1, 8])
def test_the_number_of_devices_changes_no_loss(raw, stripes: int) -> None:
    for count in (1, 4):
        settings = config(steps=10)
        training.train(lines(stripes), LINE, settings, mesh=devices.mesh(count))
    np.testing.assert_allclose(raw[:10], raw[10:], rtol=1e-5)


def test_the_step_reduces_gradients_and_gathers_nothing() -> None:
    settings, network = config(crop=32), networks.build(UNet(1, 1, width=2, depth=1))
    task = lines(8, sample=whole_stripe, pool=np.zeros((8, 32, 32, 1), np.float32))
    mesh = devices.mesh(4)
    state = devices.copied(step.start(network, settings), mesh)
    pool = devices.place(task.pool, mesh)
    assert [shard.data.shape[0] for shard in pool.addressable_shards] == [8 / 4] * 4
    seen: list = []
    apply = network.apply

    def spied(params, x, context=()):
        jax.debug.inspect_array_sharding(x, callback=lambda found: seen.append(found.shard_shape))
        return apply(params, x, context)

    spy = dataclasses.replace(network, apply=spied)
    update = devices.jit(
        step.make_step(task, spy, settings, mesh), out_shardings=devices.replicated(mesh)
    )
    text = update.lower(state, jax.random.key(0), pool).compile().as_text()
    assert "all-reduce" in text and "all-gather" not in text
    assert seen and seen[0]((8, 32, 32, 1)) == (8 // 4, 32, 32, 1)


def whole_stripe(key, stripe, progress) -> Batch:
    noise = 0.1 * jax.random.normal(key, (2, *stripe.shape))
    return Batch(stripe + noise[0], stripe + noise[1], jnp.ones((*stripe.shape[:2], 1)))


def test_a_resumed_run_compiles_no_step(tmp_path, caplog, monkeypatch) -> None:
    monkeypatch.setattr(loop, "_CHUNK_SECONDS", 0.0)
    rng = np.random.default_rng(0)
    frames = rng.random((2, 40, 40, 1), np.float32)
    run = functools.partial(
        n2n.fit, tuple(frames), network=UNet(1, 1, width=2, depth=1), steps=4, batch=2, crop=32
    )
    out = tmp_path / "m.safetensors"

    def steps_compiled() -> int:
        found = [r.getMessage() for r in caplog.records if "Compiling jit(step)" in r.getMessage()]
        caplog.clear()
        return len(found)

    def stop(event) -> None:
        if event.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with jax.log_compiles(), caplog.at_level("WARNING"):
        with pytest.raises(Interrupted):
            run(out=out, progress=stop)
        assert steps_compiled() == 1
        run(out=out, resume=True)  # the task is built anew, from equal data
        assert steps_compiled() == 0
        run(out=tmp_path / "other.safetensors", batch=4)
        assert steps_compiled() == 1


@pytest.mark.slow
def test_a_real_network_on_four_devices(raw) -> None:
    rng = np.random.default_rng(0)
    pool = rng.random((4, 32, 32, 1), np.float32)

    def sample(key, stripe, progress) -> Batch:
        del progress
        noise = 0.1 * jax.random.normal(key, (2 * 1024,)).reshape(2, 32, 32, 1)
        return Batch(stripe + noise[0], stripe + noise[1], jnp.ones((32, 32, 1)))

    task = Task(pool, sample, losses.l2)
    for count in (1, 4):
        training.train(
            task,
            networks.build(UNet(1, 1, width=4, depth=2, residual=True)),
            TrainConfig(steps=10, batch=4, crop=32, warmup=1),
            mesh=devices.mesh(count),
        )
    np.testing.assert_allclose(raw[:10], raw[10:], rtol=1e-5)  # the design's promise


def test_the_average_lags_and_is_what_is_returned() -> None:
    settings = config(steps=3, learning_rate=0.1, ramp=0.0)
    mesh = devices.mesh()
    chunk = step.make_chunk(lines(), LINE, settings, mesh)
    state = jax.device_put(step.start(LINE, settings), devices.replicated(mesh))
    states = [jax.device_get(state)]
    pool = devices.place(lines().pool, mesh)
    for _ in range(3):
        state, _ = chunk.run(state, jax.random.key(settings.seed), pool, 1)
        states.append(jax.device_get(state))
    average = states[0].params["gain"]
    for index, later in enumerate(states[1:]):
        share = max(10 / (index + 10), 1e-3)
        average = average + share * (later.params["gain"] - average)
        assert later.average["gain"] == pytest.approx(float(average), rel=1e-6)
    trained = training.train(lines(), LINE, settings)
    assert equal(trained.params, states[-1].average)
    assert not equal(states[-1].average, states[-1].params)


def test_params_that_are_given_survive() -> None:
    given = {"gain": jnp.float32(1.5), "offset": jnp.float32(0.0)}
    first = training.train(lines(), LINE, config(steps=1, learning_rate=1e-6), params=given)
    assert float(first.params["gain"]) == pytest.approx(1.5, abs=1e-4)
    assert float(given["gain"]) == 1.5  # not donated to the step
    array = {name: np.full((), value, np.float32) for name, value in [("gain", 1), ("offset", 0)]}
    training.train(lines(), LINE, config(learning_rate=0.1), params=array)
    assert array["gain"] == 1 and array["offset"] == 0


# What a task may ask for -------------------------------------------------------------------------


def test_progress_reaches_sampler_and_loss(raw) -> None:
    def loss(prediction, target, progress):
        return 0 * prediction + (target + progress) / 2

    def sample(key, stripe, progress) -> Batch:
        x = jnp.full((4, 4, 1), progress)
        return Batch(x, x, jnp.ones((4, 4, 1)))

    training.train(lines(loss=loss, sample=sample), LINE, config(steps=4))
    assert raw == [0, 0.25, 0.5, 0.75]


def test_measure_and_penalty_are_part_of_the_objective() -> None:
    task = lines()

    def sample(key, stripe, progress) -> Batch:
        batch = task.sample(key, stripe, progress)
        return Batch(batch.input, batch.target, batch.weight, {"shift": jnp.float32(5.0)})

    changed = dataclasses.replace(
        task,
        sample=sample,
        measure=lambda clean, context: clean - context["shift"],
        penalty=lambda clean: 0.5 * clean**2,
    )
    key, pool = jax.random.key(0), jnp.asarray(task.pool)
    batch = step.draw(changed, key, pool, 8, jnp.float32(0))
    params = LINE.init(key)
    value = float(step.objective(changed, LINE, params, batch, jnp.float32(0)))
    clean = 0.5 * np.asarray(batch.input) + 0.2
    wanted = np.mean((clean - 5 - np.asarray(batch.target)) ** 2) + np.mean(0.5 * clean**2)
    assert value == pytest.approx(wanted, rel=1e-5)


def test_pixels_without_weight_do_not_count() -> None:
    task = lines()
    batch = step.draw(task, jax.random.key(0), jnp.asarray(task.pool), 8, jnp.float32(0))
    weight = (np.random.default_rng(0).random(batch.weight.shape) < 0.5).astype(np.float32)
    target = np.where(weight > 0, batch.target, 1e6)
    params = LINE.init(jax.random.key(0))
    value = step.objective(task, LINE, params, batch._replace(target=target, weight=weight), 0.0)
    error = (0.5 * np.asarray(batch.input) + 0.2 - np.asarray(batch.target)) ** 2
    assert float(value) == pytest.approx(error[weight > 0].mean(), rel=1e-5)


def test_stripe_i_feeds_example_i() -> None:
    pool = jnp.arange(8.0)[:, None] * 10
    task = lines(sample=lambda key, stripe, progress: Batch(stripe, key, progress))
    assert np.array_equal(step.draw(task, jax.random.key(0), pool, 8, 0.0).input, pool)
    keys = jax.random.key_data(step.draw(task, jax.random.key(0), pool, 8, 0.0).target)
    assert len(np.unique(keys, axis=0)) == 8


def test_the_score_chooses_the_best_weights(monkeypatch) -> None:
    monkeypatch.setattr(loop, "_CHUNK_SECONDS", 0.0)
    seen: list[float] = []

    def score(predict) -> float:
        seen.append(float(predict(jnp.zeros((1, 1, 1, 1)))[0, 0, 0, 0]))
        return [1.0, 3.0, 9.0, 2.0, 9.0][len(seen) - 1]

    events: list[float | None] = []
    trained = training.train(
        lines(score=score),
        LINE,
        config(steps=5, learning_rate=0.1),
        progress=lambda event: events.append(event.score),
    )
    assert events == [1.0, 3.0, 9.0, 2.0, 9.0] and trained.score == 9.0
    assert len(set(seen)) == 5
    assert float(trained.params["offset"]) == pytest.approx(seen[2])  # the first of the best


def test_the_score_is_taken_32_times(monkeypatch) -> None:
    for seconds in (0.0, 1e9):
        monkeypatch.setattr(loop, "_CHUNK_SECONDS", seconds)
        steps: list[int] = []
        training.train(
            lines(score=lambda predict: 0.0),
            LINE,
            config(steps=320),
            progress=lambda event, steps=steps: (
                steps.append(event.step) if event.score is not None else None
            ),
        )
        assert steps == list(range(10, 321, 10))


def test_the_rate_falls_once_the_score_improves_no_more() -> None:
    """Best at step 100 of 640, patience of a quarter: the fall begins at 260 and takes as long."""
    calls: list[int] = []

    def score(predict) -> float:
        calls.append(1)
        return float(min(len(calls), 5))

    events: list[training.Event] = []
    trained = training.train(
        lines(score=score, patience=0.25), LINE, config(steps=640), progress=events.append
    )
    assert trained.steps == 520 and trained.score == 5.0
    rates = {event.step: event.rate for event in events if event.score is not None}
    assert rates[260] == rates[100] and events[-1].rate < 1e-3 * rates[100]
    falling = [rate for step, rate in rates.items() if step > 260]
    assert len(falling) > 10 and falling == sorted(falling, reverse=True)
    assert events[-1].total == 520


def test_the_rate_falls_no_sooner_than_the_score_says() -> None:
    counts = iter(range(1000))
    trained = training.train(
        lines(score=lambda predict: float(next(counts)), patience=0.25), LINE, config(steps=64)
    )
    assert trained.steps == 64


def test_pools_are_refreshed_by_the_steps_taken(monkeypatch) -> None:
    for seconds in (0.0, 1e9):
        monkeypatch.setattr(loop, "_CHUNK_SECONDS", seconds)
        asked: list[int] = []

        def refresh(number: int, asked=asked) -> np.ndarray:
            asked.append(number)
            return np.full((1, 8), number, np.float32)

        training.train(lines(refresh=refresh), LINE, config(steps=10, refresh=4))
        assert asked == [1, 2]  # number 0 is the pool that the task has


def test_minutes_end_in_time_and_record_the_steps(monkeypatch) -> None:
    monkeypatch.setattr(loop, "_CHUNK_SECONDS", 0.05)
    training.train(lines(), LINE, config(steps=None, minutes=1e-6))  # compiles the same step
    began = time.monotonic()
    events: list[loop.Event] = []
    trained = training.train(
        lines(), LINE, config(steps=None, minutes=3 / 60), progress=events.append
    )
    # A chunk is 0.05 s; the rest is for loading the step and a machine under load.
    assert 3 <= time.monotonic() - began < 12
    assert trained.steps == events[-1].step > 10
    assert events[-1].rate < 0.1 * events[0].rate + 1e-4
    assert all(0 <= event.left <= 3 for event in events)


def test_events_tell_the_excess_over_the_floor() -> None:
    events: list[loop.Event] = []
    training.train(lines(floor=0.01), LINE, config(), progress=events.append)
    last = events[-1]
    assert last.step == last.total == 12 and last.left == 0
    assert last.excess == pytest.approx(last.loss - 0.01)
    assert last.crops > 0 and last.seconds > 0 and last.score is None


def test_what_the_first_chunk_takes_says_nothing_of_the_time_left(monkeypatch) -> None:
    clock = [100.0]  # what loading and compiling took
    monkeypatch.setattr(loop.Loop, "_seconds", lambda self: clock[0])
    monkeypatch.setattr(loop.Loop, "_length", lambda self, step, length: 2)
    events: list[loop.Event] = []

    def watch(event: loop.Event) -> None:
        events.append(event)
        clock[0] += 10  # each of the chunks that follow

    training.train(lines(), LINE, config(steps=8), progress=watch)
    assert [event.left for event in events] == [None, 20, 10, 0]


# Errors ------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_the_steps(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(loop, "_CHUNK_SECONDS", 0.0)

    def loss(prediction, target, progress):
        return jnp.where(progress > 0.45, jnp.nan, prediction - target)

    with pytest.raises(Failure, match="not finite between steps 5 and 6, even at 0.03125 times"):
        training.train(lines(loss=loss), LINE, config(steps=10))
    monkeypatch.setattr(loop, "_CHECKPOINT_SECONDS", 0.0)
    out = tmp_path / "m"
    with pytest.raises(Failure, match="the last good state is in .*m.run'"):
        training.train(lines(loss=loss), LINE, config(steps=10), out=out)
    assert (tmp_path / "m.run" / "checkpoint.safetensors").exists()
    assert not (tmp_path / "m.run" / "lock").exists()


def test_parameters_that_are_not_finite_in_the_end() -> None:
    # The last loss is finite, its gradient is not: sqrt at 0.
    task = lines(loss=lambda prediction, target, progress: jnp.sqrt(0 * prediction))
    with pytest.raises(Failure, match="not finite"):
        training.train(task, LINE, config(steps=1))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"minutes": 1.0}, "give exactly one"),
        ({"steps": None}, "steps is None and minutes is None"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 1.5}, "steps is 1.5"),
        ({"batch": 0}, "batch is 0"),
        ({"crop": -8}, "crop is -8"),
        ({"steps": None, "minutes": 0.0}, "minutes is 0.0"),
        ({"steps": None, "minutes": math.inf}, "minutes is inf"),
        ({"steps": None, "minutes": math.nan}, "minutes is nan"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd'; known are muon, adam"),
        ({"ramp": 1.5}, "ramp is 1.5"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"seed": 0.5}, "seed is 0.5"),
        ({"refresh": 0}, "refresh is 0"),
    ],
)
def test_settings_name_the_field(fields, message: str) -> None:
    with pytest.raises(Error, match=message):
        config(**fields)


def refused(task: Task, network: Network, settings: TrainConfig, **options) -> str:
    with pytest.raises(Error) as caught:
        training.train(task, network, settings, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_does_not_fit_together() -> None:
    unet = networks.build(UNet(1, 1, width=2))
    text = refused(lines(), unet, config(crop=40))
    assert text.startswith("crop is 40; ") and "32" in text
    assert "task.pool has stripes [4]" in refused(lines(4), LINE, config())
    mixed = {"a": np.zeros((1, 8)), "b": np.zeros((8, 2))}
    assert "task.pool has stripes [1, 8]" in refused(lines(pool=mixed), LINE, config())
    wide = lines(sample=lambda k, s, p: Batch(*[jnp.zeros((4, 4, 3))] * 2, jnp.ones((4, 4, 1))))
    assert "the task has 3 channels in and 3 out, the network (2, 1)" in refused(
        wide, LINE, config()
    )
    assert "batch is 6, which does not divide among 4 devices" in refused(
        lines(), LINE, config(batch=6), mesh=devices.mesh(4)
    )


@pytest.mark.parametrize("precision", ["bfloat16", "half"])
def test_the_precision_reaches_the_network(precision: str) -> None:
    unet = networks.build(UNet(1, 1, width=2))
    text = "crop is 40" if precision == "bfloat16" else "precision is 'half'"
    assert text in refused(lines(), unet, config(precision=precision, crop=40))
