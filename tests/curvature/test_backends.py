"""Which backend serves which network, and what is said where one can't."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature import backends
from spectral_run.curvature.backends import BACKENDS, choose_backend
from spectral_run.curvature.cuda.problem import CudaNetwork, CudaProblem
from spectral_run.curvature.native.build import NoNativeCodeError, library
from spectral_run.curvature.objective import Objective
from spectral_run.curvature.rop.rules.tanh import Tanh
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"backend=cuda: there is no CUDA device here. Take auto, native"):
        choose_backend("cuda", objective(nn.Linear(4, 3)), torch.zeros(2, 4))


def test_cuda_refuses_a_model_on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match=r"the model is on cpu, not on a CUDA device. Set device=cuda"):
        choose_backend("cuda", objective(nn.Linear(4, 3)), torch.zeros(2, 4))


@pytest.fixture
def _as_if_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend's recordings run on the processor too, where they are slow and never chosen."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(backends, "_on_gpu", lambda inputs: True)


@pytest.mark.usefixtures("_as_if_on_a_gpu")
def test_auto_takes_cuda_on_a_gpu() -> None:
    target = objective(USPSCNN(input_shape=(1, 16, 16), classes=10))
    backend = choose_backend("auto", target, IMAGE)
    assert backend.name == "cuda"
    assert backend.why.startswith(
        "its sweeps are recorded for this GPU, and agree with the rules; not as single kernels"
    )
    problem = backend(target, IMAGE, torch.zeros(2, dtype=torch.int64))
    assert isinstance(problem, CudaProblem)
    assert problem.hvp(torch.ones(target.n)).isfinite().all()


@pytest.mark.usefixtures("_as_if_on_a_gpu")
def test_auto_goes_on_where_capture_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def looks(self: Tanh, x1: Tensor) -> Tensor:
        self.jet1 = x1
        return self.slope * x1 if float(x1.sum()) < 1e9 else x1

    monkeypatch.setattr(Tanh, "forward1", looks)
    target = objective(nn.Sequential(nn.Linear(4, 3), nn.Tanh()))
    backend = choose_backend("auto", target, torch.zeros(2, 4))
    assert backend.name in ("native", "rop")
    assert "not cuda: it can't be captured in a CUDA graph: _local_scalar_dense makes the host wait" in backend.why
    with pytest.raises(ValueError, match=r"curvature.backend=cuda: it can't be captured"):
        choose_backend("cuda", target, torch.zeros(2, 4))


@pytest.mark.usefixtures("_as_if_on_a_gpu")
def test_auto_goes_on_where_memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: CudaNetwork, inputs: Tensor, weight_decay: float) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore of it.")

    monkeypatch.setattr(CudaNetwork, "trial", full)
    target = objective(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(392, 2)))
    backend = choose_backend("auto", target, IMAGE)
    assert "not cuda: a trial failed: OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB" in backend.why


@pytest.mark.usefixtures("_as_if_on_a_gpu")
def test_lower_precision_is_reported() -> None:
    backend = choose_backend("cuda", objective(nn.Linear(4, 3)), torch.zeros(2, 4), precision="bf16")
    assert "asked for; bf16: a product differs from the exact one by " in backend.why
    assert 1e-4 < float(backend.why.rpartition(" ")[2]) < 0.1


@pytest.mark.parametrize("settings", [{"precision": "tf32"}, {"fused": True}])
def test_precision_is_for_cuda_alone(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"backend=auto has no precision and no fused kernels"):
        choose_backend("auto", objective(nn.Linear(4, 3)), torch.zeros(2, 4), **settings)


def test_a_wrong_precision_lists_the_right_ones() -> None:
    with pytest.raises(ValueError, match=r"curvature.precision must be one of exact, tf32, bf16; got 'half'"):
        choose_backend("cuda", objective(nn.Linear(4, 3)), torch.zeros(2, 4), precision="half")


def test_a_wrong_name_lists_the_right_ones() -> None:
    with pytest.raises(ValueError, match=f"one of {', '.join(BACKENDS)}; got 'fast'"):
        choose_backend("fast", objective(nn.Linear(4, 3)), torch.zeros(2, 4))


@pytest.mark.parametrize("name", BACKENDS[1:])
def test_backends_agree(name: str) -> None:
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("cuda: no GPU")
    device = "cuda" if name == "cuda" else "cpu"
    torch.manual_seed(0)
    target = objective(USPSCNN(input_shape=(1, 16, 16), classes=10).to(device, torch.float64))
    inputs = torch.rand(9, 1, 16, 16, dtype=torch.float64).to(device)
    targets = torch.arange(9, device=device)
    problem = choose_backend(name, target, inputs, weight_decay=0.1)(target, inputs, targets)
    v = torch.randn(problem.n, dtype=torch.float64).to(device)
    reference = choose_backend("autograd", target, inputs, weight_decay=0.1)(target, inputs, targets)
    for got, want in zip(problem.hvp_and_quadratic_grad(v), reference.hvp_and_quadratic_grad(v), strict=True):
        assert float((got - want).norm() / want.norm()) < 1e-12


@pytest.mark.parametrize("name", ["native", "rop", "autograd"])
def test_an_optimizer_without_gradients_gets_the_same(name: str) -> None:
    target = objective(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double())
    inputs, targets = torch.randn(5, 4, dtype=torch.float64), torch.arange(5) % 2
    backend = choose_backend(name, target, inputs)
    v = torch.randn(target.n, dtype=torch.float64)
    product, quadratic = backend(target, inputs, targets).hvp_and_quadratic_grad(v)
    assert float(quadratic.norm()) > 1e-3
    with torch.no_grad():
        problem = backend(target, inputs, targets)
        assert torch.equal(problem.grad(), backend(target, inputs, targets).grad())
        for got, want in zip(problem.hvp_and_quadratic_grad(v), (product, quadratic), strict=True):
            assert torch.equal(got, want)
            assert not got.requires_grad
