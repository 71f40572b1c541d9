"""A function over tensors that stay where they are, recorded once and replayed: a CUDA graph, or its stand-in.

A CUDA graph is a list of kernels with the addresses they work on; a replay launches them all with one call, so that
what Python, the dispatcher and the allocator cost is paid once.  Nothing in it may look at a number (the host would
have to wait), and what it reads must still be at its address when it is replayed.
On the CPU the same class writes down every torch operation with the tensors it worked on, and a replay carries them out
again into the same memory.  That is no faster; it has a graph's semantics, stale values included, so that what is built
on it is tested without a GPU, and it refuses what would not survive capture: numbers read by the host, or made by it.
Cost of a capture: a run or two of the function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from spectral_run.curvature.rop.base import UnsupportedError

T = TypeVar("T")

_WAITS = (  # operations whose result the host has to wait for
    "_local_scalar_dense",
    "is_nonzero",
    "equal",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_consecutive",
    "unique_dim",
    "linalg_eigh",
    "_linalg_eigh",
)
_FROM_HOST = ("lift_fresh", "lift_fresh_copy")  # a tensor made of the host's numbers


class CaptureError(UnsupportedError):
    """The function has something in it that can't be recorded, or its replay gives something else."""


@final
class Captured(Generic[T]):
    """``function()`` recorded; ``replay()`` runs it again and gives the same tensors with new numbers in them.

    The function runs once before that, as a warm-up, on the numbers that its tensors then hold.  ``pool`` is the
    memory of another capture, to be shared where the two never run side by side and where what one returns is not
    needed any more when the other is replayed; tensors that the function keeps elsewhere stay its own.
    """

    def __init__(self, function: Callable[[], T], device: torch.device, *, pool: Any = None) -> None:
        self._graph: Any = None
        self._tape: _Tape | None = None
        if device.type == "cuda":
            try:
                self.result = self._capture(function, device, pool)
            except (CaptureError, torch.OutOfMemoryError):
                raise
            except RuntimeError as error:
                why = str(error).partition("\n")[0]
                raise CaptureError(f"it can't be captured in a CUDA graph: {why}") from error
        else:
            self._tape = _Tape()
            with torch.no_grad(), self._tape:
                self.result = function()

    @property
    def pool(self) -> Any:
        """The graph's memory, for another capture."""
        return None if self._graph is None else self._graph.pool()

    def replay(self) -> T:
        """Run what was recorded. Never waits for it."""
        if self._tape is not None:
            self._tape.replay()
        else:
            self._graph.replay()
        return self.result

    def _capture(self, function: Callable[[], T], device: torch.device, pool: Any) -> T:
        with torch.cuda.device(device), torch.no_grad():
            cuda: Any = torch.cuda  # its streams are not annotated
            here, aside = cuda.current_stream(), cuda.Stream()
            aside.wait_stream(here)
            with torch.cuda.stream(aside):  # libraries set themselves up at the first call, which can't be recorded
                function()
            here.wait_stream(aside)
            self._graph = torch.cuda.CUDAGraph()
            try:
                return self._record(function, pool)
            finally:
                torch.cuda.set_stream(here)  # a recording that fails leaves its own stream behind

    def _record(self, function: Callable[[], T], pool: Any) -> T:
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            return function()


def launch(call: Callable[[], object]) -> None:
    """Run what is no torch operation (a Triton kernel) so that a recording contains it."""
    if _Tape.active:
        tape = _Tape.active[-1]
        tape.steps.append((call, (), {}, None))
        with _disable_current_modes():
            call()
    else:
        call()


@final
class _Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The operations that run while it is entered, with their tensors."""

    active: list[_Tape] = []  # noqa: RUF012  (a stack, shared on purpose)

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[tuple[Callable[..., Any], Any, Any, Any]] = []

    def __enter__(self) -> _Tape:
        self.active.append(self)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        self.active.remove(self)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in _WAITS:
            raise CaptureError(f"it can't be captured in a CUDA graph: {name} makes the host wait")
        if name in ("index", "index_put_") and any(t is not None and t.dtype == torch.bool for t in args[1]):
            raise CaptureError("it can't be captured in a CUDA graph: indexing by a mask makes the host wait")
        if name in _FROM_HOST:
            raise CaptureError("it can't be captured in a CUDA graph: a tensor is made of the host's numbers")
        out = func(*args, **(kwargs or {}))
        self.steps.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        """Every operation again, its result in the memory that the first one took."""
        with torch.no_grad():
            for function, args, kwargs, out in self.steps:
                again = function(*args, **kwargs)
                for old, new in zip(_tensors(out), _tensors(again), strict=True):
                    if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                        old.copy_(new)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
