"""Whatever is wrong, one clear line says so, and nothing is lost."""

from __future__ import annotations

import gzip
import json
import random
import re
from pathlib import Path

import pytest
from filelock import FileLock

CONFIGURATION = [
    (["datset=usps"], r"there is no setting 'datset'. Did you mean 'dataset'\?"),
    (["seeed=1"], r"there is no setting 'seeed'. Did you mean 'seed'\?"),
    (["+typo=1"], "there is no setting 'typo'."),
    (["+trainin.epochs=1"], r"there is no setting 'trainin'. Did you mean 'training'\?"),
    (["training.epoch=3"], r"there is no setting 'training.epoch'. Did you mean 'training.epochs'\?"),
    (["+training.epoch=3"], r"there is no setting 'training.epoch'. Did you mean 'training.epochs'\?"),
    (["dataset=upsps"], r"dataset has no choice 'upsps'. Did you mean 'usps'\? Choices: .*cifar10, covtype, digits"),
    (["regularizer=nune"], r"regularizer has no choice 'nune'. Did you mean 'none'\?"),
    (["+optimizer.lrr=1"], r"optimizer.lrr: torch.optim.Adam takes no argument 'lrr'. Did you mean 'lr'\?"),
    (["+regularizer.muu=1"], r"takes no argument 'muu'. Did you mean 'mu'\?"),
    (["optimizer._target_=torch.optim.Adamm"], r"torch.optim has no 'Adamm'. Did you mean 'Adam'\?"),
    (["optimizer._target_=no_such_module.Adam"], "no module named 'no_such_module' can be imported"),
    (["optimizer._target_=torch.nn.Identity", "optimizer.lr=1", "~optimizer.betas"], "Identity is no Optimizer"),
    (["regularizer.mu=-0.1"], "SpectralRadius: mu must be >= 0, got -0.1"),
    (["regularizer.mu=true"], "regularizer.mu: .*SpectralRadius needs float, got True"),
    (["regularizer.K=null"], "regularizer.K: .*SpectralRadius needs float, got None"),
    (["regularizer.K=big"], "regularizer.K: .*SpectralRadius needs float, got 'big'"),
    (["regularizer.K=???"], "regularizer.K needs a value"),
    (["regularizer.eps=0"], "eps must be positive"),
    (["regularizer.solver=lanczoz"], "'lanczos'.*got 'lanczoz'"),
    (["curvature.solver=qr"], "solver must be one of power, lanczos, lobpcg, lobpcg_paper; got 'qr'"),
    (["curvature.backend=fast"], "backend must be one of auto, cuda, native, rop, autograd; got 'fast'"),
    (["optimizer.lr=fast"], "optimizer.lr: torch.optim.Adam needs .*got 'fast'"),
    (["optimizer.lr=-1"], "optimizer: Invalid learning rate: -1"),
    (["seed=abc"], "seed: Value 'abc'.*could not be converted to Integer"),
    (["training.epochs=0"], "training.epochs must be at least 1, got 0"),
    (["training.schedule=cosin"], r"Did you mean 'cosine'\?"),
    (["training.select_by=f1"], "training.select_by must be one of accuracy, auc, loss; got 'f1'"),
    (["threads=0"], "threads must be at least 1, got 0"),
    (["device=gpu"], "device 'gpu' can't be used here"),
    (["dtype=float16"], "dtype must be one of float32, float64"),
    (["name=a/b"], "name must be a folder's name, got 'a/b'"),
    (["model=usps_cnn"], r"USPSCNN: input_shape must be \(1, 16, 16\), got \(1, 8, 8\)"),
    (["model.widths=[0]"], r"MLP: widths must be positive integers, got \[0\]"),
    (["model.activation=reluu"], "relu"),
    (["generalization=covariate_shift"], "generalization.covariate_shift: .*"),
    (["dataset=synthetic", "training.select_by=accuracy"], "select_by must be loss for data set synthetic"),
    (["dataset=[digits"], "no viable alternative at input"),
    (["model.widths="], "model.widths: .*MLP needs .*Sequence.int., got ''"),
    (["optimizer.betas=[0.9]"], "optimizer: "),
    (["~model"], "model needs a choice"),
    (["model=null"], "model needs a choice"),
    (["tracker="], "tracker needs a choice"),
    (["results_dir="], "results_dir needs a folder's path"),
    (
        ["optimizer={_target_: torch.optim.AdamW, weight_decay: 0.1}", "~optimizer.lr", "curvature.weight_decay=true"],
        "AdamW's decay is no part of any loss",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), CONFIGURATION, ids=[" ".join(a) for a, _ in CONFIGURATION])
