"""Turn the recorded lines into the README's tables: the paper's figures, restoration, bursts.

    python -m experiments.table                    (prints them)
    python -m experiments.table --readme README.md (puts them where they belong)

A row of the first shows the runs of the paper's length where there are any, else those of
`--preset cpu` (or `long`, in rows of their own), and says so; what has not been run says that.
Means over seeds; the gap is over seeds that have both.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import benchmark, runs

Line = dict[str, Any]
HEADS = ("task", "paper", "original code", "noisy", "clean", "gap", "without learning",
         "trained on", "steps", "minutes", "device")  # fmt: skip
NONE = ""


@dataclass(frozen=True)
class Row:
    """Say which lines make a row of the table, and what others have reported."""

    name: str
    experiment: str
    figure: str
    paper: str
    """Noisy and clean targets, dB (reference 2)."""
    code: str = NONE
    """The same of the original code (reference 1.5)."""
    noisy: str = "noisy"
    clean: str = "clean"
    """Which rows of the experiment stand for noisy and for clean targets."""
    floor: tuple[str, str] = ("bm3d", "BM3D")
    """Which row needs no training, and its name."""
    preset: str = NONE
    """Whose lines these are; by default `paper`'s, or `cpu`'s where there are none."""


FIGURE_1 = ("convergence", "brown", "budget")
"""Experiments that are tested on the very noise of `gaussian`, whose BM3D is theirs, too."""
ZERO_FILLED, INPUT = ("unweighted", "zero-filled"), ("input", "input")
ROWS = (
    Row("Gaussian 25, Kodak", "gaussian", "kodak24", "32.48 / 32.50", "32.39 / 32.38"),
    Row("Gaussian 25, BSD300", "gaussian", "bsd300_test", "31.06 / 31.07", "31.02 / 31.01"),
    Row("longer, Kodak", "gaussian", "kodak24", NONE, preset="long"),
    Row("longer, BSD300", "gaussian", "bsd300_test", NONE, preset="long"),
    Row("Poisson 30, Kodak", "poisson", "kodak24", "31.50 / 31.52", "31.66 / 31.66"),
    Row("Poisson 30, BSD300", "poisson", "bsd300_test", "30.16 / 30.18", "30.26 / 30.27"),
    Row("Bernoulli 0.5, Kodak", "bernoulli", "kodak24", "33.17 / 33.01", floor=INPUT),
    Row("Bernoulli 0.5, BSD300", "bernoulli", "bsd300_test", "31.16 / 31.04", floor=INPUT),
    Row("as fast (Fig. 1a)", "convergence", "kodak24", "equal"),
    *(
        Row(
            f"targets' noise blurred by {blur} px, for clean: white (Fig. 1b)",
            "brown",
            "kodak24",
            "within 0.1",
            noisy=f"blur{blur}",
            clean="white",
        )  # fmt: skip
        for blur in (1, 2, 4)
    ),
    Row("pairs with a mean (Fig. 1c, case 1)", "budget", "kodak24", NONE, noisy="case1"),
    Row("all pairs (case 2)", "budget", "kodak24", "above case 1", noisy="case2"),
    Row("ten times the scenes (case 3)", "budget", "kodak24", "above case 2", noisy="case3"),
    *(
        Row(name, experiment, "kodak24", paper, noisy=row, floor=INPUT)
        for name, experiment, row, paper in (
            ("text 0.25, L1 (Fig. 3: one picture)", "text", "noisy", "35.75 / 35.82"),
            ("text 0.25, L2", "text", "l2", "26.89 / 35.82"),
            ("impulse 0.7, L0 (Fig. 4: one picture)", "impulse", "l0", "28.43 / 28.86"),
            ("impulse 0.7, L1", "impulse", "l1", "16.36 / 28.86"),
            ("impulse 0.7, L2", "impulse", "l2", "13.02 / 28.86"),
        )
    ),
    *(
        Row(
            f"renders, {name} (one picture)",
            "montecarlo",
            "psnr",
            paper,
            noisy=row,
            clean="hdr-Tx-y-clean",
            floor=INPUT,
        )  # fmt: skip
        for name, row, paper in (
            ("L2(x, y)", "l2-x-y", "25.46"),
            ("L2(T(x), y)", "l2-Tx-y", "25.39"),
            ("L2(T(x), T(y))", "l2-Tx-Ty", "15.50"),
            ("L_HDR(x, y)", "hdr-x-y", "29.05"),
            ("L_HDR(T(x), y)", "hdr-Tx-y", "30.09"),
        )
    ),
    Row(
        "renders, learnt in flight (Fig. 8)",
        "montecarlo",
        "last",
        NONE,
        noisy="online",
        clean=NONE,
        floor=("online-input", "mean of both"),
    ),
    Row("MRI, T1", "mri", "t1", "31.74 / 31.77", floor=ZERO_FILLED),
    Row("MRI, T2, never trained on", "mri", "t2", NONE, floor=ZERO_FILLED),
)

RESTORED_HEADS = ("dB on Kodak", "as given", "without learning", "degraded targets",
                  "noisy targets", "clean targets", "steps", "minutes", "device")  # fmt: skip


@dataclass(frozen=True)
class Restored:
    """Say which lines make a row of the table of restoration."""

    name: str
    experiment: str
    figure: str
    prefix: str = NONE
    """What the names of the rows begin with."""
    degraded: str = NONE
    """The row whose targets are as degraded as its input."""


RESTORED = (
    *(
        Restored(f"{name} ({size}): {what}", "unblur", figure, f"{prefix}-", "operator")
        for name, size, prefix in (
            ("Gaussian blur", "1.6 px", "gaussian"),
            ("motion", "15 px, 30°", "motion"),
            ("defocus", "4 px", "defocus"),
        )
        for what, figure in (("picture", "kodak24"), ("error in the visible band", "band"))
    ),
    *(
        Restored(f"the same network for all: {prefix}", "unblur", prefix)
        for prefix in ("gaussian", "motion", "defocus")
    ),
    *(
        Restored(f"JPEG, {at}", "jpeg", at, degraded="compressed")
        for at in (f"quality {q}, sigma {s}" for q in (10, 20, 40, 60) for s in (0, 10))
    ),
    Restored("colour of grey pictures at sigma 10", "colour", "kodak24"),
    Restored("the same: how strong the true colours are shown, of 1", "colour", "chroma"),
)
SHARP = {"unblur": "sharp", "jpeg": "noisy", "colour": "noisy"}
"""Rows whose targets are noisy and nothing else."""
CLASSICAL = {"wiener": "Wiener", "unsupervised": "unsupervised Wiener", "lucy": "Richardson-Lucy",
             "unsharp": "unsharp mask"}  # fmt: skip

WAYS = {"frame": "one frame", "mean": "mean", "bm3d": "BM3D of the mean",
        "bm3d-even": "BM3D, noise evened out", "weights": "weights alone",
        "scratch": "n2n from scratch", "n2n": "n2n"}  # fmt: skip
"""What `experiments.bursts` makes of a burst, and the heads of their columns."""
FILES = {"raw": "16 bits", "developed": "mosaic, JPEG"}
MOVES = {"held": "hand-held", "still": "on a tripod", "crossed": "an object crossing"}


def cells(row: Row, lines: Sequence[Line]) -> list[str]:
    """Return a row's cells from its experiment's lines."""
    known = [row.name, row.paper, row.code]
    presets = (row.preset,) if row.preset else ("paper", "cpu")
    preset = next((p for p in presets if chosen(lines, p, row.noisy)), None)
    if preset is None:
        return [*known, "not run", *[NONE] * (len(HEADS) - 4)]
    noisy, clean = (chosen(lines, preset, name) for name in (row.noisy, row.clean))
    both = [noisy[seed][row.figure] - clean[seed][row.figure] for seed in noisy if seed in clean]
    floors = [line for line in lines if line["row"] == row.floor[0] and row.figure in line]
    floor = max(floors, key=lambda line: line["preset"] == preset, default=None)
    last = list(noisy.values())[-1]
    return [
        *known,
        mean([line[row.figure] for line in noisy.values()]),
        mean([line[row.figure] for line in clean.values()]),
        mean(both, "+.2f"),
        NONE if floor is None else f"{row.floor[1]} {floor[row.figure]:.2f}",
        ", ".join(last.get("data", ())),
        length(last, len(noisy)),
        mean([line["seconds"] / 60 for line in noisy.values() if line["seconds"]], ".0f"),
        last["device"],
    ]


def chosen(lines: Sequence[Line], preset: str, row: str) -> dict[int, Line]:
    """Return the lines of a row by seed."""
    found = [line for line in lines if (line["preset"], line["row"]) == (preset, row)]
    return {line["seed"]: line for line in sorted(found, key=lambda line: line["seed"])}


def length(line: Line, seeds: int) -> str:
    """Say how long a line was trained, and whether that is the full length."""
    crops = f"{line['steps']:,} of {line['batch']} x {line['crop']} px" if "steps" in line else ""
    many = f", {seeds} seeds" if seeds > 1 else ""
    return crops + many + ("" if line["preset"] == "paper" else ", shortened")


def mean(values: Sequence[float], form: str = ".2f") -> str:
    """Write the mean of values, or a dash where there are none."""
    return format(statistics.mean(values), form) if values else NONE


def table() -> str:
    """Write the table as Markdown."""
    return ruled(HEADS, [cells(row, lines_of(row)) for row in ROWS])


def lines_of(row: Row) -> list[Line]:
    """Return the lines that a row is made of: those of its experiment, and its floor's."""
    lines = list(runs.lines(row.experiment))
    if row.experiment in FIGURE_1:
        lines += [line for line in runs.lines("gaussian") if line["row"] == row.floor[0]]
    return lines


