"""``init_from=``: a run starts from the weights of another run or of a file, or says what keeps it from that."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pickle
import re
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spectral_run.models.densenet import DenseNet
from spectral_run.runner import cli, initial
from spectral_run.runner.settings import ConfigurationError

QUICK = ("training.epochs=1", "generalization=none", "model.widths=[8]", "curvature.eps=0.1")
STILL = ("regularizer=none", "optimizer.lr=0", "training.epochs=1")
"""A run that leaves its weights as they were."""


def state(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / "model.pt", weights_only=True)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def finished(quick) -> Path:
    ran = quick("regularizer=none", "name=first")
    assert ran.code == 0, ran.err
    return ran.results()[0].parent


@pytest.fixture
def file(finished: Path) -> Path:
    """The weights alone, in a file somewhere else."""
    path = finished.parents[5] / "weights.pt"
    torch.save(state(finished), path)
    return path


def second(folder: Path) -> Path:
    (path,) = (folder / "results" / "second").rglob("result.json")
    return path.parent


@pytest.mark.parametrize("whole", [True, False])
def test_a_run_starts_where_another_ended(quick, finished: Path, whole: bool) -> None:
    source = finished if whole else finished / "model.pt"
    ran = quick(*STILL, "name=second", f"init_from={source}")
    assert ran.code == 0, ran.err
    folder = second(ran.folder)
    assert equal(state(folder), state(finished))
    result, before = (json.loads((f / "result.json").read_text()) for f in (folder, finished))
    assert result["initialization"] == {
        "kind": "run" if whole else "checkpoint",
        "path": str(source),
        "sha256": hashlib.sha256((finished / "model.pt").read_bytes()).hexdigest(),
        "notices": [],
    }
    assert before["initialization"] == {"kind": "random", "path": None, "sha256": None, "notices": []}
    assert result["test"] == before["test"]
    assert f"first weights: {source}" in ran.out
    assert f"first weights: {source}" in (folder / "run.log").read_text()
    assert result["config"]["init_from"] == str(source)
    assert "init_from" not in before["config"]


def test_it_decides_the_run(quick, file: Path) -> None:
    other = file.with_name("other.pt")
    other.write_bytes(file.read_bytes())
    for source in (file, other):
        assert quick(*STILL, "name=second", f"init_from={source}").code == 0
    assert len(list(Path("results/second").rglob("result.json"))) == 2
    assert "skipped, finished before" in quick(*STILL, "name=second", f"init_from={file}").out


@pytest.mark.parametrize("quote", ["", "'"])
def test_each_seed_from_its_own(quick, quote: str) -> None:
    """What a shell leaves of ``init_from='...-${seed}'`` and ``"init_from='...-${seed}'"``: one hash for both seeds."""
    ran = quick("--multirun", "seed=0,1", "regularizer=none", "name=first")
    first = [path.parent for path in ran.results()]
    source = f"init_from={quote}{first[0].relative_to(ran.folder).parent}/seed-${{seed}}{quote}"
    ran = quick("--multirun", "seed=0,1", *STILL, "name=second", source)
    assert ran.code == 0, ran.err
    then = sorted((ran.folder / "results" / "second").rglob("result.json"))
    assert [path.parent.name for path in then] == ["seed-0", "seed-1"]
    assert then[0].parents[1] == then[1].parents[1]  # one configuration, so one folder
    for path, before in zip(then, first, strict=True):
        assert equal(state(path.parent), state(before))
        assert json.loads(path.read_text())["initialization"]["path"].endswith(before.name)
    assert not equal(state(first[0]), state(first[1]))
    assert "2 runs of 1 model" in ran.out


@pytest.mark.parametrize(
    ("under", "prefix"),
    [(None, "module."), ("state_dict", ""), ("model", "module.backbone."), ("model_state_dict", "model.")],
)
def test_files_as_they_are_published(quick, file: Path, under: str | None, prefix: str) -> None:
    held: Any = {f"{prefix}{name}": value for name, value in torch.load(file, weights_only=True).items()}
    path = file.with_name("published.pth.tar")
    torch.save(held if under is None else {"epoch": 3, under: held}, path)
    ran = quick(*STILL, "name=second", f"init_from={path}")
    assert ran.code == 0, ran.err
    assert equal(state(second(ran.folder)), torch.load(file, weights_only=True))


def test_safetensors(quick, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    path = file.with_suffix(".safetensors")
    safetensors.save_file(torch.load(file, weights_only=True), path)
    ran = quick(*STILL, "name=second", f"init_from={path}")
    assert ran.code == 0, ran.err
    assert equal(state(second(ran.folder)), torch.load(file, weights_only=True))
    path.write_bytes(path.read_bytes()[:-9])
    assert "weights.safetensors is damaged" in quick(*STILL, f"init_from={path}").err
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert "needs the package safetensors: pip install it" in quick(*STILL, f"init_from={path}").err


def chexnet(model: DenseNet) -> dict[str, Tensor]:
    """The weights as CheXNet's are published: names of torchvision before 0.2.1, a wrapped network, its own head."""
    old = {}
    for name, value in model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            name = re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name)
            old[f"module.densenet121.{name.replace('classifier.', 'classifier.0.')}"] = value
    assert "module.densenet121.features.denseblock1.denselayer1.norm.1.running_mean" in old
    assert "module.densenet121.classifier.0.weight" in old
    return old


