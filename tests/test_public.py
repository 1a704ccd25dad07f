"""The public surface as the design's section 4 gives it: names, order, keywords, docstrings."""

from __future__ import annotations

import inspect

import pytest

import n2n
from n2n import corruptions, types
from n2n.corruptions.parse import NAMES

SURFACE = {
    "denoise": "(image, model=None, *, strength=1.0, data_range=None, channel_axis=None, "
    "tile=None, progress=False)",
    "denoise_burst": "(frames, *, init=None, align=True, reference=None, steps=None, "
    "minutes=None, data_range=None, seed=0, progress=False)",
    "align": "(frames, *, reference=None, data_range=None)",
    "pairs": "(a, b)",
    "simulated": "(clean, *, input, target=None)",
    "fit": "(task, *, network=None, init=None, loss=None, steps=None, minutes=None, batch=8, "
    "crop=64, learning_rate=0.001, optimizer='muon', precision='float32', seed=0, out=None, "
    "resume=False, progress=False)",
    "load": "(path_or_name)",
    "evaluate": "(model, pictures, *, corruption=None, reference=None, seed=0, repeat=1)",
    "psnr": "(image, reference, *, data_range=None)",
    "ssim": "(image, reference, *, data_range=None)",
    "upsnr": "(estimate, x, y, *, mask=None, data_range=None, block=32)",
    "upsnr_pair": "(estimate_a, a, estimate_b, b, *, mask=None, data_range=None, block=32)",
    "read": "(path)",
    "write": "(path, array, *, like=None, overwrite=False)",
}
POSITIONAL_NAMES_ARE_FREE = {"load"}


def parameters(text: str) -> list[tuple[str, bool, str | None]]:
    """Return (name, keyword only, default) of a signature in text."""
    found, keyword = [], False
    for word in text.strip("()").split(", "):
        if word == "*":
            keyword = True
            continue
        name, _, default = word.partition("=")
        found.append((name, keyword, default or None))
    return found


@pytest.mark.parametrize("name", SURFACE)
def test_signatures_are_the_designs(name: str) -> None:
    ours = inspect.signature(getattr(n2n, name)).parameters
    wanted = parameters(SURFACE[name])
    positional = [p for p in ours.values() if p.kind is not p.KEYWORD_ONLY]
    assert len(positional) == sum(not keyword for _, keyword, _ in wanted)
    for index, (parameter, keyword, default) in enumerate(wanted):
        if name in POSITIONAL_NAMES_ARE_FREE:
            assert len(ours) == 1
            continue
        got = ours[parameter] if keyword else positional[index]
        assert got.name == parameter
        assert (got.kind is got.KEYWORD_ONLY) == keyword
        assert (None if got.default is got.empty else repr(got.default)) == default
    # What is new since the design is a keyword with a default.
    for extra in set(ours) - {parameter for parameter, _, _ in wanted}:
        if name not in POSITIONAL_NAMES_ARE_FREE:
            assert ours[extra].kind is inspect.Parameter.KEYWORD_ONLY
            assert ours[extra].default is not inspect.Parameter.empty


def test_the_surface_is_complete() -> None:
    assert set(SURFACE) | {"Error", "corruptions", "types"} <= set(dir(n2n))
    for name in ("Task", "Batch", "Observation", "Network", "Burst", "Score", "Picture"):
        assert hasattr(types, name)
    assert issubclass(n2n.Error, ValueError)
    for name in ("denoise", "fuse", "save", "card", "__call__"):
        assert hasattr(n2n.Denoiser, name)
    assert list(types.Fused.__dataclass_fields__)[:3] == ["image", "score", "before"]


def public_objects():
    """Yield every public function, class and method with the name to report."""
    for name in dir(n2n):
        thing = getattr(n2n, name)
        if inspect.isfunction(thing) or inspect.isclass(thing):
            yield name, thing
        if inspect.isclass(thing):
            for member, function in vars(thing).items():
                if inspect.isfunction(function) and not member.startswith("_"):
                    yield f"{name}.{member}", function
    for name in ("Batch", "Burst", "Error", "Network", "Observation", "Picture", "Score", "Task"):
        yield f"types.{name}", getattr(types, name)
    for name in dir(corruptions):
        thing = getattr(corruptions, name)
        if inspect.isclass(thing) and issubclass(thing, corruptions.Corruption):
            yield f"corruptions.{name}", thing
            yield f"corruptions.{name}.__call__", thing.__call__


@pytest.mark.parametrize("name, thing", list(public_objects()))
def test_docstrings_begin_with_an_imperative_line(name: str, thing) -> None:
    text = inspect.getdoc(thing) or ""
    first = text.split("\n\n")[0].replace("\n", " ")
    assert first.endswith("."), f"{name}: {first!r}"
    word = first.split()[0].strip(",:")
    noun = inspect.isclass(thing) and thing is n2n.Denoiser
    assert word[0].isupper() and (noun or not word.endswith("s")), f"{name}: {first!r}"
    assert word not in {"The", "A", "An", "This", "It"}


@pytest.mark.parametrize("name", [n for n in SURFACE if n not in ("psnr", "ssim")])
def test_public_functions_name_their_errors(name: str) -> None:
    assert "Error" in (inspect.getdoc(getattr(n2n, name)) or "")


def test_corruptions_take_the_key_first() -> None:
    classes = [getattr(corruptions, name) for name in dir(corruptions)]
    classes = [c for c in classes if inspect.isclass(c) and issubclass(c, corruptions.Corruption)]
    assert len(classes) >= 8 and NAMES
    for corruption in classes:
        names = list(inspect.signature(corruption.__call__).parameters)
        assert names[:3] == ["self", "key", "clean"]
