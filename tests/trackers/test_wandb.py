"""wandb: what ends up on the disk without a network, and that nothing it does can end a run."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from spectral_run.trackers.base import RunInfo
from spectral_run.trackers.wandb import WandbTracker

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # wandb's own


def info(folder: Path, *, resumed: bool = False) -> RunInfo:
    return RunInfo("digits/mlp/none-12345678/seed-0", "quickstart", folder, {"seed": 0}, resumed)


class FakeRun:
    def __init__(self) -> None:
        self.summary: dict[str, Any] = {}
        self.lines: list[tuple[int, dict[str, Any]]] = []
        self.exit_code: int | None = None

    def log(self, values: dict[str, Any], step: int) -> None:
        self.lines.append((step, values))

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


class FakeWandb(ModuleType):
    """Stands in for the module: notes what it is called with, fails in the modes it is told to fail in."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.key, self.failing = True, set[str]()
        self.inits: list[dict[str, Any]] = []
        self.runs: list[FakeRun] = []
        self.calls: list[str] = []

    def login(self, *, prompt: bool, verify: bool) -> bool:
        assert not prompt
        return self.key

    def Settings(self, **settings: Any) -> dict[str, Any]:  # noqa: N802
        return settings

    def init(self, **arguments: Any) -> FakeRun:
        self.inits.append(arguments)
        self.calls.append(arguments["mode"])
        if arguments["mode"] in self.failing:
            raise RuntimeError(f"no {arguments['mode']}\nand more")
        self.runs.append(FakeRun())
        return self.runs[-1]

    def teardown(self) -> None:
        self.calls.append("teardown")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    return module


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.LogCaptureFixture]:
    monkeypatch.setattr(logging.getLogger("spectral_run"), "propagate", True)
    with caplog.at_level(logging.WARNING, "spectral_run"):
        yield caplog


