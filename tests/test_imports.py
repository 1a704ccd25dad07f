"""The house rule of the design, section 2: imports go down only, and rich lives in the cli."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import n2n

ROOT = Path(n2n.__file__).parent
EXPERIMENTS = ROOT.parent / "experiments"
# The benchmark times the parts themselves; all other experiments show what users can write.
BURST = ("starting", "fuse_best", "turned", "BURST_STEPS", "BURST_BATCH", "RATE", "FINE_RATE")
PROGRAMS = sorted(path for path in EXPERIMENTS.rglob("*.py") if path.name != "benchmark.py")
FLOORS = [
    {"types"},
    {"corruptions", "losses", "metrics", "networks", "devices", "images", "registration"}
    | {"profile"},
    {"tasks", "predict", "checkpoints", "bursts", "simulate", "psf"},
    {"training"},
    {"denoiser", "evaluation", "report"},
    {"cli"},
]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
FREE = {"__init__", "__main__"}


def sources() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def owner(path: Path) -> str:
    """Return the module of a file; a package is one module."""
    return path.relative_to(ROOT).with_suffix("").parts[0]


def statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield every import below a node, those of functions too, less `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from statements(other)
        elif isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        else:
            yield from statements(child)


def imported(tree: ast.AST) -> set[str]:
    """Return the full names that a module imports; `from a import b` gives a.b."""
    names = set()
    for statement in statements(tree):
        if isinstance(statement, ast.Import):
            names |= {alias.name for alias in statement.names}
        else:
            assert statement.level == 0, "a relative import"
            names |= {f"{statement.module}.{alias.name}" for alias in statement.names}
    return names


def breaches(module: str, text: str) -> list[str]:
    """Return what a module must not import."""
    bad = []
    for name in imported(ast.parse(text)):
        top, *rest = name.split(".")
        if top == "rich" and module != "cli":
            bad.append(name)
        if top != "n2n" or rest == ["__version__"] or (rest and rest[0] == module):
            continue
        if not rest and module == "cli":  # the top floor may use the public names as users do
            continue
        if not rest or rest[0] not in FLOOR or FLOOR[rest[0]] >= FLOOR[module]:
            bad.append(name)
    return sorted(bad)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    module = owner(path)
    if module == "__main__":
        assert imported(ast.parse(path.read_text())) <= {"n2n.cli.main", "__future__.annotations"}
    elif module != "__init__":
        assert module in FLOOR, "say in FLOORS and in the design where this module lives"
        assert breaches(module, path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "module, text, bad",
    [
        ("losses", "from n2n.types import Error", []),
        ("losses", "from n2n.metrics import psnr", ["n2n.metrics.psnr"]),
        ("losses", "def f():\n    import n2n.cli", ["n2n.cli"]),
        ("losses", "if TYPE_CHECKING:\n    from n2n.cli import main", []),
        ("training", "from n2n.training.step import draw\nfrom n2n import tasks", []),
        ("training", "import n2n", ["n2n"]),
        ("training", "import rich.progress", ["rich.progress"]),
        ("denoiser", "from n2n import __version__, evaluation", ["n2n.evaluation"]),
        ("cli", "import rich\nfrom n2n import denoiser, report", []),
    ],
)
def test_the_rule_itself(module: str, text: str, bad: list[str]) -> None:
    assert breaches(module, text) == bad


def test_types_need_nothing() -> None:
    tree = ast.parse((ROOT / "types.py").read_text("utf-8"))
    heavy = {name.split(".")[0] for name in imported(tree)} - set(sys.stdlib_module_names)
    assert heavy == {"numpy"}  # inside the methods of Burst


def test_init_is_lazy() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text("utf-8"))
    assert {name.split(".")[0] for name in imported(tree)} <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: str(path.relative_to(EXPERIMENTS)))
def test_experiments_use_public_names(path: Path) -> None:
    public = {"n2n", *(f"n2n.{name}" for name in dir(n2n))}
    for name in imported(ast.parse(path.read_text("utf-8"))):
        if name.split(".")[0] == "n2n":
            inside = name.startswith(("n2n.corruptions.", "n2n.types."))
            # What they hold beside n2n.evaluate: classical methods, and bursts of a known truth;
            # and what flow.py measures.
            other = name in ("n2n.evaluation", "n2n.simulate", "n2n.registration")
            # What `n2n burst` does beside n2n.fit and fuse.
            steps = name.startswith("n2n.denoiser.") and name.split(".")[2] in BURST
            assert name in public or inside or other or steps, f"{name} is not public"


def test_the_library_never_imports_experiments() -> None:
    for path in sources():
        names = imported(ast.parse(path.read_text("utf-8")))
        assert not {name.split(".")[0] for name in names} & {"experiments", "tests"}


def test_import_n2n_loads_neither_jax_nor_numpy() -> None:
    code = (
        "import sys, n2n; dir(n2n); n2n.__version__\n"
        "heavy = {'jax', 'numpy', 'flax', 'optax', 'PIL', 'cv2', 'rich', 'scipy'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "" and done.stderr == ""


def test_public_names_resolve_and_are_listed() -> None:
    assert set(n2n._HOME) <= set(dir(n2n)) and "__version__" in dir(n2n)
    for name in dir(n2n):
        assert getattr(n2n, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'denoize'"):
        n2n.denoize  # noqa: B018


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text("utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        (statement.module, alias.asname)
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    homes = {(f"n2n.{module}", name) for name, module in n2n._HOME.items()}
    assert seen == homes | {("n2n", name) for name in n2n._MODULES}
    assert (ROOT / "py.typed").exists()


def test_whoever_catches_everything_says_why() -> None:
    """Or raises it again: nothing is swallowed in silence."""
    found = 0
    for path in sources():
        text = path.read_text("utf-8")
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            kinds = (
                {"BaseException"} if node.type is None else set(ast.unparse(node.type).split(", "))
            )
            if not {kind.strip("()") for kind in kinds} & {"Exception", "BaseException"}:
                continue
            found += 1
            again = isinstance(node.body[-1], ast.Raise)
            assert again or "#" in text.splitlines()[node.lineno - 1], f"{path}:{node.lineno}"
    assert found > 3
