"""Files of weights and runs: what goes in comes out, broken ones are told in one line."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from n2n import checkpoints, networks
from n2n.checkpoints import Run, fill, flatten, load, remove, running, save
from n2n.networks import UNet
from n2n.types import Error, Failure

ARRAYS = {
    "a/kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
    "a/bias": np.float32([1.5, -2]),
    "step": np.asarray(7, np.int32),
    "empty": np.zeros((0, 3), np.float32),
}
META = {"network": {"kind": "unet", "width": 4}, "scale": [0.0, 1.0], "name": "größe"}


def one_line(caught) -> str:
    text = str(caught.value)
    assert text and "\n" not in text
    return text


def refusal(path) -> str:
    with pytest.raises(Error) as caught:
        load(path)
    return one_line(caught)


# Files -------------------------------------------------------------------------------------------


def test_round_trip(tmp_path) -> None:
    save(tmp_path / "m.safetensors", ARRAYS, META)
    arrays, meta = load(tmp_path / "m.safetensors")
    assert meta == {"format": checkpoints.FORMAT, **META}
    assert set(arrays) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype and np.array_equal(arrays[name], array)


def test_transposed_views_are_stored_as_they_look(tmp_path) -> None:
    view = np.arange(6, dtype=np.float32).reshape(2, 3).T
    save(tmp_path / "m.safetensors", {"v": view, "w": view[::-1]}, {})
    arrays, _ = load(str(tmp_path / "m.safetensors"))
    assert np.array_equal(arrays["v"], view) and np.array_equal(arrays["w"], view[::-1])


def test_equal_content_is_equal_bytes(tmp_path) -> None:
    folder = tmp_path / "some-folder-name"
    folder.mkdir()
    save(folder / "one.safetensors", ARRAYS, META)
    backwards = dict(reversed(ARRAYS.items()))
    save(tmp_path / "two.safetensors", backwards, dict(reversed(META.items())))
    data = (folder / "one.safetensors").read_bytes()
    assert data == (tmp_path / "two.safetensors").read_bytes()
    for secret in (str(tmp_path), "some-folder-name", socket.gethostname(), str(os.getpid())):
        if len(secret) > 3:
            assert secret.encode() not in data


def test_broken_files_are_told_in_one_line(tmp_path) -> None:
    whole = tmp_path / "whole.safetensors"
    save(whole, ARRAYS, META)
    data = whole.read_bytes()
    path = tmp_path / "broken.safetensors"
    for broken in (b"", b"{}", os.urandom(500), data[:50], data[:-1], data + b"x", b"\xff" * 9):
        path.write_bytes(broken)
        assert refusal(path) == f"{str(path)!r} is no n2n model file, or a broken one; get it anew"


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_a_cut_file_never_loads(tmp_path_factory, data) -> None:
    folder = tmp_path_factory.mktemp("cut")
    save(folder / "m.safetensors", ARRAYS, META)
    whole = (folder / "m.safetensors").read_bytes()
    (folder / "m.safetensors").write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    refusal(folder / "m.safetensors")


def test_missing_files_and_folders(tmp_path) -> None:
    assert "does not exist" in refusal(tmp_path / "none.safetensors")
    assert "none.safetensors" in refusal(tmp_path / "none.safetensors")
    refusal(tmp_path)


@pytest.mark.parametrize("meta", [None, {}, {"format": "pt"}])
def test_foreign_safetensors(tmp_path, meta) -> None:
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(safetensors.numpy.save({"w": np.zeros(3)}, metadata=meta))
    assert "not n2n's" in refusal(path)


@pytest.mark.parametrize("text", ["{", "[1, 2]", '"words"', "7"])
def test_strange_facts(tmp_path, text) -> None:
    path = tmp_path / "strange.safetensors"
    path.write_bytes(safetensors.numpy.save({"w": np.zeros(3)}, metadata={"n2n": text}))
    refusal(path)


def test_a_type_that_numpy_lacks(tmp_path) -> None:
    path = tmp_path / "half.safetensors"
    arrays = {"w": np.zeros(3, ml_dtypes.bfloat16)}
    path.write_bytes(safetensors.numpy.save(arrays, metadata={"n2n": '{"format": 1}'}))
    try:
        arrays, _ = load(path)
    except Error as error:
        assert "\n" not in str(error)
    else:
        assert arrays["w"].shape == (3,)


def test_a_newer_format_asks_for_an_update(tmp_path) -> None:
    path = tmp_path / "new.safetensors"
    facts = json.dumps({"format": checkpoints.FORMAT + 1})
    path.write_bytes(safetensors.numpy.save({"w": np.zeros(3)}, metadata={"n2n": facts}))
    assert "has format 2, this n2n reads 1; update n2n" in refusal(path)


@pytest.mark.parametrize("where", ["replace", "fsync"])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch, where) -> None:
    path = tmp_path / "m.safetensors"
    save(path, ARRAYS, META)
    before = path.read_bytes()

    def fails(*arguments) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, where, fails)
    with pytest.raises(Failure) as caught:
        save(path, {"step": np.zeros(999)}, META)
    monkeypatch.undo()
    assert "No space left" in one_line(caught) and "m.safetensors" in str(caught.value)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_a_folder_that_is_not_there_is_a_failure(tmp_path) -> None:
    with pytest.raises(Failure, match="cannot write"):
        save(tmp_path / "none" / "m.safetensors", ARRAYS, META)


# Trees -------------------------------------------------------------------------------------------


def test_flatten_and_fill_are_inverse() -> None:
    tree = {"a": {0: {"k": np.ones((2, 3))}, 10: {"k": np.zeros(1)}}, "b": np.asarray(3)}
    flat = flatten(tree)
    assert set(flat) == {"a/0/k", "a/10/k", "b"}
    back = fill(tree, flat)
    assert back.keys() == tree.keys() and back["a"].keys() == tree["a"].keys()
    assert np.array_equal(back["a"][0]["k"], tree["a"][0]["k"])


def test_fill_casts_to_the_templates_dtype() -> None:
    template = {"w": jax.ShapeDtypeStruct((2,), np.float32)}
    assert fill(template, {"w": np.array([1.0, 2.0])})["w"].dtype == np.float32


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({}, "differ from the network in 'w'"),
        ({"w": np.zeros((3, 3, 2, 4)), "x": np.zeros(1)}, "differ from the network in 'x'"),
        ({"w": np.zeros((3, 3, 4, 2))}, r"'w' have shape \(3, 3, 4, 2\), the network wants"),
        ({"w": np.zeros((3, 3, 1, 4))}, "use the same network"),
    ],
)
def test_fill_refuses_what_differs(arrays, message) -> None:
    with pytest.raises(Error, match=message):
        fill({"w": np.zeros((3, 3, 2, 4))}, arrays)


@pytest.mark.parametrize("shape", [(3, 3, 3, 4), (3, 3, 1, 5), (1, 1, 1, 4), (4,)])
def test_only_input_channels_grow(shape) -> None:
    with pytest.raises(Error, match="only further input channels can be added"):
        fill({"w": np.zeros((3, 3, 2, 4))}, {"w": np.zeros(shape)}, grow=True)


def test_further_input_channels_change_nothing_at_first() -> None:
    small = networks.build(UNet(3, 3, width=3, residual=True, depth=2))
    large = networks.build(UNet(5, 3, width=3, residual=True, depth=2))
    rng = np.random.default_rng(0)
    shapes = [jax.eval_shape(n.init, jax.random.key(0)) for n in (small, large)]
    params = jax.tree.map(
        lambda leaf: (rng.standard_normal(leaf.shape) / 5).astype(np.float32), shapes[0]
    )
    grown = fill(shapes[1], flatten(params), grow=True)
    x = rng.random((1, 32, 32, 5), np.float32)
    before = np.asarray(jax.jit(small.apply)(params, x[..., :3]))
    after = np.asarray(jax.jit(large.apply)(grown, x))
    assert np.abs(before - x[..., :3]).max() > 1e-2
    np.testing.assert_allclose(after, before, atol=1e-6)  # the same sums, with zeros in between


# Runs --------------------------------------------------------------------------------------------


def test_a_run_keeps_and_returns_its_state(tmp_path) -> None:
    out = tmp_path / "m.safetensors"
    run = Run(out)
    assert run.folder == tmp_path / "m.safetensors.run" and run.load() is None
    run.save(ARRAYS, {"x": 1})
    run.log({"step": 1})
    run.log({"step": 2})
    lines = (run.folder / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    run.unlock()
    again = Run(out, resume=True)
    kept = again.load()
    assert kept is not None and kept[1]["x"] == 1 and set(kept[0]) == set(ARRAYS)
    again.unlock()


def test_an_unfinished_run_is_not_overwritten(tmp_path) -> None:
    run = Run(tmp_path / "m")
    run.save(ARRAYS, {})
    run.unlock()
    with pytest.raises(Error, match="holds an unfinished run; continue it with --resume"):
        Run(tmp_path / "m")
    assert not (run.folder / "lock").exists()
    Run(tmp_path / "m", resume=True).unlock()


def test_a_second_process_is_refused(tmp_path) -> None:
    child = (
        "import sys; from n2n.checkpoints import Run\n"
        "from n2n.types import Error\n"
        "try: Run(sys.argv[1], resume=True)\n"
        "except Error as error: print(error)\n"
    )
    with running(tmp_path / "m"):
        done = subprocess.run(
            [sys.executable, "-c", child, str(tmp_path / "m")], capture_output=True, text=True
        )
        assert f"is in use by process {os.getpid()}; wait for it" in done.stdout, done.stderr
        assert (tmp_path / "m.run" / "lock").read_text() == str(os.getpid())


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_the_lock_of_a_killed_process_is_taken_over(tmp_path) -> None:
    child = (
        "import os, signal, sys; from n2n.checkpoints import Run\n"
        "run = Run(sys.argv[1])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", child, str(tmp_path / "m")])
    lock = tmp_path / "m.run" / "lock"
    assert lock.read_text() not in ("", str(os.getpid()))
    run = Run(tmp_path / "m")
    assert lock.read_text() == str(os.getpid())
    run.unlock()


@pytest.mark.parametrize("content", ["", "words", "1"])
def test_a_lock_file_that_nobody_holds_is_none(tmp_path, content) -> None:
    (tmp_path / "m.run").mkdir()
    (tmp_path / "m.run" / "lock").write_text(content)
    with running(tmp_path / "m"):
        with pytest.raises(Error, match=f"in use by process {os.getpid()};"):
            Run(tmp_path / "m")


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
@pytest.mark.parametrize("name", ["", "lock", "log.jsonl", "checkpoint.safetensors"])
def test_links_in_a_run_are_not_followed(tmp_path, name) -> None:
    theirs = tmp_path / "theirs"
    folder = tmp_path / "m.run"
    if name:
        theirs.write_text("precious")
        folder.mkdir()
        (folder / name).symlink_to(theirs)
    else:
        theirs.mkdir()
        folder.symlink_to(theirs)
    with pytest.raises(Error, match="is a symbolic link, which runs do not follow"):
        Run(tmp_path / "m", resume=True)
    assert theirs.read_text() == "precious" if name else not list(theirs.iterdir())


def test_the_lock_goes_with_the_block(tmp_path) -> None:
    with pytest.raises(RuntimeError, match="within"), running(tmp_path / "m"):
        raise RuntimeError("within")
    assert not (tmp_path / "m.run" / "lock").exists()
    with running(None) as run:
        assert run is None


def test_an_impossible_folder(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Error, match="choose another output"):
        Run(tmp_path / "file" / "m")


def test_remove_deletes_its_own_files_alone(tmp_path) -> None:
    run = Run(tmp_path / "m")
    run.save(ARRAYS, {})
    run.log({})
    (run.folder / ".n2n-0123.part").write_text("half")
    (run.folder / "mine.txt").write_text("keep")
    remove(tmp_path / "m")
    assert os.listdir(run.folder) == ["mine.txt"]
    (run.folder / "mine.txt").unlink()
    remove(tmp_path / "m")
    assert not run.folder.exists()
    remove(tmp_path / "m")
