"""What a model may offer beside being an ``nn.Module``: weights to start from, and its own names for others' files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

from torch import Tensor


@final
@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a network's first weights come from; it goes into the record of a run.

    ``kind``: random, imagenet, run or checkpoint. ``sha256``: of the file's bytes.
    """

    kind: str
    path: str | None = None
    sha256: str | None = None
    notices: tuple[str, ...] = ()

    @property
    def record(self) -> dict[str, str | list[str] | None]:
        """Plain values."""
        return {"kind": self.kind, "path": self.path, "sha256": self.sha256, "notices": list(self.notices)}


@runtime_checkable
class Pretrained(Protocol):
    """A model that can start from published weights. Its constructor reads no file: ``pretrain`` does."""

    def pretrain(self, *, download: bool) -> Origin:
        """Load them, fetched where they are missing and ``download``; say what the weights are now.

        Raises ``OSError`` or ``ValueError`` where they can't be had and are insisted on.
        """


@runtime_checkable
class Renaming(Protocol):
    """A model whose weights are published under several names."""

    def own_names(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The same tensors under this model's names, where they are known by others."""
