"""The command line: argparse over floor 3, one module per command.

Results go to stdout, progress to stderr. Status 0: done; 1: failed at work (disk, memory,
non-finite numbers); 2: bad input or usage; 130: interrupted. Nothing heavy is imported before a
command is known, so that help comes at once.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from n2n.types import Error, Failure

DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130
_FULL = ("RESOURCE_EXHAUSTED", "(-4:Insufficient memory)")
"""How jax and OpenCV say that the memory is full."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (None: the process's own) and return its status.

    Bad input, failures and interruptions become one line on stderr; other exceptions are faults
    of n2n and pass.
    """
    if arguments is None:
        _hush()
        arguments = sys.argv[1:]
    return _attempt(functools.partial(_run, arguments))


def _attempt(work: Callable[[], int]) -> int:
    try:
        with _terminable():
            return work()
    except Error as error:
        return _say(error, REFUSED)
    except KeyboardInterrupt as stop:
        return _say(str(stop) or "stopped; nothing was written", INTERRUPTED)
    except Exception as error:  # of OpenCV's and jax's, those that tell of full memory
        text = failure(error)
        if text is None:
            raise
        return _say(text, FAILED)


def failure(error: Exception) -> str | None:
    """Return one line about work that failed; None for a fault of n2n."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename!r}" if error.filename else "")
    if isinstance(error, OSError | Failure):
        return str(error) or type(error).__name__
    if isinstance(error, MemoryError) or any(words in str(error) for words in _FULL):
        return "out of memory; close other programs, or take smaller pictures or a smaller --tile"
    return None


def _run(arguments: Sequence[str]) -> int:
    from n2n.cli import parser, screen

    try:
        options = parser.make().parse_args(arguments)
    except SystemExit as end:  # --help and --version
        screen.write("", end="")
        return int(end.code or DONE)
    if getattr(options, "distributed", False):
        from n2n.cli import together

        return together.run(lambda: _attempt(lambda: _command(options)))
    return _command(options)


def _command(options: Any) -> int:
    import importlib

    return importlib.import_module(f"n2n.cli.{options.module}").run(options)


def _say(problem: Any, status: int) -> int:
    with contextlib.suppress(OSError, ValueError):  # a closed stderr must not hide the status
        print("n2n:", " ".join(str(problem).splitlines()), file=sys.stderr, flush=True)
    return status


def _hush() -> None:
    """Keep the chatter of jax, its compiler and OpenCV off the screen, unless asked for."""
    import warnings

    os.environ.setdefault("JAX_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the program as Ctrl-C does: files half written are cleaned up, status 130."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        del frame
        raise KeyboardInterrupt(f"stopped by {signal.Signals(number).name}; nothing was written")

    old = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)