def test_bad_configuration(command, arguments: list[str], message: str) -> None:
    ran = command(*arguments, "validate=true")
    assert ran.code == 2
    assert re.search(message, ran.err), ran.err
    assert ran.err.startswith("spectral-run: ")
    assert ran.err.count("\n") == 1, "one line"
    assert "Traceback" not in ran.err + ran.out
    assert ran.results() == []


def test_it_is_checked_before_any_data_is_touched(command) -> None:
    """The data are missing too, but the typo comes first and no run folder is made."""
    ran = command("dataset=usps", "data_root=nowhere", "+optimizer.lrr=1")
    assert ran.code == 2
    assert not list(ran.folder.rglob("run.log"))


def test_a_missing_data_file_says_where_it_belongs(command) -> None:
    ran = command("dataset=usps", "data_root=nowhere", "download=false", "generalization=none")
    assert ran.code == 1
    assert "nowhere/usps/usps.bz2" in ran.err
    assert "download=true" in ran.err
    assert "SPECTRAL_DATA" in ran.err
    assert ran.result()["status"] == "failed"


def test_a_tests_missing_data_file_is_noticed_before_training(command) -> None:
    ran = command("generalization=transfer", "data_root=nowhere", "download=false")
    assert ran.code == 1
    assert "t10k-images-idx3-ubyte.gz" in ran.err
    assert not list(ran.folder.rglob("metrics.jsonl"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no bz2 at all", "usps.bz2"),
        (b"BZh91AY&SY", "usps.bz2"),
    ],
)
def test_an_undecodable_data_file_is_named(command, tmp_path: Path, content: bytes, message: str) -> None:
    folder = tmp_path / "data" / "usps"
    folder.mkdir(parents=True)
    for name in ("usps.bz2", "usps.t.bz2"):
        (folder / name).write_bytes(content)
    ran = command("dataset=usps", "generalization=none", "data_root=data")
    assert ran.code == 1
    assert message in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("rate", ["1e6", "1e30"])
def test_a_diverging_run_stops_and_says_where(quick, rate: str) -> None:
    ran = quick(f"optimizer.lr={rate}")
    assert ran.code == 1
    assert "diverged at step" in ran.err
    assert "Last good checkpoint" in ran.err
    result = ran.result()
    assert (result["status"], result["step"] > 0) == ("diverged", True)
    again = quick(f"optimizer.lr={rate}")
    assert (again.code, "skipped" in again.out) == (1, True)


def write_network(folder: Path, name: str, body: str) -> str:
    (folder / f"{name}.py").write_text(
        "import torch\nfrom torch import nn\nimport torch.nn.functional as F\n\n\nclass Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.body = nn.Linear(64, 10)\n"
        f"    def forward(self, x):\n        {body}\n"
    )
    return f"model={{_target_: {name}.Net}}"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return self.body(F.layer_norm(x.flatten(1), (64,)))", "Net uses native_layer_norm: the third derivative"),
        (
            "return F.batch_norm(self.body(x.flatten(1)), None, None, training=True)",
            "fused batch or instance norm is wrong",
        ),
        ("return self.body(x)", "model Net on data set digits .*shapes cannot be multiplied"),
        ("return self.body(x.flatten(1))[:, :3]", r"must give outputs of shape \(rows, 10\), got \(2, 3\)"),
        ("y = x.flatten(1)[:, None]; return self.body(F.scaled_dot_product_attention(y, y, y)[:, 0])", "attention"),
    ],
)
def test_a_network_that_cannot_be_used_is_refused_by_name(command, tmp_path: Path, body: str, message: str) -> None:
    name = f"own_net_{abs(hash(body))}"
    target = write_network(tmp_path, name, body).partition("_target_: ")[2].rstrip("}")
    ran = command(f"model._target_={target}", "~model.widths", "~model.activation", "~model.bias", "validate=true")
    assert ran.code == 2
    assert re.search(message, ran.err), ran.err


