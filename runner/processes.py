"""Several processes at work on one run, as torchrun starts them: all compute, the first alone writes and speaks.

What torchrun tells a process stands in the environment.  Numbers are exchanged as ``curvature/parallel.py`` has it;
decisions (is the run finished, from which checkpoint does it go on) are the first process's, and the others get them.
An error that all processes meet at the same place (bad settings, missing data, divergence) ends the run and not the
sweep; one that a process meets alone ends the command, since the others wait for a message that will not come.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar, final

from spectral_run.runner.settings import ConfigurationError

if TYPE_CHECKING:
    from spectral_run.curvature.parallel import Processes

log = logging.getLogger("spectral_run")

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_NUMBERS = timedelta(minutes=10)  # longest wait for another process's numbers
_DECISIONS = timedelta(days=1)  # for the first process's decisions, or for what it does alone

T = TypeVar("T")


class OtherProcessError(RuntimeError):
    """What another process has met, said in all of them."""


@final
@dataclass(frozen=True)
class Launch:
    """What torchrun says of this process; one of its own where it says nothing."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0


def launch() -> Launch:
    """How this process was started. Raises ``ValueError`` for numbers that can't be."""
    if not all(os.environ.get(name) for name in _VARIABLES):
        return Launch()
    rank, size, local_rank = (int(os.environ[name]) for name in _VARIABLES[:3])
    if not (0 <= rank < size and local_rank >= 0):
        raise ValueError(f"RANK must be in [0, WORLD_SIZE), got RANK={rank}, WORLD_SIZE={size}.")
    return Launch(rank, size, local_rank)


@contextmanager
def quiet() -> Iterator[str | None]:
    """In every process but the first: nothing on standard output; of the log, what ends the process, with its rank.

    There it gives a folder for what nobody reads, and removes it in the end.
    """
    here = launch()
    if here.first:
        yield None
        return
    from spectral_run.runner.console import set_up_log

    set_up_log()
    out, level = sys.stdout, log.level
    for handler in log.handlers:
        handler.setFormatter(logging.Formatter(f"[rank {here.rank}] %(message)s"))
    log.setLevel(logging.CRITICAL)
    with open(os.devnull, "w") as nowhere, TemporaryDirectory() as elsewhere:
        sys.stdout = nowhere
        try:
            yield elsewhere
        finally:
            sys.stdout = out
            log.setLevel(level)


@final
@dataclass
class Ranks:
    """This process among those of a run; of a single process, everything here does nothing."""

    processes: Processes | None = None
    shared: list[BaseException] = field(default_factory=list)  # errors that all processes know of

    @property
    def size(self) -> int:
        """How many processes there are."""
        return 1 if self.processes is None else self.processes.size

    @property
    def first(self) -> bool:
        """Whether this process writes and speaks."""
        return self.processes is None or self.processes.rank == 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """An error of one process in this block is raised in all of them, at its end."""
        if self.processes is None:
            yield
            return
        own: Exception | None = None
        try:
            yield
        except Exception as error:  # to be told and raised again
            own = error
        said = self._all_of(None if own is None else (isinstance(own, ConfigurationError), str(own) or repr(own)))
        met = [(rank, *what) for rank, what in enumerate(said) if what is not None]
        if met:
            rank, configuration, text = met[0]
            kind = ConfigurationError if configuration else OtherProcessError
            known = own or kind(f"process {rank}: {text}")
            self.shared.append(known)
            raise known

    def agree(self, what: str, value: str) -> None:
        """Raise ``ConfigurationError`` in all processes where they do not have the same value."""
        if self.processes is not None and len(set(self._all_of(value))) > 1:
            raise ConfigurationError(f"the processes differ in {what}; they need the same command, and shared seeds.")

    def from_first(self, make: Callable[[], T]) -> T:
        """What ``make`` gives in the first process, in all of them; its error likewise."""
        if self.processes is None:
            return make()
        import torch.distributed as dist

        box: list[Any] = [None]
        with self.together():
            box[0] = make() if self.first else None
        dist.broadcast_object_list(box, src=0)
        value: T = box[0]
        return value

    def _all_of(self, value: Any) -> list[Any]:
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def lost(self, error: BaseException) -> bool:
        """Whether this process met the error alone (or because another has gone), so that nothing can go on."""
        return self.processes is not None and not any(error is known for known in self.shared)

    def describe(self, error: BaseException, otherwise: str) -> str:
        """The error, or ``otherwise`` where it is more than that another process has gone."""
        gone = self.processes is not None and "onnection" in str(error) and "peer" in str(error)
        return "another process has ended; what it met is in its own output" if gone else otherwise


def join() -> Ranks:
    """Meet the other processes, the first time; alone, where torchrun has not started several."""
    here = launch()
    if here.size == 1:
        return Ranks()
    import torch
    import torch.distributed as dist

    from spectral_run.curvature.parallel import Processes

    if not dist.is_available():
        raise ValueError("this build of torch has no torch.distributed; start one process without torchrun.")
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    if torch.cuda.is_available() and here.local_rank < torch.cuda.device_count():
        torch.cuda.set_device(here.local_rank)
    if not dist.is_initialized():
        dist.init_process_group(backend, timeout=_DECISIONS)
        _groups[:] = [dist.new_group(backend=backend, timeout=_NUMBERS)]
    return Ranks(Processes(_groups[0]))


_groups: list[Any] = []  # for numbers; decisions go through the default group


def part() -> None:
    """Leave the other processes, at the end of a command."""
    if "torch.distributed" not in sys.modules:
        return
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        _groups.clear()
        dist.destroy_process_group()


def abandon() -> None:
    """End this process at once: what it should still say to the others can't be said. torchrun ends them."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)  # an orderly end would wait for the messages under way
