"""DenseNet: torchvision's layers under torchvision's names, exact curvature in training mode, and ImageNet weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from spectral_run.curvature.autograd import AutogradProblem
from spectral_run.curvature.backends import choose_backend
from spectral_run.curvature.exact_layers import ExactBatchNorm, swap_norms
from spectral_run.curvature.objective import Objective
from spectral_run.models import densenet
from spectral_run.models.densenet import DenseNet

TINY = {"growth_rate": 4, "blocks": (2, 1, 2, 1), "initial": 8, "bottleneck": 2}


def tiny(classes: int = 3, pixels: int = 32) -> DenseNet:
    torch.manual_seed(0)
    return DenseNet(input_shape=(3, pixels, pixels), classes=classes, **TINY)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_parameter_count() -> None:
    """6,953,856 below the head, and 1,024 features and a bias for each of 14 outputs; with ImageNet's 1,000, theirs."""
    assert parameters(DenseNet(input_shape=(3, 224, 224), classes=14)) == 6_953_856 + 1025 * 14 == 6_968_206
    full = DenseNet(input_shape=(3, 224, 224), classes=1000)
    assert parameters(full) == torchvision.models.DenseNet121_Weights.IMAGENET1K_V1.meta["num_params"]
    assert (
        parameters(DenseNet(input_shape=(3, 64, 64), classes=14, growth_rate=12, blocks=(2, 4, 6, 4), initial=24))
        == 145_334
    )


@pytest.mark.parametrize("training", [True, False])
def test_it_computes_what_torchvision_does(training: bool) -> None:
    ours = tiny().double().train(training)
    torch.manual_seed(1)
    theirs = torchvision.models.DenseNet(4, (2, 1, 2, 1), 8, 2, num_classes=3).double().train(training)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 3, 40, 33, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)


def test_the_random_start_is_torchvisions() -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.DenseNet(4, (2, 1, 2, 1), 8, 2, num_classes=3).state_dict()
    ours = tiny().state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def batch(rows: int = 5, outputs: int = 3) -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    return torch.randn(rows, 3, 32, 32).double(), torch.randint(2, (rows, outputs)).double()


def smooth(module: nn.Module) -> nn.Module:
    """Functions without kinks for ReLU and max pooling, so that differences have something to converge to."""
    for name, child in module.named_children():
        kinked = isinstance(child, nn.ReLU | nn.MaxPool2d)
        setattr(
            module, name, (nn.Tanh() if isinstance(child, nn.ReLU) else nn.AvgPool2d(2)) if kinked else smooth(child)
        )
    return module


def test_auto_takes_the_exact_rules_for_train_mode_batch_norm() -> None:
    objective = Objective(swap_norms(tiny()).double().train(), F.binary_cross_entropy_with_logits)
    inputs, targets = batch()
    backend = choose_backend("auto", objective, inputs)
    assert backend.name == "rop"
    assert backend.why.startswith("it has a rule for every layer")
    norms = [type(module) for module in objective.model.modules() if "Norm" in type(module).__name__]
    assert set(norms) == {ExactBatchNorm}
    ours, theirs = backend(objective, inputs, targets), AutogradProblem(objective, inputs, targets)
    v = torch.randn(ours.n).double()
    for got, want in (
        (ours.grad(), theirs.grad()),
        (ours.hvp(v), theirs.hvp(v)),
        (ours.quadratic_grad(v), theirs.quadratic_grad(v)),
    ):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9 * float(want.norm()))


def test_products_against_rows_of_the_dense_hessian() -> None:
    objective = Objective(swap_norms(tiny()).double().train(), F.binary_cross_entropy_with_logits)
    problem = choose_backend("auto", objective, batch()[0])(objective, *batch())
    gradient = torch.cat(
        [
            part.flatten()
            for part in torch.autograd.grad(
                objective.loss(objective.model(batch()[0]), batch()[1]), objective.parameters, create_graph=True
            )
        ]
    )
    v = torch.randn(problem.n).double()
    product = problem.hvp(v)
    for row in torch.randperm(problem.n)[:12]:
        parts = torch.autograd.grad(gradient[row], objective.parameters, retain_graph=True, materialize_grads=True)
        dense_row = torch.cat([part.flatten() for part in parts])
        torch.testing.assert_close(product[row], dense_row @ v, rtol=1e-9, atol=1e-10)