def tiny(seed: int) -> DenseNet:
    torch.manual_seed(seed)
    return DenseNet(input_shape=(3, 32, 32), classes=14, growth_rate=4, blocks=(2, 1, 1, 1), initial=8)


def test_chexnet_by_its_published_names(tmp_path: Path) -> None:
    theirs, ours = tiny(1), tiny(2)
    with torch.no_grad():
        for value in theirs.buffers():
            if value.is_floating_point():
                value.add_(torch.rand(value.shape))  # statistics of a training
    path = tmp_path / "m-25012018-123527.pth.tar"
    content = {"epoch": 1, "state_dict": chexnet(theirs), "best_loss": torch.tensor(0.5), "optimizer": {"state": {}}}
    torch.save(content, path, _use_new_zipfile_serialization=False)  # as torch wrote in 2018
    origin = initial.load(ours, str(path))
    assert equal(ours.state_dict(), theirs.state_dict())
    assert (origin.kind, origin.sha256) == ("checkpoint", hashlib.sha256(path.read_bytes()).hexdigest())


def test_a_head_of_another_size_is_refused(tmp_path: Path) -> None:
    ours = tiny(2)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    held = chexnet(tiny(1))
    name = "module.densenet121.classifier.0"
    held |= {f"{name}.weight": held[f"{name}.weight"][:5], f"{name}.bias": held[f"{name}.bias"][:5]}
    torch.save(held, tmp_path / "five.pt")
    message = (
        r"five.pt does not fit the model. 2 of another shape: classifier.weight \(5, 9\) for \(14, 9\), classifier.bias"
    )
    with pytest.raises(ConfigurationError, match=message):
        initial.load(ours, str(tmp_path / "five.pt"))
    assert equal(ours.state_dict(), before)


