"""The solve that stays on the device: against LAPACK and the host's solver; where it ends, what it counts.

Twice over: decided by Triton's kernels (in the interpreter where there is no GPU), and by their stand-in in Python.
"""

from __future__ import annotations

import math
from typing import Any, final

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature.cuda import decide
from spectral_run.curvature.cuda.lanczos import AHEAD, DeviceLanczos, DeviceOperator, DevicePower
from spectral_run.curvature.cuda.problem import CudaNetwork, CudaProblem
from spectral_run.curvature.lanczos import Lanczos
from spectral_run.curvature.lobpcg import LOBPCG
from spectral_run.curvature.objective import Objective
from spectral_run.curvature.power import PowerIteration
from spectral_run.curvature.rop.problem import RopProblem
from spectral_run.curvature.solver import EigenResult


@final
class Matrix(DeviceOperator):
    """A matrix with a given spectrum, in a random basis."""

    def __init__(self, values: list[float], device: torch.device, dtype: torch.dtype = torch.float64) -> None:
        n = len(values)
        generator = torch.Generator().manual_seed(0)
        basis = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
        matrix = basis @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ basis.T
        self.matrix = ((matrix + matrix.T) / 2).to(device, dtype)
        self.direction = torch.zeros(n, dtype=dtype, device=device)
        self._product = torch.zeros_like(self.direction)
        self.launched = 0

    @property
    def product(self) -> Tensor:
        return self._product

    def multiply(self) -> Tensor:
        self.launched += 1
        return torch.mv(self.matrix, self.direction, out=self._product)

    def start(self, seed: int = 1) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(len(self.direction), generator=generator, dtype=torch.float64).to(self.direction)

    def residual(self, result: EigenResult) -> float:
        return float((self.matrix @ result.vector - result.value * result.vector).norm())


