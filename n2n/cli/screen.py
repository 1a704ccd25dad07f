"""What the user sees: results on stdout, progress on stderr; the only module that imports rich."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from n2n.types import Failure, Score

_PLAIN_SECONDS = 10.0
"""Least time between two lines of progress where no bar can be drawn."""
_PATIENCE = 1.0
"""Seconds that a job may take before its progress is shown."""


class Screen:
    """Write results and progress; with `machine` stdout is left to JSON alone.

    A `silent` one shows problems only: that of a process which is not the first of its run.
    """

    def __init__(self, quiet: bool = False, machine: bool = False, silent: bool = False):
        self.quiet, self.machine, self.silent = quiet or silent, machine, silent

    def result(self, text: str) -> None:
        """Show a result on stdout, or beside the progress where stdout belongs to JSON."""
        if self.silent:
            return
        if self.machine:
            self.note(text)
        else:
            write(text)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Show a table as a result; all columns but the first are numbers."""
        if not (self.machine and self.quiet):
            self.result(_table(columns, rows, sys.stderr if self.machine else sys.stdout))

    def note(self, text: str) -> None:
        """Show a line of progress on stderr, unless quiet."""
        if not self.quiet:
            self.problem(text)

    def problem(self, text: str) -> None:
        """Show a line on stderr, quiet or not."""
        with contextlib.suppress(OSError, ValueError):
            print(text, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Show what goes on while the block runs: wiped out after it in a terminal; elsewhere a
        line, if it takes long."""
        if self.quiet:
            yield
            return
        if not _terminal(sys.stderr):
            line = threading.Timer(_PLAIN_SECONDS, self.note, (f"{text} ...",))
            line.daemon = True
            line.start()
            try:
                yield
            finally:
                line.cancel()
            return
        from rich.console import Console

        with Console(stderr=True).status(text):
            yield

    @contextlib.contextmanager
    def training(self) -> Iterator[Callable[[Any], None] | None]:
        """Give a function of `training.Event` that draws a bar, or prints a line now and then."""
        with self._shown("step", at_once=True) as show:
            yield show and (lambda event: show(event.step, event.total, training_line(event)))

    @contextlib.contextmanager
    def counting(self, what: str) -> Iterator[Callable[[int, int], None] | None]:
        """Give a function of (done, in all) that shows itself once the job has taken a second."""
        with self._shown(what) as show:
            yield show and (lambda done, of: show(done, of, ""))

    @contextlib.contextmanager
    def _shown(self, what: str, at_once: bool = False) -> Iterator[Any]:
        if self.quiet:
            yield None
        elif _terminal(sys.stderr):
            with contextlib.ExitStack() as stack:
                yield _Bar(what, stack, 0.0 if at_once else _PATIENCE)
        else:
            yield _Lines(what, self.problem)


class _Bar:
    """Draw a bar in a terminal, once the job has taken `patience` seconds."""

    def __init__(self, what: str, stack: contextlib.ExitStack, patience: float):
        self.what, self.stack, self.patience = what, stack, patience
        self.began = time.monotonic()
        self.progress: Any = None
        self.task: Any = None

    def __call__(self, done: int, of: int, text: str) -> None:
        if self.progress is None:
            if time.monotonic() - self.began < self.patience or done >= of:
                return
            self._start()
        text = f"{self.what} {done}/{of}" + (f", {text}" if text else "")
        self.progress.update(self.task, completed=done, total=of, text=text)

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        # On a narrow terminal the text loses its end, and the bar stays.
        console, width = Console(stderr=True), 8
        rest = Column(no_wrap=True, max_width=max(10, console.width - width - 1))
        text = TextColumn("{task.fields[text]}", markup=False, table_column=rest)
        progress = Progress(BarColumn(width), text, console=console, transient=True)
        self.progress = self.stack.enter_context(progress)
        self.task = progress.add_task("", text="")


class _Lines:
    """Print a plain line at most every ten seconds, for logs and pipes."""

    def __init__(self, what: str, show: Callable[[str], None]):
        self.what, self.show, self.last = what, show, time.monotonic()

    def __call__(self, done: int, of: int, text: str) -> None:
        if time.monotonic() - self.last >= _PLAIN_SECONDS:
            self.last = time.monotonic()
            self.show(f"{self.what}: {done} of {of}" + (f", {text}" if text else ""))


def training_line(event: Any) -> str:
    """Say how a training goes: time left, loss, its excess over the noise floor, pace, rate."""
    excess = "" if event.excess is None else f" ({event.excess:+.1e} over noise)"
    score = "" if event.score is None else f", score {event.score:.4g}"
    left = "" if event.left is None else f"{duration(event.left)} left, "
    return (
        f"{left}loss {event.loss:.4f}{excess}{score}, "
        f"{event.crops:.0f} crops/s, rate {event.rate:.0e}"
    )


def duration(seconds: float) -> str:
    """Spell a time as people do: 40 s, 4 min, 1 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def decibel(value: float | None, digits: int = 1) -> str:
    """Spell decibels, `-` where there are none."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def interval(score: Score) -> str:
    """Spell decibels with their 95 % interval, as far as it is bounded."""
    low, high = score.low, score.high
    if math.isinf(low):
        return f"{decibel(score.db)} dB (not bounded)"
    upto = f"to {decibel(high)}" if math.isfinite(high) else "or more"
    return f"{decibel(score.db)} dB ({decibel(low)} {upto})"


def shown(name: Any) -> str:
    """Return a file name as it is, or quoted where it would not fit on one plain line."""
    text = os.fspath(name)
    return text if text.isprintable() else repr(text)


def write(text: str, end: str = "\n") -> None:
    """Write lines to stdout; a reader that has gone (`| head`) does not stop the work."""
    out = sys.stdout
    if out is None:
        return
    encoding = getattr(out, "encoding", None) or "utf-8"
    try:
        out.write(text.encode(encoding, "backslashreplace").decode(encoding) + end)
        out.flush()
    except OSError as error:
        _abandon(out)
        if not isinstance(error, BrokenPipeError):
            raise Failure(f"stdout: cannot be written ({error.strerror})") from error


def _abandon(out: Any) -> None:
    """Lead what is left in a broken stdout to nowhere, or Python's own end would complain."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, out.fileno())
        os.close(nowhere)


def _terminal(stream: Any) -> bool:
    return stream is not None and stream.isatty()


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], stream: Any) -> str:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Without a terminal nothing may be cut off: a log is as wide as its names.
    console = Console(file=stream, width=None if _terminal(stream) else 1000, highlight=False)
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