class Marker:
    """Pickled, it would write a file where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_no_code_is_unpickled(quick, file: Path) -> None:
    trace = file.with_name("trace")
    torch.save({"state_dict": torch.load(file, weights_only=True), "more": Marker(trace)}, file)
    ran = quick(*STILL, f"init_from={file}")
    assert ran.code == 2
    assert "holds more than tensors, which is not loaded since it could run any code" in ran.err
    assert len(ran.err.splitlines()) == 1
    assert not trace.exists()
    torch.load(file, weights_only=False)
    assert trace.exists()


def _content(content: bytes) -> Any:
    return lambda path: path.write_bytes(content)


def _changed(change: Any) -> Any:
    def write(path: Path) -> None:
        held = torch.load(path, weights_only=True)
        change(held)
        torch.save(held, path)

    return write


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_content(b""), r"weights.pt (can't be read|is damaged)"),
        (_content(b"no weights at all"), r"weights.pt (can't be read|is damaged)"),
        (lambda path: path.write_bytes(path.read_bytes()[:900]), r"weights.pt (can't be read|is damaged)"),
        (_content(pickle.dumps([1, 2], protocol=2)), r"weights.pt (can't be read|is damaged|holds no state dict)"),
        (lambda path: torch.save([1.0], path), "holds no state dict, alone or under .*; it holds list"),
        (lambda path: torch.save({"epoch": 1, "loss": 2.0}, path), "holds no state dict, .*; it holds epoch, loss"),
        (lambda path: torch.save({}, path), "holds no state dict, .*; it holds nothing"),
        (_changed(lambda held: held.pop("layers.1.bias")), "1 missing: layers.1.bias"),
        (_changed(lambda held: held.update(extra=torch.zeros(1))), "1 not the model's: extra"),
        (
            _changed(lambda held: held.update({f"more.{i}": torch.zeros(1) for i in range(9)})),
            r"9 not the model's: more.0, more.1, more.2, more.3, more.4, \.\.\.",
        ),
        (
            _changed(lambda held: held["layers.1.bias"].fill_(torch.nan)),
            "layers.1.bias holds a number that is not finite",
        ),
    ],
)
def test_a_file_that_does_not_do(quick, file: Path, spoil: Any, message: str) -> None:
    spoil(file)
    ran = quick(*STILL, f"init_from={file}", "name=second")
    assert ran.code == 2, ran.err
    assert re.search(f"^spectral-run: init_from: .*{message}", ran.err), ran.err
    assert len(ran.err.splitlines()) == 1
    assert not (ran.folder / "results" / "second" / "digits").exists()


@pytest.mark.parametrize("validate", ["true", "false"])
def test_refused_before_data_are_touched(command, validate: str) -> None:
    arguments = ("dataset=usps", "data_root=nowhere", "download=false", f"validate={validate}")
    ran = command(*arguments, "init_from=no/such/run")
    assert ran.code == 2
    assert ran.err == "spectral-run: init_from: there is no file or folder no/such/run.\n"


def test_runs_that_are_no_start(quick, finished: Path) -> None:
    ran = quick(*STILL, f"init_from={finished.parent}")
    assert "has no result.json; it holds seed-0: add /seed-0, or '/seed-${seed}'" in ran.err
    assert "init_from must be a run's folder, or a file in .pt, .pth" in quick(f"init_from={finished}/config.yaml").err
    assert "init_from needs a run's folder or a file, or null" in quick("init_from=").err
    path = finished / "result.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps(result | {"status": "diverged"}))
    ran = quick(*STILL, f"init_from={finished}")
    assert (ran.code, f"init_from needs a finished run, and {finished} has diverged" in ran.err) == (2, True)
    path.write_text("{")
    assert "is no result of a run" in quick(*STILL, f"init_from={finished}").err
    path.write_text(json.dumps(result))
    (finished / "model.pt").unlink()
    assert "has no model.pt" in quick(*STILL, f"init_from={finished}").err


def test_going_on_from_a_changed_file_is_refused(quick, file: Path) -> None:
    content = file.read_bytes()
    ran = quick("regularizer=none", "name=second", f"init_from={file}")
    folder = second(ran.folder)
    before = json.loads((folder / "result.json").read_text())
    (folder / "result.json").unlink()  # as if it had been killed: its checkpoints are there
    torch.save({name: value + 1 for name, value in torch.load(file, weights_only=True).items()}, file)
    ran = quick("regularizer=none", "name=second", f"init_from={file}")
    assert ran.code == 1
    old, new = (hashlib.sha256(held).hexdigest()[:12] for held in (content, file.read_bytes()))
    assert f"was begun from weights with sha256 {old}, and {file} has {new} now" in ran.err + ran.out
    file.write_bytes(content)
    ran = quick("regularizer=none", "name=second", f"init_from={file}")
    assert (ran.code, "resuming" in ran.out) == (0, True)
    after = json.loads((folder / "result.json").read_text())
    assert after["initialization"] == before["initialization"]
    assert after["test"] == before["test"]


def test_a_finished_run_is_measured_without_the_file(quick, command, file: Path) -> None:
    ran = quick("regularizer=none", "name=second", f"init_from={file}")
    file.unlink()
    ran = command(
        f"run_dir={second(ran.folder)}", "generalization=[loss_surface]", "generalization.loss_surface.points=3",
        "generalization.loss_surface.plane=3",
    )  # fmt: skip
    assert ran.code == 0, ran.err


# Children start from a server that has torch imported.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["spectral_run.runner.run", "spectral_run.reports.summary", "hydra", "torch._dynamo", "sklearn.datasets"]
)


def run_in_child(folder: Path, rank: int, port: int, arguments: tuple[str, ...]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.chdir(folder)
    with (folder / f"out-{rank}").open("w") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        os._exit(cli.command(list(arguments)))


def test_two_processes_start_from_the_same(tmp_path: Path, file: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (*QUICK, *STILL, "device=cpu", "name=second", f"init_from={file}")
    children = [CONTEXT.Process(target=run_in_child, args=(tmp_path, rank, port, arguments)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        child.kill()
    assert [child.exitcode for child in children] == [0, 0], (tmp_path / "out-0").read_text()
    assert equal(state(second(tmp_path)), torch.load(file, weights_only=True))
    assert (tmp_path / "out-0").read_text().count("first weights") == 1


# Weights that a model offers by itself: fetched when a run begins, not before.

COLORS = """
import torch
from spectral_run.datasets.base import Data, Dataset, Split

