"""The commands and their options; argparse alone, every mistake one line."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from n2n.cli import values
from n2n.types import Error

_EXAMPLES = """\
examples:
  n2n demo                               see it work, without a picture of your own
  n2n burst IMG_*.jpg                    one clean picture of several noisy ones
  n2n denoise photo.png -o clean/        one picture at a time, with trained weights
  n2n train --clean photos/ --corrupt gaussian:0-50 -o mine.safetensors
  n2n evaluate --clean photos/ --corrupt gaussian:25 --model mine.safetensors
  n2n score result.png --frames IMG_8.jpg IMG_9.jpg
  n2n unblur IMG_*.jpg --psf defocus:4
"""


class _Parser(argparse.ArgumentParser):
    """Say what is wrong in one line instead of printing the usage."""

    def error(self, message: str) -> NoReturn:
        command = self.prog.removeprefix("n2n").strip()
        where = f"{command}: " if command else ""
        raise Error(f"{where}{message}; see {self.prog} --help")


def make() -> argparse.ArgumentParser:
    """Make the parser of the whole command line."""
    parser = _Parser(
        prog="n2n",
        description="Denoise photographs with networks that learn from noisy pictures alone.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, help="print the versions and the device, and end"
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in (_demo, _burst, _denoise, _train, _evaluate, _score, _unblur, _inspect):
        add(commands)
    return parser


class _Version(argparse.Action):
    def __call__(self, parser: Any, *_: Any) -> None:
        import platform

        import jax

        from n2n import __version__, devices

        print(f"n2n {__version__}\njax {jax.__version__}\nPython {platform.python_version()}")
        print(devices.describe())
        parser.exit()


def _add(commands: Any, name: str, module: str, text: str) -> argparse.ArgumentParser:
    """Add a command with the options that all commands have."""
    command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    command.set_defaults(module=module)
    every = command.add_argument_group("options of every command")
    every.add_argument("--overwrite", action="store_true", help="replace results that exist")
    every.add_argument("--quiet", action="store_true", help="show no progress")
    every.add_argument(
        "--seed",
        type=values.seed,
        default=0,
        metavar="N",
        help="everything random follows from it (default: %(default)s)",
    )
    every.add_argument(
        "--data-range",
        type=values.data_range,
        metavar="LOW,HIGH",
        help="the values of black and white, where the files do not say: 0,4095 for 12 bits in a "
        "16-bit file (write --data-range=-1,1 where LOW is negative)",
    )
    return command


def _demo(commands: Any) -> None:
    text = "Simulate a hand-held burst, make one picture of it, and compare with the truth."
    command = _add(commands, "demo", "demo", text)
    command.add_argument(
        "-o",
        "--out",
        default="n2n-demo",
        metavar="DIR",
        help="folder for the pictures (default: %(default)s)",
    )
    command.add_argument(
        "--quick", action="store_true", help="a minute and a half instead of four, at lower quality"
    )


def _burst(commands: Any) -> None:
    text = "Make one clean picture of several noisy pictures of the same scene."
    command = _add(commands, "burst", "burst", text)
    command.add_argument(
        "frames", nargs="+", metavar="FRAMES", help="pictures, a folder of them, or a TIFF stack"
    )
    _out(
        command,
        "picture to write, or a folder for it; if not given, <frame>-n2n.png after the first "
        "frame or that of --reference",
    )
    command.add_argument(
        "--reference",
        metavar="F",
        help="the frame whose framing and exposure the picture gets: its file name, or its number "
        "from 1 (default: the first, or the sharpest if that shows 5 %% more detail)",
    )
    command.add_argument(
        "--group",
        action="store_true",
        help="the frames are many bursts: tell them apart by EXIF time, camera, size and exposure, "
        "and make a picture of each, also of those in the folders below; -o is a folder then, with "
        "the same folders in it, and --minutes those of each burst",
    )
    command.add_argument(
        "--gap",
        type=values.positive,
        metavar="SECONDS",
        help="the pause that ends a burst, with --group (default: 3)",
    )
    start = command.add_mutually_exclusive_group()
    start.add_argument(
        "--init",
        metavar="M",
        help="weights to start from: a file, or a name of n2n's own (default, for colour: photo or "
        "gaussian, whichever does better on these frames)",
    )
    start.add_argument(
        "--from-scratch", action="store_true", help="start from nothing but these frames"
    )
    _length(command, "4000")
    _raw(command, "linear", "always with 8 bits")
    command.add_argument(
        "--report",
        metavar="HTML",
        help="write a page that shows before and after, what became of each frame, and all "
        "figures; with --group, a folder for the pages",
    )
    command.add_argument(
        "--bits",
        type=int,
        choices=(8, 16, 32),
        help="depth of the picture; 32 are floats in a TIFF (default: 16 where the format can)",
    )
    _json(command)
    _resume(command)
    _keep(command)


def _denoise(commands: Any) -> None:
    text = "Denoise pictures one by one with trained weights."
    command = _add(commands, "denoise", "denoise", text)
    command.add_argument("images", nargs="+", metavar="IMAGES", help="pictures, or folders of them")
    _out(command, "picture to write, or a folder; beside each picture as <name>-n2n if not given")
    _model(command)
    command.add_argument(
        "--strength",
        type=values.share,
        default=1.0,
        metavar="0..1",
        help="share of the noise to take away (default: all of it)",
    )
    command.add_argument(
        "--tile",
        type=values.whole,
        metavar="N",
        help="side in pixels of the pieces worked on; smaller takes less memory (default: chosen)",
    )
    _raw(command, "srgb", "which n2n's own weights know")
    command.add_argument(
        "--stream",
        action="store_true",
        help="read, denoise and write a TIFF piece by piece, in constant memory (default: where "
        "it is larger than a quarter of the free memory)",
    )
    command.add_argument(
        "--resume",
        action="store_true",
        help="go on with a picture that was streamed and interrupted, or start if there is none",
    )


def _unblur(commands: Any) -> None:
    text = "Make one sharp picture of several noisy ones that are blurred alike."
    command = _add(commands, "unblur", "unblur", text)
    command.add_argument(
        "frames", nargs="+", metavar="FRAMES", help="captures as for burst; one with --model"
    )
    command.add_argument(
        "--psf",
        metavar="SPEC|FILE",
        help="what has blurred them all: gaussian:1.6 (sigma), motion:15,30 (length, angle), "
        "defocus:4 (radius), in pixels and degrees, or a kernel as picture, .npy or .txt; "
        "n2n inspect estimates it",
    )
    command.add_argument(
        "--model",
        metavar="M",
        help="weights that unblur, in place of learning from the frames: n2n train --clean DIR "
        "--corrupt motion:9-25+gaussian:2 --target gaussian:2",
    )
    _out(command, "picture to write, or a folder for it (default: <frame>-n2n.png)")
    command.add_argument("--reference", metavar="F", help="as for burst")
    command.add_argument(
        "--sigma",
        type=values.positive,
        metavar="S",
        help="standard deviation of a frame's noise, where 1 is white (default: measured)",
    )
    _length(command, "1500")
    _raw(command, "linear", "always with 8 bits")
    command.add_argument(
        "--bits", type=int, choices=(8, 16, 32), help="depth of the picture, as for burst"
    )
    command.set_defaults(report=None)
    _json(command)
    _resume(command)
    _keep(command)


def _train(commands: Any) -> None:
    text = "Train a model on noisy pictures, or on clean ones that are made noisy."
    command = _add(commands, "train", "train", text)
    data = command.add_mutually_exclusive_group(required=True)
    data.add_argument(
        "--pairs",
        nargs=2,
        metavar=("A", "B"),
        help="two folders of noisy pictures of the same scenes, matched by name",
    )
    data.add_argument(
        "--bursts", metavar="DIR", help="a folder of bursts, one in each folder inside it"
    )
    data.add_argument("--clean", metavar="DIR", help="clean pictures, to be made noisy")
    _corrupt(command)
    command.add_argument(
        "--target",
        metavar="SPEC|clean",
        help="what the targets suffer, if something else than --corrupt; clean: nothing",
    )
    _out(command, "the model to write, a .safetensors file", required=True)
    _network(command)
    _length(command, "10000, for bursts 4000")
    _optimizer(command)
    _devices(command)
    _resume(command)
    _keep(command)


def _network(command: argparse.ArgumentParser) -> None:
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


def _optimizer(command: argparse.ArgumentParser) -> None:
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


def _devices(command: argparse.ArgumentParser) -> None:
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


def _evaluate(commands: Any) -> None:
    text = "Measure a model, or a classical method, on pictures whose clean version is known."
    command = _add(commands, "evaluate", "evaluate", text)
    data = command.add_mutually_exclusive_group(required=True)
    data.add_argument("--clean", metavar="DIR", help="clean pictures, to be made noisy")
    data.add_argument("--input", metavar="DIR", help="noisy pictures; also give --reference")
    _corrupt(command)
    command.add_argument(
        "--reference", metavar="DIR", help="the clean pictures of --input, of the same names"
    )
    denoiser = command.add_mutually_exclusive_group()
    _model(denoiser)
    denoiser.add_argument(
        "--method",
        choices=("bm3d", "nlm", "wavelet", "mean"),
        help="instead of a model, on the same draws: BM3D (pip install 'n2n[bench]', not for "
        "commercial use), non-local means, wavelets, the mean of 3x3 pixels; sigma is told where "
        "--corrupt has one, 1 by Anscombe for a Poisson rate, else estimated from each picture",
    )
    command.add_argument(
        "--repeat",
        type=values.whole,
        default=1,
        metavar="N",
        help="draws of the noise for each picture of --clean (default: %(default)s)",
    )
    _json(command)


def _score(commands: Any) -> None:
    text = "Measure any program's picture without a clean one, by frames that it has not seen."
    command = _add(commands, "score", "score", text)
    command.add_argument("picture", metavar="PICTURE", help="the result to measure")
    command.add_argument(
        "--frames",
        nargs="+",
        required=True,
        metavar="X",
        help="two or more noisy frames of the same scene, a folder, or a TIFF stack; frames that "
        "the picture was made of make the figure too good",
    )
    _json(command)


def _inspect(commands: Any) -> None:
    text = "Show how the frames of a burst fit together and how noisy they are, or what a model is."
    command = _add(commands, "inspect", "inspection", text)
    command.add_argument(
        "paths", nargs="+", metavar="FRAMES|MODEL", help="frames as for burst, or a model"
    )
    _json(command)


def _out(command: argparse.ArgumentParser, text: str, required: bool = False) -> None:
    command.add_argument("-o", "--out", metavar="OUT", required=required, help=text)


def _model(command: Any) -> None:
    command.add_argument(
        "--model",
        metavar="M",
        help="a .safetensors file, or a name of n2n's own weights (default: those in the package)",
    )


def _raw(command: argparse.ArgumentParser, default: str, why: str) -> None:
    command.add_argument(
        "--raw",
        choices=("linear", "srgb"),
        default=default,
        help=f"what RAW files become: linear camera RGB with its ICC profile, or sRGB ({why}; "
        "default: %(default)s)",
    )


def _corrupt(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--corrupt",
        "--noise",
        metavar="SPEC",
        help="what the clean pictures suffer: gaussian:25, gaussian:0-50, poisson:30, "
        "bernoulli:0.5, impulse:0.7, text:0.25, brown:25,4, or several joined by +",
    )


def _length(command: argparse.ArgumentParser, steps: str) -> None:
    length = command.add_mutually_exclusive_group()
    length.add_argument(
        "--steps", type=values.whole, metavar="N", help=f"training steps (default: {steps})"
    )
    length.add_argument(
        "--minutes", type=values.positive, metavar="T", help="train for this time instead"
    )


def _json(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--json", metavar="FILE|-", help="write all results as JSON, to a file or to stdout (-)"
    )


def _resume(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--resume",
        action="store_true",
        help="go on where an interrupted run stopped, or start if there is none",
    )


def _keep(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--keep", action="store_true", help="keep OUT.run/ (state and log) after the end"
    )
