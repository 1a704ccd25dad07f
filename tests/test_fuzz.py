"""Broken files: whatever their bytes, a picture or a model comes out, or one clear line.

Mutations keep what a reader checks first (signatures, lengths, checksums), so that most of them
reach the decoders behind.
"""

from __future__ import annotations

import io
import json
import os
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import safetensors.numpy
import tifffile
from PIL import Image

import n2n
from n2n import checkpoints, images, networks
from n2n.networks import Lean
from n2n.types import Error

Mutate = Callable[[bytes, np.random.Generator], bytes]
ODD = [
    b"\0",
    b"\x01",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
]
SECONDS, MEGABYTES = 10, 1000
"""What a file may cost at most."""


def scene(dtype: str) -> np.ndarray:
    down, right = np.mgrid[:24, :32]
    picture = (np.stack([down, right, down ^ right], -1) * 8).astype(np.uint8)
    return picture.astype(np.uint16) * 257 if dtype == "uint16" else picture


def stirred(data: bytes, rng: np.random.Generator, first: int = 0) -> bytes:
    """Overwrite a few bytes from `first` on."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        if len(changed) <= first:
            break
        place = int(rng.integers(first, len(changed)))
        word = ODD[rng.integers(len(ODD))] if rng.random() < 0.5 else rng.bytes(1)
        changed[place : place + len(word)] = word[: len(changed) - place]
    return bytes(changed)


def anyhow(data: bytes, rng: np.random.Generator, first: int = 8) -> bytes:
    """Stir, cut off, drop or repeat a part, or several of these."""
    for _ in range(rng.integers(1, 3)):
        a, b = sorted(int(x) for x in rng.integers(min(first, len(data)), len(data) + 1, 2))
        kind = rng.integers(6)
        if kind == 0:
            data = data[:b]
        elif kind == 1:
            data = data[:a] + data[b:]
        elif kind == 2:
            data = data[:b] + data[a:b] + data[b:]
        else:
            data = stirred(data, rng, first)
    return data


def png(data: bytes, rng: np.random.Generator) -> bytes:
    """Change one chunk (the pixels behind their compression, often) and mend its checksum."""
    chunks, at = [], 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += length + 12
    which = int(rng.integers(len(chunks)))
    name, body = chunks[which]
    if name == b"IDAT" and rng.random() < 0.5:
        body = zlib.compress(anyhow(zlib.decompress(body), rng, 0))
    else:
        body = stirred(body, rng) if rng.random() < 0.7 else anyhow(body, rng, 0)
    chunks[which] = (name, body)
    if rng.random() < 0.1:
        chunks.insert(int(rng.integers(1, len(chunks))), chunks[which])
    packed = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    ]
    return data[:8] + b"".join(packed)


def model(data: bytes, rng: np.random.Generator) -> bytes:
    """Change the JSON of a safetensors file, inside or around n2n's own, or the numbers."""
    (length,) = struct.unpack("<Q", data[:8])
    header, numbers = json.loads(data[8 : 8 + length]), data[8 + length :]
    kind = rng.integers(8)
    if kind == 0:
        return data[: 8 + length] + anyhow(numbers, rng, 0)
    if kind == 1:
        return data[:8] + stirred(data[8:], rng)
    if kind == 2:
        return data[: 8 + length] + stirred(numbers, rng)
    meta = json.loads(header["__metadata__"]["n2n"])
    if kind == 3:
        header["__metadata__"]["n2n"] = anyhow(
            header["__metadata__"]["n2n"].encode(), rng, 0
        ).decode("latin1")
    else:
        meta = warped(meta, rng)
        header["__metadata__"]["n2n"] = json.dumps(meta)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + numbers


VALUES = [None, True, -1, 0, 1, 2, 10**12, 10**400, 1e308, "x", "", [], {}, [0, 0], [[]] * 3, "\0"]


def warped(tree: object, rng: np.random.Generator) -> object:
    """Replace, drop or add something somewhere in JSON."""
    if rng.random() < 0.3 or not isinstance(tree, (dict, list)) or not tree:
        return VALUES[rng.integers(len(VALUES))]
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    key = keys[rng.integers(len(keys))]
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    if rng.random() < 0.15:
        del copy[key]
    elif isinstance(copy, dict) and rng.random() < 0.1:
        copy["more"] = 1
    else:
        copy[key] = warped(copy[key], rng)
    return copy


