"""Several finished runs at once: each is measured, all stand in one table, and a comparison sets them side by side."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

MODULE = '''
from dataclasses import dataclass
import numpy as np
import pandas as pd
from spectral_run.generalization.base import Comparison, TestResult
from spectral_run.generalization.statistics import proportion

@dataclass(frozen=True, kw_only=True)
class Agreement(Comparison):
    """Share of test rows that two networks put into the same class."""

    rows: int = 50

    def check(self, dataset):
        pass

    def measure(self, network, data, home):
        predicted = network.predict(data.test.inputs[: self.rows]).cpu().numpy()
        right = predicted == data.test.targets[: self.rows].cpu().numpy()
        return TestResult({"accuracy": proportion(right)}, arrays={"predicted": predicted})

    def compare(self, runs, home):
        if len({len(run.arrays["predicted"]) for run in runs}) > 1:
            raise ValueError("Agreement: runs must have the same number of rows.")
        a, b = runs[0], runs[1]
        same = a.arrays["predicted"] == b.arrays["predicted"]
        table = pd.DataFrame({"first": [a.label], "second": [b.label], "agreement": [same.mean()]})
        return TestResult({"agreement": proportion(same)}, {"runs": len(runs)}, tables={"pairs": table})
'''
CONF = "# @package generalization.agreement\n# Agreement of networks.\n_target_: agreement.Agreement\nrows: 50\n"
SMALL = ("training.epochs=2", "model.widths=[8]", "curvature.eps=0.1", "curvature.backend=rop", "generalization=none")
ASK = ("--config-dir", "mine", "generalization=agreement")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs that the tests start from are kept."""
    return tmp_path_factory.mktemp("kept") / "results"


@pytest.fixture
def runs(command: Callable, kept: Path, tmp_path: Path) -> Iterator[list[Path]]:
    """Two seeds and a wider network, and a run that has not ended."""
    if not kept.exists():
        for overrides in (["seed=0"], ["seed=1"], ["model.widths=[9]"]):
            ran = command(*SMALL, "regularizer=none", *overrides)
            assert ran.code == 0, ran.err
        shutil.copytree(tmp_path / "results", kept)
    shutil.copytree(kept, tmp_path / "results", dirs_exist_ok=True)
    (tmp_path / "agreement.py").write_text(MODULE)
    (tmp_path / "mine" / "generalization").mkdir(parents=True)
    (tmp_path / "mine" / "generalization" / "agreement.yaml").write_text(CONF)
    folders = sorted(path.parent.relative_to(tmp_path) for path in (tmp_path / "results").rglob("result.json"))
    yield sorted(folders, key=lambda folder: (result(folder)["config"]["model"]["widths"], folder.name))
    sys.modules.pop("agreement", None)


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def several(folders: list[Path]) -> str:
    return f"run_dir=[{','.join(map(str, folders))}]"


def comparison(folder: Path) -> Path:
    (path,) = folder.rglob("comparison.json")
    return path


def test_it_measures_each_and_compares_all(command: Callable, runs: list[Path]) -> None:
    ran = command(several(runs), *ASK)
    assert ran.code == 0, ran.err
    predicted = []
    for folder in runs:
        assert result(folder)["generalization"]["agreement"]["accuracy"]["n"] == 50
        assert result(folder)["generalization_details"]["agreement"]["files"] == ["agreement.npz"]
        with np.load(folder / "agreement.npz", allow_pickle=False) as arrays:
            predicted.append(arrays["predicted"])
    path = comparison(Path("results"))
    assert path.parent.parent == Path("results/runs/digits/mlp/comparisons")
    assert path.parent.name.startswith("agreement-")
    compared = json.loads(path.read_text())
    assert compared["schema"] == 1
    assert compared["test"] == "agreement"
    assert compared["settings"] == {"_target_": "agreement.Agreement", "rows": 50}
    assert compared["metrics"]["agreement"]["value"] == np.mean(predicted[0] == predicted[1])
    assert compared["details"] == {"runs": 3, "files": ["agreement_pairs.csv"]}
    for entry, folder in zip(compared["runs"], runs, strict=True):
        assert (path.parent / entry["folder"]).resolve() == folder.resolve()
        assert (entry["config_hash"], entry["seed"]) == (result(folder)["config_hash"], result(folder)["seed"])
    assert [entry["label"] for entry in compared["runs"]] == ["widths=[8], seed 0", "widths=[8], seed 1", "widths=[9]"]
    table = pd.read_csv(path.parent / "agreement_pairs.csv")
    assert table["first"].item() == "widths=[8], seed 0"
    for line in ("agreement: 3 runs compared in", "  agreement 0.", "3 runs of 2 models", "agreement accuracy"):
        assert line in ran.out
    assert len(pd.read_csv(next(path.parents[1].glob("runs-*/table.csv")))) == 3


