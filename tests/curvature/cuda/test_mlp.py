"""The kernels for multilayer perceptrons against the torch rules and double backward; on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature.autograd import AutogradProblem
from spectral_run.curvature.cuda import mlp_network as lowering
from spectral_run.curvature.cuda.mlp import MLPProblem, check, mlp_network
from spectral_run.curvature.cuda.mlp_network import Precision
from spectral_run.curvature.objective import LossFunction, Objective
from spectral_run.curvature.rop.base import UnsupportedError
from spectral_run.curvature.rop.problem import RopProblem

pytestmark = pytest.mark.usefixtures("_triton")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def chain(widths: list[int], function: Callable[[], nn.Module], *, bias: bool = True) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after, bias=bias), function()]
    return nn.Sequential(*layers[:-1])


FUNCTIONS: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "leaky relu": partial(nn.LeakyReLU, 0.3),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "softplus, beta": partial(nn.Softplus, beta=2.5),
    "elu": partial(nn.ELU, 0.7),
}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{name: partial(chain, [4, 6, 5, 3], function) for name, function in FUNCTIONS.items()},
    "no bias": lambda: chain([4, 6, 5, 3], nn.Tanh, bias=False),
    "one layer": lambda: nn.Linear(4, 3),
    "function at the end": lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Sigmoid()),
    "flattened": lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 5, bias=False), nn.ELU(), nn.Linear(5, 3)),
    "several blocks": lambda: chain([4, 70, 33, 3], nn.Tanh),
}


def batch(
    model: nn.Module,
    loss: LossFunction,
    device: torch.device,
    dtype: torch.dtype,
    shape: tuple[int, ...] = (20, 4),
    outputs: int = 3,
) -> tuple[Objective, Tensor, Tensor]:
    """On the device; targets for the loss."""
    inputs = torch.randn(shape, dtype=dtype)
    classes = loss is F.cross_entropy
    targets = torch.arange(len(inputs)) % outputs if classes else torch.randn(len(inputs), outputs, dtype=dtype)
    return Objective(model.to(device, dtype), loss), inputs.to(device), targets.to(device)


def error(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm().clamp_min(1e-30))


def compare(objective: Objective, inputs: Tensor, targets: Tensor) -> None:
    """Loss, gradient, ``Hv`` and the gradient of ``v'Hv`` against the rules and against double backward."""
    problem = MLPProblem(mlp_network(objective, inputs), objective, inputs, targets)
    rules, graph = RopProblem(objective, inputs, targets), AutogradProblem(objective, inputs, targets)
    v = torch.randn(problem.n, dtype=inputs.dtype).to(inputs.device)
    tolerance = TOLERANCE[inputs.dtype]
    product, quadratic = problem.hvp_and_quadratic_grad(v)
    assert problem.products == 1
    assert problem.loss().dtype == inputs.dtype
    for other in (rules, graph):
        assert error(problem.loss(), other.loss()) < tolerance
        assert error(problem.grad(), other.grad()) < tolerance
        first, second = other.hvp_and_quadratic_grad(v)
        assert error(product, first) < tolerance
        scale = second.norm().clamp_min(1e-3 * first.norm())  # without a bend anywhere it is zero
        assert float((quadratic - second).norm() / scale) < tolerance
    assert error(problem.hvp(v), product) < 1e-6


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.float64) for name in NETWORKS]
    + [(name, torch.float32) for name in ("relu", "tanh", "sigmoid", "softplus", "elu", "no bias", "several blocks")],
)
def test_every_network(name: str, dtype: torch.dtype, device: torch.device) -> None:
    torch.manual_seed(1)
    shape = (20, 2, 2) if name == "flattened" else (20, 4)
    compare(*batch(NETWORKS[name](), F.cross_entropy, device, dtype, shape))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ["tanh", "one layer", "function at the end"])
def test_squared_error(name: str, dtype: torch.dtype, device: torch.device) -> None:
    torch.manual_seed(2)
    compare(*batch(NETWORKS[name](), F.mse_loss, device, dtype))


@pytest.mark.parametrize(
    ("rows", "loss"), [(1, F.cross_entropy), (16, F.mse_loss), (150, F.cross_entropy), (300, F.mse_loss)]
)
def test_every_size_of_batch(rows: int, loss: LossFunction, device: torch.device) -> None:
    torch.manual_seed(3)
    objective, inputs, targets = batch(NETWORKS["softplus"](), loss, device, torch.float32, (rows, 4))
    network = mlp_network(objective, inputs[:8])
    problem = MLPProblem(network, objective, inputs, targets)
    rules = RopProblem(objective, inputs, targets)
    v = torch.randn(problem.n).to(device)
    assert error(problem.loss(), rules.loss()) < 1e-5
    assert error(problem.grad(), rules.grad()) < 1e-5
    for got, want in zip(problem.hvp_and_quadratic_grad(v), rules.hvp_and_quadratic_grad(v), strict=True):
        assert error(got, want) < 1e-5