def restored_cells(row: Restored, lines: Sequence[Line]) -> list[str]:
    """Return a row's cells from its experiment's lines; figures of one seed."""
    known = {line["row"]: line for line in lines if row.figure in line}
    sharp = "blind" if row.experiment == "unblur" and not row.prefix else SHARP[row.experiment]
    names = ("input", row.degraded, sharp, "clean")
    given, degraded, noisy, clean = (known.get(row.prefix + name) for name in names)
    if noisy is None:
        return [row.name, "not run", *[NONE] * (len(RESTORED_HEADS) - 2)]
    others = [(known[row.prefix + name][row.figure], said) for name, said in CLASSICAL.items()
              if row.prefix + name in known]  # fmt: skip
    others.sort(reverse=row.figure != "band")
    return [
        row.name,
        mean([given[row.figure]]) if given else NONE,
        ", ".join(f"{said} {figure:.2f}" for figure, said in others),
        *(mean([line[row.figure]] if line else []) for line in (degraded, noisy, clean)),
        length(noisy, 1),
        mean([noisy["seconds"] / 60], ".0f"),
        noisy["device"],
    ]


def restoration() -> str:
    """Write the table of restoration as Markdown."""
    return ruled(RESTORED_HEADS, [restored_cells(r, runs.lines(r.experiment)) for r in RESTORED])


