"""Which backend serves which network, and what is said where one can't."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature.backends import BACKENDS, choose_backend
from spectral_run.curvature.native.build import NoNativeCodeError, library
from spectral_run.curvature.objective import Objective
from spectral_run.models.mlp import MLP
from spectral_run.models.resnet import ResNet
from spectral_run.models.usps_cnn import USPSCNN

IMAGE = torch.zeros(2, 1, 16, 16)


class Branching(nn.Module):
    """Looks at the numbers: no graph can be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if bool(x.sum() > 0) else -self.layer(x)


def objective(model: nn.Module) -> Objective:
    return Objective(model, F.cross_entropy)


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    try:
        library()
    except NoNativeCodeError as error:
        pytest.skip(f"native: {error}")


@pytest.mark.parametrize(
    "model", [USPSCNN(input_shape=(1, 16, 16), classes=10), MLP(input_shape=(1, 16, 16), classes=10)]
)
def test_auto_takes_the_fastest(model: nn.Module) -> None:
    backend = choose_backend("auto", objective(model), IMAGE)
    assert (backend.name, backend.why) == ("native", "its sweeps are compiled for this processor")


def test_auto_says_why_not_the_faster_ones() -> None:
    backend = choose_backend("auto", objective(ResNet(input_shape=(1, 16, 16), classes=10)), IMAGE)
    assert backend.name == "rop"
    assert "not native: it has no BatchNorm (node 'model_norm')" in backend.why
    backend = choose_backend("auto", objective(Branching()), torch.zeros(2, 4))
    assert backend.name == "autograd"
    assert "not native or rop: Branching can't be traced" in backend.why


def test_auto_names_the_layer_without_a_rule() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Hardswish())
    backend = choose_backend("auto", objective(model), torch.zeros(2, 4))
    assert backend.name == "autograd"
    assert "not native or rop: layer '1' (Hardswish) has no rule" in backend.why


def test_auto_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    library.cache_clear()
    try:
        backend = choose_backend("auto", objective(nn.Linear(4, 3)), torch.zeros(2, 4))
    finally:
        library.cache_clear()
    assert backend.name == "rop"
    assert "no C++ compiler was found (no-such-compiler)" in backend.why


@pytest.mark.parametrize("name", ["native", "rop"])
def test_asked_for_and_not_to_be_had(name: str) -> None:
    with pytest.raises(ValueError, match=rf"curvature.backend={name}: Branching can't be traced"):
        choose_backend(name, objective(Branching()), torch.zeros(2, 4))


@pytest.mark.parametrize(
    ("model", "shape", "match"),
    [
        (nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.2)), (4,), "it has no dropout"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(2), nn.Linear(4, 3)), (1, 4, 4), "flattens all dimensions"),
        (nn.Linear(4, 3), (5, 4), "affine layers on vectors"),
        (nn.Conv2d(1, 3, 3), (1, 4, 4), "takes \\(rows, outputs\\)"),
        (nn.Sequential(nn.Linear(4, 3)).half(), (4,), "float32 and float64"),
        (nn.Sequential(nn.Linear(4, 3)).requires_grad_(False), (4,), "any trainable parameter"),
    ],
)
def test_native_says_what_it_lacks(model: nn.Module, shape: tuple[int, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        choose_backend("native", objective(model), torch.zeros(2, *shape, dtype=next(model.parameters()).dtype))


def test_a_wrong_name_lists_the_right_ones() -> None:
    with pytest.raises(ValueError, match=f"one of {', '.join(BACKENDS)}; got 'fast'"):
        choose_backend("fast", objective(nn.Linear(4, 3)), torch.zeros(2, 4))


@pytest.mark.parametrize("name", BACKENDS[1:])
def test_backends_agree(name: str) -> None:
    torch.manual_seed(0)
    target = objective(USPSCNN(input_shape=(1, 16, 16), classes=10).double())
    inputs, targets = torch.rand(9, 1, 16, 16, dtype=torch.float64), torch.arange(9)
    problem = choose_backend(name, target, inputs, weight_decay=0.1)(target, inputs, targets)
    v = torch.randn(problem.n, dtype=torch.float64)
    reference = choose_backend("autograd", target, inputs, weight_decay=0.1)(target, inputs, targets)
    for got, want in zip(problem.hvp_and_quadratic_grad(v), reference.hvp_and_quadratic_grad(v), strict=True):
        assert float((got - want).norm() / want.norm()) < 1e-12
