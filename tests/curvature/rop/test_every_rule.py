"""Every rule in float64 against forward-mode derivatives of a module-free reference written in primitive operations.

Each case is one layer or function in the middle of a network, once right behind the first parameters (order 2 of its
input is zero) and once deeper. A new rule needs a case here: the first test finds the rules by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spectral_run.curvature.exact_layers import swap_norms
from spectral_run.curvature.objective import Objective, flatten
from spectral_run.curvature.rop.problem import RopProblem
from spectral_run.curvature.rop.registry import registry

RTOL = 1e-9
ROWS, CHANNELS, SIDE = 3, 4, 6
Function = Callable[..., Tensor]


class Call(nn.Module):
    """A function of x and of parameters of its own, traced through."""

    def __init__(self, function: Function, *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        self.own = nn.ParameterList([nn.Parameter(torch.randn(shape)) for shape in shapes])

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.own)


def windows(x: Tensor, k: int, s: int, p: int = 0, d: int = 1, fill: float = 0.0, more: int = 0) -> Tensor:
    """All entries that a window of a pool covers, stacked in front."""
    x = F.pad(x, (p, p + more, p, p + more), value=fill)
    n = (x.shape[-1] - d * (k - 1) - 1) // s + 1
    places = [slice(i * d, i * d + s * (n - 1) + 1, s) for i in range(k)]
    return torch.stack([x[..., a, b] for a in places for b in places])


def adaptive(x: Tensor, n: int, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    bounds = [(math.floor(i * SIDE / n), math.ceil((i + 1) * SIDE / n)) for i in range(n)]
    rows = [torch.stack([reduce(x[..., a:b, c:d].flatten(2)) for c, d in bounds], -1) for a, b in bounds]
    return torch.stack(rows, -2)


def norm(x: Tensor, dims: list[int], w: Tensor | None = None, b: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    centred = x - x.mean(dims, keepdim=True)
    y = centred / ((centred**2).mean(dims, keepdim=True) + eps) ** 0.5
    return affine(y, w, b)


def affine(y: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
    def fit(p: Tensor) -> Tensor:
        return p.view(1, -1, *[1] * (y.dim() - 2)) if p.dim() == 1 else p

    return y * (1 if w is None else fit(w)) + (0 if b is None else fit(b))


def grouped(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return affine(norm(x.reshape(ROWS, 2, -1), [2]).reshape(x.shape), w, b)


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def gelu_tanh(x: Tensor) -> Tensor:
    return x * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2


def softplus(x: Tensor) -> Tensor:
    return torch.where(3 * x > 1.5, x, (1 + (3 * x).exp()).log() / 3)


def conv(x: Tensor, w: Tensor, b: Tensor | None = None, *, s: int = 1, d: int = 1, groups: int = 1) -> Tensor:
    """As a sum over the kernel's entries, each a matrix product."""
    height, width = ((n - d * (k - 1) - 1) // s + 1 for n, k in zip(x.shape[-2:], w.shape[-2:], strict=True))
    parts = []
    for xs, ws in zip(x.chunk(groups, 1), w.chunk(groups, 0), strict=True):
        terms = [
            torch.einsum("oc,nchw->nohw", ws[..., i, j], xs[..., i * d :: s, j * d :: s][..., :height, :width])
            for i in range(w.shape[-2])
            for j in range(w.shape[-1])
        ]
        parts.append(torch.stack(terms).sum(0))
    y = torch.cat(parts, 1)
    return y if b is None else y + b.view(-1, 1, 1)


def pad(x: Tensor, *widths: int) -> Tensor:
    return F.pad(x, widths)


def evaluating(layer: nn.Module) -> nn.Module:
    layer.running_mean.uniform_(-1, 1)
    layer.running_var.uniform_(0.5, 2)
    return layer.eval()


def running(layer: nn.Module) -> Function:
    def reference(x: Tensor, w: Tensor | None = None, b: Tensor | None = None) -> Tensor:
        mean, variance = (t.view(1, -1, 1, 1) for t in (layer.running_mean, layer.running_var))
        return affine((x - mean) / (variance + layer.eps) ** 0.5, w, b)

    return reference


def masked(layer: nn.Module, *shape: int) -> tuple[nn.Module, Function]:
    torch.manual_seed(7)
    mask = layer(torch.ones(shape, dtype=torch.float64))
    assert 0 < mask.count_nonzero() < mask.numel()
    return layer, lambda x: x * mask


IMAGE, VECTOR = (ROWS, CHANNELS, SIDE, SIDE), (ROWS, 6)
BN = evaluating(nn.BatchNorm2d(CHANNELS).double())
IN = evaluating(nn.InstanceNorm2d(CHANNELS, affine=True, track_running_stats=True).double())
max_pool, mean_pool = nn.MaxPool2d, nn.AvgPool2d
INF = -math.inf

# rule -> [(input shape, layer or function, reference)]; a tuple (function, shapes) has parameters of its own.
CASES: dict[str, list[tuple[tuple[int, ...], object, Function]]] = {
    "linear": [
        (VECTOR, nn.Linear(6, 4), lambda x, w, b: x @ w.T + b),
        (IMAGE, nn.Linear(SIDE, 2, bias=False), lambda x, w: x @ w.T),
        (VECTOR, (lambda x, w: F.linear(x, w.tanh()), (4, 6)), lambda x, w: x @ w.tanh().T),
        (IMAGE, (F.linear, (2, SIDE), (2,)), lambda x, w, b: x @ w.T + b),
    ],
    "convolution": [
        (IMAGE, nn.Conv2d(4, 3, 3, padding=1), lambda x, w, b: conv(pad(x, 1, 1, 1, 1), w, b)),
        (IMAGE, nn.Conv2d(4, 2, 3, stride=2, bias=False), lambda x, w: conv(x, w, s=2)),
        (IMAGE, nn.Conv2d(4, 4, 2, groups=2, dilation=2), lambda x, w, b: conv(x, w, b, d=2, groups=2)),
        (IMAGE, nn.Conv2d(4, 2, (2, 3), padding="same"), lambda x, w, b: conv(pad(x, 1, 1, 0, 1), w, b)),
        (IMAGE, nn.Conv2d(4, 2, 1, padding="valid"), lambda x, w, b: conv(x, w, b)),
        (
            IMAGE,
            (lambda x, w: F.conv2d(x, w.tanh(), padding=1), (2, 4, 3, 3)),
            lambda x, w: conv(pad(x, 1, 1, 1, 1), w.tanh()),
        ),
        ((ROWS, 4, 6), nn.Conv1d(4, 2, 3), lambda x, w, b: conv(x[:, :, None], w[:, :, None], b)[:, :, 0]),
        (
            (ROWS, 4, 3, 3, 3),
            nn.Conv3d(4, 2, (1, 2, 2)),
            lambda x, w, b: torch.stack([conv(x[:, :, i], w[:, :, 0], b) for i in range(3)], 2),
        ),
    ],
    "relu": [(VECTOR, nn.ReLU(), lambda x: x * (x > 0)), (VECTOR, lambda x: x.relu(), lambda x: x * (x > 0))],
    "leaky_relu": [(VECTOR, nn.LeakyReLU(0.2), lambda x: torch.where(x > 0, x, 0.2 * x))],
    "tanh": [
        (VECTOR, nn.Tanh(), lambda x: 1 - 2 / ((2 * x).exp() + 1)),
        (VECTOR, torch.tanh, lambda x: 1 - 2 / ((2 * x).exp() + 1)),
    ],
    "sigmoid": [(VECTOR, nn.Sigmoid(), lambda x: 1 / (1 + (-x).exp()))],
    "silu": [(VECTOR, nn.SiLU(), lambda x: x / (1 + (-x).exp()))],
    "gelu": [(VECTOR, nn.GELU(), gelu), (VECTOR, nn.GELU("tanh"), gelu_tanh), (VECTOR, F.gelu, gelu)],
    "softplus": [(IMAGE, nn.Softplus(3, 1.5), softplus), (VECTOR, F.softplus, lambda x: (1 + x.exp()).log())],
    "elu": [(VECTOR, nn.ELU(0.7), lambda x: torch.where(x > 0, x, 0.7 * (x.clamp(max=0).exp() - 1)))],
    "identity": [(VECTOR, nn.Identity(), lambda x: x), (VECTOR, lambda x: x.contiguous(), lambda x: x)],
    "flatten": [
        (IMAGE, nn.Flatten(2), lambda x: x.reshape(ROWS, CHANNELS, -1)),
        (IMAGE, lambda x: torch.flatten(x, 1), lambda x: x.reshape(ROWS, -1)),
    ],
    "reshape": [
        (IMAGE, lambda x: x.view(x.size(0), -1), lambda x: x.reshape(ROWS, -1)),
        (IMAGE, lambda x: x.reshape(x.shape[0], x.shape[1] // 2, -1), lambda x: x.reshape(ROWS, 2, -1)),
        (IMAGE, lambda x: torch.reshape(x, (ROWS, -1)), lambda x: x.reshape(ROWS, -1)),
    ],
    "add": [
        (IMAGE, (lambda x, b: x + b, (CHANNELS, 1, 1)), lambda x, b: x + b),
        (IMAGE, lambda x: torch.add(x.mean(1, keepdim=True), x, alpha=2), lambda x: x.mean(1, keepdim=True) + 2 * x),
        (VECTOR, lambda x: 1 + x, lambda x: 1 + x),
    ],
    "sub": [
        (IMAGE, (lambda x, b: b - x.tanh(), (CHANNELS, 1, 1)), lambda x, b: b - x.tanh()),
        (VECTOR, lambda x: (1 - x).sub(x.tanh()), lambda x: 1 - x - x.tanh()),
    ],
    "mul": [
        (IMAGE, (lambda x, b: b * x * x, (CHANNELS, 1, 1)), lambda x, b: x * x * b),
        (IMAGE, lambda x: 2 * x * x.mean((2, 3), True).tanh(), lambda x: 2 * x * x.mean((2, 3), True).tanh()),
        (VECTOR, (lambda x, b: x * (b * b), (6,)), lambda x, b: x * b * b),
    ],
    "cat": [
        (
            IMAGE,
            (lambda x, b: torch.cat([x, b.tanh(), x.tanh()], 1), IMAGE),
            lambda x, b: torch.cat([x, b.tanh(), x.tanh()], 1),
        ),
        (VECTOR, (lambda x, b: torch.cat((b, x), -1), VECTOR), lambda x, b: torch.cat([b, x], 1)),
    ],
    "mean": [
        (IMAGE, lambda x: x.mean((2, -1)), lambda x: x.sum((2, 3)) / SIDE**2),
        (IMAGE, lambda x: torch.mean(x, 1, keepdim=True), lambda x: x.sum(1, keepdim=True) / CHANNELS),
        (IMAGE, lambda x: x + x.mean(), lambda x: x + x.sum() / x.numel()),
    ],
    "pad": [
        (IMAGE, lambda x: F.pad(x, (0, -1, 0, 0, 1, 2)), lambda x: _padded(x[..., :-1], 1, 2)),
        (IMAGE, lambda x: F.pad(x, (0, 0, 0, 0, 0, 1), value=2.0), lambda x: _padded(x, 0, 1, 2.0)),
        (
            IMAGE,
            nn.ZeroPad2d(1),
            lambda x: _padded(_padded(x.transpose(1, 2), 1, 1).transpose(1, 3), 1, 1).transpose(1, 2).transpose(2, 3),
        ),
    ],
    "getitem": [
        (IMAGE, lambda x: x[:, :, ::2, 1:3], lambda x: torch.stack([x[:, :, i, 1:3] for i in (0, 2, 4)], 2)),
        (IMAGE, lambda x: x[:, 0, ..., None], lambda x: x.unbind(1)[0].unsqueeze(-1)),
    ],
    "max_pool": [
        (IMAGE, nn.MaxPool2d(2), lambda x: windows(x, 2, 2).amax(0)),
        (IMAGE, nn.MaxPool2d(3, 2, 1), lambda x: windows(x, 3, 2, 1, fill=INF).amax(0)),
        (IMAGE, nn.MaxPool2d(2, 1, dilation=2), lambda x: windows(x, 2, 1, d=2).amax(0)),
        (IMAGE, nn.MaxPool2d(4, ceil_mode=True), lambda x: windows(x, 4, 4, more=2, fill=INF).amax(0)),
        (IMAGE, lambda x: F.max_pool2d(x, 2), lambda x: windows(x, 2, 2).amax(0)),
    ],
    "avg_pool": [
        (IMAGE, nn.AvgPool2d(2), lambda x: windows(x, 2, 2).mean(0)),
        (IMAGE, nn.AvgPool2d(3, 2, 1), lambda x: windows(x, 3, 2, 1).sum(0) / 9),
        (IMAGE, lambda x: F.avg_pool2d(x, 3, 1, divisor_override=5), lambda x: windows(x, 3, 1).sum(0) / 5),
    ],
    "adaptive_avg_pool": [
        (IMAGE, nn.AdaptiveAvgPool2d(1), lambda x: x.sum((2, 3), keepdim=True) / SIDE**2),
        (IMAGE, nn.AdaptiveAvgPool2d(4), lambda x: adaptive(x, 4, lambda t: t.mean(-1))),
        (IMAGE, lambda x: F.adaptive_avg_pool2d(x, (1, 1)), lambda x: x.sum((2, 3), keepdim=True) / SIDE**2),
    ],
    "adaptive_max_pool": [(IMAGE, nn.AdaptiveMaxPool2d(4), lambda x: adaptive(x, 4, lambda t: t.amax(-1)))],
    "dropout": [
        (VECTOR, *masked(nn.Dropout(0.3), *VECTOR)),
        (VECTOR, nn.Dropout(0.3).eval(), lambda x: x),
        (VECTOR, nn.Dropout(0.0), lambda x: x),
    ],
    "feature_dropout": [(IMAGE, *masked(nn.Dropout2d(0.4), *IMAGE)), (IMAGE, nn.Dropout2d(0.4).eval(), lambda x: x)],
    "batch_norm": [
        (IMAGE, nn.BatchNorm2d(CHANNELS), lambda x, w, b: norm(x, [0, 2, 3], w, b)),
        (IMAGE, swap_norms(nn.BatchNorm2d(CHANNELS, affine=False)), lambda x: norm(x, [0, 2, 3])),
        (VECTOR, swap_norms(nn.BatchNorm1d(6, eps=0.1)), lambda x, w, b: norm(x, [0], w, b, 0.1)),
        ((ROWS, 4, 6), nn.BatchNorm1d(4), lambda x, w, b: norm(x, [0, 2], w, b)),
        (IMAGE, BN, running(BN)),
        (IMAGE, swap_norms(BN), running(BN)),
    ],
    "instance_norm": [
        (IMAGE, nn.InstanceNorm2d(CHANNELS), lambda x: norm(x, [2, 3])),
        (IMAGE, swap_norms(nn.InstanceNorm2d(CHANNELS, affine=True)), lambda x, w, b: norm(x, [2, 3], w, b)),
        (IMAGE, IN, running(IN)),
    ],
    "group_norm": [
        (IMAGE, nn.GroupNorm(2, CHANNELS), grouped),
        (VECTOR, (lambda x, w, b: F.group_norm(x, 2, w, b), (6,), (6,)), grouped),
    ],
    "layer_norm": [
        (VECTOR, swap_norms(nn.LayerNorm(6)), lambda x, w, b: norm(x, [1], w, b)),
        (IMAGE, nn.LayerNorm((CHANNELS, SIDE, SIDE)), lambda x, w, b: norm(x, [1, 2, 3], w, b)),
        (IMAGE, nn.LayerNorm(SIDE, elementwise_affine=False), lambda x: norm(x, [3])),
        (VECTOR, lambda x: F.layer_norm(x, (6,)), lambda x: norm(x, [1])),
    ],
}


def _padded(x: Tensor, before: int, after: int, value: float = 0.0) -> Tensor:
    def block(channels: int) -> Tensor:
        return torch.full((x.shape[0], channels, *x.shape[2:]), value, dtype=x.dtype)

    return torch.cat([block(before), x, block(after)], 1)


ALL = [(name, i) for name, cases in CASES.items() for i in range(len(cases))]


def test_every_rule_has_a_case() -> None:
    assert {rule.__module__.rsplit(".", 1)[1] for rule in registry().rules} == set(CASES)


@pytest.mark.parametrize("deep", [False, True], ids=["first", "deep"])
@pytest.mark.parametrize(("name", "number"), ALL, ids=[f"{name}-{i}" for name, i in ALL])
def test_rule(name: str, number: int, deep: bool) -> None:
    shape, given, reference = CASES[name][number]
    torch.manual_seed(3)
    if not isinstance(given, nn.Module):
        given = Call(*given) if isinstance(given, tuple) else Call(given)
    layer = given.double()
    for p in layer.parameters():
        p.data = torch.randn_like(p)
    before = [nn.Linear(shape[-1], shape[-1]), *([nn.Tanh(), nn.Linear(shape[-1], shape[-1])] if deep else [])]
    inputs = torch.randn(shape, dtype=torch.float64)
    head = nn.Linear(reference(inputs, *layer.parameters()).flatten(1).shape[1], 3)
    model = nn.Sequential(*before, layer, nn.Flatten(), head).double()
    targets = torch.randint(3, (len(inputs),))
    objective = Objective(model, F.cross_entropy)
    names = [n for n, _ in model.named_parameters()]

    def loss(w: Tensor) -> Tensor:
        p = dict(zip(names, objective.split(w), strict=True))
        x = inputs @ p["0.weight"].T + p["0.bias"]
        if deep:
            x = x.tanh() @ p["2.weight"].T + p["2.bias"]
        x = reference(x, *[p[n] for n in names if n.startswith(f"{len(before)}.")]).flatten(1)
        logits = x @ p[f"{len(before) + 2}.weight"].T + p[f"{len(before) + 2}.bias"]
        return -(logits - logits.exp().sum(1, keepdim=True).log()).gather(1, targets[:, None]).mean()

    w = flatten([p.detach() for p in objective.parameters])
    v, gradient = torch.randn_like(w), torch.func.grad(loss)

    def first(w: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.jvp(gradient, (w,), (v,))

    (g, product), (_, quadratic) = torch.func.jvp(first, (w,), (v,))
    torch.manual_seed(7)  # the masks of the dropouts' references
    problem = RopProblem(objective, inputs, targets)
    for got, want in [
        (problem.loss(), loss(w)),
        (problem.grad(), g),
        (problem.hvp(v), product),
        *zip(problem.hvp_and_quadratic_grad(v), (product, quadratic), strict=True),
        (problem.hvps(torch.stack([v, 2 * v]))[1], 2 * product),
    ]:
        torch.testing.assert_close(got, want, rtol=RTOL, atol=RTOL * float(want.norm()))
