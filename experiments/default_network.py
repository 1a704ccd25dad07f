"""Choose the default network: candidates at equal wall time, on bursts and on a training set.

    python -m experiments.default_network DATA              (an hour and a half on two cores)

Burst: eight frames of sigma 25 of three Kodak pictures, a network from scratch for each
(`n2n.fit(burst, minutes=1.5)`), dB of the fused picture. Set: `bsd300_train` with sigma U(0, 50),
noisy targets (Lehtinen et al. 2018, section 3.1), then the mean dB on `kodak24` at sigma 25 after
rounding to 8 bits. Both in display units against the clean picture, which no training sees. The
cost is the time of one training step (8 crops of 64 px) and the forward pass at 512 px, measured in
turns. Rows go to `experiments/results/default_network.json` as they come; a row that is there is
not measured again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

import n2n
from n2n.corruptions import Gaussian

CANDIDATES: dict[str, dict[str, Any]] = {
    "the paper's U-Net": {"width": 48, "inputs": 3, "residual": False},
    "width 32": {"width": 32},
    "cells 2x2, width 48, depth 4": {"width": 48, "stem": 2, "depth": 4},
    "cells 2x2, width 56, depth 4": {"width": 56, "stem": 2, "depth": 4},
    "cells 2x2, width 64, depth 3": {"width": 64, "stem": 2, "depth": 3},
}
PICTURES = ("05", "13", "23")
FRAMES = 8
SIGMA = 25 / 255
BURST_MINUTES = 1.5
SET_MINUTES = 6.0
OUT = Path(__file__).parent / "results" / "default_network.json"


def config(name: str) -> dict[str, Any]:
    """Return a candidate's whole configuration."""
    common = {"kind": "unet", "inputs": 4, "outputs": 3, "residual": True}
    return common | CANDIDATES[name]


def burst_row(name: str, data: Path, picture: str) -> dict[str, Any]:
    """Train on one burst from scratch and score the fused picture."""
    clean = n2n.read(data / "kodak24" / f"{picture}.png").array / np.float32(255)
    rng = np.random.default_rng(0)
    frames = [clean + SIGMA * rng.standard_normal(clean.shape) for _ in range(FRAMES)]
    burst = n2n.align([frame.astype(np.float32) for frame in frames], register=False)
    model = n2n.fit(burst, network=config(name), minutes=BURST_MINUTES, seed=0)
    fused = model.fuse(burst).image
    steps = model.card["steps"]
    return {"db": n2n.psnr(fused.clip(0, 1), clean), "steps": steps}


def set_row(name: str, data: Path) -> dict[str, Any]:
    """Train on BSD300 and score on Kodak."""
    task = n2n.simulated(data / "bsd300_train", input=Gaussian((0.0, 50 / 255)))
    model = n2n.fit(task, network=config(name), minutes=SET_MINUTES, seed=0)
    rows = n2n.evaluate(model, data / "kodak24", corruption=Gaussian(SIGMA))
    return {"db": statistics.mean(row["psnr"] for row in rows), "steps": model.card["steps"]}


def cost_rows() -> dict[str, dict[str, float]]:
    """Measure all candidates' training step and forward pass in turns."""
    from experiments import benchmark

    names = list(CANDIDATES)
    steps = benchmark.alternate([benchmark.our_step(8, 64, network=config(n)) for n in names])
    forward = benchmark.alternate([benchmark.our_forward(512, network=config(n)) for n in names])
    return {
        f"{name}, cost": {"step_ms": 1e3 * step, "forward_ms": 1e3 * one}
        for name, step, one in zip(names, steps, forward, strict=True)
    }


def table(rows: dict[str, dict[str, float]]) -> str:
    """Write the rows as Markdown."""
    heads = ["network", "step, ms", "forward, ms", *(f"burst {p}" for p in PICTURES), "Kodak"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name in CANDIDATES:
        cost = rows.get(f"{name}, cost", {})
        cells = [f"{cost.get(key, float('nan')):.0f}" for key in ("step_ms", "forward_ms")]
        for what in [*(f"burst {p}" for p in PICTURES), "set"]:
            row = rows.get(f"{name}, {what}")
            cells.append(f"{row['db']:.2f} ({row['steps']:,.0f} steps)" if row else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    options = parser.parse_args()
    rows = json.loads(OUT.read_text()) if OUT.exists() else {}
    if not all(f"{name}, cost" in rows for name in CANDIDATES):
        rows |= cost_rows()
    for what in [*(f"burst {p}" for p in PICTURES), "set"]:
        for name in CANDIDATES:
            key = f"{name}, {what}"
            if key in rows:
                continue
            start = time.time()
            picture = what.split()[-1]
            one = set_row(name, options.data) if what == "set" else None
            rows[key] = one or burst_row(name, options.data, picture)
            rows[key]["seconds"] = round(time.time() - start, 1)
            OUT.write_text(json.dumps(rows, indent=2) + "\n")
            print(key, rows[key], flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
