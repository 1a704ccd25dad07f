"""Time this project against its PyTorch twin, in one run, alternating; print one table.

    python -m experiments.benchmark            (twenty minutes on two cores)
    python -m experiments.benchmark --readme README.md

Both train and apply the paper's U-Net (Lehtinen et al. 2018, appendix table 2): same layers, same
batch, Adam. PyTorch runs in its best ordinary settings: on a GPU channels_last, `torch.compile` and
bfloat16, on a CPU whichever of channels_last and its own layout is faster. Each figure is the
median of alternating rounds; memory and the time to the first step are taken in processes of their
own. Needs `pip install -e '.[bench]'`. The table is written to `experiments/results/benchmark.json`
and with --readme into the README between its marks. `--networks` measures the default network and
the paper's U-Net alone, without PyTorch, and leaves the rest of the table as it was.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

STEPS = [(4, 64), (4, 128), (4, 256)]
ACCELERATED = [(64, 64), (64, 128), (64, 256)]
FORWARD = 512
ROUNDS = 7
SECONDS = 0.5
"""How long one measurement of a round lasts at least."""
MEGAPIXELS = 24
TILE = 1280
HALO = 128
OUT = Path(__file__).parent / "results" / "benchmark.json"

Run = Callable[[], None]
Row = dict[str, Any]


# This project ------------------------------------------------------------------------------------


def our_network(network: str | dict[str, Any], precision: str = "float32") -> Any:
    """Return the network of a name for RGB, or of a configuration."""
    from n2n import networks

    config = networks.named(network, 3, 3) if isinstance(network, str) else network
    return networks.build(config, precision)


def our_step(
    batch: int, side: int, precision: str = "float32", network: str | dict[str, Any] = "unet"
) -> Run:
    """Return one update of the trainer's own step on a fixed batch."""
    import jax

    from n2n import devices, losses
    from n2n.training import step
    from n2n.types import Batch, Task

    given, target = noise(2, batch, side)
    weight = np.ones((batch, side, side, 1), np.float32)
    task = Task(
        pool=(given, target, weight),
        sample=lambda key, stripe, progress: Batch(*stripe),
        loss=losses.l2,
    )
    config = step.TrainConfig(
        steps=10**6, batch=batch, crop=side, optimizer="adam", precision=precision
    )
    net, mesh = our_network(network, precision), devices.mesh(1)
    state, pool = step.start(net, config), devices.place(task.pool, mesh)
    update = devices.jit(step.make_step(task, net, config, mesh), donate_argnums=0)
    key = jax.random.key(0)

    def run() -> None:
        nonlocal state
        state, loss = update(state, key, pool)
        jax.block_until_ready(loss)

    return run


def our_forward(
    side: int, precision: str = "float32", network: str | dict[str, Any] = "unet"
) -> Run:
    """Return one application to a square picture."""
    import jax

    from n2n import devices

    net = our_network(network, precision)
    params = jax.device_put(devices.jit(net.init)(jax.random.key(0)))
    picture = jax.device_put(noise(1, 1, side)[0])
    forward = devices.jit(net.apply)
    return lambda: jax.block_until_ready(forward(params, picture))


def our_prediction(height: int, width: int, network: str | dict[str, Any] = "unet") -> Run:
    """Return a tiled prediction, from array to array."""
    import jax

    from n2n import devices
    from n2n.predict import predict

    net = our_network(network)
    params = devices.jit(net.init)(jax.random.key(0))
    picture = noise(1, 1, height, width)[0][0]

    def run() -> None:
        predict(net, params, picture)

    return run


# Its twin ----------------------------------------------------------------------------------------