def encoded(extension: str, dtype: str = "uint8", **options: object) -> bytes:
    file = io.BytesIO()
    if extension == "tif":
        tifffile.imwrite(file, scene(dtype), photometric="rgb", **options)
    elif dtype == "uint16":
        return images.writing._deep_png(images.writing.Path("x.png"), scene(dtype), b"", None)
    else:
        Image.fromarray(scene(dtype)).save(file, extension, **options)
    return file.getvalue()


def weights() -> bytes:
    network = networks.build(Lean(4, 3, (4, 4)))
    import jax

    shapes = jax.eval_shape(network.init, jax.random.key(0))
    arrays = checkpoints.flatten(jax.tree.map(lambda leaf: np.zeros(leaf.shape, "f4"), shapes))
    meta = {"format": 1, "network": network.config, "scale": [0.0, 1.0], "card": {"steps": 1}}
    return safetensors.numpy.save(arrays, metadata={"n2n": json.dumps(meta)})


def jpeg(data: bytes, rng: np.random.Generator) -> bytes:
    return anyhow(data, rng, 2)


KINDS: dict[str, tuple[str, Callable[[], bytes], Mutate]] = {
    "png": ("png", lambda: encoded("png"), png),
    "png16": ("png", lambda: encoded("png", "uint16"), png),
    "jpeg": ("jpg", lambda: encoded("jpeg", quality=80), jpeg),
    "progressive": ("jpg", lambda: encoded("jpeg", progressive=True), jpeg),
    "tiff": ("tif", lambda: encoded("tif"), anyhow),
    "tiff16": ("tif", lambda: encoded("tif", "uint16", compression="zlib"), anyhow),
    "webp": ("webp", lambda: encoded("webp", lossless=True), anyhow),
    "model": ("safetensors", weights, model),
}


def outcome(path: str) -> str:
    """Read a file as n2n does; say what became of it, and whether a decoder has seen it."""
    try:
        if path.endswith(".safetensors"):
            checkpoints.load(path)
            reached = True
        else:
            images.declared_size(path)
            reached = True
    except Error:
        reached = False
    try:
        if path.endswith(".safetensors"):
            n2n.load(path)
        else:
            for picture in images.read_pages(path):
                images.to_float(picture.array)
        what = "read"
    except Error as error:
        assert "\n" not in str(error) and len(str(error)) < 1000, error
        what = "refused"
    return f"{what}, {'decoded' if reached else 'not opened'}"


def attack(kind: str, count: int, folder: str, seed: int = 0) -> Counter:
    """Read so many broken files of a kind; return how they ended."""
    extension, make, mutate = KINDS[kind]
    rng, sound, ends = np.random.default_rng([seed, len(kind)]), make(), Counter()
    path = os.path.join(folder, f"broken.{extension}")
    for number in range(count):
        data = mutate(sound, rng)
        with open(path, "wb") as file:
            file.write(data)
        began = time.monotonic()
        try:
            ends[outcome(path)] += 1
        except BaseException as error:
            error.add_note(f"{kind}, mutation {number} of seed {seed}")
            raise
        assert time.monotonic() - began < SECONDS, (kind, number)
    return ends


@pytest.fixture
def limited(kind):
    """Let this process take so much memory more, and no more; but for JAX, whose addresses do."""
    if kind == "model":
        yield
        return
    resource = pytest.importorskip("resource", reason="memory can be limited on Linux alone")
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEGABYTES * 10**6, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("kind", KINDS)
def test_broken_files_are_read_or_refused(kind, tmp_path, capfd) -> None:
    ends = attack(kind, 250, str(tmp_path))
    reached = sum(number for end, number in ends.items() if end.endswith("decoded"))
    assert reached >= 125, ends
    out, err = capfd.readouterr()
    assert not out and not err


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_broken_files(kind, tmp_path, limited) -> None:
    """12,500 of each kind, 100,000 in all, within the memory; the figures are printed."""
    ends = attack(kind, 12_500, str(tmp_path), seed=1)
    print(kind, dict(ends))


def test_a_sound_file_of_each_kind_is_read(tmp_path) -> None:
    for extension, make, _ in KINDS.values():
        path = tmp_path / f"sound.{extension}"
        path.write_bytes(make())
        assert outcome(str(path)) == "read, decoded"