def test_wandb_is_not_imported_before_start() -> None:
    code = "import sys, spectral_run.trackers.wandb as w; w.WandbTracker(mode='offline'); print('wandb' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "on"}, "mode must be one of online, offline, disabled; got 'on'"),
        ({"connect_seconds": 0.0}, "connect_seconds must be positive, got 0"),
        ({"finish_seconds": -1.0}, "finish_seconds must be positive, got -1"),
    ],
)
def test_refusals(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WandbTracker(**settings)


def test_offline_files_lie_in_the_run_folder(tmp_path: Path) -> None:
    tracker = WandbTracker(mode="offline")
    tracker.start(info(tmp_path))
    tracker.log(1, {"train/loss": float("nan")})
    tracker.finish({"status": "done"})
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    identity = (tmp_path / "wandb-id.txt").read_text().strip()
    assert folder.name.endswith(identity)
    assert (folder / f"run-{identity}.wandb").stat().st_size > 0


def test_disabled_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracker = WandbTracker()
    tracker.start(info(tmp_path))
    tracker.log(1, {"train/loss": 1.0})
    tracker.finish({"status": "done"})
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_online_goes_offline_in_time_under_the_same_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warned: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there: no test may reach a server
    (tmp_path / "wandb-id.txt").write_text("abcdef012345\n")
    tracker = WandbTracker(connect_seconds=2.0)
    began = time.monotonic()
    tracker.start(info(tmp_path, resumed=True))
    assert time.monotonic() - began < 15  # importing wandb included; by itself wandb takes 100 seconds
    tracker.finish({"status": "done"})
    assert "could not start in mode online" in warned.text
    assert "could not start in mode offline" not in warned.text
    assert len(list((tmp_path / "wandb").glob("offline-run-*-abcdef012345"))) == 1


def test_a_folder_that_cannot_be_written(tmp_path: Path, warned: pytest.LogCaptureFixture) -> None:
    (tmp_path / "wandb").write_text("in the way")
    tracker = WandbTracker(mode="offline")
    tracker.start(info(tmp_path))
    tracker.log(1, {"train/loss": 1.0})
    tracker.finish({"status": "done"})
    assert "wandb could not start in mode offline" in warned.text


def test_an_id_that_cannot_be_written(tmp_path: Path, fake: FakeWandb, warned: pytest.LogCaptureFixture) -> None:
    tracker = WandbTracker(mode="offline")
    tracker.start(info(tmp_path / "missing"))
    assert fake.inits == []
    assert "wandb could not start: FileNotFoundError" in warned.text


def test_resumed_run_keeps_its_id_and_a_new_one_does_not(tmp_path: Path, fake: FakeWandb) -> None:
    for resumed in (False, True, False):
        tracker = WandbTracker()
        tracker.start(info(tmp_path, resumed=resumed))
        tracker.finish({"status": "done"})
    first, second, third = (call["id"] for call in fake.inits)
    assert first == second != third


def test_fallback_in_order_with_the_same_id(tmp_path: Path, fake: FakeWandb, warned: pytest.LogCaptureFixture) -> None:
    fake.failing = {"online"}
    WandbTracker(connect_seconds=3.0).start(info(tmp_path))
    assert fake.calls == ["online", "teardown", "offline"]
    assert fake.inits[0]["id"] == fake.inits[1]["id"]
    assert fake.inits[0]["settings"]["init_timeout"] == 3.0
    assert "mode online: RuntimeError: no online" in warned.text
    assert "and more" not in warned.text


def test_without_a_key_nobody_is_asked(tmp_path: Path, fake: FakeWandb, warned: pytest.LogCaptureFixture) -> None:
    fake.key = False
    WandbTracker().start(info(tmp_path))
    assert fake.calls[-1] == "offline"
    assert "online" not in fake.calls
    assert "no API key" in warned.text


@pytest.mark.parametrize("wish", ["offline", "disabled"])
def test_environment_turns_online_down(tmp_path: Path, fake: FakeWandb, monkeypatch: Any, wish: str) -> None:
    monkeypatch.setenv("WANDB_MODE", wish)
    WandbTracker(mode="online").start(info(tmp_path))
    assert fake.calls == [wish]


def test_environment_does_not_turn_offline_up(tmp_path: Path, fake: FakeWandb, monkeypatch: Any) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    WandbTracker(mode="offline").start(info(tmp_path))
    assert fake.calls == ["offline"]


@pytest.mark.parametrize(("status", "code"), [("done", 0), ("failed", 1), ("diverged", 1)])
def test_finish_tells_how_it_ended(tmp_path: Path, fake: FakeWandb, status: str, code: int) -> None:
    tracker = WandbTracker()
    tracker.start(info(tmp_path))
    tracker.log(3, {"a": 1.0, "b": None})  # type: ignore[dict-item]
    tracker.finish({"status": status, "test": {"accuracy": 0.5, "ci_low": None}, "list": [1], "config": {"lr": 1}})
    (run,) = fake.runs
    assert run.exit_code == code
    assert run.lines == [(3, {"a": 1.0})]
    assert run.summary == {"status": status, "test.accuracy": 0.5}


def test_every_call_may_fail(tmp_path: Path, fake: FakeWandb, warned: pytest.LogCaptureFixture) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise OSError("the server went away")

    tracker = WandbTracker()
    tracker.start(info(tmp_path))
    (run,) = fake.runs
    run.log = run.finish = broken  # type: ignore[method-assign, assignment]
    run.summary = None  # type: ignore[assignment]
    tracker.log(1, {"a": 1.0})
    tracker.finish({"status": "done"})
    for what in ("could not log", "could not write the summary", "could not finish"):
        assert what in warned.text


def test_nothing_starts_at_all(tmp_path: Path, fake: FakeWandb) -> None:
    fake.failing = {"online", "offline"}
    tracker = WandbTracker()
    tracker.start(info(tmp_path))
    tracker.log(1, {"a": 1.0})
    tracker.finish({"status": "done"})
    assert fake.runs == []
