"""Swapped normalization layers: function and running statistics are torch's, and the derivatives are right."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from spectral_run.curvature.autograd import AutogradProblem
from spectral_run.curvature.exact_layers import refuse_inexact, running_statistics, swap_norms
from spectral_run.curvature.objective import Objective

LAYERS = {
    "batch1d": (lambda: nn.BatchNorm1d(3), (6, 3)),
    "batch1d sequence": (lambda: nn.BatchNorm1d(3), (6, 3, 5)),
    "batch2d": (lambda: nn.BatchNorm2d(3), (4, 3, 5, 5)),
    "batch2d cumulative": (lambda: nn.BatchNorm2d(3, momentum=None), (4, 3, 5, 5)),
    "batch2d plain": (lambda: nn.BatchNorm2d(3, affine=False, track_running_stats=False), (4, 3, 5, 5)),
    "batch3d": (lambda: nn.BatchNorm3d(2), (3, 2, 3, 3, 3)),
    "instance2d": (lambda: nn.InstanceNorm2d(3), (4, 3, 5, 5)),
    "instance2d tracking": (lambda: nn.InstanceNorm2d(3, affine=True, track_running_stats=True), (4, 3, 5, 5)),
    "layer": (lambda: nn.LayerNorm(5), (4, 3, 5)),
    "layer two dims": (lambda: nn.LayerNorm([3, 5], elementwise_affine=False), (4, 3, 5)),
}


@pytest.fixture(params=LAYERS)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module, tuple[int, ...]]:
    """A layer of torch's, its exact form with parameters and buffers of its own, and an input shape."""
    build, shape = LAYERS[request.param]
    torch.manual_seed(1)
    native = build().double()
    for parameter in native.parameters():
        parameter.data.uniform_(0.5, 1.5)
    exact_of = build().double()
    exact_of.load_state_dict(native.state_dict())
    return native, swap_norms(exact_of), shape


def test_same_function_and_running_statistics(pair) -> None:
    native, exact, shape = pair
    assert type(exact) is not type(native)
    for seed in range(3):
        x = 2 + 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        want = native(x)
        with running_statistics(exact):
            torch.testing.assert_close(exact(x), want, rtol=1e-12, atol=1e-12)
    assert exact.state_dict().keys() == native.state_dict().keys()
    for name, tensor in native.state_dict().items():
        torch.testing.assert_close(exact.state_dict()[name], tensor, rtol=1e-12, atol=0)
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(exact.eval()(x), native.eval()(x), rtol=1e-12, atol=1e-12)


def test_statistics_move_only_when_allowed(pair) -> None:
    _, exact, shape = pair
    before = {name: tensor.clone() for name, tensor in exact.state_dict().items()}
    exact(torch.randn(shape, dtype=torch.float64))
    assert all(torch.equal(tensor, before[name]) for name, tensor in exact.state_dict().items())


def test_third_derivative_equals_finite_differences(pair) -> None:
    _, layer, shape = pair
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(shape[-1], shape[-1]), layer, nn.Tanh(), nn.Flatten())
    model = nn.Sequential(*model, nn.Linear(int(torch.Size(shape[1:]).numel()), 3)).double()
    x, y = torch.randn(shape, dtype=torch.float64), torch.randint(3, (shape[0],))
    problem = AutogradProblem(Objective(model, F.cross_entropy), x, y)
    v, u = torch.randn(2, problem.n, dtype=torch.float64)
    v, u, h = v / v.norm(), u / u.norm(), 1e-4
    ahead, behind = (float(v @ problem.at(problem.params + s * h * u).hvp(v)) for s in (1.0, -1.0))
    assert float(problem.quadratic_grad(v) @ u) == pytest.approx((ahead - behind) / (2 * h), rel=1e-5, abs=1e-7)


def test_swaps_inside_and_keeps_the_state_dict() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(nn.BatchNorm2d(2), nn.ReLU()), nn.GroupNorm(1, 2))
    names, parameters = list(model.state_dict()), list(model.parameters())
    swapped = swap_norms(model)
    assert list(swapped.state_dict()) == names
    assert all(a is b for a, b in zip(swapped.parameters(), parameters, strict=True))
    refuse_inexact(swapped, torch.zeros(2, 1, 6, 6))


def test_a_wrong_number_of_channels_is_named() -> None:
    with pytest.raises(ValueError, match=r"over 3 channels got an input of shape \(2, 4, 5, 5\)"):
        swap_norms(nn.BatchNorm2d(3))(torch.zeros(2, 4, 5, 5))


class Functional(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.instance_norm(F.batch_norm(x, torch.zeros(2), torch.ones(2)))


@pytest.mark.parametrize(
    ("model", "inputs", "match"),
    [
        (nn.LayerNorm(4), torch.zeros(2, 4), "native_layer_norm: the third derivative"),
        (nn.BatchNorm1d(4), torch.zeros(2, 4), "batch_norm"),
        (Functional(), torch.zeros(2, 2, 3, 3), "batch_norm"),
        (parametrizations.weight_norm(nn.Linear(4, 3)), torch.zeros(2, 4), "second derivative of weight_norm"),
        (parametrizations.spectral_norm(nn.Linear(4, 3)), torch.zeros(2, 4), "spectral_norm changes with every"),
        (nn.SyncBatchNorm(4), torch.zeros(2, 4), "SyncBatchNorm"),
    ],
)
def test_faulty_operations_are_refused_by_name(model: nn.Module, inputs: Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        refuse_inexact(model, inputs)


def test_fused_batch_norm_with_running_statistics_is_fine() -> None:
    refuse_inexact(nn.BatchNorm1d(4).eval(), torch.zeros(2, 4))