def test_the_benchmarks_network(device: torch.device) -> None:
    torch.manual_seed(4)
    compare(*batch(chain([54, 20, 20, 20, 7], nn.ReLU), F.cross_entropy, device, torch.float32, (100, 54), 7))


def test_rows_of_vectors_are_products_side_by_side(device: torch.device) -> None:
    torch.manual_seed(5)
    objective, inputs, targets = batch(NETWORKS["tanh"](), F.cross_entropy, device, torch.float32, (140, 4))
    problem = MLPProblem(mlp_network(objective, inputs), objective, inputs, targets, weight_decay=0.5)
    rules = RopProblem(objective, inputs, targets, weight_decay=0.5)
    vectors = torch.randn(3, problem.n).to(device)
    assert error(problem.hvps(vectors), rules.hvps(vectors)) < 1e-5
    assert problem.products == 3
    assert torch.equal(problem.hvps(vectors)[1], problem.hvp(vectors[1]))


def test_weight_decay_moves_the_product_alone(device: torch.device) -> None:
    torch.manual_seed(6)
    objective, inputs, targets = batch(NETWORKS["tanh"](), F.cross_entropy, device, torch.float64)
    network = mlp_network(objective, inputs)
    plain = MLPProblem(network, objective, inputs, targets)
    decayed = MLPProblem(network, objective, inputs, targets, weight_decay=0.25)
    v = torch.randn(plain.n, dtype=torch.float64).to(device)
    assert error(decayed.hvp(v), plain.hvp(v) + 0.25 * v) < 1e-12
    assert error(decayed.at(plain.params).hvp(v), plain.hvp(v) + 0.25 * v) < 1e-12
    assert torch.equal(decayed.quadratic_grad(v), plain.quadratic_grad(v))
    assert torch.equal(decayed.grad(), plain.grad())


def test_a_problem_stays_where_it_was_when_the_parameters_move(device: torch.device) -> None:
    torch.manual_seed(7)
    objective, inputs, targets = batch(NETWORKS["tanh"](), F.cross_entropy, device, torch.float64)
    network = mlp_network(objective, inputs)
    problem = MLPProblem(network, objective, inputs, targets)
    v = torch.randn(problem.n, dtype=torch.float64).to(device)
    before, point = problem.hvp(v), problem.params
    with torch.no_grad():
        for parameter in objective.parameters:
            parameter += 0.3
    later = MLPProblem(network, objective, inputs, targets)
    assert error(later.hvp(v), RopProblem(objective, inputs, targets).hvp(v)) < 1e-10
    assert torch.equal(problem.hvp(v), before)
    assert torch.equal(problem.params, point)
    assert torch.equal(later.at(point).hvp(v), before)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, in the interpreter
def test_nan_flows_through(device: torch.device) -> None:
    for name in ("relu", "tanh", "sigmoid", "softplus", "elu"):
        objective, inputs, targets = batch(NETWORKS[name](), F.cross_entropy, device, torch.float32)
        inputs[2] = float("nan")
        problem = MLPProblem(mlp_network(objective, inputs), objective, inputs, targets)
        assert problem.loss().isnan()
        assert problem.hvp(torch.ones(problem.n, device=device)).isnan().any()


def test_a_target_that_is_no_class_gives_nan(device: torch.device) -> None:
    objective, inputs, targets = batch(NETWORKS["tanh"](), F.cross_entropy, device, torch.float32)
    for wrong in (-100, 3):
        targets[1] = wrong
        problem = MLPProblem(mlp_network(objective, inputs), objective, inputs, targets)
        assert problem.loss().isnan()
        assert problem.grad().isnan().any()


def test_check_sees_a_wrong_network(device: torch.device) -> None:
    torch.manual_seed(8)
    objective, inputs, targets = batch(NETWORKS["tanh"](), F.cross_entropy, device, torch.float32)
    network = mlp_network(objective, inputs)
    problem = MLPProblem(network, objective, inputs, targets)
    assert check(problem) < 1e-5
    assert problem.products == 0
    relu = Objective(NETWORKS["relu"]().to(device), F.cross_entropy)
    assert check(MLPProblem(mlp_network(relu, inputs), objective, inputs, targets)) > 1e-2


@pytest.mark.parametrize(("precision", "tolerance"), [("tf32x3", 1e-5), ("tf32", 1e-2)])
def test_other_precisions_when_asked_for(precision: Precision, tolerance: float, device: torch.device) -> None:
    torch.manual_seed(9)
    objective, inputs, targets = batch(NETWORKS["tanh"](), F.cross_entropy, device, torch.float32)
    network = mlp_network(objective, inputs, precision=precision)
    assert check(MLPProblem(network, objective, inputs, targets)) < tolerance


class Branched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x