def twin(layout: str) -> Any:
    """Return the same U-Net in PyTorch in one of `LAYOUTS`, on the GPU if there is one."""
    import torch
    from torch import nn
    from torch.nn import functional as f

    class Twin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            pairs = [(3, 48), *[(48, 48)] * 6]
            pairs += [(96, 96), (96, 96), *[(144, 96), (96, 96)] * 3, (99, 64), (64, 32), (32, 3)]
            self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairs)

        def forward(self, x: Any) -> Any:
            layers = iter(self.layers)

            def layer(x: Any) -> Any:
                return f.leaky_relu(next(layers)(x), 0.1)

            x, skips = x - 0.5, [x - 0.5]
            x = layer(x)
            for _ in range(5):
                x = f.max_pool2d(layer(x), 2)
                skips.append(x)
            x = layer(x)
            skips.pop()
            for skip in skips[:0:-1]:
                x = layer(layer(torch.cat([f.interpolate(x, scale_factor=2), skip], 1)))
            x = layer(layer(torch.cat([f.interpolate(x, scale_factor=2), skips[0]], 1)))
            return next(layers)(x) + 0.5

    torch.manual_seed(0)
    return Twin().to(_place()).to(memory_format=getattr(torch, layout))


def _place() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def layouts() -> tuple[str, ...]:
    """Return the layouts that may be PyTorch's fastest here."""
    return ("channels_last",) if _place() == "cuda" else ("channels_last", "contiguous_format")


def _theirs(array: np.ndarray, layout: str) -> Any:
    import torch

    tensor = torch.from_numpy(array).permute(0, 3, 1, 2)
    return tensor.to(_place()).contiguous(memory_format=getattr(torch, layout))


def _wait() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def their_step(
    batch: int, side: int, precision: str = "float32", layout: str = "channels_last"
) -> Run:
    """Return one update of the twin on a fixed batch."""
    import torch

    model, (given, target) = twin(layout), (_theirs(a, layout) for a in noise(2, batch, side))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, (0.9, 0.99), fused=True)
    forward = torch.compile(model) if torch.cuda.is_available() else model

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(_place(), torch.bfloat16, enabled=precision == "bfloat16"):
            loss = torch.nn.functional.mse_loss(forward(given), target)
        loss.backward()
        optimizer.step()
        _wait()

    return run


def their_forward(side: int, precision: str = "float32", layout: str = "channels_last") -> Run:
    """Return one application of the twin to a square picture."""
    import torch

    model, picture = twin(layout).eval(), _theirs(noise(1, 1, side)[0], layout)
    forward = torch.compile(model) if torch.cuda.is_available() else model

    def run() -> None:
        cast = torch.autocast(_place(), torch.bfloat16, enabled=precision == "bfloat16")
        with torch.inference_mode(), cast:
            forward(picture)
        _wait()

    return run


def their_prediction(height: int, width: int, layout: str = "channels_last") -> Run:
    """Return the twin's prediction by the same tiles, from array to array."""
    import torch

    model, inner = twin(layout).eval(), TILE - 2 * HALO
    picture = noise(1, 1, height, width)[0][0]

    def run() -> None:
        around = [(HALO, HALO + inner), (HALO, HALO + inner), (0, 0)]
        wide = np.pad(picture, around, mode="reflect")
        out = np.empty_like(picture)
        with torch.inference_mode():
            for y in range(0, height, inner):
                for x in range(0, width, inner):
                    got = model(_theirs(wide[None, y : y + TILE, x : x + TILE], layout))
                    got = got[0, :, HALO:-HALO, HALO:-HALO].permute(1, 2, 0).cpu().numpy()
                    rows, columns = min(inner, height - y), min(inner, width - x)
                    out[y : y + rows, x : x + columns] = got[:rows, :columns]

    return run


# Measuring ---------------------------------------------------------------------------------------


def noise(count: int, batch: int, height: int, width: int | None = None) -> list[np.ndarray]:
    """Return arrays n,h,w,3 float32 of random values in [0, 1]."""
    rng = np.random.default_rng(0)
    return [rng.random((batch, height, width or height, 3), np.float32) for _ in range(count)]


def alternate(runs: list[Run], rounds: int = ROUNDS, seconds: float = SECONDS) -> list[float]:
    """Return each run's median time in seconds, measured in turns; warmed up before."""
    counts = []
    for run in runs:
        run()
        start = time.perf_counter()
        if seconds:
            run()
        counts.append(max(1, round(seconds / (time.perf_counter() - start))))
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, count, mine in zip(runs, counts, times, strict=True):
            start = time.perf_counter()
            for _ in range(count):
                run()
            mine.append((time.perf_counter() - start) / count)
    return [statistics.median(mine) for mine in times]


