"""File names of every kind and links: right or refused, and no input or linked file is touched."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import n2n
from n2n import cli, networks
from n2n.types import Error

pytestmark = [
    pytest.mark.usefixtures("hasty"),
    pytest.mark.skipif(sys.platform != "linux", reason="names and links as Linux has them"),
]

NAMES = (
    "two words",
    "two\nlines",
    "déjà-vu 東京 \U0001f4f7",
    "-o",
    "--model=x",
    "\"quoted\" 'twice'",
    "%s {0} $HOME `x` <b>&amp;",
    "[a-z]*?",
    "~",
    os.fsdecode(b"\xff\xfe not decodable"),
    "tab\t bell\a escape\x1b[31m \u202e",
)
SIDE = 48


def noisy(seed):
    rng = np.random.default_rng(0)
    scene = sum(
        np.kron(rng.random((n, n, 1)), np.ones((SIDE // n, SIDE // n, 3))) for n in (3, 6, 12)
    )
    noise = np.random.default_rng(seed).normal(0, 0.1, scene.shape)
    return np.uint8(np.clip(20 + 60 * (scene + noise), 0, 255))


def save(path, seed=1):
    Image.fromarray(noisy(seed)).save(path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A network that changes nothing."""
    config = {"kind": "unet", "inputs": 3, "outputs": 3, "width": 2, "depth": 1, "residual": True}
    network = networks.build(config)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    params = jax.tree.map(np.zeros_like, network.init(jax.random.key(0)))
    n2n.Denoiser(params, network).save(path)
    return path


def run(capsys, *arguments):
    """Run a command in this process: its status, and what it wrote, on clean lines."""
    capsys.readouterr()
    status = cli.main([os.fspath(each) for each in map(str, arguments)])
    out, err = capsys.readouterr()
    assert not any(sign in out + err for sign in "\a\x1b\t\u202e"), (out, err)
    return status, out, err


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_of_any_name_is_denoised(name, tmp_path, monkeypatch, model, capsys) -> None:
    save(tmp_path / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, "denoise", "--model", model, "--", f"{name}.png")
    assert status == 0, err
    (made,) = [path for path in os.listdir(".") if path != f"{name}.png"]
    assert made.startswith(name) and out.count("\n") == 1
    assert run(capsys, "denoise", "--model", model, f"-o{name}.jpg", "--", f"{name}.png")[0] == 0
    assert sorted(os.listdir(".")) == sorted([f"{name}.png", made, f"{name}.jpg"])


def test_a_folder_of_such_names(tmp_path, model, capsys) -> None:
    folder, clean = tmp_path / NAMES[1], tmp_path / NAMES[-1]
    folder.mkdir()
    for seed, name in enumerate(NAMES):
        save(folder / f"{name}.png", seed)
    status, _, err = run(capsys, "denoise", folder, "-o", f"{clean}/", "--model", model)
    assert status == 0, err
    assert len(os.listdir(clean)) == len(os.listdir(folder)) == len(NAMES)


@pytest.fixture
def frames(tmp_path):
    """A burst of three frames, a second side of pairs, and a model's name, all odd."""
    folders = [tmp_path / NAMES[1], tmp_path / NAMES[-2]]
    for number, folder in enumerate(folders):
        folder.mkdir()
        for seed, name in enumerate((NAMES[-2], NAMES[3], NAMES[-1])):
            save(folder / f"{name}.png", 10 * number + seed)
    return folders


def test_a_burst_of_such_names(frames, tmp_path, model, capsys) -> None:
    base = tmp_path / os.fsdecode(b"out \n\xff")
    outputs = [Path(f"{base}.{ending}") for ending in ("png", "json", "html")]
    line = ["-o", outputs[0], "--json", outputs[1], "--report", outputs[2], "--init", model]
    line += ["--steps", 1, "--reference", os.fsdecode(b"\xff\xfe not decodable.png")]
    status, _, err = run(capsys, "burst", frames[0], *line)
    assert status == 0, err
    assert n2n.read(outputs[0]).array.shape == (SIDE, SIDE, 3)
    assert len(json.loads(outputs[1].read_bytes())["frames"]) == 3
    assert b"not decodable" in outputs[2].read_bytes()
    assert run(capsys, "score", outputs[0], "--frames", *sorted(frames[0].iterdir()))[0] == 0
    assert run(capsys, "inspect", frames[0], "--json", f"{base} 2.json")[0] == 0
    assert run(capsys, "inspect", outputs[0])[0] in (0, 2)


