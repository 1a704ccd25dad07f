"""The commands and their options; argparse alone, every mistake one line."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from n2n.cli import options, values
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
    options.out(
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
    options.length(command, "4000")
    options.raw(command, "linear", "always with 8 bits")
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
    options.json(command)
    options.resume(command)
    options.keep(command)


def _denoise(commands: Any) -> None:
    text = "Denoise pictures one by one with trained weights."
    command = _add(commands, "denoise", "denoise", text)
    command.add_argument("images", nargs="+", metavar="IMAGES", help="pictures, or folders of them")
    options.out(
        command, "picture to write, or a folder; beside each picture as <name>-n2n if not given"
    )
    options.model(command)
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
    options.raw(command, "srgb", "which n2n's own weights know")
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
    options.out(command, "picture to write, or a folder for it (default: <frame>-n2n.png)")
    command.add_argument("--reference", metavar="F", help="as for burst")
    command.add_argument(
        "--sigma",
        type=values.positive,
        metavar="S",
        help="standard deviation of a frame's noise, where 1 is white (default: measured)",
    )
    options.length(command, "1500")
    options.raw(command, "linear", "always with 8 bits")
    command.add_argument(
        "--bits", type=int, choices=(8, 16, 32), help="depth of the picture, as for burst"
    )
    command.set_defaults(report=None)
    options.json(command)
    options.resume(command)
    options.keep(command)


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
    options.corrupt(command)
    command.add_argument(
        "--target",
        metavar="SPEC|clean",
        help="what the targets suffer, if something else than --corrupt; clean: nothing",
    )
    options.out(command, "the model to write, a .safetensors file", required=True)
    options.network(command)
    options.length(command, "10000, for bursts 4000")
    options.optimizer(command)
    options.devices(command)
    options.resume(command)
    options.keep(command)


def _evaluate(commands: Any) -> None:
    text = "Measure a model, or a classical method, on pictures whose clean version is known."
    command = _add(commands, "evaluate", "evaluate", text)
    data = command.add_mutually_exclusive_group(required=True)
    data.add_argument("--clean", metavar="DIR", help="clean pictures, to be made noisy")
    data.add_argument("--input", metavar="DIR", help="noisy pictures; also give --reference")
    options.corrupt(command)
    command.add_argument(
        "--reference", metavar="DIR", help="the clean pictures of --input, of the same names"
    )
    denoiser = command.add_mutually_exclusive_group()
    options.model(denoiser)
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
    options.json(command)


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
    options.json(command)


def _inspect(commands: Any) -> None:
    text = "Show how the frames of a burst fit together and how noisy they are, or what a model is."
    command = _add(commands, "inspect", "inspection", text)
    command.add_argument(
        "paths", nargs="+", metavar="FRAMES|MODEL", help="frames as for burst, or a model"
    )
    options.json(command)
