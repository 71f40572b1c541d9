"""Weights & Biases, imported only when asked for (about a second), and never the reason that a run fails.

Online without a connection would block for 100 seconds and raise; here it waits ``connect_seconds`` and goes offline.
Its files, and ``wandb-id.txt`` that a resumed run continues under, lie in the run folder. Written for wandb 0.31.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

from spectral_run.trackers.base import RunInfo, Tracker

_Mode: TypeAlias = Literal["online", "offline", "disabled"]
_MODES = ("online", "offline", "disabled")
_log = logging.getLogger("spectral_run")


@final
@dataclass(frozen=True, kw_only=True)
class WandbTracker(Tracker):
    """``mode``: online (with fallback to offline), offline, disabled; ``WANDB_MODE`` can turn online down to those.

    ``connect_seconds`` bounds the wait for the server, ``finish_seconds`` the upload at the end; what is not uploaded
    by then stays on disk for ``wandb sync``.
    """

    project: str = "spectral-run"
    entity: str | None = None
    mode: _Mode = "online"
    connect_seconds: float = 10.0
    finish_seconds: float = 60.0
    _run: list[Any] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.mode not in _MODES:
            raise ValueError(f"WandbTracker: mode must be one of {', '.join(_MODES)}; got {self.mode!r}.")
        for name in ("connect_seconds", "finish_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"WandbTracker: {name} must be positive, got {getattr(self, name)}.")

    def start(self, run: RunInfo) -> None:
        """Open the run: as asked for, else offline, else not at all."""
        modes, identity = _modes(self.mode), None
        if modes != ("disabled",):
            with _harmless("could not start"):
                identity = _id(run)
            if identity is None:
                return
        for mode in modes:
            with _harmless(f"could not start in mode {mode}"):
                self._run.append(self._open(run, mode, identity))
                return

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log one step."""
        for run in self._run:
            with _harmless("could not log"):
                run.log({name: value for name, value in values.items() if value is not None}, step=step)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the summary and close; a run that is not done is marked as failed. Does nothing the second time."""
        while self._run:
            run = self._run.pop()
            with _harmless("could not write the summary"):
                run.summary.update(dict(_flat({key: value for key, value in result.items() if key != "config"})))
            with _harmless("could not finish"):
                run.finish(exit_code=0 if result.get("status") == "done" else 1)

    def _open(self, run: RunInfo, mode: _Mode, identity: str | None) -> Any:
        import wandb

        # Asked here, without a prompt: on a terminal `init` would ask for a key and keep the run waiting for it.
        # With the key in the environment there is no prompt, and `login` would spend 5 seconds without a network.
        if mode == "online" and not (os.environ.get("WANDB_API_KEY") or wandb.login(prompt=False, verify=False)):
            raise ConnectionError("no API key; `wandb login` stores one")
        try:
            return wandb.init(
                project=self.project,
                entity=self.entity,
                mode=mode,
                dir=str(run.folder),
                name=run.name,
                group=run.group,
                id=identity,
                resume="allow" if mode == "online" else None,
                config=dict(run.config),
                settings=wandb.Settings(
                    init_timeout=self.connect_seconds,
                    finish_timeout=self.finish_seconds,
                    reinit="create_new",  # never another run's object, should one be left open in this process
                    console="off",  # run.log has it
                    silent=True,
                    x_disable_stats=True,
                ),
            )
        except Exception:
            if mode == "online":
                wandb.teardown()  # its service holds on to the id, which the offline attempt needs
            raise


def _modes(mode: _Mode) -> tuple[_Mode, ...]:
    """The modes to try, in order."""
    if mode != "online":
        return (mode,)
    lesser: dict[str, tuple[_Mode, ...]] = {"offline": ("offline",), "disabled": ("disabled",)}
    return lesser.get(os.environ.get("WANDB_MODE", ""), ("online", "offline"))


def _id(run: RunInfo) -> str:
    """The id in the run folder; a new one unless the run goes on, for wandb drops steps it has seen already."""
    path: Path = run.folder / "wandb-id.txt"
    if run.resumed and path.exists() and (known := path.read_text().strip()):
        return known
    new = secrets.token_hex(6)
    path.write_text(new + "\n")
    return new


@contextmanager
def _harmless(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever goes wrong in there must not cost the run
        _log.warning("wandb %s: %s: %s", what, type(error).__name__, str(error).partition("\n")[0])


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{prefix}{key}.")
    elif isinstance(value, int | float | str | bool):
        yield prefix[:-1], value