def bursts() -> str:
    """Write the table of the simulated bursts as Markdown, means over pictures.

    Of a row that was run with several trainings, the last one's lines.
    """
    found: dict[str, dict[str, list[Line]]] = {}
    for line in runs.lines("bursts"):
        length = f"{line['steps']:,} of {line['batch']}, {line['optimizer']}"
        found.setdefault(line["row"], {}).setdefault(length, []).append(line)
    table = []
    for row, lengths in sorted(found.items(), key=_by_movement):
        length, lines = list(lengths.items())[-1]
        files, gain, moves = row.split("-")
        name = f"{MOVES[moves]}, {FILES[files]}, gain {gain}"
        table.append([name, *shots(lines), str(len(lines)), length])
        if moves == "crossed":
            table.append(["inside its path", *shots(lines, "-path"), NONE, NONE])
            alone = shots(lines, "-alone-path")
            table.append(["the same, of one frame alone", *alone, NONE, NONE])
    return ruled(("dB", *WAYS.values(), "pictures", "steps"), table)


def _by_movement(item: tuple[str, Any]) -> tuple[int, str]:
    row, _ = item
    return list(MOVES).index(row.split("-")[2]), row


def shots(lines: Sequence[Line], suffix: str = NONE) -> list[str]:
    """Return the cells of a burst: against the expected frame, and in brackets the scene."""
    every = [[line[way + suffix] for line in lines if way + suffix in line] for way in WAYS]
    if suffix:
        return [mean(figures) for figures in every]
    pairs = [[mean(side) for side in zip(*figures, strict=True)] for figures in every]
    return ["{} ({})".format(*pair) if pair else NONE for pair in pairs]


def ruled(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write rows as a table in Markdown."""
    every = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(each) + " |" for each in every)


def main() -> None:
    """Print the tables, or put them into a file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--readme", type=Path, help="put the tables into this file, too")
    options = parser.parse_args()
    tables = {"results": table(), "restoration": restoration()}
    if runs.lines("bursts"):
        tables["bursts"] = bursts()
    for name, text in tables.items():
        print(text, end="\n\n")
        if options.readme:
            benchmark.put(text, options.readme, name)


if __name__ == "__main__":
    main()