def test_training_on_such_names(frames, tmp_path, capsys) -> None:
    out = tmp_path / os.fsdecode(b"m\n\xff.safetensors")
    line = ["-o", out, "--steps", 1, "--batch", 1, "--crop", 16, "--network", "default"]
    status, _, err = run(capsys, "train", "--pairs", *frames, *line)
    assert status == 0, err
    assert run(capsys, "inspect", out)[0] == 0
    table = tmp_path / os.fsdecode(b"t \xff.json")
    line = ["--input", frames[0], "--reference", frames[1], "--model", out, "--json", table]
    status, _, err = run(capsys, "evaluate", *line)
    assert status == 0, err
    assert len(json.loads(table.read_bytes())["rows"]) == 3


# Links and inputs --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["same", "relative", "link", "hard", "folder"])
@pytest.mark.parametrize("command", ["denoise", "burst", "json"])
def test_an_input_is_never_an_output(kind, command, tmp_path, model, monkeypatch, capsys) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    paths = [save(folder / f"{seed}.png", seed) for seed in range(3)]
    out = tmp_path / "out.png"
    if kind == "same":
        out = paths[0]
    if kind == "relative":
        monkeypatch.chdir(tmp_path)
        out = "in/../in/./0.png"
    if kind == "link":
        out.symlink_to(paths[0])
    if kind == "hard":
        os.link(paths[0], out)
    if kind == "folder":
        (tmp_path / "also").symlink_to(folder, target_is_directory=True)
        out = tmp_path / "also" / "0.png"
    before = paths[0].read_bytes()
    given = {
        "denoise": ["denoise", paths[0], "--model", model, "-o", out],
        "burst": ["burst", *paths, "-o", out, "--steps", 1],
        "json": ["inspect", *paths, "--json", out],
    }[command]
    status, _, err = run(capsys, *given, "--overwrite")
    assert status == 2 and "is one of the pictures to read" in err and err.count("\n") == 1
    assert paths[0].read_bytes() == before and len(os.listdir(folder)) == 3


@pytest.mark.parametrize("there", [True, False])
def test_links_in_output_folders_are_replaced_not_followed(there, tmp_path, model, capsys) -> None:
    taken, picture = tmp_path / "elsewhere.png", save(tmp_path / "x.png")
    if there:
        taken.write_bytes(b"somebody's")
    folder = tmp_path / "clean"
    folder.mkdir()
    for name in ("x.png", "o.json"):
        (folder / name).symlink_to(taken)
    line = ["denoise", picture, "--model", model, "-o", folder / "x.png"]
    status, _, err = run(capsys, *line)
    assert status == 2 and "exists" in err
    assert run(capsys, *line, "--overwrite")[0] == 0
    line = ["inspect", picture, save(tmp_path / "y.png", 2), "--json", folder / "o.json"]
    assert run(capsys, *line)[0] == 2
    assert run(capsys, *line, "--overwrite")[0] == 0
    assert taken.exists() == there
    if there:
        assert taken.read_bytes() == b"somebody's"
    assert not any(path.is_symlink() for path in folder.iterdir())
    assert n2n.read(folder / "x.png").array.shape and json.loads((folder / "o.json").read_bytes())


@pytest.mark.parametrize(
    "name", ["m.safetensors.run", "checkpoint.safetensors", "log.jsonl", "lock"]
)
def test_links_in_a_run_s_folder_are_refused(name, tmp_path) -> None:
    from test_resume import fit

    taken = tmp_path / "somebody's"
    folder = tmp_path / "m.safetensors.run"
    if name == folder.name:
        taken.mkdir()
        folder.symlink_to(taken, target_is_directory=True)
    else:
        taken.write_bytes(b"somebody's")
        folder.mkdir()
        (folder / name).symlink_to(taken)
    with pytest.raises(Error, match="is a symbolic link, which runs do not follow"):
        fit("pairs", tmp_path / "m.safetensors")
    assert taken.is_dir() and not os.listdir(taken) or taken.read_bytes() == b"somebody's"