_LONG = (
    "test_to_the_last_digit",
    "test_the_host_stays_one_step_ahead_of_a_slow_device",
    "test_an_absolute_tolerance",
    "test_single_precision",
    "test_the_whole_space_ends_it",
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    interpreted = metafunc.function.__name__ not in _LONG  # the interpreter takes a tenth of a second for a step
    metafunc.parametrize("_decided", ["python", "triton"] if interpreted else ["python"], indirect=True)


@pytest.fixture
def _decided(request: pytest.FixtureRequest, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "triton":
        if not decide.triton_runs(device):
            pytest.skip("Triton is not installed")
        if device.type == "cpu":  # the interpreter takes as long for many lanes as for few
            monkeypatch.setattr(decide.SmallProblem, "LANES", 4096)
            monkeypatch.setattr(decide.SmallProblem, "SWEEPS", 4)
    elif device.type == "cuda":
        pytest.skip("on a GPU Triton decides")
    else:
        monkeypatch.setattr(decide, "triton_runs", lambda device: False)


pytestmark = pytest.mark.usefixtures("_decided")
ENDS = ["magnitude", "largest", "smallest"]


def compare(matrix: Matrix, solver: Lanczos, *, more: int = 1) -> EigenResult:
    """Against LAPACK, and the host's solver from the same start."""
    start = matrix.start()
    got = DeviceLanczos(solver, matrix).solve(start)
    want = solver.solve(lambda v: matrix.matrix @ v, start)
    assert got.reason == want.reason
    assert abs(got.products - want.products) <= more
    rounding = 1e-13 * max(1.0, float(matrix.matrix.abs().max()))
    assert got.residual == pytest.approx(matrix.residual(got), rel=1e-6, abs=rounding)
    assert float(got.vector.norm()) == pytest.approx(1.0, abs=1e-12)
    if got.reason == "residual":
        assert got.residual <= solver.tolerance(got.value) or got.products == len(start)
        values = torch.linalg.eigvalsh(matrix.matrix).tolist()
        exact = values[solver.ranking(values, 1)[0]]
        assert abs(got.value) == pytest.approx(abs(exact), abs=matrix.residual(got) + 1e-13)
    if got.products == want.products:
        assert got.value == pytest.approx(want.value, rel=1e-9, abs=1e-13)
        assert got.gap == pytest.approx(want.gap, rel=1e-6, abs=1e-9, nan_ok=True)
        assert len(got.near) == len(want.near)
    return got


SPECTRUM = [-3.0, -2.9, *torch.linspace(-1, 2, 9).tolist(), 2.5, 2.8]


@pytest.mark.parametrize("which", ENDS)
def test_each_end(which: Any, device: torch.device) -> None:
    compare(Matrix(SPECTRUM, device), Lanczos(which=which, eps=1e-5))


def test_to_the_last_digit(device: torch.device) -> None:
    matrix = Matrix(SPECTRUM, device)
    result = compare(matrix, Lanczos(eps=1e-12))
    assert result.value == pytest.approx(-3.0, rel=1e-12)
    assert abs(float(torch.linalg.eigh(matrix.matrix)[1][:, 0] @ result.vector)) == pytest.approx(1.0, abs=1e-12)


def test_an_absolute_tolerance(device: torch.device) -> None:
    compare(Matrix([1e3 * value for value in SPECTRUM], device), Lanczos(relative=False, eps=1e-2))


def test_single_precision(device: torch.device) -> None:
    matrix = Matrix(SPECTRUM, device, torch.float32)
    got, want = (s.solve(matrix.start()) for s in (DeviceLanczos(Lanczos(eps=1e-4), matrix),) * 2)
    assert (got.value, got.products) == (want.value, want.products)  # the second solve starts from nothing
    host = Lanczos(eps=1e-4).solve(lambda v: matrix.matrix @ v, matrix.start())
    assert (got.reason, got.vector.dtype) == ("residual", torch.float32)
    assert abs(got.products - host.products) <= 1
    assert got.value == pytest.approx(-3.0, rel=1e-5)


@pytest.mark.parametrize("which", ENDS[:2])
def test_a_full_basis_starts_again(which: Any, device: torch.device) -> None:
    """Ten vectors do not do; two are kept where the host's solver keeps three."""
    compare(Matrix(SPECTRUM, device), Lanczos(which=which, eps=1e-6, basis=10, keep=3), more=6)


def test_cap(device: torch.device) -> None:
    result = compare(Matrix(SPECTRUM, device), Lanczos(eps=1e-9, cap=5))
    assert (result.reason, result.products) == ("cap", 5)
    one = compare(Matrix(SPECTRUM, device), Lanczos(cap=1))
    assert (one.reason, one.products) == ("cap", 1)
    assert math.isnan(one.gap)


def test_zero(device: torch.device) -> None:
    result = compare(Matrix([0.0] * 5, device), Lanczos())
    assert (result.reason, result.value, result.products) == ("zero", 0.0, 1)


def test_one_by_one(device: torch.device) -> None:
    result = compare(Matrix([-2.0], device), Lanczos())
    assert (result.reason, result.products, result.value) == ("residual", 1, pytest.approx(-2.0))


def test_an_invariant_subspace_ends_it(device: torch.device) -> None:
    """A multiple of the identity plus rank one: two different values, two products."""
    result = compare(Matrix([1.0] * 11 + [4.0], device), Lanczos(eps=1e-13))
    assert (result.reason, result.products) == ("residual", 2)
    assert result.value == pytest.approx(4.0, rel=1e-12)


def test_the_whole_space_ends_it(device: torch.device) -> None:
    result = compare(Matrix([-4.0, 1.0, 2.0, 3.0, 4.5], device), Lanczos(eps=1e-15), more=0)
    assert (result.reason, result.products) == ("residual", 5)


def test_nan(device: torch.device) -> None:
    matrix = Matrix(SPECTRUM, device)
    matrix.matrix[3, 3] = math.nan
    result = DeviceLanczos(Lanczos(), matrix).solve(matrix.start())
    assert (result.reason, result.products) == ("nan", 1)
    assert math.isnan(result.value)
    assert torch.allclose(result.vector, matrix.start() / matrix.start().norm())


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
@pytest.mark.parametrize("solver", [Lanczos(), PowerIteration()])
def test_a_bad_start_is_refused(solver: Any, bad: float, device: torch.device) -> None:
    matrix = Matrix(SPECTRUM, device)
    recorded: Any = (DeviceLanczos if isinstance(solver, Lanczos) else DevicePower)(solver, matrix)
    with pytest.raises(ValueError, match=r"the start vector must be finite and not zero, its norm is"):
        recorded.solve(torch.full_like(matrix.direction, bad))


def test_opposite_values_of_one_modulus(device: torch.device) -> None:
    """Both come up together; the one with the larger modulus to rounding is first, and the other is told of."""
    matrix = Matrix([-3.0, *torch.linspace(-1, 1, 8).tolist(), 3.0], device)
    result = DeviceLanczos(Lanczos(eps=1e-8, cluster=2), matrix).solve(matrix.start())
    assert result.reason == "residual"
    assert [round(abs(value), 9) for value in (result.value, result.near[0][0])] == [3.0, 3.0]
    assert result.value * result.near[0][0] < 0
    assert result.gap == pytest.approx(0.0, abs=1e-9)
    value, vector = result.near[0]
    assert float((matrix.matrix @ vector - value * vector).norm()) <= 3e-8
    assert abs(float(vector @ result.vector)) < 1e-9


@pytest.mark.parametrize("which", ENDS)
def test_a_pair_closer_than_the_tolerance(which: Any, device: torch.device) -> None:
    end = -4.0 if which == "smallest" else 4.0
    values = [end, end * (1 - 7e-3)]
    result = compare(Matrix(values, device), Lanczos(which=which, eps=1e-2, cluster=2))
    assert result.near[0][0] == pytest.approx(end * (1 - 7e-3), rel=1e-2)
    matrix = Matrix(values, device)
    alone = DeviceLanczos(Lanczos(which=which, eps=1e-2), matrix).solve(matrix.start())
    assert alone.near == ()
    assert (alone.products, result.products) == (1, 2)


def test_nothing_is_launched_long_after_the_end(device: torch.device) -> None:
    matrix = Matrix(SPECTRUM, device)
    solve = DeviceLanczos(Lanczos(eps=1e-3), matrix)
    result = solve.solve(matrix.start())
    assert result.products <= solve.launched <= result.products + AHEAD
    assert matrix.launched == solve.launched


@pytest.mark.parametrize("cap", [1000, 4])
def test_the_host_stays_one_step_ahead_of_a_slow_device(cap: int, device: torch.device) -> None:
    """With events that come late, as a GPU's do: the next step is under way before the last has ended, no more."""
    if device.type == "cuda":
        pytest.skip("cuda: its own events say when a copy has come")

    class Late:
        waiting = 0

        def record(self) -> None:
            Late.waiting += 1
            self.polls = 0
            most.append(Late.waiting)

        def query(self) -> bool:
            self.polls += 1
            Late.waiting -= self.polls == 3
            return self.polls >= 3

    most: list[int] = []
    matrix, solver = Matrix(SPECTRUM, device), Lanczos(eps=1e-3, cap=cap)
    want = DeviceLanczos(solver, matrix).solve(matrix.start())
    solve = DeviceLanczos(solver, matrix)
    solve._events = [Late() for _ in range(AHEAD)]
    got = solve.solve(matrix.start())
    assert (got.value, got.products, got.reason) == (want.value, want.products, want.reason)
    assert max(most) == AHEAD
    assert solve.launched == min(want.products + 1, cap)


def test_steps_after_the_end_change_nothing(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where the host learns of the end some steps later."""
    matrix = Matrix(SPECTRUM, device)
    want = DeviceLanczos(Lanczos(eps=1e-3), matrix).solve(matrix.start())
    solve = DeviceLanczos(Lanczos(eps=1e-3), matrix)

    def blind(self: Any, advance: Any) -> tuple[list[float], list[int]]:
        for _ in range(want.products + 5):
            advance()
        return self.numbers.tolist(), self.state.tolist()

    monkeypatch.setattr(DeviceLanczos, "_run", blind)
    got = solve.solve(matrix.start())
    assert (got.value, got.residual, got.products, got.reason) == (want.value, want.residual, want.products, "residual")
    assert torch.equal(got.vector, want.vector)


def test_power_iteration(device: torch.device) -> None:
    matrix = Matrix([-3.0, 2.0, 1.0, 0.5], device)
    for solver in (PowerIteration(eps=1e-6), PowerIteration(eps=1e-6, relative=False), PowerIteration(cap=7)):
        got = DevicePower(solver, matrix).solve(matrix.start())
        want = solver.solve(lambda v: matrix.matrix @ v, matrix.start())
        assert (got.reason, got.products) == (want.reason, want.products)
        assert got.value == pytest.approx(want.value, rel=1e-12)
        assert got.residual == pytest.approx(want.residual, rel=1e-6)
        assert torch.allclose(got.vector, want.vector)
    zero = Matrix([0.0] * 3, device)
    assert DevicePower(PowerIteration(), zero).solve(zero.start()).reason == "zero"
    zero.matrix[0, 0] = math.nan
    assert DevicePower(PowerIteration(), zero).solve(zero.start()).reason == "nan"


@pytest.mark.parametrize("solver", [Lanczos(), PowerIteration(cap=20), LOBPCG(), Lanczos(cluster=3)], ids=str)
def test_a_problem_s_own_solve(solver: Any, device: torch.device) -> None:
    """On the device or by the host, as the solver is; a plan keeps what it recorded."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(device, torch.float64)
    objective = Objective(model, F.cross_entropy)
    network, start = CudaNetwork(objective), torch.randn(objective.n, dtype=torch.float64).to(device)
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        x, y = torch.randn(9, 4, generator=generator, dtype=torch.float64).to(device), torch.arange(9).to(device) % 3
        problem, rules = CudaProblem(network, objective, x, y), RopProblem(objective, x, y)
        got, want = problem.eigenpair(solver, start), rules.eigenpair(solver, start)
        assert (got.reason, problem.products) == (want.reason, got.products)
        assert abs(got.products - want.products) <= 1
        assert got.value == pytest.approx(want.value, rel=1e-4)
        assert float((problem.hvp(got.vector) - got.value * got.vector).norm()) == pytest.approx(got.residual, abs=1e-9)
    several = isinstance(solver, Lanczos) and problem.eigenpair(solver, torch.eye(objective.n).double()[:2].to(device))
    assert not several or several.reason == "residual"
