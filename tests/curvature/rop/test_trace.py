"""Tracing: what is refused and in which words, and that a program follows its network's mode and parameters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from spectral_run.curvature.autograd import AutogradProblem
from spectral_run.curvature.objective import Objective
from spectral_run.curvature.rop.base import Rule
from spectral_run.curvature.rop.problem import RopProblem
from spectral_run.curvature.rop.registry import Registry
from spectral_run.curvature.rop.rules.relu import ReLU
from spectral_run.curvature.rop.trace import UnsupportedError, trace


class Net(nn.Module):
    """A function between two layers."""

    def __init__(self, middle: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.first, self.last, self.middle = nn.Linear(4, 4), nn.Linear(4, 4), middle

    def forward(self, x: Tensor) -> object:
        return self.last(self.middle(self.first(x)))


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    model[1].register_forward_hook(lambda *_: None)
    return model


def add_in_place_then_read(x: Tensor) -> Tensor:
    y = torch.tanh(x)
    return F.relu(y.view(-1, 2, 2).flatten(1), inplace=True) + y


def add_to_a_value_with_two_names(x: Tensor) -> Tensor:
    y = torch.tanh(x)
    before = y
    y += x
    return y * before


def sequence(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), *layers)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (sequence(nn.PReLU()), r"layer '1' \(PReLU\) has no rule\. Use curvature\.backend=autograd, or add a rule"),
        (nn.LSTM(4, 4), r"the network \(LSTM\) has no rule"),
        (sequence(nn.AlphaDropout(0.1)), r"layer '1' \(AlphaDropout\) has no rule"),
        (
            sequence(nn.Conv1d(2, 2, 3, padding=1, padding_mode="circular")),
            "padding_mode must be zeros, got 'circular'",
        ),
        (sequence(nn.MaxPool2d(2, return_indices=True)), r"layer '1' \(MaxPool2d\): return_indices must be False"),
        (sequence(weight_norm(nn.Linear(4, 4))), r"layer '1' \(ParametrizedLinear\) has no rule"),
        (Net(torch.cumsum), r"can't be traced: TypeError"),
        (Net(lambda x: torch.cumsum(x, 1)), r"function cumsum \(node 'cumsum'\) has no rule"),
        (Net(lambda x: x.cumsum(1)), r"method cumsum \(node 'cumsum'\) has no rule"),
        (Net(lambda x: x[:, [0, 0, 1, 2]]), "an index must be made of integers, slices, None and ..., got"),
        (Net(lambda x: x[:, x.argmax()]), r"method argmax .* has no rule"),
        (Net(lambda x: F.pad(x, (1, 1), mode="reflect")), r"function pad .*mode must be constant, got 'reflect'"),
        (Net(lambda x: x.mean(1, dtype=torch.float64)), r"method mean .*dtype must not be given"),
        (Net(lambda x: x.view(torch.int32)), r"method view .*a view as torch.int32"),
        (Net(lambda x: torch.add(x, x, out=x)), r"function add .*unexpected keyword argument 'out'"),
        (Net(lambda x: x.reshape(-1, x)), r"method reshape .*shape must not be a tensor"),
        (Net(Branching()), r"Net can't be traced: TraceError"),
        (Net(add_in_place_then_read), "function relu .* overwrites 'tanh', which 'add' reads later"),
        (Net(add_to_a_value_with_two_names), "function iadd .* overwrites 'tanh', which 'mul' reads later"),
        (Net(lambda x: (x, x)), r"layer 'last' \(Linear\): input must be one tensor"),
        (hooked(), r"layer '1' \(Tanh\) has forward hooks, which would not run"),
    ],
)
def test_refusals_name_the_place_and_the_way_out(model: nn.Module, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        trace(Objective(model, F.cross_entropy))


def test_the_network_must_return_one_tensor() -> None:
    class Two(nn.Linear):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = super().forward(x)
            return y, y

    with pytest.raises(UnsupportedError, match="the network must return one tensor, it returns"):
        trace(Objective(Two(2, 2), F.cross_entropy))


def error(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


def as_autograd(program, objective: Objective, batch: tuple[Tensor, Tensor]) -> bool:
    torch.manual_seed(0)
    ours = RopProblem(objective, *batch, program=program)
    v = torch.randn(ours.n).double()
    torch.manual_seed(1)
    got = ours.hvp(v)
    torch.manual_seed(1)
    return error(got, AutogradProblem(objective, *batch).hvp(v)) < 1e-9


def test_one_program_follows_mode_parameters_and_buffers() -> None:
    class Mode(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
            self.register_buffer("scale", torch.rand(6))

        def forward(self, x: Tensor) -> Tensor:
            x = F.dropout(torch.tanh(self.norm(self.first(x)) * self.scale), 0.5, self.training)
            return self.last(x) if self.training else 2 * self.last(x)

    torch.manual_seed(0)
    model = Mode().double()
    objective = Objective(model, F.cross_entropy)
    batch = torch.randn(5, 4).double(), torch.randint(3, (5,))
    program = trace(objective)
    assert as_autograd(program, objective, batch)
    graph = program.graph()
    assert as_autograd(program, objective, batch)
    assert program.graph() is graph
    model.eval()
    assert as_autograd(program, objective, batch)
    model.first.eval()
    model.norm.train()
    assert as_autograd(program, objective, batch)
    model.train()
    assert program.graph() is graph
    model.norm.weight.requires_grad_(False)
    assert program.graph().n == graph.n - 6
    assert as_autograd(program, objective, batch)
    model.last.weight = nn.Parameter(torch.randn(3, 6).double())
    assert as_autograd(program, objective, batch)
    model.scale = torch.rand(6).double()
    assert as_autograd(program, objective, batch)
    with torch.no_grad():
        model.first.weight.add_(1)
    assert as_autograd(program, objective, batch)


def test_in_place_layers_are_fine_where_nothing_reads_the_old_value() -> None:
    torch.manual_seed(0)

    def middle(x: Tensor) -> Tensor:
        y = x + 1
        y += x
        y *= 2
        y -= x
        return F.relu(y, inplace=True) * x

    objective = Objective(nn.Sequential(Net(middle), nn.ReLU(inplace=True), nn.Linear(4, 3)).double(), F.cross_entropy)
    batch = torch.randn(5, 4).double(), torch.randint(3, (5,))
    assert as_autograd(trace(objective), objective, batch)


def test_two_rules_must_not_cover_the_same_layer() -> None:
    class Other(ReLU):  # type: ignore[misc]
        methods = ()
        functions = ()

    rules: list[type[Rule]] = [ReLU, Other]
    with pytest.raises(TypeError, match=r"both cover .*ReLU"):
        Registry(rules, [])


def test_wrong_number_of_channels_is_named() -> None:
    problem = RopProblem(Objective(nn.BatchNorm2d(3), F.mse_loss), torch.zeros(2, 4, 5, 5), torch.zeros(2, 4, 5, 5))
    with pytest.raises(ValueError, match=r"normalization over 3 channels got an input of shape \(2, 4, 5, 5\)"):
        problem.loss()
    conv = RopProblem(Objective(nn.Conv2d(3, 3, 1), F.mse_loss), torch.zeros(3, 5, 5), torch.zeros(3, 5, 5))
    with pytest.raises(ValueError, match=r"Convolution: input must be \(rows, channels, ...\), got shape \(3, 5, 5\)"):
        conv.loss()
    drop = RopProblem(
        Objective(nn.Sequential(nn.Linear(3, 3), nn.Dropout1d()), F.mse_loss), torch.zeros(3, 3), torch.zeros(3, 3)
    )
    with pytest.raises(ValueError, match=r"FeatureDropout: input must be"):
        drop.loss()
