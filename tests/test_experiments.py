"""The paper's experiments: what they promise, their slices, their lines, and the table of these."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import n2n
from experiments import (
    brown,
    budget,
    bursts,
    colour,
    curves,
    gaussian,
    impulse,
    jpeg,
    montecarlo,
    mri,
    runs,
    table,
    unblur,
)
from n2n import evaluation, networks
from n2n.corruptions import Bernoulli, Clean, Gaussian

pytestmark = pytest.mark.usefixtures("hasty")
NAMES = (
    "gaussian", "poisson", "bernoulli", "convergence", "brown", "budget", "text", "impulse",
)  # fmt: skip
TINY = runs.Recipe(
    {"kind": "unet", "inputs": 3, "outputs": 3, "width": 2, "depth": 1}, 4, batch=2, crop=32
)


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(runs, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture
def pictures(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("bsd300_train", "kodak24", "bsd300_test"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(2):
            picture = rng.integers(0, 256, (64, 72, 3), np.uint8)
            # Not by n2n.write: what n2n has written is no frame.
            Image.fromarray(picture).save(tmp_path / "data" / name / f"{number}.png")
    return tmp_path / "data"


def experiment(folder: Path, **fields) -> runs.Experiment:
    return runs.Experiment("trial", folder / "data", "cpu", folder / "runs", **fields)


@functools.cache
def task() -> n2n.types.Task:
    clean = np.random.default_rng(1).random((2, 48, 48, 3)).astype(np.float32)
    return n2n.simulated(list(clean), input=Gaussian(0.1))


def leaves(model: n2n.Denoiser) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(model.params)]


@pytest.mark.parametrize("name", NAMES)
def test_an_experiment_says_what_it_does_and_how(name: str) -> None:
    module = importlib.import_module(f"experiments.{name}")
    for preset in ("cpu", "paper"):
        assert f"    python -m experiments.{name} DATA --preset {preset} " in module.__doc__
    assert "Lehtinen et al. 2018, section 3." in module.__doc__
    assert "Expected" in module.__doc__ and "minutes on two cores" in module.__doc__
    assert set(module.RECIPES) | {"long"} == set(runs.TRAINING) == {"cpu", "long", "paper"}
    if "long" in module.RECIPES:
        assert f"experiments.{name} DATA --preset long --rows noisy " in module.__doc__
    assert module.PROBLEM.sets[0] == "kodak24"


@pytest.mark.parametrize("name", NAMES)
def test_recipes_can_be_trained(name: str) -> None:
    module = importlib.import_module(f"experiments.{name}")
    tables = [module.RECIPES, getattr(module, "LEVELS", module.RECIPES)]
    for recipe in [recipe for recipes in tables for recipe in recipes.values()]:
        config = recipe.network
        if isinstance(config, str):
            config = networks.named(config, 3, 3)
        network = networks.build(config)
        assert network.channels == (3, 3)
        assert recipe.crop % network.lattice == 0 and 0 < recipe.learning_rate <= 1e-3
        marks = runs.marks(recipe.steps)
        assert marks == sorted(set(marks)) and marks[-1] == recipe.steps and marks[0] > 0
        assert len(set(recipe.seeds)) == len(recipe.seeds) > 0
    pixels = {p: r.steps * r.batch * r.crop**2 for p, r in module.RECIPES.items()}
    assert pixels["paper"] > 700 * pixels["cpu"]
    assert tables[0]["paper"].network == "unet"


@pytest.mark.parametrize("law", [Gaussian((0.0, 0.2)), Bernoulli((0.0, 0.95))], ids=str)
def test_clean_targets_meet_the_same_crops_and_input(law) -> None:
    clean = [np.random.default_rng(2).random((48, 56, 3)).astype(np.float32)]
    examples = []
    for target in (None, Clean()):
        one = n2n.simulated(clean, input=law, target=target).arrange(1, 32)
        stripe = jax.tree.map(lambda leaf: leaf[0], one.pool)
        sample = jax.jit(one.sample)
        examples.append(sample(jax.random.key(3), stripe, jnp.float32(0)))
    noisy, supervised = examples
    np.testing.assert_array_equal(noisy.input, supervised.input)
    assert not np.array_equal(noisy.target, supervised.target)
    assert not np.array_equal(noisy.input, noisy.target)


@pytest.mark.slow
def test_a_run_in_slices_is_the_run_in_one_go(tmp_path, results) -> None:
    whole = experiment(tmp_path / "whole").train("row", task(), TINY, seed=5)
    sliced = experiment(tmp_path / "sliced")

    def end(event) -> None:
        sliced.until = time.monotonic() - 1

    for _ in range(2):  # one chunk each
        sliced.until = float("inf")
        with pytest.raises(SystemExit) as stop:
            sliced.train("row", task(), TINY, seed=5, watch=end)
        assert stop.value.code == runs.AGAIN
    sliced.until = float("inf")
    model = sliced.train("row", task(), TINY, seed=5)
    for a, b in zip(leaves(whole), leaves(model), strict=True):
        np.testing.assert_array_equal(a, b)
    sliced.until = 0.0  # what is finished is there in any slice, other work is not begun
    assert (
        leaves(sliced.train("row", task(), TINY, seed=5))[0].tobytes() == leaves(model)[0].tobytes()
    )
    with pytest.raises(SystemExit):
        sliced.train("other", task(), TINY)
    with pytest.raises(n2n.Error, match="took 4 steps, the recipe asks for 9"):
        sliced.train("row", task(), dataclasses.replace(TINY, steps=9), seed=5)


@pytest.mark.slow
def test_a_curve_survives_slices_and_chooses_nothing(tmp_path, results) -> None:
    plain = experiment(tmp_path / "plain").train("row", task(), TINY)
    sliced = experiment(tmp_path)
    path, seen = sliced.file("row", 0, ".curve"), []

    def figure(run) -> float:
        seen.append(run(np.full((45, 64, 3), 0.5, np.float32)))
        return -float(len(seen))  # worse and worse: not what the weights are chosen by

    for _ in range(4):  # each of one step
        curve = runs.Curve(path, [1, 2, 4], figure)

        def watch(event, curve=curve) -> None:
            curve.follow(event)
            sliced.until = time.monotonic() - 1

        sliced.until = float("inf")
        scored = runs.scored(task(), curve.score)
        try:
            model = sliced.train("row", scored, TINY, watch=watch)
        except SystemExit:
            continue
    assert [point[1] for point in runs.Curve(path, [], figure).points] == [-1.0, -2.0, -3.0]
    assert curve.points[-1][0] == 4 and seen[-1].shape == (45, 64, 3)
    np.testing.assert_allclose(
        seen[-1], model.predict(np.full((45, 64, 3), 0.5, np.float32)), atol=1e-2
    )
    for a, b in zip(leaves(plain), leaves(model), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_curve_forgets_what_a_killed_run_had_beyond(tmp_path) -> None:
    curve = runs.Curve(tmp_path / "a.curve", [2, 4, 6], lambda run: 0.0)
    curve.score(lambda x: x)
    for step in (3, 5, 6):
        curve.follow(n2n_event(step))
    assert [step for step, _ in curve.points] == [3, 5, 6]
    again = runs.Curve(tmp_path / "a.curve", [2, 4, 6], lambda run: 1.0)
    assert again.score(lambda x: x) == 2
    again.follow(n2n_event(4))
    assert again.points == [[3, 0.0], [4, 1.0]]


def n2n_event(step: int):
    from n2n.training import Event

    return Event(step, 6, 0.0, None, 0.0, 0.0, 0.0, 0.0)


def test_a_line_replaces_its_own_only(tmp_path, results, capsys) -> None:
    one = experiment(tmp_path)
    for row, seed, db in (("noisy", 0, 1.0), ("noisy", 1, 2.0), ("clean", 0, 3.0)):
        one.record(row, seed, TINY, kodak24=db)
    other = dataclasses.replace(one, preset="paper")
    assert other.recorded("noisy") is None
    other.record("noisy", 0, TINY, kodak24=4.0)
    one.record("noisy", 0, TINY, kodak24=5.0)
    found = {(each["preset"], each["row"], each["seed"]): each for each in runs.lines("trial")}
    assert {key: each["kodak24"] for key, each in found.items()} == {
        ("cpu", "noisy", 0): 5.0,
        ("cpu", "noisy", 1): 2.0,
        ("cpu", "clean", 0): 3.0,
        ("paper", "noisy", 0): 4.0,
    }
    assert len(runs.lines("trial")) == 4
    line = one.recorded("noisy", 0)
    assert line == found["cpu", "noisy", 0] and line["versions"]["jax"] == jax.__version__
    assert (line["network"], line["steps"], line["crop"]) == ("unet", 4, 32)
    assert experiment(tmp_path / "new").recorded("noisy") is None  # the results are no excuse
    assert json.loads(capsys.readouterr().out.splitlines()[0])["kodak24"] == 1.0


@pytest.mark.slow
def test_the_gaussian_experiment_end_to_end(tmp_path, pictures, results, monkeypatch) -> None:
    monkeypatch.setitem(gaussian.RECIPES, "cpu", dataclasses.replace(TINY, seeds=(0, 1)))
    monkeypatch.setattr(runs, "classical", lambda *given: None)
    arguments = ["gaussian", str(pictures), "--runs", str(tmp_path / "runs"), "--seeds", "1"]
    monkeypatch.setattr("sys.argv", arguments)
    gaussian.main()
    first = runs.lines("gaussian")
    assert [(line["row"], line["seed"]) for line in first] == [("noisy", 1), ("clean", 1)]
    assert all(line["data"] == ["bsd300_train"] and line["seconds"] > 0 for line in first)
    assert all(0 < line["kodak24"] < 60 for line in first)
    models = [
        tmp_path / "runs" / "gaussian-cpu" / f"{row}-1.safetensors" for row in ("noisy", "clean")
    ]
    assert not np.array_equal(
        *(np.concatenate([x.ravel() for x in leaves(n2n.load(path))]) for path in models)
    )
    monkeypatch.setattr(n2n, "fit", None)
    gaussian.main()  # all is there
    assert runs.lines("gaussian") == first


def test_the_input_is_scored_as_it_is_once(tmp_path, pictures, results, monkeypatch) -> None:
    one = experiment(tmp_path)
    problem = runs.Problem(Gaussian(0.1), Bernoulli(0.5), ("kodak24", "bsd300_test"))
    runs.given(one, problem)
    line = runs.lines("trial")[0]
    rows = n2n.evaluate(np.asarray, pictures / "kodak24", corruption=Bernoulli(0.5))
    expected = np.mean([row["input_psnr"] for row in rows])
    assert line["row"] == "input" and line["kodak24"] == pytest.approx(expected, abs=1e-3)
    assert 0 < line["bsd300_test"] < 20
    monkeypatch.setattr(runs, "score", None)
    runs.given(one, problem)


def test_classical_methods_see_the_same_draws_once(
    tmp_path, pictures, results, monkeypatch
) -> None:
    calls: list[str] = []

    def method(name, corruption):
        return lambda seen: calls.append(name) or seen

    monkeypatch.setattr(evaluation, "method", method, raising=False)
    one = experiment(tmp_path, until=0.0)
    with pytest.raises(SystemExit):
        runs.classical(one, "bm3d", ("kodak24",), Gaussian(0.1))
    one.until = float("inf")
    for _ in range(2):
        runs.classical(one, "bm3d", ("kodak24",), Gaussian(0.1))
    assert calls == ["bm3d"] * 2  # two pictures
    identity = runs.score(lambda seen: seen, pictures / "kodak24", Gaussian(0.1))
    assert runs.lines("trial")[0]["kodak24"] == identity


@pytest.mark.slow
def test_captures_are_fixed_and_paired_with_others() -> None:
    clean = np.full((3, 64, 64, 3), 128, np.uint8)
    tasks = budget.cases(clean, 2, 3, crop=32)
    sigma = 25 / 255
    shapes = {name: task.pool["captures"].shape for name, task in tasks.items()}
    assert shapes["case1"] == shapes["case2"] == (1, 2, 3, 64, 64, 3)
    assert shapes["case3"] == (1, 3, 2, 64, 64, 3)
    noise = tasks["case2"].pool["captures"].astype(np.float64) - 128 / 255
    # 73,728 draws: the standard deviation is known to 1 in 384; five of that.
    assert noise.std() == pytest.approx(sigma, rel=5 / 384)
    for name, expected in (("case1", sigma / np.sqrt(2)), ("case2", sigma), ("case3", sigma)):
        stripe = jax.tree.map(lambda leaf: leaf[0], tasks[name].pool)
        sample = jax.jit(jax.vmap(tasks[name].sample, (0, None, None)))
        drawn = sample(jax.random.split(jax.random.key(0), 40), stripe, 0.0)
        # 40 x 3,072 values, of few captures: no narrower than the pool's own spread above.
        assert np.std(drawn.input - 128 / 255) == pytest.approx(sigma, rel=0.02)
        assert np.std(drawn.target - 128 / 255) == pytest.approx(expected, rel=0.02)
        together = np.mean((drawn.input - 128 / 255) * (drawn.target - 128 / 255), (1, 2, 3))
        assert np.abs(together).max() < 5 * sigma**2 / np.sqrt(3072)  # never a capture with itself
    assert len({float(value) for value in drawn.input[:, 0, 0, 0]}) > 6  # scenes, pairs, places


def test_scenes_come_from_all_pictures_first(tmp_path) -> None:
    paths = []
    for number, shape in enumerate([(224, 448, 3), (300, 230, 3)]):
        paths.append(tmp_path / f"{number}.png")
        picture = np.full(shape, 10 * number, np.uint8)
        picture[:, 224:] += 5
        n2n.write(paths[-1], picture)
    assert budget.scenes(paths, 3)[:, 0, 0, 0].tolist() == [0, 10, 5]
    with pytest.raises(n2n.Error, match="hold 3 scenes of 224 px; 4 are needed"):
        budget.scenes(paths, 4)


def test_the_table_of_invented_lines(tmp_path, results) -> None:
    results.mkdir()
    facts = {"steps": 1500, "batch": 8, "crop": 64, "data": ["bsd300_train"], "device": "CPU"}
    invented = [
        {"preset": "cpu", "row": "noisy", "seed": 0, "kodak24": 30.0, "seconds": 60.0},
        {"preset": "cpu", "row": "noisy", "seed": 1, "kodak24": 30.2, "seconds": 180.0},
        {"preset": "cpu", "row": "clean", "seed": 0, "kodak24": 30.1, "seconds": 60.0},
        {"preset": "cpu", "row": "bm3d", "seed": 0, "kodak24": 31.8},
    ]
    both = [line | facts | {"bsd300_test": line["kodak24"] - 1} for line in invented]
    (results / "gaussian.jsonl").write_text("".join(json.dumps(each) + "\n" for each in both))
    rows = table.table().splitlines()
    assert len({row.count("|") for row in rows}) == 1 and len(rows) == 2 + len(table.ROWS)
    assert rows[2] == (
        "| Gaussian 25, Kodak | 32.48 / 32.50 | 32.39 / 32.38 | 30.10 | 30.10 | -0.10 | BM3D 31.80 "
        "| bsd300_train | 1,500 of 8 x 64 px, 2 seeds, shortened | 2 | CPU |"
    )
    assert "not run" in rows[4] and rows[4].startswith("| longer, Kodak")
    assert "not run" in rows[6] and rows[6].startswith("| Poisson 30, Kodak")
    full = both[0] | {"preset": "paper", "steps": 500_000, "kodak24": 32.3}
    (results / "gaussian.jsonl").write_text(json.dumps(full) + "\n" + json.dumps(both[2]) + "\n")
    assert "| 32.30 |  |  |  |" in table.table()  # clean targets of another length do not count
    assert "shortened" not in table.table()
    hour = both[0] | {"preset": "long", "steps": 12_000, "kodak24": 31.1, "seed": 0}
    (results / "gaussian.jsonl").write_text(json.dumps(hour) + "\n" + json.dumps(both[3]) + "\n")
    rows = table.table().splitlines()
    assert "not run" in rows[2] and "| 31.10 |  |  | BM3D 31.80 |" in rows[4]
    assert "12,000 of 8 x 64 px, shortened" in rows[4]


def test_the_table_of_restoration(results) -> None:
    results.mkdir()
    trained = {"steps": 1500, "batch": 4, "crop": 96, "preset": "cpu", "device": "CPU", "seed": 0}
    unblur = [
        {"row": "motion-input", "kodak24": 24.0, "band": -29.0},
        {"row": "motion-wiener", "kodak24": 26.7, "band": -34.0},
        {"row": "motion-lucy", "kodak24": 27.1, "band": -34.5},
        {"row": "motion-operator", "kodak24": 27.7, "band": -35.4, "seconds": 240.0} | trained,
        {"row": "motion-sharp", "kodak24": 28.4, "band": -34.7, "seconds": 300.0} | trained,
        {"row": "blind", "motion": 24.5, "seconds": 300.0} | trained,
    ]
    (results / "unblur.jsonl").write_text("".join(json.dumps(each) + "\n" for each in unblur))
    rows = table.restoration().splitlines()
    assert len({row.count("|") for row in rows}) == 1 and len(rows) == 2 + len(table.RESTORED)
    told = "1,500 of 4 x 96 px, shortened | 5 | CPU |"
    assert (
        "| motion (15 px, 30°): picture | 24.00 | Richardson-Lucy 27.10, Wiener 26.70 | 27.70 "
        f"| 28.40 |  | {told}" in rows
    )
    assert (
        "| motion (15 px, 30°): error in the visible band | -29.00 "
        f"| Richardson-Lucy -34.50, Wiener -34.00 | -35.40 | -34.70 |  | {told}" in rows
    )
    assert f"| the same network for all: motion |  |  |  | 24.50 |  | {told}" in rows
    assert sum("not run" in row for row in rows) == len(table.RESTORED) - 3


def test_the_table_of_bursts(results) -> None:
    results.mkdir()
    lines = [
        {"row": "raw-0.01-crossed", "mean": [30.0, 29.0], "mean-path": 20.0, "n2n": [35.0, 34.0],
         "n2n-path": 33.0, "n2n-alone-path": 32.0},
        {"row": "developed-0.04-held", "mean": [30.0, 29.0], "bm3d": [31.0, 28.0]},
        {"row": "developed-0.04-held", "mean": [31.0, 30.0], "bm3d": [31.5, 28.5]},
    ]  # fmt: skip
    trained = {"steps": 4000, "batch": 4, "optimizer": "muon"}
    lines = [trained | each for each in lines]
    lines.insert(0, lines[1] | {"steps": 2500, "batch": 8, "optimizer": "adam"})
    (results / "bursts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    head, rule, *rows = table.bursts().splitlines()
    assert len({row.count("|") for row in (head, rule, *rows)}) == 1 and len(rows) == 4
    assert rows[0] == (
        "| hand-held, mosaic, JPEG, gain 0.04 |  | 30.50 (29.50) | 31.25 (28.25) |  |  |  |  | 2 | "
        "4,000 of 4, muon |"
    )
    assert rows[1].startswith("| an object crossing, 16 bits, gain 0.01 |  | 30.00 (29.00) |  |")
    assert rows[2] == "| inside its path |  | 20.00 |  |  |  |  | 33.00 |  |  |"
    assert rows[3] == "| the same, of one frame alone |  |  |  |  |  |  | 32.00 |  |  |"
    for case in bursts.CASES:
        files, gain, moves = case.name.split("-")
        assert files in table.FILES and float(gain) in bursts.GAINS and moves in table.MOVES


def test_restoration_knows_the_rows_of_its_experiments() -> None:
    learnt = {"unblur": unblur.LEARNT, "jpeg": tuple(jpeg.TARGETS), "colour": tuple(colour.TARGETS)}
    assert set(table.CLASSICAL) == set(unblur.CLASSICAL)
    for row in table.RESTORED:
        assert {row.degraded, table.SHARP[row.experiment]} <= {*learnt[row.experiment], ""}
        assert row.prefix.removesuffix("-") in {*unblur.PSFS, ""}


def test_the_table_knows_the_rows_of_the_experiments() -> None:
    rows = {name: {row.noisy for row in table.ROWS if row.experiment == name} for name in NAMES}
    assert rows["brown"] == {f"blur{blur:g}" for blur in brown.BLURS}
    assert rows["budget"] == set(budget.cases(np.zeros((1, 32, 32, 3), np.uint8), 1, 2, 32))
    assert rows["impulse"] == set(impulse.ROWS) - {"clean"}
    for row in table.ROWS:
        module = importlib.import_module(f"experiments.{row.experiment}")
        if row.experiment == "montecarlo":
            assert {row.noisy, row.clean} <= {*montecarlo.WAYS, "online", ""}
        elif row.experiment == "mri":
            assert row.figure in mri.TESTS
        else:
            assert row.figure in module.PROBLEM.sets


def test_curves_over_p_are_gaps_to_clean_targets(results) -> None:
    found = [
        {"row": row, "kodak24": db}
        for row, db in [("l1-p0.7", 20.0), ("clean-p0.7", 29.0), ("l1-p0.3", 30.0), ("l0", 28.0)]
    ]
    assert curves.gaps(found) == {"l1": [(0.7, -9.0)]}
    assert curves.longest("impulse") == []


def test_the_table_is_put_between_its_marks(tmp_path, results, monkeypatch) -> None:
    readme = tmp_path / "README.md"
    marked = "<!-- {0} -->\nold\n<!-- end of {0} -->\n"
    readme.write_text(
        f"before\n{marked.format('results')}between\n{marked.format('restoration')}after\n"
    )
    monkeypatch.setattr("sys.argv", ["table", "--readme", str(readme)])
    table.main()
    text = readme.read_text()
    assert text.startswith("before\n<!-- results -->\n| task |") and text.endswith("-->\nafter\n")
    assert "-->\nbetween\n<!-- restoration -->\n| dB on Kodak |" in text and "old" not in text