def test_nothing_is_done_twice(command: Callable, runs: list[Path]) -> None:
    command(several(runs[:2]), *ASK)
    path = comparison(Path("results"))
    before = [path.read_bytes(), *((folder / "result.json").read_bytes() for folder in runs[:2])]
    ran = command(several(runs[:2]), *ASK)
    assert ran.code == 0
    assert ran.out.count("agreement: measured before") == 2
    assert "agreement: compared before" in ran.out
    assert [path.read_bytes(), *((folder / "result.json").read_bytes() for folder in runs[:2])] == before
    ran = command(several(runs[:2]), *ASK, "rerun=true")
    assert "before" not in ran.out
    ran = command(several(runs), *ASK)  # one more: another comparison, of which two are measured
    assert ran.out.count("agreement: measured before") == 2
    assert "agreement: 3 runs compared" in ran.out
    command(several(runs[:2]), *ASK, "generalization.agreement.rows=40")
    assert len(list(Path("results").rglob("comparison.json"))) == 3


def test_lost_or_damaged_arrays_are_measured_again_or_named(command: Callable, runs: list[Path]) -> None:
    command(several(runs[:2]), *ASK)
    (runs[0] / "agreement.npz").unlink()
    ran = command(several(runs[:2]), *ASK)
    assert ran.code == 0
    assert ran.out.count("agreement: measured before") == 1
    assert (runs[0] / "agreement.npz").exists()
    (runs[0] / "agreement.npz").write_bytes(b"PK\x03\x04 cut off")
    ran = command(several(runs[:2]), *ASK)
    assert ran.code == 1
    assert f"{runs[0]}/agreement.npz can't be read; rerun=true measures again" in ran.err
    assert command(several(runs[:2]), *ASK, "rerun=true").code == 0


def test_one_run_is_only_measured_after_training_too(command: Callable, runs: list[Path]) -> None:
    ran = command(f"run_dir={runs[0]}", *ASK)
    assert ran.code == 0
    ran = command(*SMALL[:-1], *ASK, "regularizer=none", "name=whole", "seed=2")
    assert ran.code == 0, ran.err
    (trained,) = (path.parent for path in Path("results/whole").rglob("result.json"))
    assert (trained / "agreement.npz").exists()
    assert not list(Path("results").rglob("comparison.json"))
    ran = command(several([runs[0], trained]), *ASK)
    assert ran.code == 0
    assert ran.out.count("agreement: measured before") == 2
    assert comparison(Path("results")).parents[1] == Path("results/comparisons")


def test_a_pattern_takes_every_finished_run_below(command: Callable, runs: list[Path]) -> None:
    unfinished = runs[0].parent / "seed-7"
    shutil.copytree(runs[0], unfinished)
    (unfinished / "result.json").unlink()
    for pattern in ("results/**", "results/*/digits/mlp", "results/**/seed-*", "result?/runs"):
        ran = command(f"run_dir={pattern}", *ASK)
        assert ran.code == 0, ran.err
        assert f"left out, not finished (no result.json): {unfinished}" in ran.err
        assert "[3/3] measuring" in ran.out
        assert "3 runs of 2 models" in ran.out
    comparison(Path("results"))  # the same one, whatever the pattern
    ran = command("run_dir=results/**/seed-1", *ASK)
    assert ran.code == 0, ran.err
    assert "[1/" not in ran.out