class Colors(Dataset):
    name, input_shape, classes = "colors", (3, 32, 32), 2

    def load(self, home):
        images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        split = Split(images, torch.arange(4) % 2)
        return Data("colors", split, split, split, {"colors": "0" * 64}, False)
"""


@pytest.fixture
def colors(command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "colors.py").write_text(COLORS)
    (tmp_path / "mine" / "dataset").mkdir(parents=True)
    (tmp_path / "mine" / "dataset" / "colors.yaml").write_text("# Noise.\n_target_: colors.Colors\n")
    quickly = ("training.epochs=1", "training.batch_size=4", "curvature.cap=1", "regularizer=none", "download=false")
    return lambda *more: command("--config-dir", "mine", "dataset=colors", "model=densenet121", *quickly, *more)


def test_without_published_weights_the_record_says_so(colors, tmp_path: Path) -> None:
    assert colors("validate=true").code == 0
    ran = colors()
    assert ran.code == 0, ran.err
    said = ran.result()["initialization"]
    assert (said["kind"], said["sha256"]) == ("random", None)
    (notice,) = said["notices"]
    assert "starts from random weights, there are none of ImageNet (download=false)" in notice
    assert str(tmp_path / "torch") in notice
    assert notice in ran.results()[0].with_name("run.log").read_text()
    # Weights that a run was not begun from are not in its record, though they be there when it goes on.
    ran.results()[0].unlink()
    (tmp_path / "torch" / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "torch" / "hub" / "checkpoints" / "densenet121-a639ec97.pth").touch()
    again = colors()
    assert (again.code, "resuming" in again.out) == (0, True)
    assert again.result()["initialization"] == said


def test_published_weights_that_are_insisted_on(colors) -> None:
    ran = colors("model.weights=imagenet_required")
    assert ran.code == 1
    assert "there are no ImageNet weights (download=false); fetch https://download.pytorch.org" in ran.err + ran.out
    assert ran.result()["status"] == "failed"
    assert "model.weights: spectral_run.models.densenet.DenseNet needs" in colors("model.weights=imagnet").err