def tied() -> nn.Module:
    layer = nn.Linear(4, 4)
    return nn.Sequential(layer, nn.Tanh(), layer)


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    model[0].weight.requires_grad_(False)
    return model


REFUSED: dict[str, tuple[Callable[[], nn.Module], LossFunction, str]] = {
    "convolution": (lambda: nn.Sequential(nn.Conv1d(4, 3, 1), nn.Flatten()), F.cross_entropy, "it has no Convolution"),
    "function first": (lambda: nn.Sequential(nn.Tanh(), nn.Linear(4, 3)), F.cross_entropy, "none before the first"),
    "two functions": (lambda: chain([4, 3, 3], lambda: nn.Sequential(nn.Tanh(), nn.ReLU())), F.cross_entropy, "single"),
    "gelu": (lambda: chain([4, 3, 3], nn.GELU), F.cross_entropy, "it has no GELU .node"),
    "threshold": (lambda: chain([4, 3, 3], partial(nn.Softplus, threshold=3.0)), F.cross_entropy, "threshold of 20"),
    "slope": (lambda: chain([4, 3, 3], partial(nn.LeakyReLU, -0.1)), F.cross_entropy, "slopes of at least 0"),
    "dropout": (lambda: nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)), F.cross_entropy, "no dropout"),
    "sum": (Branched, F.cross_entropy, "no Add|does not read the node before"),
    "shared": (tied, F.cross_entropy, "no two layers may share"),
    "frozen": (frozen, F.cross_entropy, "trainable"),
    "outputs": (lambda: nn.Linear(4, 129), F.cross_entropy, "at most 128 outputs, the network has 129"),
    "smoothing": (lambda: nn.Linear(4, 3), partial(F.cross_entropy, label_smoothing=0.1), "without label_smoothing"),
    "weights": (lambda: nn.Linear(4, 3), partial(F.cross_entropy, weight=torch.ones(3)), "without weight"),
    "ignoring": (lambda: nn.Linear(4, 3), partial(F.cross_entropy, ignore_index=1), "without ignore_index"),
    "sums": (lambda: nn.Linear(4, 3), nn.MSELoss(reduction="sum"), "without reduction"),
    "binary": (lambda: nn.Linear(4, 3), F.binary_cross_entropy_with_logits, "no loss BCEWithLogits"),
    "large": (
        lambda: chain([4, 200, 100, 3], nn.ReLU),
        F.cross_entropy,
        r"touches 425796 bytes \(21403 parameters .* 32 rows .* room for 232448",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_does_not_take(name: str, device: torch.device) -> None:
    make, loss, why = REFUSED[name]
    inputs = torch.randn(20, 4, 1) if name == "convolution" else torch.randn(20, 4)
    with pytest.raises(UnsupportedError, match=why):
        mlp_network(Objective(make().to(device), loss), inputs.to(device))


def test_batches_types_and_targets_that_it_does_not_take(device: torch.device) -> None:
    objective, inputs, targets = batch(nn.Linear(4, 3), F.cross_entropy, device, torch.float32)
    with pytest.raises(UnsupportedError, match="at most 256 rows, got 257"):
        mlp_network(objective, torch.zeros(257, 4, device=device))
    with pytest.raises(UnsupportedError, match=r"not in torch\.float16"):
        mlp_network(objective, inputs.half())
    with pytest.raises(UnsupportedError, match=r"parameters of the inputs' type, torch\.float64"):
        mlp_network(objective, inputs.double())
    with pytest.raises(UnsupportedError, match=r"not on inputs of shape \(rows, \*\(4, 4\)\)"):
        mlp_network(objective, torch.zeros(5, 4, 4, device=device))
    network = mlp_network(objective, inputs)
    with pytest.raises(UnsupportedError, match="class numbers"):
        MLPProblem(network, objective, inputs, torch.rand(20, 3, device=device))
    squared = Objective(objective.model, F.mse_loss)
    with pytest.raises(UnsupportedError, match=r"must be \(20, 3\) of torch.float32"):
        MLPProblem(mlp_network(squared, inputs), squared, inputs, targets)


def test_it_says_that_it_needs_triton_or_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    objective, inputs = Objective(nn.Linear(4, 3), F.cross_entropy), torch.zeros(2, 4)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(UnsupportedError, match="it runs on CUDA, the inputs are on cpu"):
        mlp_network(objective, inputs)
    monkeypatch.setattr(lowering, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match="triton, which is not installed"):
        mlp_network(objective, inputs)


def test_tiles_shrink_until_they_fit(device: torch.device) -> None:
    objective = Objective(chain([64, 64, 32, 10], nn.ReLU).to(device), F.cross_entropy)
    network = mlp_network(objective, torch.zeros(128, 64, device=device))
    assert network.tile(128) == 64
    assert network.touched(64) <= 227 * 1024 < network.touched(128)
    assert network.tile(3) == 16
