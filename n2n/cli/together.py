"""One process of several: its work in a child, so that its end is told in one line.

When the first process of a distributed run dies, jax's runtime aborts the others from a thread of
its own, with pages of log and before any Python can run. The parent here computes nothing, loads no
jax, passes signals on, and says in one line what happened.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from n2n.types import Failure


def run(work: Callable[[], int]) -> int:
    """Run `work` in a child process and return its status.

    Raises:
        Failure: the child was ended by a signal.
    """
    if not hasattr(os, "fork"):  # Windows: the runtime's own words must do
        return work()
    link, held = os.pipe()  # closed by the system when the parent ends, in whatever way
    child = os.fork()
    if child == 0:
        os.close(held)
        _work(work, link)
    os.close(link)
    with _passing_on(child):
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(held)
    if status >= 0:
        return status
    raise Failure(_ended(-status))


def _ended(number: int) -> str:
    if number == signal.SIGABRT:
        from n2n.devices import GONE

        return GONE
    return f"the training was ended by {signal.Signals(number).name}; go on with --resume"


def _work(work: Callable[[], int], link: int) -> NoReturn:
    """Work and end without the runtime's farewell, which would wait for processes that are gone."""
    status = 1
    try:
        threading.Thread(target=_follow, args=(link,), daemon=True).start()
        _own_screen()
        status = work()
    except BaseException:  # shown as Python would, which `os._exit` does not let it
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)


def _follow(link: int) -> None:
    """End with the parent."""
    os.read(link, 1)
    os._exit(1)


def _own_screen() -> None:
    """Keep what C++ prints off the screen, unless its log was asked for; Python keeps it."""
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL") != "3":
        return
    for name, number in (("stdout", 1), ("stderr", 2)):
        with contextlib.suppress(OSError):
            kept = os.fdopen(os.dup(number), "w", buffering=1, encoding="utf-8", errors="replace")
            setattr(sys, name, kept)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)


@contextlib.contextmanager
def _passing_on(child: int) -> Iterator[None]:
    """Hand SIGTERM and SIGINT to the child for as long as the block lasts."""

    def hand(number: int, frame: Any) -> None:
        del frame
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    old = {number: signal.signal(number, hand) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
