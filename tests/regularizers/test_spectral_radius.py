"""The penalty's mathematics: closed forms, and finite differences of the dense objective, in float64."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature.autograd import AutogradProblem
from spectral_run.curvature.objective import Objective
from spectral_run.curvature.problem import BatchProblem
from spectral_run.regularizers.base import RegularizedGradient, Step
from spectral_run.regularizers.spectral_radius import SpectralRadius


class Cubic(BatchProblem):
    """f = w'Aw/2 + sum c w^3: H = A + 6 diag(c w), grad v'Hv = 6 c v^2. All in closed form."""

    def __init__(self, a: Tensor, c: Tensor, w: Tensor) -> None:
        self.a, self.c, self.w, self.n, self.products = a, c, w, len(w), 0

    @property
    def params(self) -> Tensor:
        return self.w.clone()

    def hessian(self) -> Tensor:
        return self.a + torch.diag(6 * self.c * self.w)

    def loss(self) -> Tensor:
        return self.w @ self.a @ self.w / 2 + (self.c * self.w**3).sum()

    def grad(self) -> Tensor:
        return self.a @ self.w + 3 * self.c * self.w**2

    def hvp(self, v: Tensor) -> Tensor:
        self.products += 1
        return self.hessian() @ v

    def hvp_and_quadratic_grad(self, v: Tensor) -> tuple[Tensor, Tensor]:
        return self.hvp(v), 6 * self.c * v**2

    def at(self, params: Tensor) -> Cubic:
        return Cubic(self.a, self.c, params)


def cubic(diagonal: list[float], seed: int = 0) -> Cubic:
    generator = torch.Generator().manual_seed(seed)
    n = len(diagonal)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    a = q @ torch.diag(torch.tensor(diagonal, dtype=torch.float64)) @ q.T
    c, w = torch.randn(2, n, generator=generator, dtype=torch.float64) * 0.1
    return Cubic(a, c, w)


def step(number: int = 0, seed: int = 0, state: dict[str, Tensor] | None = None) -> Step:
    return Step(number, torch.Generator().manual_seed(seed), state or {})


def penalty(**settings: Any) -> SpectralRadius:
    return SpectralRadius(**({"mu": 0.1, "K": 0.0, "eps": 1e-10, "cap": 1000} | settings))


def gradient(problem: BatchProblem, **settings: Any) -> RegularizedGradient:
    return penalty(**settings).gradient(problem, step())


@pytest.mark.parametrize("solver", ["power", "lanczos", "lobpcg"])
@pytest.mark.parametrize("diagonal", [[3.0, 1.0, 0.5, -0.2], [-3.0, 1.0, 0.5, -0.2]])
def test_gradient_is_the_objectives_slope_whatever_the_sign(solver: str, diagonal: list[float]) -> None:
    problem = cubic(diagonal)

    def objective(w: Tensor) -> float:
        there = problem.at(w)
        rho = float(torch.linalg.eigvalsh(there.hessian()).abs().max())
        return float(there.loss()) + 0.1 * max(0.0, rho - 0.5)

    result = gradient(problem, solver=solver, K=0.5)
    h = 1e-5
    for i, direction in enumerate(torch.eye(4, dtype=torch.float64)):
        slope = (objective(problem.w + h * direction) - objective(problem.w - h * direction)) / (2 * h)
        assert float(result.gradient[i]) == pytest.approx(slope, rel=1e-7, abs=1e-9)
    assert result.objective == pytest.approx(objective(problem.w), rel=1e-12)
    assert result.log["rho"] == pytest.approx(float(torch.linalg.eigvalsh(problem.hessian()).abs().max()))
    assert (result.log["lambda"] < 0) == (diagonal[0] < 0)


def test_gradient_on_a_network_is_the_slope_of_the_dense_objective() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    objective = Objective(model, F.cross_entropy)
    problem = AutogradProblem(objective, torch.randn(9, 3).double(), torch.randint(3, (9,)))

    def value(w: Tensor) -> float:
        there = problem.at(w)
        hessian = torch.stack([there.hvp(row) for row in torch.eye(there.n, dtype=torch.float64)])
        return float(there.loss()) + 0.1 * float(torch.linalg.eigvalsh(hessian).abs().max())

    got = gradient(problem).gradient
    for seed in range(3):
        direction = torch.randn(problem.n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        slope = (value(problem.params + 1e-5 * direction) - value(problem.params - 1e-5 * direction)) / 2e-5
        assert float(got @ direction) == pytest.approx(slope, rel=1e-6)


def test_no_penalty_below_the_goal() -> None:
    problem = cubic([3.0, 1.0])
    result = gradient(problem, K=100.0)
    assert torch.equal(result.gradient, problem.grad())
    assert result.objective == result.loss
    assert result.log["penalty"] == 0.0


def test_mu_scales_the_penalty() -> None:
    problem = cubic([3.0, 1.0, 0.2])
    one, two = (gradient(problem, mu=mu).gradient - problem.grad() for mu in (0.1, 0.2))
    torch.testing.assert_close(two, 2 * one)
    assert torch.equal(gradient(problem, mu=0.0).gradient, problem.grad())


def test_clip_bounds_the_penaltys_gradient_alone() -> None:
    problem = cubic([3.0, 1.0, 0.2])
    free = gradient(problem).gradient - problem.grad()
    clipped = gradient(problem, clip=float(free.norm()) / 10)
    torch.testing.assert_close(clipped.gradient - problem.grad(), free / 10)
    assert clipped.log["clipped"] == 1.0
    assert gradient(problem, clip=1e9).log["clipped"] == 0.0


def test_every_skips_steps_and_keeps_the_state() -> None:
    problem = cubic([3.0, 1.0])
    state = {"vector": torch.ones(2, dtype=torch.float64)}
    result = penalty(every=3).gradient(problem, step(number=4, state=state))
    assert torch.equal(result.gradient, problem.grad())
    assert problem.products == 0
    assert torch.equal(result.state["vector"], state["vector"])
    penalty(every=3).gradient(problem, step(number=6, state=state))
    assert problem.products > 0


def test_warm_start_needs_fewer_products_than_a_random_one() -> None:
    diagonal = [1.0 - 0.02 * i for i in range(40)]
    settings = {"eps": 1e-4, "solver": "power"}
    state = gradient(cubic(diagonal), **settings).state
    cold, warm = cubic(diagonal), cubic(diagonal)
    penalty(**settings, start="random").gradient(cold, step(number=1, seed=7, state=dict(state)))
    penalty(**settings, start="warm").gradient(warm, step(number=1, seed=7, state=dict(state)))
    assert warm.products < cold.products / 2


def test_track_converges_over_steps_at_a_fixed_point() -> None:
    problem = cubic([3.0, 1.0, 0.2, -0.5])
    regularizer = penalty(mode="track", track=2, eps=1e-8)
    state: dict[str, Tensor] = {}
    for number in range(40):
        before = problem.products
        result = regularizer.gradient(problem, step(number, state=state))
        assert problem.products - before == 2
        state = dict(result.state)
    torch.testing.assert_close(result.gradient, gradient(problem).gradient, rtol=1e-6, atol=1e-9)
    assert result.log["converged"] == 1.0


@pytest.mark.parametrize("second", [0.97, -0.97])
def test_tied_eigenvectors_are_averaged_with_their_signs_whatever_the_start(second: float) -> None:
    problem = cubic([1.0, second, 0.4, -0.3, 0.2, 0.1])
    problem.c *= 0.01  # the ties stay ties
    values, vectors = torch.linalg.eigh(problem.hessian())
    tied = values.abs() > 0.9
    # grad v'Hv = 6 c v^2 in closed form.
    terms = values[tied].sign() * 6 * problem.c[:, None] * vectors[:, tied] ** 2
    want = problem.grad() + 0.1 * terms.mean(1)
    for mixture in ([1.0, 1.0], [1.0, -2.0], [0.3, 1.0]):
        state = {"vector": vectors[:, tied] @ torch.tensor(mixture, dtype=torch.float64)}
        for number in range(2):  # the vector that is left for the next step holds both again
            result = penalty(eps=0.05, cluster=2).gradient(problem, step(number, state=state))
            assert result.log["multiplicity"] == 2.0
            assert result.log["gap"] == pytest.approx(0.03, abs=0.005)
            torch.testing.assert_close(result.gradient, want, rtol=0, atol=1e-12)
            state = dict(result.state)
        alone = penalty(eps=0.05, cluster=1).gradient(problem, step(1, state=state))
        assert alone.log["multiplicity"] == 1.0


def test_the_gap_is_logged_where_it_is_known() -> None:
    apart = gradient(cubic([1.0, 0.5, 0.2]))
    assert apart.log["multiplicity"] == 1.0
    assert apart.log["gap"] == pytest.approx(0.5, abs=0.3)
    assert "gap" not in gradient(cubic([1.0, 0.5, 0.2]), solver="power").log


def network() -> AutogradProblem:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    return AutogradProblem(Objective(model, F.cross_entropy), torch.randn(8, 5).double(), torch.randint(3, (8,)))


def test_kfac_is_renewed_every_few_penalized_steps_and_resumes_exactly() -> None:
    problem = network()
    regularizer = penalty(solver="lobpcg_paper", preconditioner="kfac", refresh=2, every=3)

    def run(save: bool) -> tuple[list[Tensor], list[int]]:
        state: dict[str, Tensor] = {}
        gradients, renewed = [], []
        for number in range(13):
            there = problem.at(problem.params + 0.1 * number)
            before = state
            result = regularizer.gradient(there, step(number, seed=number, state=state))
            state = dict(result.state)
            gradients.append(result.gradient)
            kept = [name for name in state if name.startswith("kfac.")]
            assert len(kept) == 8
            if not before or any(not torch.equal(state[name], before[name]) for name in kept):
                renewed.append(number)
            if save:  # as a checkpoint does
                file = io.BytesIO()
                torch.save(state, file)
                file.seek(0)
                state = torch.load(file, weights_only=True)
        return gradients, renewed

    (whole, renewed), (resumed, _) = run(save=False), run(save=True)
    assert renewed == [0, 6, 12]
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))


def test_lobpcg_with_kfac_finds_the_same_rho() -> None:
    plain, helped = gradient(network(), solver="lobpcg"), gradient(network(), solver="lobpcg", preconditioner="kfac")
    assert helped.log["converged"] == 1.0
    assert helped.log["rho"] == pytest.approx(plain.log["rho"], rel=1e-9)
    torch.testing.assert_close(helped.gradient, plain.gradient, rtol=1e-6, atol=1e-9)


def test_kfac_needs_a_network() -> None:
    with pytest.raises(ValueError, match="KFAC: Cubic is no batch of a network"):
        gradient(cubic([3.0, 1.0]), solver="lobpcg", preconditioner="kfac")


def test_a_solve_that_reaches_the_cap_says_so() -> None:
    result = gradient(cubic([1.0, 0.999, 0.998]), solver="power", cap=3, eps=1e-12)
    assert result.log["converged"] == 0.0
    assert result.log["solver_products"] == 3.0


class WithoutCurvature(Cubic):
    """A finite loss and gradient, whose products are NaN."""

    def hvp(self, v: Tensor) -> Tensor:
        return v * float("nan")


@pytest.mark.parametrize("mode", ["converge", "track"])
def test_nan_is_passed_on_and_not_kept_for_the_next_start(mode: str) -> None:
    whole = cubic([3.0, 1.0])
    result = gradient(WithoutCurvature(whole.a, whole.c, whole.w), mode=mode)
    assert not torch.isfinite(result.gradient).any()
    assert result.objective != result.objective  # NaN
    assert result.state == {}


def test_zero_hessian_has_no_penalty_and_starts_afresh() -> None:
    problem = cubic([0.0, 0.0])
    problem.c = torch.zeros(2, dtype=torch.float64)
    for mode in ("converge", "track"):
        result = gradient(problem, mode=mode)
        assert torch.equal(result.gradient, problem.grad())
        assert result.state == {}


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"mu": -0.1}, r"SpectralRadius: mu must be >= 0, got -0.1"),
        ({"mu": float("nan")}, "mu must be >= 0"),
        ({"K": -1.0}, "K must be >= 0"),
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"track": 0}, "track must be at least 1"),
        ({"clip": 0.0}, "clip must be positive or null, got 0.0"),
        ({"eps": 0.0}, "eps must be positive"),
        ({"cap": 0}, "cap must be at least 1"),
        ({"mode": "track", "start": "random"}, "mode=track needs start=warm"),
        ({"preconditioner": "kfac"}, "a preconditioner needs solver=lobpcg or lobpcg_paper, got lanczos"),
        ({"preconditioner": "kfac", "mode": "track"}, "a preconditioner needs mode=converge, got track"),
        ({"refresh": 0}, "refresh must be at least 1 step, got 0"),
        ({"damping": 0.0}, "damping must be positive, got 0.0"),
        ({"cluster": 0}, r"cluster must be in \[1, keep\], got cluster=0"),
        ({"shift": 2.0}, "shift needs solver=lobpcg_paper, got lanczos"),
    ],
)
def test_refuses_settings(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        penalty(**settings)
