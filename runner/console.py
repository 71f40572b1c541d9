"""What a person sees of a run: a progress bar on a terminal, plain lines anywhere else; ``run.log`` has it all."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column

log = logging.getLogger("spectral_run")


def set_up_log() -> None:
    """Send the log to standard output, as plain lines. Does nothing the second time."""
    if not any(isinstance(handler, _Printing) for handler in log.handlers):
        log.addHandler(_Printing())
        log.setLevel(logging.INFO)
        log.propagate = False


class _Printing(logging.Handler):
    """Warnings and errors to standard error, the rest to standard output; looks both up at each line."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        with suppress(OSError):  # a reader that has gone (`| head`) is no reason to stop a run
            stream.write(self.format(record) + "\n")
            stream.flush()


class EpochReport:
    """Tells of epochs as they pass: the bar's text, or every tenth of the run a line."""

    def __init__(self, epochs: int, progress: Progress | None, task: TaskID | None) -> None:
        self._epochs, self._progress, self._task = epochs, progress, task

    def __call__(self, epoch: int, values: Mapping[str, float]) -> None:
        """An epoch is done."""
        # On a terminal of 80 columns the bar leaves room for three numbers.
        shown = {name: value for name, value in values.items() if self._progress is None or name != "val loss"}
        text = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=epoch, text=text)
        elif epoch % max(1, self._epochs // 10) == 0 or epoch == self._epochs:
            log.info("epoch %d/%d  %s", epoch, self._epochs, text)


@contextmanager
def epoch_report(epochs: int, done: int, *, bar: bool) -> Iterator[EpochReport]:
    """A bar over the epochs where one is wanted and standard output is a terminal."""
    if not (bar and sys.stdout.isatty()):
        yield EpochReport(epochs, None, None)
        return
    columns = (
        TextColumn("epoch {task.completed}/{task.total}", table_column=Column(no_wrap=True, min_width=13)),
        BarColumn(bar_width=10, table_column=Column(min_width=10)),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True, min_width=5)),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=Console(), transient=True) as progress:
        yield EpochReport(epochs, progress, progress.add_task("", total=epochs, completed=done, text=""))
