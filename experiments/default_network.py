"""Choose the default network: candidates at equal training time, on bursts and on a training set.

    python -m experiments.default_network DATA              (20 minutes on two cores)

The cost is the time of one training step (8 crops of 64 px) and of the forward pass at 512 px,
measured in turns; every candidate then gets as many steps of Muon as fit the same time. Burst:
eight frames of sigma 25 of three Kodak pictures, a network from scratch for each, dB of the fused
picture. Set: `bsd300_train` with sigma U(0, 50), noisy targets (Lehtinen et al. 2018, section
3.1), mean dB on `kodak24` at sigma 25. Both in display units against the clean picture, which no
training sees. Rows go to `experiments/results/default_network.json` as they come; what is there is
not measured again.

Tried by 90 seconds of Adam on the burst of Kodak 05 (time of a step over the paper's; dB at a rate
of 1e-3; the same at 2e-3), `Lean` unless said; a few steps more or less make 0.05 dB:

    paper's shape, width 32, residual (the first default) 0.61   34.73
    cells of 2x2 pixels as channels, width 48             0.32   33.95
    widths 24-48-64-64 (the default)                      0.43   34.79
    16-48-64-64                                           0.35   34.71
    16-32-64-64-64 (the second default)                   0.32   34.68
    16-32-48-64, two convolutions down                    0.31   34.64
    16-32-64-64                                           0.30   34.60   35.07
    sums in place of joined channels, 32-48-64-64         0.37   34.49
    the same, 24-48-64-96                                 0.33   34.40
    20-40-64-64: slower than 24-48-64-64; channels in multiples of 16 are fast

So 16-32-64-64-64 wants a higher rate. The same burst after 1,500 and 3,000 steps; the set after
1,236 steps, the mean of Kodak 01, 05, 13 and 20 at sigma 25, one number per seed:

    one rate of 1e-3                                 35.02  35.40   28.45
    2e-3                                             35.27  35.54   28.84 28.73 28.81
    3e-3                                             35.38          diverges at step 188
    3e-3, gradients cut at twice their mean norm                    28.39
    2e-3 / (fan-in / 288), kernels only                             28.79
    2e-3 / sqrt(fan-in / 288), kernels only          35.40          28.92
    3e-3 / sqrt(fan-in / 288), kernels only                         diverges
    units of `networks._unit`, 1e-3 (taken)          35.38  35.64   28.70 28.74 28.75
    width 32 at 1e-3, half as many steps             35.61 (1,500)  28.71 (573)

So 16-32-64-64-64 was ahead on bursts, a minute or five long, and 0.1 dB behind width 32 on the set
after two minutes, for half of its time per step and 0.4 of its time per pixel. All these pictures
of bursts are of one prediction; `fuse` takes the mean of eight since, which adds 0.4 to 0.65 dB.

24-48-64-64 took its place when trainings became longer and Muon theirs: weights are 0.1 dB better,
and a burst that starts from them 0.2 to 0.4 (`experiments.optimizers`), where no more steps help.

Separable layers are no candidates: on these cores a depthwise 3x3 convolution of 64 channels takes
29 ms where the dense one takes 5, and written as nine shifted products 0.9 ms but 93 ms for its
gradients, the dense one's 19 (8 crops of 32 px).
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np

import n2n
from experiments import runs
from n2n.corruptions import Gaussian

CANDIDATES: dict[str, Any] = {
    "the paper's": "unet",
    "16-32-64-64-64": runs.LEAN | {"inputs": 4},
    "default": "default",
}
PICTURES = ("05", "13", "23")
FRAMES = 8
SIGMA = 25 / 255
BURST_SECONDS = 60
SET_SECONDS = 120
OUT = Path(__file__).parent / "results" / "default_network.json"


def burst_row(name: str, data: Path, picture: str, steps: int) -> dict[str, Any]:
    """Train on one burst from scratch and score the fused picture."""
    clean = n2n.read(data / "kodak24" / f"{picture}.png").array / np.float32(255)
    rng = np.random.default_rng(0)
    frames = [clean + SIGMA * rng.standard_normal(clean.shape) for _ in range(FRAMES)]
    burst = n2n.align([frame.astype(np.float32) for frame in frames], register=False)
    model = n2n.fit(burst, network=CANDIDATES[name], steps=steps, seed=0)
    fused = model.fuse(burst).image
    return {"db": n2n.psnr(fused.clip(0, 1), clean), "steps": steps}


def set_row(name: str, data: Path, steps: int) -> dict[str, Any]:
    """Train on BSD300 and score on Kodak."""
    task = n2n.simulated(data / "bsd300_train", input=Gaussian((0.0, 50 / 255)))
    model = n2n.fit(task, network=CANDIDATES[name], steps=steps, seed=0)
    rows = n2n.evaluate(model, data / "kodak24", corruption=Gaussian(SIGMA))
    return {"db": statistics.mean(row["psnr"] for row in rows), "steps": steps}


def cost_rows() -> dict[str, dict[str, float]]:
    """Measure all candidates' training step and forward pass in turns."""
    from experiments import benchmark

    names = list(CANDIDATES)
    steps = benchmark.alternate([benchmark.our_step(8, 64, network=CANDIDATES[n]) for n in names])
    forward = benchmark.alternate(
        [benchmark.our_forward(512, network=CANDIDATES[n]) for n in names]
    )
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
    parser.add_argument("--readme", type=Path, help="put the table into this file, too")
    options = parser.parse_args()
    rows = json.loads(OUT.read_text()) if OUT.exists() else {}
    if not all(f"{name}, cost" in rows for name in CANDIDATES):
        rows |= cost_rows()
        OUT.write_text(json.dumps(rows, indent=2) + "\n")
    for what in [*(f"burst {p}" for p in PICTURES), "set"]:
        for name in CANDIDATES:
            key = f"{name}, {what}"
            if key in rows:
                continue
            seconds = SET_SECONDS if what == "set" else BURST_SECONDS
            steps = round(1e3 * seconds / rows[f"{name}, cost"]["step_ms"])
            if what == "set":
                rows[key] = set_row(name, options.data, steps)
            else:
                rows[key] = burst_row(name, options.data, what.split()[-1], steps)
            OUT.write_text(json.dumps(rows, indent=2) + "\n")
            print(key, rows[key], flush=True)
    print(table(rows))
    if options.readme:
        from experiments import benchmark

        benchmark.put(table(rows), options.readme, "default network")


if __name__ == "__main__":
    main()
