"""Draw the recorded curves: Figs. 1 and 5 of the paper (Lehtinen et al. 2018), as PNG files.

pip install -e '.[experiments]'
python -m experiments.curves                    (what is recorded, into experiments/figures)
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from experiments import runs

FIGURES = Path(__file__).parent / "figures"
TITLES = {
    "convergence": "Fig. 1a: noisy and clean targets",
    "brown": "Fig. 1b: targets' noise, blurred by so many px",
    "budget": "Fig. 1c: one budget of captures",
}

Line = dict[str, Any]


def longest(name: str) -> list[Line]:
    """Return an experiment's lines of the paper's length if there are any, else the short ones."""
    found = runs.lines(name)
    full = [line for line in found if line["preset"] == "paper"]
    return full or found


def gaps(found: list[Line]) -> dict[str, list[tuple[float, float]]]:
    """Return (p, dB above clean targets) of each loss, from rows named like `l0-p0.5`."""
    scores = {line["row"]: line["kodak24"] for line in found}
    drawn: dict[str, list[tuple[float, float]]] = {}
    for row, db in sorted(scores.items()):
        match = re.fullmatch(r"(l\d)-p([\d.]+)", row)
        if match and (clean := scores.get(f"clean-p{match[2]}")) is not None:
            drawn.setdefault(match[1], []).append((float(match[2]), db - clean))
    return drawn


def draw(path: Path, drawn: dict[str, Any], title: str, x: str, y: str) -> None:
    """Write one diagram of named curves, each a list of (x, y)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.5), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=x, ylabel=y)
    for name, points in drawn.items():
        axes.plot(*zip(*points, strict=True), marker=".", label=name)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Draw all figures that have lines."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    for name, title in TITLES.items():
        lines = [line for line in longest(name) if "curve" in line and line["seed"] == 0]
        if lines:
            drawn = {line["row"]: line["curve"] for line in lines}
            draw(FIGURES / f"{name}.png", drawn, title, "steps", "Kodak, dB")
    if drawn := gaps(longest("impulse")):
        title = "Fig. 5: noisy less clean targets"
        draw(FIGURES / "impulse.png", drawn, title, "share of random pixels", "Kodak, dB")


if __name__ == "__main__":
    main()
