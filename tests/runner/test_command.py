"""What a person meets first: help, a run, a sweep, skipping, validation."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

CONF = Path(__file__).parents[2] / "conf"
KEYS = (
    "schema", "status", "seed", "config_hash", "data.name", "data.rows.train", "data.sha256", "device",
    "versions.torch",
    "train.epochs", "train.steps", "train.seconds", "train.products", "train.seconds_by_phase.gradient",
    "val.accuracy", "test.accuracy", "rho.value", "rho.residual", "rho.converged", "rho.products",
    "parameters_squared_norm",
)  # fmt: skip


def test_help_names_every_choice_without_torch() -> None:
    code = "import sys; from spectral_run.runner.cli import command; command(['--help']); print('torch' in sys.modules)"
    began = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert time.perf_counter() - began < 1.0
    assert out.endswith("False\n")
    inner = CONF / "scale"  # conf/scale/of, conf/scale/solver: what a scale does inside, nothing to choose
    for path in CONF.rglob("*/*.yaml"):
        if path.is_relative_to(inner) and path.parent != inner:
            assert f"\n  {path.stem} " not in out
            continue
        lines = [line.split(maxsplit=1) for line in out.splitlines()]
        assert any(line[0] == path.stem and len(line) == 2 for line in lines if line), f"no line for {path.stem}"


@pytest.mark.parametrize("arguments", [["dataset=usps", "--cfg", "job"], ["--cfg", "job", "dataset=usps"]])
def test_the_composed_configuration_is_printed_without_torch(arguments: list[str]) -> None:
    code = (
        f"import sys; from spectral_run.runner.cli import command; command({arguments}); print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "_target_: spectral_run.datasets.usps.USPS" in out
    assert out.endswith("False\n")


def test_a_run_leaves_a_whole_record(quick) -> None:
    ran = quick()
    assert ran.code == 0
    result = ran.result()
    for key in KEYS:
        value = result
        for part in key.split("."):
            value = value[part]
        assert value is not None, key
    assert result["status"] == "done"
    assert result["data"]["rows"] == {"train": 1151, "validation": 287, "test": 359}
    assert result["train"]["products"] > result["train"]["steps"] == 72
    folder = ran.results()[0].parent
    assert folder.relative_to(ran.folder).parts[:4] == ("results", "runs", "digits", "mlp")
    assert folder.parent.name == f"spectral_radius-{result['config_hash'][:8]}"
    assert folder.name == "seed-0"
    names = {"config.yaml", "environment.json", "metrics.jsonl", "timing.jsonl", "run.log", "model.pt", "checkpoints"}
    assert names <= {path.name for path in folder.iterdir()}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {"step", "epoch", "split", "name", "value", "products"} == set(lines[0])
    assert {line["epoch"] for line in lines} == {1, 2}
    assert str(folder.relative_to(ran.folder)) in ran.out
    phases = result["train"]["seconds_by_phase"]
    assert min(phases["gradient"], phases["eigensolver"], phases["gradient of rho"], phases["evaluation"]) > 0


def test_saved_weights_give_the_recorded_accuracy(quick) -> None:
    from spectral_run.datasets.base import DataHome
    from spectral_run.datasets.digits import Digits
    from spectral_run.models.mlp import MLP

    ran = quick()
    model = MLP(input_shape=(1, 8, 8), classes=10, widths=[8])
    model.load_state_dict(torch.load(ran.results()[0].parent / "model.pt", weights_only=True))
    test = Digits().load(DataHome(Path("nowhere"))).test
    accuracy = (model(test.inputs).argmax(1) == test.targets).double().mean()
    assert float(accuracy) == ran.result()["test"]["accuracy"]
    norm = sum(weights.detach().double().square().sum() for weights in model.parameters())
    assert ran.result()["parameters_squared_norm"] == pytest.approx(float(norm), rel=1e-12)


def test_same_seed_same_bytes_and_another_seed_not(quick) -> None:
    def metrics(*arguments: str) -> bytes:
        return next(
            p for p in quick(*arguments).folder.rglob("metrics.jsonl") if arguments[0][5:] in str(p)
        ).read_bytes()

    one, two, other = metrics("name=one"), metrics("name=two"), metrics("name=three", "seed=1")
    assert one == two != other


def test_rows_of_a_table_are_paired(quick) -> None:
    """The first step's loss sees initialization and batch only: the same under every regularizer."""
    ran = quick("--multirun", "regularizer=none,spectral_radius", "training.max_steps=1")
    assert ran.code == 0
    losses = set()
    for path in ran.folder.rglob("metrics.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        losses |= {line["value"] for line in lines if (line["split"], line["name"]) == ("train", "loss")}
    assert len(losses) == 1


def test_a_finished_run_is_skipped_and_rerun_starts_over(quick) -> None:
    first = quick()
    written = first.results()[0].stat().st_mtime_ns
    second = quick()
    assert (second.code, second.results()[0].stat().st_mtime_ns) == (0, written)
    assert "skipped" in second.out
    third = quick("rerun=true")
    assert third.results()[0].stat().st_mtime_ns > written
    assert third.result()["test"] == first.result()["test"]


def test_a_sweep_runs_all_skips_the_done_and_prints_one_table(quick) -> None:
    quick("seed=1", "name=s")
    ran = quick("--multirun", "name=s", "seed=0,1", "regularizer=none,spectral_radius")
    assert ran.code == 0
    assert ran.out.count("skipped, finished before") == 1
    assert len(ran.results()) == 4
    (sweep,) = (ran.folder / "results" / "s" / "sweeps").iterdir()
    assert {"table.csv", "table.md", "training_curves.png", "jobs.jsonl"} <= {path.name for path in sweep.iterdir()}
    assert len((sweep / "jobs.jsonl").read_text().splitlines()) == 4


def test_a_sweep_goes_on_past_a_bad_cell_and_says_so(quick) -> None:
    ran = quick("--multirun", "optimizer.lr=1e-3,1e9", "regularizer.mu=0.1,-1", "training.max_steps=3")
    assert ran.code == 2
    assert "mu must be >= 0, got -1" in ran.err
    statuses = sorted(json.loads(path.read_text())["status"] for path in ran.results())
    assert statuses == ["diverged", "done"]
    assert quick("--multirun", "optimizer.lr=1e-3,1e9", "training.max_steps=3").code == 1


def test_workers_share_a_sweep(quick) -> None:
    ran = quick("--multirun", "seed=0,1", "hydra/launcher=parallel", "training.epochs=1", "regularizer=none")
    assert ran.code == 0
    assert len(ran.results()) == 2
    assert list(ran.folder.rglob("table.csv"))


def test_validate_checks_and_runs_nothing(quick) -> None:
    ran = quick("validate=true")
    assert (ran.code, ran.results()) == (0, [])
    assert "valid: digits/mlp" in ran.out
    assert not list(ran.folder.rglob("run.log"))


def test_own_plugins_in_the_current_folder(quick, tmp_path: Path) -> None:
    (tmp_path / "own_network.py").write_text(
        "from torch import nn\n\n\ndef build(hidden):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden),"
        " nn.Tanh(), nn.LayerNorm(hidden), nn.Linear(hidden, 10))\n"
    )
    conf = tmp_path / "mine" / "model"
    conf.mkdir(parents=True)
    (conf / "net.yaml").write_text("# My network.\n_target_: own_network.build\nhidden: 12\n")
    from spectral_run.runner.cli import command

    arguments = ["--config-dir", "mine", "model=net", "training.epochs=1", "generalization=none", "curvature.eps=0.1"]
    try:
        assert command(arguments) == 0
    finally:
        sys.modules.pop("own_network", None)
    (result,) = tmp_path.rglob("result.json")
    assert json.loads(result.read_text())["parameters"] == 64 * 12 + 12 + 24 + 12 * 10 + 10


def test_help_lists_own_choices(command, tmp_path: Path) -> None:
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "net.yaml").write_text("# My network.\n")
    assert "My network." in command("--help", "--config-dir", "mine").out


