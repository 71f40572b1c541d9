"""``run_dir=``: a finished run is asked more, without training, and its record grows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

SURFACE = (
    "generalization=[loss_surface]", "generalization.loss_surface.points=3", "generalization.loss_surface.plane=3",
)  # fmt: skip


@pytest.fixture
def finished(quick) -> Path:
    ran = quick("regularizer=none")
    assert ran.code == 0
    return ran.results()[0].parent


def test_it_adds_to_the_record_and_trains_nothing(command, finished: Path) -> None:
    before = json.loads((finished / "result.json").read_text())
    kept = {name: (finished / name).read_bytes() for name in ("model.pt", "metrics.jsonl", "config.yaml")}
    ran = command(f"run_dir={finished}", *SURFACE)
    assert ran.code == 0, ran.err
    result = json.loads((finished / "result.json").read_text())
    assert set(result) - set(before) == {"measured"}
    changed = {key for key in before if before[key] != result[key]}
    assert changed == {"generalization", "generalization_details"}
    assert set(result["generalization"]["loss_surface"]) == {"train_rise", "test_rise", "test_accuracy"}
    assert result["measured"]["loss_surface"]["config"]["points"] == 3
    files = result["generalization_details"]["loss_surface"]["files"]
    assert {f"loss_surface_{name}.{kind}" for name in ("lines", "plane") for kind in ("csv", "png", "pdf")} == set(
        files
    )
    assert all((finished / name).stat().st_size > 100 for name in files)
    assert "loss_surface_lines.png" in ran.out
    assert "loss surface test rise" in ran.out
    assert kept == {name: (finished / name).read_bytes() for name in kept}
    lines = (finished / "loss_surface_lines.csv").read_text().splitlines()
    middle = dict(zip(lines[0].split(","), lines[2].split(","), strict=True))
    assert float(middle["distance"]) == 0.0
    assert float(middle["test_loss"]) == pytest.approx(before["test"]["loss"], rel=1e-5)


def test_the_same_question_is_not_asked_twice(command, finished: Path) -> None:
    command(f"run_dir={finished}", *SURFACE)
    first = (finished / "result.json").read_bytes()
    ran = command(f"run_dir={finished}", *SURFACE)
    assert ran.code == 0
    assert "loss_surface: measured before" in ran.out
    assert (finished / "result.json").read_bytes() == first
    ran = command(f"run_dir={finished}", *SURFACE, "generalization.loss_surface.radius=0.1")
    assert "measured before" not in ran.out
    ran = command(f"run_dir={finished}", *SURFACE, "generalization.loss_surface.radius=0.1", "rerun=true")
    assert "measured before" not in ran.out


def test_in_a_run_and_afterwards_the_same_numbers(command, quick, finished: Path) -> None:
    command(f"run_dir={finished}", *SURFACE)
    later = json.loads((finished / "result.json").read_text())["generalization"]["loss_surface"]
    ran = quick("regularizer=none", *SURFACE, "results_dir=elsewhere")
    assert ran.code == 0, ran.err
    (other,) = [path for path in ran.results() if path.parent != finished]
    at_once = json.loads(other.read_text())["generalization"]["loss_surface"]
    for name, metric in later.items():
        assert metric["value"] == pytest.approx(at_once[name]["value"], rel=1e-5)
    assert (other.parent / "loss_surface_plane.pdf").exists()


def test_the_run_s_own_command_with_one_test_more_trains_nothing(quick, finished: Path) -> None:
    before = json.loads((finished / "result.json").read_text())
    kept = {name: (finished / name).read_bytes() for name in ("model.pt", "metrics.jsonl", "timing.jsonl")}
    ran = quick("regularizer=none", *SURFACE)
    assert (ran.code, len(ran.results())) == (0, 1)
    assert f"measuring {finished.relative_to(ran.folder)}" in ran.out
    assert "epoch" not in ran.out
    assert "loss surface test rise" in ran.out
    result = json.loads((finished / "result.json").read_text())
    assert result["config_hash"] == before["config_hash"]
    assert set(result["generalization"]) == {"loss_surface"}
    assert kept == {name: (finished / name).read_bytes() for name in kept}
    assert "skipped, finished before" in quick("regularizer=none", *SURFACE).out
    assert "skipped, finished before" in quick("regularizer=none").out  # asked less, it keeps what it has
    again = quick("regularizer=none", *SURFACE, "generalization.loss_surface.radius=0.1")
    assert "measuring" in again.out
    assert "skipped" in quick("regularizer=none", *SURFACE, "generalization.loss_surface.radius=0.1").out


def test_a_damaged_finished_run_is_named_and_fails(quick, finished: Path) -> None:
    (finished / "model.pt").write_bytes(b"cut off")
    before = (finished / "result.json").read_bytes()
    ran = quick("regularizer=none", *SURFACE)
    assert (ran.code, "model.pt is damaged and can't be read" in ran.out + ran.err) == (1, True)
    assert (finished / "result.json").read_bytes() == before


def test_several_runs_and_tests_at_once(command, finished: Path) -> None:
    ran = command("--multirun", f"run_dir={finished}", "generalization=[loss_surface,augmentation_8x8]", *SURFACE[1:])
    assert ran.code == 0, ran.err
    result = json.loads((finished / "result.json").read_text())
    assert set(result["measured"]) == {"loss_surface", "augmentation"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "say what to measure"),
        (["generalization=[loss_surface]", "model=linear"], "a finished run keeps its own model"),
        (["generalization=[loss_surface]", "training.epochs=3", "seed=1"], "keeps its own seed, training"),
        (["generalization=[covariate_shift]"], "generalization.covariate_shift: "),
        (["generalization=[loss_surface]", "generalization.loss_surface.points=4"], "points must be odd"),
    ],
)
def test_refusals(command, finished: Path, overrides: list[str], message: str) -> None:
    before = (finished / "result.json").read_bytes()
    ran = command(f"run_dir={finished}", *overrides)
    assert ran.code == 2
    assert message in ran.err
    assert (finished / "result.json").read_bytes() == before


def test_what_is_no_finished_run_is_refused(command, finished: Path, tmp_path: Path) -> None:
    ran = command(f"run_dir={tmp_path}", "generalization=[loss_surface]")
    assert (ran.code, "run_dir must be a run's folder" in ran.err) == (2, True)
    (finished / "model.pt").rename(tmp_path / "model.pt")
    ran = command(f"run_dir={finished}", "generalization=[loss_surface]")
    assert (ran.code, "has no model.pt" in ran.err) == (2, True)
    (finished / "result.json").unlink()
    ran = command(f"run_dir={finished}", "generalization=[loss_surface]")
    assert (ran.code, "has no result.json" in ran.err) == (2, True)


def test_other_data_are_refused(command, finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    result["data"]["sha256"] = "0" * 64
    (finished / "result.json").write_text(json.dumps(result))
    ran = command(f"run_dir={finished}", "generalization=[loss_surface]")
    assert ran.code == 1
    assert "bring the old files back" in ran.err