def alone(kind: str, *arguments: Any, cache: str | None = None) -> dict[str, float]:
    """Measure in a process of its own; `cache` is the folder of compiled programs."""
    command = [sys.executable, "-m", "experiments.benchmark", "--alone", kind]
    command += [str(argument) for argument in arguments]
    variables = dict(os.environ, XLA_PYTHON_CLIENT_PREALLOCATE="false")
    if cache is not None:
        variables["N2N_CACHE"] = cache
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=variables, check=True)
    wall = time.perf_counter() - start
    return json.loads(done.stdout.splitlines()[-1]) | {"wall": wall}


def measure_alone(kind: str, arguments: list[str]) -> dict[str, float]:
    """Run one thing three times; return bytes of memory above what its libraries and data take."""
    if "N2N_CACHE" in os.environ:
        from n2n import devices

        devices.enable_cache()
    numbers = [int(value) for value in arguments if value.isdigit()]
    names = [value for value in arguments if not value.isdigit()]
    run = globals()[kind](*numbers, **({"network": names[0]} if names else {}))
    before = peak_memory()
    for _ in range(1 if "prediction" in kind else 3):
        run()
    return {"bytes": _on_accelerator(kind) or peak_memory() - before}


def peak_memory() -> int:
    """Return the most bytes that this process has had."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss is taken over from the process that started this one
        return next(
            1024 * int(line.split()[1])
            for line in status.read_text().splitlines()
            if line.startswith("VmHWM")
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def _on_accelerator(kind: str) -> int:
    if kind.startswith("our"):
        import jax

        stats = jax.devices()[0].memory_stats() or {}
        return int(stats.get("peak_bytes_in_use", 0)) if jax.default_backend() != "cpu" else 0
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


# The table ---------------------------------------------------------------------------------------


def row(what: str, unit: str, ours: float, theirs: float, more_is_better: bool = False) -> Row:
    """Return a row; a ratio above 1 is in this project's favour."""
    ratio = ours / theirs if more_is_better else theirs / ours
    print(f"{what}: {ours:.4g} and {theirs:.4g} {unit}, {ratio:.2f}", file=sys.stderr, flush=True)
    return {"what": what, "unit": unit, "n2n": ours, "pytorch": theirs, "ratio": ratio}


def speed_rows(accelerated: bool) -> list[Row]:
    """Measure training steps and the forward pass of the paper's U-Net."""
    rows = []
    for precision in ("float32", "bfloat16") if accelerated else ("float32",):
        for batch, side in STEPS + (ACCELERATED if accelerated else []):
            runs = [our_step(batch, side, precision)]
            runs += [their_step(batch, side, precision, layout) for layout in layouts()]
            ours, *others = (1e3 * value for value in alternate(runs))
            theirs = min(others)
            rows.append(row(f"training step, {batch} x {side} px, {precision}", "ms", ours, theirs))
        runs = [our_forward(FORWARD, precision)]
        runs += [their_forward(FORWARD, precision, layout) for layout in layouts()]
        ours, *others = (FORWARD**2 / 1e6 / value for value in alternate(runs))
        theirs = max(others)
        rows.append(row(f"forward, {FORWARD} px, {precision}", "MP/s", ours, theirs, True))
    return rows


def picture_size(megapixels: float) -> tuple[int, int]:
    """Return height and width of a 3:2 picture."""
    height = round((megapixels * 1e6 / 1.5) ** 0.5)
    return height, round(1.5 * height)


def predictions(megapixels: float, twin: bool = True) -> dict[str, float]:
    """Measure tiled predictions, in seconds: both networks of ours, and the twin."""
    size = picture_size(megapixels)
    runs = {name: our_prediction(*size, name) for name in ("default", "unet")}
    if twin:
        runs["twin"] = their_prediction(*size)
    times = alternate(list(runs.values()), rounds=1, seconds=0)
    return dict(zip(runs, times, strict=True))