@pytest.mark.parametrize("schedule", ["constant", "inverse_epoch", "cosine"])
def test_schedules(quick, schedule: str) -> None:
    ran = quick(f"training.schedule={schedule}", "training.epochs=4", "regularizer=none", "optimizer.lr=0.01")
    (metrics,) = ran.folder.rglob("metrics.jsonl")
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    rates = [line["value"] for line in lines if line["name"] == "lr"]
    want = {
        "constant": [1.0, 1.0, 1.0, 1.0],
        "inverse_epoch": [1.0, 1 / 2, 1 / 3, 1 / 4],
        "cosine": [1.0, 0.8535533905932737, 0.5, 0.14644660940672627],
    }
    assert rates == pytest.approx([0.01 * factor for factor in want[schedule]])


def test_the_checkpoint_is_chosen_on_validation(quick) -> None:
    ran = quick("training.epochs=6", "optimizer.lr=0.05", "regularizer=none")
    (metrics,) = ran.folder.rglob("metrics.jsonl")
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    accuracy = {
        line["epoch"]: line["value"] for line in lines if (line["split"], line["name"]) == ("validation", "accuracy")
    }
    best = max(accuracy, key=lambda epoch: (accuracy[epoch], -epoch))
    result = ran.result()
    assert result["train"]["best_epoch"] == best
    assert result["val"]["accuracy"] == accuracy[best]


