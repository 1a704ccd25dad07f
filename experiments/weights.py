"""Train the weights in the package: `gaussian`, blind to sigma 0-50, from noisy pairs alone.

Lehtinen et al. 2018, section 3.1, on `cid22_train` (CC BY-SA 4.0) and `gb82_cc0` (CC0): input and
target are two noisy copies of each crop, of independent sigma. Residual U-Net of width 24. Judged
on Kodak at sigma 25 (input 20.17 dB): at least 30.5 dB. Half an hour to an hour on two cores:

    python experiments/weights.py DATA -o n2n/weights/gaussian.safetensors

DATA holds the folders `cid22_train`, `gb82_cc0` and, for the figure on the card, `kodak24`.
Stopped by Ctrl-C it saves; the same command with --resume goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import n2n
from n2n.corruptions import Gaussian

NETWORK = {"kind": "unet", "inputs": 3, "outputs": 3, "width": 24, "residual": True}
NOISE = Gaussian((0.0, 50 / 255))
STEPS = 10_000
TRAINING = ("cid22_train", "gb82_cc0")


def main() -> None:
    """Train, measure, and write the weights with their card."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    pictures = [p for name in TRAINING for p in sorted((options.data / name).glob("*.webp"))]
    model = n2n.fit(
        n2n.simulated(pictures, input=NOISE),
        network=NETWORK,
        steps=options.steps,
        out=options.out,
        resume=options.resume,
        overwrite=True,
        progress=True,
    )
    rows = n2n.evaluate(model, options.data / "kodak24", corruption=Gaussian(25 / 255))
    kodak = sum(row["psnr"] for row in rows) / len(rows)
    card = model.card | {
        "name": "gaussian",
        "purpose": "white Gaussian noise of any sigma from 0 to 50 (of 255), not told which",
        "data": "cid22_train (Cloudinary CID22, CC BY-SA 4.0), gb82_cc0 (CC0); noisy pairs only",
        "kodak24_sigma25_db": round(kodak, 2),
        "licence": "CC BY-SA 4.0, as its training pictures",
        "limits": "camera noise that is correlated between pixels (JPEG, demosaicking) stays",
    }
    dataclasses.replace(model, facts=json.dumps(card, sort_keys=True)).save(options.out)
    print(json.dumps(card, indent=2))


if __name__ == "__main__":
    main()
