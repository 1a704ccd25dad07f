"""Options that several commands share; each function adds its own to a command."""

from __future__ import annotations

import argparse
from typing import Any

from n2n.cli import values


def network(command: argparse.ArgumentParser) -> None:
    """Add what is trained: network, first weights, loss, precision."""
    command.add_argument(
        "--network",
        metavar="NAME",
        help="default, unet (the paper's) or red30 (default: that of --init, else default)",
    )
    command.add_argument(
        "--init", metavar="MODEL", help="weights to start from: a file, or a name of n2n's own"
    )
    command.add_argument(
        "--loss",
        choices=("l2", "l1", "l0", "hdr"),
        help="l2 seeks the mean of the noisy values, l1 the median, l0 the commonest; hdr is l2 "
        "for linear light without limit (default: l2)",
    )
    command.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="what the network computes in (default: %(default)s)",
    )


def optimizer(command: argparse.ArgumentParser) -> None:
    """Add how it is trained: crops of a step, rate, optimizer."""
    command.add_argument(
        "--batch",
        type=values.whole,
        default=8,
        metavar="N",
        help="crops in a step (default: %(default)s)",
    )
    command.add_argument(
        "--crop",
        type=values.whole,
        default=64,
        metavar="N",
        help="side of a crop in pixels (default: %(default)s)",
    )
    command.add_argument(
        "--learning-rate",
        type=values.positive,
        default=1e-3,
        metavar="X",
        help="how far a step goes before the rate falls (default: %(default)s; with --init 6e-4 "
        "keeps more of what the weights know)",
    )
    command.add_argument(
        "--optimizer",
        choices=("muon", "adam"),
        default="muon",
        help="muon learns as much in less than half of the steps; adam is the paper's "
        "(default: %(default)s)",
    )


def devices(command: argparse.ArgumentParser) -> None:
    """Add what it is trained on."""
    command.add_argument(
        "--devices",
        type=values.whole,
        metavar="N",
        help="devices that share a batch, of each process (default: one on CPU, else all)",
    )
    command.add_argument(
        "--distributed",
        action="store_true",
        help="train together with the same command on other machines: under Slurm, Kubernetes, "
        "Open MPI or on a TPU pod as it is, elsewhere with JAX_COORDINATOR_ADDRESS=host:port, "
        "JAX_NUM_PROCESSES and JAX_PROCESS_ID set",
    )


def out(command: argparse.ArgumentParser, text: str, required: bool = False) -> None:
    """Add the file to write."""
    command.add_argument("-o", "--out", metavar="OUT", required=required, help=text)


def model(command: Any) -> None:
    """Add the model to use."""
    command.add_argument(
        "--model",
        metavar="M",
        help="a .safetensors file, or a name of n2n's own weights (default: those in the package)",
    )


def raw(command: argparse.ArgumentParser, default: str, why: str) -> None:
    """Add what RAW files become."""
    command.add_argument(
        "--raw",
        choices=("linear", "srgb"),
        default=default,
        help=f"what RAW files become: linear camera RGB with its ICC profile, or sRGB ({why}; "
        "default: %(default)s)",
    )


def corrupt(command: argparse.ArgumentParser) -> None:
    """Add what clean pictures suffer."""
    command.add_argument(
        "--corrupt",
        "--noise",
        metavar="SPEC",
        help="what the clean pictures suffer: gaussian:25, gaussian:0-50, poisson:30, "
        "bernoulli:0.5, impulse:0.7, text:0.25, brown:25,4, or several joined by +",
    )


def length(command: argparse.ArgumentParser, steps: str) -> None:
    """Add how long to train."""
    either = command.add_mutually_exclusive_group()
    either.add_argument(
        "--steps", type=values.whole, metavar="N", help=f"training steps (default: {steps})"
    )
    either.add_argument(
        "--minutes", type=values.positive, metavar="T", help="train for this time instead"
    )


def json(command: argparse.ArgumentParser) -> None:
    """Add where to write the results."""
    command.add_argument(
        "--json", metavar="FILE|-", help="write all results as JSON, to a file or to stdout (-)"
    )


def resume(command: argparse.ArgumentParser) -> None:
    """Add that an interrupted run goes on."""
    command.add_argument(
        "--resume",
        action="store_true",
        help="go on where an interrupted run stopped, or start if there is none",
    )


def keep(command: argparse.ArgumentParser) -> None:
    """Add that the run is kept."""
    command.add_argument(
        "--keep", action="store_true", help="keep OUT.run/ (state and log) after the end"
    )