def test_a_sweeper_gets_the_number_it_asked_for() -> None:
    import pickle

    from spectral_run.runner.outcome import Outcome
    from spectral_run.runner.sweep import Optimized

    nothing = Optimized.of(Outcome(1, "failed"), "test.accuracy")
    assert nothing != nothing  # NaN
    assert pickle.loads(pickle.dumps(nothing)).outcome == Outcome(1, "failed")


def test_an_optimizer_that_lets_go_of_gradients_still_trains(quick, tmp_path: Path) -> None:
    (tmp_path / "own_zeroing.py").write_text(
        "import torch\n\n\nclass Zeroing(torch.optim.SGD):\n    def step(self, closure):\n"
        "        self.zero_grad()\n        closure()\n        self.zero_grad()\n        return super().step(closure)\n"
    )
    common = ("training.epochs=1", "regularizer=none", "optimizer=sgd", "optimizer.lr=0.1")
    own = quick(*common, "optimizer._target_=own_zeroing.Zeroing", "name=own").result()
    plain = json.loads(next(quick(*common, "name=plain").folder.rglob("plain/**/result.json")).read_text())
    assert own["test"] == plain["test"]
    assert own["train"]["gradient_evaluations"] == 2 * plain["train"]["gradient_evaluations"]


def test_max_steps_end_with_a_record_wherever_the_run_was_killed(quick) -> None:
    arguments = ("training.max_steps=20", "training.checkpoint_minutes=0")
    first = quick(*arguments)
    folder = first.results()[0].parent
    metrics = (folder / "metrics.jsonl").read_bytes()
    (folder / "result.json").unlink()
    max((folder / "checkpoints").glob("*.pt"), key=lambda path: path.stat().st_mtime_ns).unlink()
    second = quick(*arguments)
    assert second.code == 0
    assert (folder / "metrics.jsonl").read_bytes() == metrics
    assert second.result()["test"] == first.result()["test"]


def test_a_reader_that_leaves_does_not_stop_the_run(tmp_path: Path) -> None:
    arguments = ["training.epochs=3", "generalization=none", "regularizer=none", "curvature.eps=0.1"]
    code = f"import sys; from spectral_run.runner.cli import command; sys.exit(command({arguments}))"
    child = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert child.stdout is not None
    child.stdout.close()
    child.wait(120)
    (result,) = tmp_path.rglob("result.json")
    assert json.loads(result.read_text())["status"] == "done"


def test_a_single_left_over_row_joins_the_batch_before(quick) -> None:
    """1,151 rows in batches of 50 leave one: 23 batches, and BatchNorm always has more than a row."""
    assert quick("training.batch_size=50", "training.epochs=1").result()["train"]["steps"] == 23


def test_version_is_ours(command) -> None:
    import spectral_run

    assert command("--version").out == f"spectral-run {spectral_run.__version__}\n"