def default_rows(megapixels: float, tiled: dict[str, float]) -> list[Row]:
    """Measure the default network beside the paper's, both ours."""
    height, width = picture_size(megapixels)
    names = ("default", "unet")
    steps = alternate([our_step(8, 64, network=name) for name in names])
    untiled = alternate([our_forward(1024, network=name) for name in names])
    memory = [alone("our_prediction", height, width, name)["bytes"] / 1e9 for name in names]
    rows = [("training step, 8 x 64 px", "ms", [1e3 * one for one in steps])]
    rows += [("forward, 1024 px", "MP/s", [1024**2 / 1e6 / one for one in untiled])]
    rows += [(f"tiled prediction, {megapixels:g} MP", "s", [tiled[name] for name in names])]
    over = [
        tiled[name] / (height * width) / (one / 1024**2)
        for name, one in zip(names, untiled, strict=True)
    ]
    rows += [("the same, time per pixel over the untiled", "x", over)]
    rows += [("the same, memory above picture and libraries", "GB", memory)]
    return [
        {"what": what, "unit": unit, **dict(zip(names, v, strict=True))} for what, unit, v in rows
    ]


def process_rows() -> list[Row]:
    """Measure memory, and the time from the shell to the end of three steps."""
    rows = []
    ours, theirs = (alone(kind, 4, 256)["bytes"] / 1e9 for kind in ("our_step", "their_step"))
    rows.append(row("peak memory of a training step, 4 x 256 px", "GB", ours, theirs))
    with tempfile.TemporaryDirectory() as cache:
        theirs = alone("their_step", 4, 64)["wall"]
        for name in ("cold", "warm"):
            ours = alone("our_step", 4, 64, cache=cache)["wall"]
            rows.append(row(f"from the shell to three steps, {name}", "s", ours, theirs))
    return rows


def conditions(twin: bool = True) -> dict[str, str]:
    """Return device, versions and date."""
    import jax

    import n2n
    from n2n import devices

    facts = {
        "device": devices.describe(),
        "processor": platform.processor() or platform.machine(),
        "n2n": n2n.__version__,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "date": date.today().isoformat(),
    }
    if twin:
        import torch

        facts["torch"] = torch.__version__
    return facts


def figure(value: float) -> str:
    """Write three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(result: dict[str, Any]) -> str:
    """Write the result as Markdown."""
    facts, own = result["conditions"], result["networks conditions"]
    lines = [
        f"{facts['device']}, jax {facts['jax']}, PyTorch {facts['torch']}, {facts['date']}; "
        "ratios above 1 are in favour of n2n.",
        "",
        "| the paper's U-Net | n2n | PyTorch | ratio |",
        "|---|---|---|---|",
    ]
    for one in result["twin"]:
        ours, theirs = (f"{figure(one[name])} {one['unit']}" for name in ("n2n", "pytorch"))
        lines.append(f"| {one['what']} | {ours} | {theirs} | {one['ratio']:.2f} |")
    lines += ["", f"{own['device']}, jax {own['jax']}, {own['date']}.", ""]
    lines += ["| n2n | default network | the paper's |", "|---|---|---|"]
    for one in result["networks"]:
        values = (f"{figure(one[name])} {one['unit']}" for name in ("default", "unet"))
        lines.append(f"| {one['what']} | {' | '.join(values)} |")
    return "\n".join(lines)


def put(text: str, readme: Path, name: str) -> None:
    """Replace what stands between the README's marks of a name."""
    first, last = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, _, rest = readme.read_text().partition(first)
    _, _, after = rest.partition(last)
    readme.write_text(f"{before}{first}\n{text}\n{last}{after}")


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megapixels", type=float, default=MEGAPIXELS)
    parser.add_argument("--readme", type=Path, help="put the table into this file, too")
    parser.add_argument("--networks", action="store_true", help="our two networks alone")
    parser.add_argument("--alone", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(measure_alone(options.alone[0], options.alone[1:])))
        return
    import jax

    tiled = predictions(options.megapixels, not options.networks)
    result = json.loads(OUT.read_text()) if options.networks else {}
    if not options.networks:
        rows = speed_rows(jax.default_backend() != "cpu")
        what = f"tiled prediction, {options.megapixels:g} MP"
        rows += [row(what, "s", tiled["unet"], tiled["twin"]), *process_rows()]
        result = {"conditions": conditions(), "twin": rows}
    result["networks conditions"] = conditions(twin=False)
    result["networks"] = default_rows(options.megapixels, tiled)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))
    if options.readme:
        put(table(result), options.readme, "benchmark")


if __name__ == "__main__":
    main()