def test_the_third_derivative_against_differences_of_gradients() -> None:
    """``d/dt v'H(w + t d)v = d . grad(v'Hv)``, by central differences of products with Richardson's extrapolation."""
    model = tiny()
    smooth(model)
    objective = Objective(swap_norms(model).double().train(), F.binary_cross_entropy_with_logits)
    inputs, targets = batch()
    backend = choose_backend("auto", objective, inputs)
    assert backend.name == "rop"
    problem = backend(objective, inputs, targets)
    v, d = (torch.randn(problem.n).double() for _ in range(2))
    v, d = v / v.norm(), d / d.norm()

    def form(t: float) -> float:
        return float(v @ AutogradProblem(objective, inputs, targets, params=problem.params + t * d).hvp(v))

    def difference(h: float) -> float:
        return (form(h) - form(-h)) / (2 * h)

    want = (4 * difference(1e-4) - difference(2e-4)) / 3
    assert float(d @ problem.quadratic_grad(v)) == pytest.approx(want, rel=1e-7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"input_shape": (1, 64, 64)},
            r"DenseNet: input_shape must be \(3, height, width\), .* >= 32, got \(1, 64, 64\)",
        ),
        ({"input_shape": (3, 31, 64)}, r"height and width >= 32, got \(3, 31, 64\)"),
        ({"input_shape": (54,)}, r"got \(54,\)"),
        ({"growth_rate": 0}, "DenseNet: growth_rate must be a positive integer, got 0"),
        ({"bottleneck": True}, "DenseNet: bottleneck must be a positive integer, got True"),
        ({"blocks": ()}, "DenseNet: blocks must be positive integers, one at least"),
        ({"blocks": (2, 0)}, "DenseNet: blocks must be positive integers"),
        ({"growth_rate": 12, "weights": "imagenet"}, "ImageNet weights are DenseNet-121's .* got 12, .*weights=none"),
    ],
)
def test_refusals(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DenseNet(**{"input_shape": (3, 64, 64), "classes": 14, **arguments})


# ImageNet weights: a file as torchvision publishes it (names of 2017, a thousand classes), made here.


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the file belongs; its name holds the first digits of its own hash, as torchvision's does."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder / densenet._FILE


def old_file() -> dict[str, Tensor]:
    torch.manual_seed(3)
    state = torchvision.models.densenet121().state_dict()
    old = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    for kind in ("norm", "conv"):
        for number in "12":
            old = {
                name.replace(f".{kind}{number}.", f".{kind}.{number}.") if "denselayer" in name else name: value
                for name, value in old.items()
            }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    return old


def test_imagenet_weights_but_the_head(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(old_file(), published, _use_new_zipfile_serialization=False)
    sha256 = densenet.file_digest(published)
    monkeypatch.setattr(densenet, "_SHA256", sha256[:8])
    model = DenseNet(input_shape=(3, 224, 224), classes=14, weights="imagenet_required")
    head = model.classifier.weight.detach().clone()
    origin = model.pretrain(download=False)
    assert (origin.kind, origin.path, origin.sha256, origin.notices) == ("imagenet", published.name, sha256, ())
    torch.manual_seed(3)
    theirs = torchvision.models.densenet121().state_dict()
    ours = model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name.startswith("features."))
    assert torch.equal(model.classifier.weight, head)


def test_another_file_of_that_name_is_refused(published: Path) -> None:
    published.write_bytes(b"something else")
    model = DenseNet(input_shape=(3, 64, 64), classes=14, weights="imagenet")
    with pytest.raises(
        ValueError, match=r"DenseNet: .*densenet121-a639ec97.pth has sha256 .* begins with a639ec97; remove"
    ):
        model.pretrain(download=False)


def test_without_the_file_a_random_start_with_a_notice_or_a_refusal(published: Path) -> None:
    model = DenseNet(input_shape=(3, 64, 64), classes=14, weights="imagenet")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    origin = model.pretrain(download=False)
    assert (origin.kind, origin.sha256) == ("random", None)
    (notice,) = origin.notices
    assert "random weights" in notice
    assert "download=false" in notice
    assert str(published.parent) in notice
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    model = DenseNet(input_shape=(3, 64, 64), classes=14, weights="imagenet_required")
    with pytest.raises(FileNotFoundError, match=r"no ImageNet weights \(download=false\); fetch https://"):
        model.pretrain(download=False)
    assert DenseNet(input_shape=(3, 64, 64), classes=14).pretrain(download=True).notices == ()