def test_a_run_that_fails_does_not_stop_the_others(command: Callable, runs: list[Path]) -> None:
    broken = result(runs[0])
    broken["data"]["sha256"] = "0" * 64
    (runs[0] / "result.json").write_text(json.dumps(broken))
    ran = command(several(runs), "generalization=[augmentation_8x8]", "generalization.augmentation.draws=2")
    assert ran.code == 1
    assert "bring the old files back" in ran.err
    assert ran.err.splitlines()[-1] == f"not measured (failed): {runs[0]}"
    assert "augmentation" not in result(runs[0])["generalization"]
    assert all("augmentation" in result(folder)["generalization"] for folder in runs[1:])


def test_too_few_are_left_to_compare(command: Callable, runs: list[Path]) -> None:
    (runs[0] / "model.pt").write_bytes(b"cut off")
    ran = command(several(runs[:2]), *ASK)
    assert ran.code == 1
    assert "agreement: needs two measured runs to compare, and has 1" in ran.err
    assert f"{runs[0]}/model.pt is damaged and can't be read." in ran.err.splitlines()
    assert "agreement" in result(runs[1])["generalization"]
    assert not list(Path("results").rglob("comparison.json"))


def test_runs_on_different_data_are_not_compared(command: Callable, runs: list[Path]) -> None:
    other = result(runs[1])
    other["data"] |= {"name": "usps", "sha256": "1" * 64}
    (runs[1] / "result.json").write_text(json.dumps(other))
    ran = command(several(runs), *ASK)
    assert ran.code == 2
    assert f"compares runs on the same data, got digits {result(runs[0])['data']['sha256'][:12]}" in ran.err
    assert f"usps 111111111111 ({runs[1]})" in ran.err
    assert not list(Path("results").rglob("agreement.npz"))


@pytest.mark.parametrize(
    ("run_dir", "message"),
    [
        ("[{0},{1},nowhere]", "must be a run's folder (with config.yaml and result.json), got nowhere."),
        ("[{0},results]", "got results. For the runs below it: run_dir='results/**'"),
        ("[{0},{1}x*]", "x* matches no run's folder."),
        ("results/**/checkpoints", "results/**/checkpoints matches no run's folder."),
        ("[]", "run_dir must be a run's folder, a list of them or a pattern; got []"),
        ("[{0},'']", "run_dir must be a run's folder, a list of them or a pattern"),
        ("{{a:1}}", "run_dir must be a run's folder, a list of them or a pattern"),
    ],
)
def test_what_is_no_run_is_named_before_any_work(
    command: Callable, runs: list[Path], run_dir: str, message: str
) -> None:
    ran = command("run_dir=" + run_dir.format(*runs), *ASK)
    assert ran.code == 2
    assert message in ran.err
    assert len(ran.err.splitlines()) == 1
    assert not list(Path("results").rglob("agreement.npz"))


def test_an_unfinished_run_is_refused_by_name_and_a_pattern_of_nothing_else_too(
    command: Callable, runs: list[Path]
) -> None:
    (runs[2] / "result.json").unlink()
    ran = command(several(runs), *ASK)
    assert (ran.code, f"needs a finished run, and {runs[2]} has no result.json" in ran.err) == (2, True)
    ran = command(f"run_dir={runs[2].parent}/*", *ASK)
    assert (ran.code, "matches 1 run(s), and none is finished" in ran.err) == (2, True)
    for folder in runs:
        assert not (folder / "agreement.npz").exists()


def test_checks_come_before_any_work(command: Callable, runs: list[Path]) -> None:
    ran = command(several(runs), *ASK, "validate=true")
    assert ran.code == 0
    assert "valid: 3 runs can be measured (agreement)" in ran.out
    ran = command(several(runs), *ASK, "seed=1")
    assert (ran.code, "a finished run keeps its own seed" in ran.err) == (2, True)
    ran = command(several(runs), *ASK, "generalization.agreement.rows=many")
    assert (ran.code, "needs int, got 'many'" in ran.err) == (2, True)
    assert not list(Path("results").rglob("agreement.npz"))
