"""The command line as its users meet it: statuses, lines, files."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tifffile
from PIL import Image

import n2n
from n2n import checkpoints, cli, images, networks
from n2n.cli import burst, demo, evaluate, inspection, jobs, outputs, parser, screen, train
from n2n.images.writing import _ENCODERS
from n2n.profile import Curve, Profile
from n2n.training import Event, TrainConfig
from n2n.types import Error, Failure, Fused, Interrupted, Score

SIDE = 96


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Compile once and lightly for all processes, away from the user's own cache."""
    before = jax.config.jax_compilation_cache_dir
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("N2N_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.fixture(scope="module")
def scene():
    """A scene H,W,C with structure at all scales, in [0.1, 0.9]."""
    rng = np.random.default_rng(0)
    total = np.zeros((SIDE, SIDE, 3))
    for cells in (3, 6, 12, 24, 48):
        block = rng.random((cells, cells, 3)) / cells**0.5
        total += np.kron(block, np.ones((SIDE // cells, SIDE // cells, 1)))
    return (0.1 + 0.8 * (total - total.min()) / np.ptp(total)).astype(np.float32)


def save(path, picture, dtype="uint8"):
    """Write a picture that does not look like n2n's own."""
    array = images.from_float(picture, dtype)
    if dtype == "uint8":
        Image.fromarray(array).save(path)
    else:
        tifffile.imwrite(path, array, photometric="rgb")


def noisy(scene, seed, sigma=0.05):
    noise = np.random.default_rng(seed).normal(0, sigma, scene.shape)
    return np.clip(scene + noise, 0, 1)


@pytest.fixture
def frames(tmp_path, scene):
    """A folder of four noisy frames."""
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(1, 5):
        save(folder / f"IMG_{number}.png", noisy(scene, number))
    return folder


@pytest.fixture
def clean(tmp_path, scene):
    """A folder of two clean pictures."""
    folder = tmp_path / "clean"
    folder.mkdir()
    save(folder / "a.png", scene)
    save(folder / "b.png", scene[::-1])
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model of small random weights."""
    config = {"kind": "unet", "inputs": 3, "outputs": 3, "width": 4, "depth": 1, "residual": True}
    network = networks.build(config)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    facts = json.dumps({"steps": 0, "data": "nothing"})
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.05, leaf.shape).astype("f4"), shapes)
    n2n.Denoiser(params, network, facts=facts).save(path)
    return path


def command(*arguments):
    return [sys.executable, "-W", "error", "-m", "n2n", *map(str, arguments)]


def start(*arguments, **options):
    """Start a process as a user would."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen(command(*arguments), **pipes)


def user(*arguments):
    """Run a command to its end: status, stdout, stderr."""
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


def refused(capsys, *arguments, status=2):
    """Return the one line that a refused command prints."""
    capsys.readouterr()
    assert cli.main(list(map(str, arguments))) == status
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("n2n: ") and err.count("\n") == 1, err
    return err


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# As a user runs it -------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM")
def test_burst_stopped_and_resumed_as_a_user(frames, model, capsys):
    before = names(frames)
    out = frames / "IMG_2-n2n.png"
    folder = jobs.run_folder(out)
    begin = ["burst", frames, "--init", model]  # a small network
    process = start(*begin, "--reference", "2", "--steps", 100_000)
    deadline = time.monotonic() + 240
    while not (folder / "log.jsonl").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    text, err = process.communicate(timeout=120)
    assert process.returncode == cli.INTERRUPTED, err
    first, *_, last = err.splitlines()
    assert "4 frames of 96 x 96" in first and "100,000 steps" in first and "about" in first
    assert last.startswith("n2n: stopped by SIGTERM") and "--resume" in last
    assert "IMG_2.png (reference)" in text and not out.exists()
    assert jobs.holds_run(out) and not (folder / "lock").exists()
    assert "--resume" in refused(capsys, "burst", frames, "--reference", "2")
    steps = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["step"] + 1
    line = [*begin, "--reference", "IMG_2.png", "--steps", steps, "--resume"]
    report = frames.parent / "report.html"
    status, text, err = user(*line, "--json", "-", "--report", report)
    assert status == 0, err
    told = report.read_text("utf-8")
    assert all(name in told for name in (*before, out.name, f"{steps:,} steps, seed 0"))
    facts = json.loads(text)
    assert facts["reference"] == "IMG_2.png" and facts["steps"] == steps and facts["seconds"] > 0
    assert [row["frame"] for row in facts["frames"]] == before and facts["device"]
    assert {"n2n", "jax", "python"} <= set(facts["versions"])
    assert images.read(out).array.dtype == np.uint16 and facts["bits"] == 16
    assert names(frames) == sorted([*before, out.name])  # and the run's folder is gone


def test_burst_starts_from_weights_and_gives_theirs_where_they_are_better(
    frames, model, tmp_path, capsys
):
    out = tmp_path / "out.png"
    line = ["burst", frames, "-o", out, "--steps", 1, "--init", model, "--json", "-"]
    assert cli.main(list(map(str, line))) == 0
    facts = json.loads(capsys.readouterr().out)
    # Random weights: neither they nor what a step makes of them are worth more than the mean.
    assert facts["init"] == str(model) and facts["made_by"] == "mean"
    mean = n2n.align([frames]).mean()
    np.testing.assert_allclose(images.read(out).array / 65535, mean, atol=1 / 65535)
    wrong = refused(capsys, "burst", frames, "-o", tmp_path / "b.png", "--init", "nothing")
    assert "model is 'nothing'" in wrong
    both = refused(capsys, "burst", frames, "--init", model, "--from-scratch")
    assert "--from-scratch" in both and not (tmp_path / "b.png").exists()


def test_two_bursts_do_not_share_an_output(frames, model, tmp_path, capsys):
    out = tmp_path / "out.png"
    line = ["burst", frames, "-o", out, "--steps", 1, "--init", model, "--quiet"]
    with checkpoints.running(out):
        before = names(tmp_path)
        # Refused before anything is read: the frames are none.
        for given in (line, ["burst", __file__, __file__, *line[2:]]):
            assert f"in use by process {os.getpid()}" in refused(capsys, *given)
        assert names(tmp_path) == before
    (jobs.run_folder(out) / "lock").write_text(str(os.getpid()))  # of a process that was killed
    assert cli.main(list(map(str, line))) == 0
    assert out.exists() and not jobs.run_folder(out).exists()


def test_a_second_burst_does_not_take_the_first_result_for_a_frame(frames, scene, capsys):
    before = names(frames)
    images.write(frames / "IMG_1-n2n.png", images.from_float(scene, "uint16"))
    assert "--overwrite" in refused(capsys, "burst", frames, "--steps", 3)
    job = burst.plan(parser.make().parse_args(["burst", str(frames), "--overwrite"]))
    assert [path.name for path in job.paths] == before
    assert job.out == frames / "IMG_1-n2n.png" and job.dtype == "uint16"


@pytest.mark.slow
def test_train_and_inspect_as_a_user(clean, tmp_path, model, capsys):
    out = tmp_path / "mine.safetensors"
    arguments = ["train", "--clean", clean, "--noise", "gaussian:25", "-o", out, "--init", model]
    status, text, err = user(*arguments, "--steps", 2, "--batch", 2, "--crop", 32)
    assert status == 0, err
    assert "2 pictures, gaussian:25" in err and "2 steps" in err and "mine.safetensors" in text
    assert n2n.load(out).card["steps"] == 2
    assert not jobs.run_folder(out).exists()
    status, text, err = user("inspect", out)
    assert (status, err) == (0, "")
    assert "width 4" in text and "halo" in text and "gaussian:25" in text
    assert "exists" in refused(capsys, *arguments)


def test_denoise_as_a_user(clean, tmp_path, model):
    (clean / "c.png").write_bytes(b"no picture")
    out = f"{tmp_path / 'results'}{os.sep}"
    status, text, err = user("denoise", clean, "-o", out, "--model", model)
    assert status == 2
    assert err.count("\n") == 1 and "c.png" in err and err.startswith("n2n: ")
    assert text.count("->") == 2
    assert names(tmp_path / "results") == ["a-n2n.png", "b-n2n.png"]


def test_evaluate_as_a_user(clean, tmp_path, model):
    target = tmp_path / "scores.json"
    status, text, err = user(
        "evaluate", "--clean", clean, "--corrupt", "gaussian:25", "--model", model,
        "--repeat", 2, "--json", target,
    )  # fmt: skip
    assert status == 0, err
    assert [line.split()[0] for line in text.splitlines()] == ["picture", "a.png", "b.png", "mean"]
    facts = json.loads(target.read_text())
    assert len(facts["rows"]) == 4 and abs(facts["mean"]["input_psnr"] - 20.2) < 0.5


def test_version_as_a_user():
    status, text, err = user("--version")
    assert (status, err) == (0, "")
    assert [line.split()[0] for line in text.splitlines()[:3]] == ["n2n", "jax", "Python"]


@pytest.mark.slow
def test_quick_demo_as_a_user(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS")
    status, text, err = user("demo", "--quick", "--out", tmp_path / "demo")
    assert status == 0, err
    assert "n2n" in text and "registered mean" in text
    assert (tmp_path / "demo" / "before-after.png").exists()
    assert len(images.frames_in(tmp_path / "demo" / "frames")) == 8
    assert cli.main(["demo", "--quick", "--quiet", "--out", str(tmp_path / "demo")]) == 0


@pytest.mark.slow
def test_demo_keeps_its_promise(tmp_path, monkeypatch):
    monkeypatch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS")
    done = subprocess.run(
        command("demo", "--out", tmp_path / "demo"), capture_output=True, text=True, timeout=3600
    )
    assert done.returncode == 0, done.stderr
    found = {
        name: float(line.removeprefix(name).split()[0])
        for line in done.stdout.splitlines()
        for name in ("one frame ", "registered mean ", "best non-local means of it ", "n2n ")
        if line.startswith(name)
    }
    one, mean, smoothed, ours = found.values()
    assert one < 28 <= mean <= 31
    assert ours >= mean + 3 and ours >= smoothed + 1


# Speed of starting -------------------------------------------------------------------------------


def test_import_is_light():
    code = (
        "import sys, time; began = time.perf_counter(); import n2n; "
        "took = time.perf_counter() - began; "
        "print(took, *{'jax', 'numpy', 'flax', 'PIL'} & set(sys.modules))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()
        for _ in range(3)
    ]
    assert all(len(run) == 1 for run in runs), runs
    assert min(float(run[0]) for run in runs) <= 0.1


def test_help_comes_at_once():
    took = []
    for _ in range(3):
        began = time.perf_counter()
        status, text, err = user("--help")
        took.append(time.perf_counter() - began)
        assert (status, err) == (0, "") and "burst" in text
    assert min(took) < 0.5


# One line for every mistake ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        "",
        "frobnicate",
        "burst",
        "burst x --steps 0",
        "burst x --steps 1.5",
        "burst x --steps 3 --minutes 1",
        "burst x --minutes nan",
        "burst x --bits 12",
        "burst x --frob",
        "burst x --data-range 3",
        "burst x --data-range 3,1",
        "burst x --seed -1",
        "burst x --over",
        "denoise",
        "denoise x --strength 1.5",
        "denoise x --tile 0",
        "train -o m.safetensors",
        "train -o m.safetensors --clean x",
        "train -o m.safetensors --pairs x",
        "train -o m.safetensors --pairs x y --corrupt gaussian:25",
        "train -o m.safetensors --pairs x y --target clean",
        "train -o m.safetensors --clean x --corrupt frob:3",
        "train -o m.safetensors --clean x --corrupt gaussian:25 --target frob",
        "train -o m.bin --pairs x y",
        "train -o m.safetensors --pairs x y --bursts z",
        "train --pairs x y",
        "evaluate",
        "evaluate --clean x",
        "evaluate --input x",
        "evaluate --clean x --corrupt gaussian:25 --reference y",
        "evaluate --clean x --corrupt gaussian:25 --method median",
        "evaluate --clean x --corrupt gaussian:25 --method mean --model gaussian",
        "evaluate --input x --reference y --repeat 2",
        "score",
        "score x",
        "score x --frames y",
        "inspect",
        "inspect nowhere",
        "inspect nothing.safetensors",
    ],
)
def test_usage_mistakes_are_one_line(capsys, tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    refused(capsys, *line.split())
    assert not names(tmp_path)


def make_nan(folder, scene):
    bad = scene.copy()
    bad[3, 4] = np.nan
    for name, picture in (("a.tif", scene), ("b.tif", bad)):
        tifffile.imwrite(folder / name, picture, photometric="rgb")


def make_inf(folder, scene):
    make_nan(folder, np.where(scene == scene[0, 0], np.inf, scene))


def make_black(folder, scene):
    for number in range(3):
        save(folder / f"{number}.png", noisy(scene, number))
    save(folder / "black.png", np.zeros_like(scene))


def make_saturated(folder, scene):
    make_black(folder, scene)
    (folder / "black.png").unlink()
    save(folder / "white.png", np.ones_like(scene))


def make_one_frame(folder, scene):
    save(folder / "a.png", noisy(scene, 1))


def make_twice(folder, scene):
    for name in ("a.png", "b.png"):
        save(folder / name, noisy(scene, 1))


def make_sizes(folder, scene):
    save(folder / "a.png", noisy(scene, 1))
    save(folder / "b.png", noisy(scene[1:], 2))


def make_text(folder, scene):
    (folder / "a.txt").write_text("no picture")


def make_no_picture(folder, scene):
    save(folder / "a.png", noisy(scene, 1))
    (folder / "b.png").write_bytes(b"no picture at all")


@pytest.mark.parametrize(
    "make, reason",
    [
        (make_nan, "b.tif': image: 3 of 27648 values are not finite"),
        (make_inf, "a.tif': image: "),
        (make_black, "black.png is all black"),
        (make_saturated, "white.png is the same value 1 everywhere"),
        (make_one_frame, "at least 2"),
        (make_twice, "the same picture"),
        (make_sizes, "size"),
        (make_text, "no pictures"),
        (make_no_picture, "b.png"),
    ],
)
def test_bad_frames_are_one_line_and_nothing_is_written(tmp_path, scene, capsys, make, reason):
    make(tmp_path, scene)
    before = names(tmp_path)
    assert reason in refused(capsys, "burst", tmp_path, "--steps", 3, "--json", tmp_path / "j.json")
    assert names(tmp_path) == before


def test_burst_refuses_outputs_before_any_work(frames, capsys):
    first, taken = frames / "IMG_1.png", frames.parent / "taken.png"
    taken.write_bytes(b"mine")
    assert "exists" in refused(capsys, "burst", frames, "-o", taken)
    assert "pictures to read" in refused(capsys, "burst", frames, "-o", first, "--overwrite")
    assert "folder" in refused(capsys, "burst", frames, "-o", frames / "none" / "out.png")
    assert "32" in refused(capsys, "burst", frames, "-o", frames / "out.jpg", "--bits", 32)
    assert "cannot write" in refused(capsys, "burst", frames, "-o", frames / "out.gif")
    assert "exists" in refused(capsys, "burst", frames, "--json", taken)
    assert "pictures to read" in refused(capsys, "burst", frames, "--json", first, "--overwrite")
    page = taken.with_suffix(".html")
    page.write_bytes(b"mine")
    assert "exists" in refused(capsys, "burst", frames, "--report", page)
    assert ".html" in refused(capsys, "burst", frames, "--report", first, "--overwrite")
    both = ("--json", page, "--report", page, "--overwrite")
    assert "pictures to read" in refused(capsys, "burst", frames, *both)
    assert "number" in refused(capsys, "burst", frames, "--reference", 5)
    assert "number" in refused(capsys, "burst", frames, "--reference", "IMG_9.png")
    assert taken.read_bytes() == page.read_bytes() == b"mine"
    assert names(frames) == [f"IMG_{number}.png" for number in range(1, 5)]


@pytest.mark.parametrize("content", [b"no model", b""])
def test_a_model_that_is_none(clean, tmp_path, capsys, content):
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(content)
    before = names(clean)
    assert "bad.safetensors" in refused(capsys, "denoise", clean, "--model", bad)
    assert "bad.safetensors" in refused(capsys, "inspect", bad)
    arguments = ("evaluate", "--clean", clean, "--corrupt", "gaussian:25", "--model")
    assert "bad.safetensors" in refused(capsys, *arguments, bad)
    refused(capsys, *arguments, tmp_path / "none.safetensors")
    assert names(clean) == before


def test_denoise_refuses_to_lose_a_result(clean, tmp_path, model, capsys):
    arguments = ["--model", model, "--quiet"]
    other = tmp_path / "other"
    other.mkdir()
    save(other / "a.png", np.full((20, 20, 3), 0.5))
    both = (clean / "a.png", other / "a.png")
    assert "both" in refused(capsys, "denoise", *both, "-o", other, *arguments)
    existing = other / "x.png"
    existing.write_bytes(b"mine")
    assert "exists" in refused(capsys, "denoise", other / "a.png", "-o", existing, *arguments)
    assert "to read" in refused(
        capsys, "denoise", other / "a.png", "-o", other / "a.png", "--overwrite", *arguments
    )
    assert existing.read_bytes() == b"mine" and names(other) == ["a.png", "x.png"]


# Work in process ---------------------------------------------------------------------------------


def test_denoise_keeps_depth_and_alpha(tmp_path, scene, model, capsys):
    save(tmp_path / "deep.tif", scene, "uint16")
    rgba = np.dstack([images.from_float(scene, "uint8"), np.full((SIDE, SIDE), 77, np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "clear.png")
    given = [str(tmp_path / name) for name in ("deep.tif", "clear.png")]
    assert cli.main(["denoise", *given, "--model", str(model), "--strength", "0"]) == 0
    deep, clear = images.read(tmp_path / "deep-n2n.tif"), images.read(tmp_path / "clear-n2n.png")
    assert np.array_equal(deep.array, images.from_float(scene, "uint16"))
    assert np.array_equal(clear.array, rgba[..., :3]) and (clear.meta["alpha"] == 77).all()
    out = tmp_path / "small.jpg"
    assert cli.main(["denoise", given[0], "-o", str(out), "--model", str(model)]) == 0
    assert images.read(out).array.dtype == np.uint8
    assert capsys.readouterr().err == ""


def test_evaluate_real_pairs_and_json_on_stdout(clean, tmp_path, scene, model, capsys):
    given = tmp_path / "noisy"
    given.mkdir()
    save(given / "a.png", noisy(scene, 1))
    save(given / "b.png", noisy(scene[::-1], 2))
    pair = ["--input", str(given), "--reference", str(clean), "--model", str(model), "--json", "-"]
    assert cli.main(["evaluate", *pair]) == 0
    out, err = capsys.readouterr()
    facts = json.loads(out)
    assert [row["picture"] for row in facts["rows"]] == ["a.png", "b.png"] and "PSNR" in err
    assert cli.main(["evaluate", *pair, "--quiet", "--data-range", "0,255"]) == 0
    out, err = capsys.readouterr()
    again = json.loads(out)
    assert err == "" and again["rows"] == facts["rows"]
    assert cli.main(["evaluate", *pair[:4], "--method", "mean", "--json", "-"]) == 0
    out, err = capsys.readouterr()
    method = json.loads(out)
    assert "mean, sigma not needed; 2 pairs" in err
    ours, theirs = ([row["input_psnr"] for row in f["rows"]] for f in (method, facts))
    assert ours == theirs and method["mean"]["psnr"] > method["mean"]["input_psnr"]


def test_evaluate_a_method_on_the_draws_of_a_model(clean, tmp_path, model, capsys):
    data = [
        "evaluate",
        "--clean",
        clean,
        "--corrupt",
        "gaussian:25",
        "--seed",
        "3",
        "--repeat",
        "2",
    ]
    facts = {}
    for option, value in (("--model", model), ("--method", "mean"), ("--method", "nlm")):
        target = tmp_path / f"{Path(value).stem}.json"
        assert cli.main([*map(str, data), option, str(value), "--json", str(target)]) == 0
        facts[Path(value).stem] = json.loads(target.read_text())
    err = capsys.readouterr().err
    assert "nlm, sigma known, 25/255; 2 pictures, gaussian:25, seed 3, 2 draws of each" in err
    draws = {name: [row["input_psnr"] for row in each["rows"]] for name, each in facts.items()}
    assert draws["mean"] == draws["nlm"] == draws[model.stem] and len(set(draws["nlm"])) == 4
    told = facts["nlm"]
    assert (told["method"], told["sigma"]) == ("nlm", "known, 25/255")
    assert (told["seed"], told["repeat"], told["corrupt"]) == (3, 2, "gaussian:25")
    assert told["model"] is None and facts[model.stem]["method"] is None
    assert told["mean"]["psnr"] > told["mean"]["input_psnr"]


def test_evaluate_pairs_whose_names_differ_in_a_common_end(tmp_path, scene, capsys):
    folders = {"real": noisy(scene, 1), "mean": scene}
    for end, picture in folders.items():
        (tmp_path / end).mkdir()
        for name, each in (("a", picture), ("b", picture[::-1]), ("c", picture)):
            save(tmp_path / end / f"{name}_{end}.png", each)
    pair = ["--input", str(tmp_path / "real"), "--reference", str(tmp_path / "mean")]
    rows = []
    for more in ([], ["--data-range", "0,255"]):
        assert cli.main(["evaluate", *pair, "--method", "mean", "--json", "-", *more]) == 0
        rows.append(json.loads(capsys.readouterr().out)["rows"])
    assert rows[0] == rows[1]
    assert [row["picture"] for row in rows[0]] == ["a_real.png", "b_real.png", "c_real.png"]
    (tmp_path / "mean" / "b_mean.png").unlink()
    for more in ([], ["--data-range", "0,255"]):
        assert "b" in refused(capsys, "evaluate", *pair, "--method", "mean", "--quiet", *more)


def test_a_method_without_its_package(clean, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "bm3d", None)
    arguments = ("--clean", clean, "--corrupt", "gaussian:25", "--method", "bm3d")
    assert "pip install 'n2n[bench]'" in refused(capsys, "evaluate", *arguments)


def test_inspect_frames(frames, capsys):
    assert cli.main(["inspect", str(frames)]) == 0
    out, err = capsys.readouterr()
    assert "IMG_1.png (reference)" in out and "4 frames of 96 x 96, 3 channels" in out
    assert err == "" and len(names(frames)) == 4
    assert "a line fits" in out and "where 1 is white" in out
    assert all(any(x.startswith(c) for x in out.splitlines()) for c in ("red", "green", "blue"))


def test_inspect_as_json(frames, model, capsys):
    assert cli.main(["inspect", str(frames), "--json", "-"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in facts["frames"]] == names(frames)
    assert facts["size"] == [96, 96, 3] and facts["reference"] == "IMG_1.png"
    assert len(facts["profile"]["gain"]) == len(facts["profile"]["curves"]) == 3
    assert cli.main(["inspect", str(model), "--json", "-"]) == 0
    assert "width 4" in json.loads(capsys.readouterr().out)["network"]


def test_noise_is_told_in_a_row_for_each_channel():
    bent = Curve((0.1, 0.5, 0.9), (1e-4, 4e-4, 1e-4), (64,) * 3, (False,) * 3)
    profile = Profile((1e-3, 0.0), (1e-6, 2e-4), (True, False), (bent, bent))
    first, second = inspection.noise_rows(profile)
    assert first[:3] == ("channel 1", "0.001", "0.001") and first[-1] == "yes"
    assert second == ("channel 2", "-", "-", "0.01 (0.1)", "0.02 (0.5)", "0.01 (0.9)", "no")
    black = Profile((1e-3,), (-1e-6,), (True,), (bent,))
    assert inspection.noise_rows(black)[0][:3] == ("grey", "0.001", "-")


@pytest.fixture
def fit(monkeypatch, model):
    """Replace training, and tell what it was given."""
    given = {}

    def fake(task, **keywords):
        given.update(keywords, task=task)
        keywords["progress"](Event(3, 3, 0.01, None, 1e-3, 40.0, 3.0, 0.0))
        return n2n.load(model)

    monkeypatch.setattr(n2n, "fit", fake)
    return given


def test_train_on_bursts_and_pairs(frames, tmp_path, fit, capsys):
    out = str(tmp_path / "m.safetensors")
    assert cli.main(["train", "--bursts", str(tmp_path), "-o", out, "--seed", "3"]) == 0
    assert fit["task"].name.startswith("burst") and fit["seed"] == 3 and fit["steps"] is None
    text, err = capsys.readouterr()
    assert "1 burst," in err and "4,000 steps" in err and "loss 0.01" in text
    pair = [str(frames / "IMG_1.png"), str(frames / "IMG_2.png")]
    assert cli.main(["train", "--pairs", *pair, "-o", out, "--minutes", "2", "--quiet"]) == 0
    assert fit["task"].name == "pairs" and fit["minutes"] == 2 and fit["steps"] is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "more, name",
    [
        ([], "gaussian:25 -> gaussian:25 with noise map"),
        (["--target", "clean"], "gaussian:25 -> clean with noise map"),
        (["--network", "unet"], "gaussian:25 -> gaussian:25"),
        (["--init", "MODEL"], "gaussian:25 -> gaussian:25"),
    ],
)
def test_train_on_clean_pictures(clean, tmp_path, fit, model, more, name):
    more = [str(model) if word == "MODEL" else word for word in more]
    given = ["--clean", str(clean), "--corrupt", "gaussian:25", "--quiet"]
    assert cli.main(["train", *given, "-o", str(tmp_path / "m.safetensors"), *more]) == 0
    assert fit["task"].name == f"simulated {name}"


def test_what_training_refuses_leaves_no_run(frames, tmp_path, capsys):
    out = tmp_path / "m.safetensors"
    pair = [frames / "IMG_1.png", frames / "IMG_2.png"]
    assert "crop" in refused(capsys, "train", "--pairs", *pair, "-o", out, "--crop", 33, "--quiet")
    assert not jobs.run_folder(out).exists()


def test_resume_replaces_a_model_only_with_its_run(tmp_path, capsys):
    out = tmp_path / "m.safetensors"
    out.write_bytes(b"finished")
    arguments = ("train", "--pairs", tmp_path, tmp_path, "-o", out, "--resume")
    assert "exists" in refused(capsys, *arguments)
    jobs.run_folder(out).mkdir()
    (jobs.run_folder(out) / "checkpoint.safetensors").write_bytes(b"state")
    assert "no pictures" in refused(capsys, *arguments)


def test_a_reader_that_has_gone_does_not_matter(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        screen.Screen().result("one")
        screen.Screen().result("two")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_stdout_is_a_failure(monkeypatch):
    with open("/dev/full", "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        with pytest.raises(Failure, match="stdout"):
            screen.Screen().result("one")


def test_help_for_a_reader_that_has_gone():
    process = start("--help")
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(60) == 0


# Statuses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "problem, status, text",
    [
        (Error("name: rule"), 2, "name: rule"),
        (Failure("disk"), 1, "disk"),
        (MemoryError(), 1, "memory"),
        (OSError(28, "No space left on device", "x"), 1, "No space left on device: 'x'"),
        (RuntimeError("RESOURCE_EXHAUSTED: out of memory\nmore"), 1, "memory"),
        (Interrupted("stopped: continue with --resume"), 130, "--resume"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_problems_become_one_line_and_a_status(capsys, monkeypatch, problem, status, text):
    def fail(options):
        raise problem

    monkeypatch.setattr(inspection, "run", fail)
    assert text in refused(capsys, "inspect", "x", status=status)


def test_faults_of_n2n_are_not_hidden(monkeypatch):
    def fail(options):
        raise RuntimeError("a fault")

    monkeypatch.setattr(inspection, "run", fail)
    with pytest.raises(RuntimeError, match="a fault"):
        cli.main(["inspect", "x"])


def test_sigterm_is_an_interruption(capsys, monkeypatch):
    monkeypatch.setattr(inspection, "run", lambda options: os.kill(os.getpid(), signal.SIGTERM))
    assert "SIGTERM" in refused(capsys, "inspect", "x", status=130)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_an_empty_run_folder_goes_and_another_process_s_stays(tmp_path):
    out = tmp_path / "out.png"
    folder = jobs.run_folder(out)
    with checkpoints.running(out):
        with pytest.raises(Error), jobs.unfinished(out):
            raise Error("in use")
        assert (folder / "lock").exists()
    (folder / "lock").write_text("1")  # left by a process that was killed
    with pytest.raises(Error), jobs.unfinished(out):
        raise Error("bad")
    assert not folder.exists()
    folder.mkdir()
    (folder / "checkpoint.safetensors").write_bytes(b"state")
    with pytest.raises(Interrupted, match="--resume"), jobs.unfinished(out):
        raise KeyboardInterrupt
    assert jobs.holds_run(out)


# Names and defaults ------------------------------------------------------------------------------


def test_fit_trainconfig_and_train_agree():
    fit = inspect.signature(n2n.fit).parameters
    config = {name: field.default for name, field in TrainConfig.__dataclass_fields__.items()}
    options = vars(parser.make().parse_args(["train", "--pairs", "a", "b", "-o", "m.safetensors"]))
    for name in train.FIT:
        assert options[name] == fit[name].default, name
    for name in set(config) & set(fit):
        assert name in train.FIT and config[name] == fit[name].default, name
    beyond = {"task", "out", "overwrite", "progress"}
    assert set(fit) - beyond == set(train.FIT)
    assert set(train.settings(parser.make().parse_args(
        ["train", "--pairs", "a", "b", "-o", "m.safetensors"]))) <= set(fit)  # fmt: skip


def test_steps_agree_with_the_library():
    from n2n import denoiser

    assert burst.STEPS == train.STEPS["bursts"] == denoiser.BURST_STEPS
    assert train._OTHER_STEPS == denoiser.STEPS
    assert burst.BATCH == denoiser.BURST_BATCH


def test_methods_agree_with_the_library(capsys):
    from n2n.evaluation import METHODS

    assert cli.main(["evaluate", "--help"]) == 0
    assert "{" + ",".join(METHODS) + "}" in capsys.readouterr().out


def test_depths_agree_with_the_writer():
    assert {name: set(depths) for name, depths in outputs._DEPTHS.items()} == {
        name: set(dtypes) for name, (_, dtypes) in _ENCODERS.items()
    }


@pytest.mark.parametrize(
    "name", ["demo", "burst", "denoise", "train", "evaluate", "score", "inspect"]
)
def test_every_command_explains_itself(capsys, name):
    assert cli.main([name, "--help"]) == 0
    text = capsys.readouterr().out
    for flag in ("--overwrite", "--quiet", "--seed", "--data-range"):
        assert flag in text


# Small parts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, index, name",
    [(None, None, "a.png"), ("2", 1, "b.png"), ("b.png", 1, "b.png"), ("b", 1, "b.png")],
)
def test_reference_by_name_or_number(given, index, name):
    assert burst.chosen(given, [Path("x/a.png"), Path("x/b.png")]) == (index, Path("x") / name)


def test_a_page_of_a_stack_by_number():
    assert burst.chosen("7", [Path("stack.tif")]) == (6, Path("stack.tif"))
    for bad in ("0", "stack.png"):
        with pytest.raises(Error):
            burst.chosen(bad, [Path("stack.tif")])


@pytest.mark.parametrize(
    "name, bits, dtype",
    [
        ("a.png", None, "uint16"),
        ("a.TIF", None, "uint16"),
        ("a.jpg", None, "uint8"),
        ("a.png", 8, "uint8"),
        ("a.tif", 32, "float32"),
    ],
)
def test_depth_of_a_burst(name, bits, dtype):
    assert outputs.dtype_for(Path(name), bits) == dtype


@pytest.mark.parametrize(
    "name, dtype, wanted",
    [
        ("a.tif", "float32", "float32"),
        ("a.tif", "float64", "float32"),
        ("a.png", "float32", "uint16"),
        ("a.tif", "uint32", "uint16"),
        ("a.jpg", "uint16", "uint8"),
    ],
)
def test_depth_of_a_denoised_picture(name, dtype, wanted):
    assert outputs.nearest_dtype(Path(name), dtype) == wanted


def test_json_knows_no_infinity(capsys):
    facts = {"score": Score(1.0, float("-inf"), float("inf")), "path": Path("x"), "none": None}
    outputs.write_json("-", facts | {"rows": (float("nan"), True)})
    text = capsys.readouterr().out
    wanted = {"score": {"db": 1.0, "low": None, "high": None}, "path": "x", "none": None}
    assert json.loads(text) == wanted | {"rows": [None, True]}


@pytest.mark.parametrize(
    "seconds, text", [(4, "4 s"), (89, "89 s"), (200, "3 min"), (9000, "2 h 30 min")]
)
def test_durations(seconds, text):
    assert screen.duration(seconds) == text


def test_intervals_say_what_is_not_bounded():
    infinite = float("inf")
    assert screen.interval(Score(30, 29, 31)) == "30.0 dB (29.0 to 31.0)"
    assert screen.interval(Score(infinite, 40.1, infinite)) == "inf dB (40.1 or more)"
    assert screen.interval(Score(1, -infinite, infinite)) == "1.0 dB (not bounded)"


def test_summaries():
    image, score = np.zeros((1, 1, 3), np.float32), Score(35, 34, 36)
    fused = Fused(image, score, Score(29, 28, 30), Score(6, 5, 7), 32.0)
    text = "\n".join(burst.summary(fused, 8))
    assert "at least 35.0 dB" in text and "6 of the 8 frames" in text and "32 frames" in text
    assert "single frames" in burst.summary(fused, 2)[0]
    assert len(burst.summary(fused, 8)) == 2
    assert "started from do better" in burst.summary(fused, 8, "start")[2]
    assert "the mean of the frames: it is" in burst.summary(fused, 8, "mean")[2]
    unmeasured = Fused(image, None, None, None, float("nan"), borrowed=0.0123)
    small, borrowed = burst.summary(unmeasured, 8)
    assert "too small" in small and "1.2 % of the picture" in borrowed


def test_progress_is_quiet_or_rare(capsys, monkeypatch):
    event = Event(5, 10, 0.01, 1e-5, 1e-3, 40.0, 3.0, 60.0)
    with screen.Screen(quiet=True).training() as show:
        assert show is None
    clock = iter(range(0, 100, 4))
    monkeypatch.setattr(screen.time, "monotonic", lambda: next(clock))
    with screen.Screen().training() as show:
        for _ in range(9):
            show(event)
    out, err = capsys.readouterr()
    assert out == "" and 2 <= err.count("\n") <= 4 and "5 of 10" in err and "60 s left" in err


def test_a_long_wait_is_told_where_there_is_no_terminal(capsys, monkeypatch):
    with screen.Screen().waiting("reading"):
        pass
    monkeypatch.setattr(screen, "_PLAIN_SECONDS", 0.01)
    with screen.Screen(quiet=True).waiting("reading"):
        time.sleep(0.1)
    assert capsys.readouterr().err == ""
    with screen.Screen().waiting("registering"):
        time.sleep(1.0)
    assert capsys.readouterr().err == "registering ...\n"


def test_a_bar_in_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(screen, "_terminal", lambda stream: True)
    with screen.Screen().training() as show:
        show(Event(5, 10, 0.01, None, 1e-3, 40.0, 3.0, 60.0))
    with screen.Screen().counting("tiles") as show:
        show(1, 2)
    with screen.Screen().waiting("reading"):
        pass
    assert capsys.readouterr().out == ""


def test_odd_names_stay_on_one_line(capsys):
    assert screen.shown("a\nb.png") == "'a\\nb.png'"
    screen.Screen().table(("picture", "dB"), [("[bold]x[/bold] " + "long" * 60, "1.0")])
    out = capsys.readouterr().out
    assert out.count("\n") == 2 and "[bold]x[/bold]" in out and "long" * 60 in out


def test_burst_folders(tmp_path, frames):
    (tmp_path / "notes").mkdir()
    assert train.burst_folders(tmp_path) == [frames]
    assert train.burst_folders(frames) == [frames]
    with pytest.raises(Error):
        train.burst_folders(frames / "IMG_1.png")


def test_demo_replaces_its_own_files_only(tmp_path, scene, capsys):
    paths = [tmp_path / name for name in demo._FRAME_NAMES]
    (tmp_path / "frames").mkdir()
    demo._write_frames(tmp_path, np.stack([scene] * demo.FRAMES))
    images.write(tmp_path / "result.png", images.from_float(scene, "uint16"))
    demo._check(tmp_path, overwrite=False)
    assert images.frames_in(tmp_path / "frames") == paths
    save(tmp_path / "truth.png", scene)
    assert "truth.png" in refused(capsys, "demo", "--out", tmp_path)
    demo._check(tmp_path, overwrite=True)


def test_non_local_means_are_tuned_in_their_favour(scene):
    mean = noisy(scene, 5)
    best = demo.best_non_local_means(mean.astype(np.float32), scene)
    assert demo.psnr(best, scene) > demo.psnr(mean, scene)


def test_average_of_nothing():
    assert np.isnan(evaluate.average([])) and evaluate.average([1, 3]) == 2