def test_a_results_folder_that_cannot_be_written(quick, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where a folder should be")
    ran = quick("results_dir=taken")
    assert ran.code == 1
    assert "results_dir must be a folder that can be written" in ran.err
    assert "Traceback" not in ran.err


def test_a_second_process_on_the_same_run_refuses(quick) -> None:
    ran = quick()
    folder = ran.results()[0].parent
    (folder / "result.json").unlink()
    with FileLock(folder / ".lock"):
        second = quick()
    assert second.code == 1
    assert "another process is at work on" in second.err
    assert second.results() == []


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_a_damaged_checkpoint_is_passed_over_aloud(quick, damage: str) -> None:
    first = quick("training.epochs=3")
    folder = first.results()[0].parent
    numbers, metrics = first.result(), (folder / "metrics.jsonl").read_bytes()
    (folder / "result.json").unlink()
    last = max((folder / "checkpoints").glob("*.pt"))
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes({"flip": bytes(content), "truncate": content[: len(content) // 2], "empty": b""}[damage])
    second = quick("training.epochs=3")
    assert second.code == 0
    assert f"{last.name} is damaged" in second.err
    assert "the one before it is used" in second.err
    assert second.result()["test"] == numbers["test"]
    assert (folder / "metrics.jsonl").read_bytes() == metrics


def test_changed_data_are_not_mixed_into_a_begun_run(command, tmp_path: Path) -> None:
    def write(seed: int) -> None:
        draw = random.Random(seed)
        rows = [[draw.randrange(2) for _ in range(54)] + [1 + i % 7] for i in range(140)]
        folder = tmp_path / "data" / "covtype"
        folder.mkdir(parents=True, exist_ok=True)
        lines = "\n".join(",".join(map(str, row)) for row in rows) + "\n"
        (folder / "covtype.data.gz").write_bytes(gzip.compress(lines.encode()))

    arguments = ("dataset=covtype", "training.epochs=2", "generalization=none", "data_root=data")
    write(0)
    assert command(*arguments).code == 0
    (result,) = tmp_path.rglob("result.json")
    result.unlink()
    write(1)
    ran = command(*arguments)
    assert ran.code == 1
    assert "was begun on data with sha256" in ran.err
    assert "rerun=true" in ran.err
    assert command(*arguments, "rerun=true").code == 0


def test_a_failed_run_keeps_its_traceback_and_is_tried_again(quick, monkeypatch: pytest.MonkeyPatch) -> None:
    from spectral_run.runner import parts

    def broken(*arguments: object, **settings: object) -> None:
        raise KeyError("something of a plugin's")

    with monkeypatch.context() as patch:
        patch.setattr(parts, "measure_rho", broken)
        failed = quick()
    assert failed.code == 1
    assert "KeyError" in failed.err
    result = failed.result()
    assert result["status"] == "failed"
    assert "in broken" in result["traceback"]
    assert quick().code == 0
    assert json.loads(failed.results()[0].read_text())["status"] == "done"


@pytest.mark.parametrize("lost", ["metrics.jsonl", "timing.jsonl"])
def test_a_checkpoint_without_its_lines_is_not_used(quick, lost: str) -> None:
    first = quick()
    folder = first.results()[0].parent
    numbers = first.result()
    (folder / "result.json").unlink()
    (folder / lost).unlink()
    second = quick()
    assert second.code == 0
    assert "shorter than its checkpoint says; starting over" in second.err
    assert second.result()["test"] == numbers["test"]


OWN_DATA = """
import torch
from spectral_run.datasets.base import Data, Dataset, Split


class Own(Dataset):
    name, input_shape, classes = "own", (64,), 10

    def __init__(self, fault):
        self.fault = fault

    def load(self, home):
        torch.manual_seed(0)
        splits = [Split(torch.randn(20, 64), torch.randint(10, (20,))) for _ in range(3)]
        if self.fault == "hole":
            splits[2].inputs[7, 3] = float("nan")
        if self.fault == "label":
            splits[0].targets[4] = 10
        if self.fault == "shape":
            splits[1] = Split(torch.randn(20, 63), splits[1].targets)
        if self.fault == "empty":
            splits[1] = Split(torch.randn(0, 64), splits[1].targets[:0])
        return Data("own", *splits, files={"own": "0" * 64}, official=True)
"""


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("hole", "own, test split: row 7 holds a number that is not finite"),
        ("label", r"own, train split: label must be in \[0, 9\], got 10 in row 4"),
        ("shape", r"own, validation split: inputs must have the shape \(64,\), got \(63,\)"),
        ("empty", "own, validation split: needs as many inputs as targets and at least one, got 0"),
    ],
)
def test_own_data_are_checked(quick, tmp_path: Path, fault: str, message: str) -> None:
    module = f"own_data_{fault}"
    (tmp_path / f"{module}.py").write_text(OWN_DATA)
    ran = quick(
        f"dataset._target_={module}.Own", "~dataset.validation_fraction", "~dataset.test_fraction",
        "~dataset.split_seed", f"+dataset.fault={fault}",
    )  # fmt: skip
    assert ran.code == 1
    assert re.search(message, ran.err), ran.err


def test_an_optimized_metric_that_is_not_there(quick) -> None:
    ran = quick("optimized_metric=test.acuracy", "training.max_steps=1")
    assert ran.code == 2
    assert "result.json has no number at 'test.acuracy'" in ran.err
