"""The networks and batches that are timed, and the float64 reference that every library has to agree with.

Inputs are random, labels come from a random linear teacher; the network has taken some steps of Adam on such batches,
so that its Hessian is one that training meets. Every array that a library needs is in one file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PRODUCTS = ("gradient", "primal", "product", "quadratic")
SOLVES = ("solve 1e-2", "solve 1e-3")
STEPS = ("step cold", "step warm")
ALL = (*PRODUCTS, *SOLVES, *STEPS)
GROWTH = ("primal", "product", "step cold")
MEMORY = ("memory",)
SEED = 0


@dataclass(frozen=True)
class Case:
    """A network, a batch size and what to time."""

    name: str
    network: dict[str, Any]
    batch: int
    quantities: tuple[str, ...]
    steps: int = 200
    """Steps of Adam before."""


def mlp(*widths: int) -> dict[str, Any]:
    return {"kind": "mlp", "sizes": [54, *widths, 7]}


CNN: dict[str, Any] = {"kind": "cnn"}

GROUPS: dict[str, tuple[Case, ...]] = {
    "mlp": (Case("MLP 54-20-20-20-7, batch 128", mlp(20, 20, 20), 128, ALL),),
    "cnn": (Case("USPS CNN, batch 128", CNN, 128, ALL),),
    "mlp-width": tuple(Case(f"width {w}", mlp(w, w, w), 128, GROWTH) for w in (20, 64, 256, 1024)),
    "mlp-depth": tuple(Case(f"depth {d}", mlp(*[20] * d), 128, GROWTH) for d in (2, 4, 8)),
    "mlp-batch": tuple(Case(f"batch {b}", mlp(20, 20, 20), b, GROWTH) for b in (32, 128, 512)),
    "cnn-batch": tuple(Case(f"batch {b}", CNN, b, GROWTH) for b in (32, 128, 512)),
    "memory": (
        Case("USPS CNN, batch 2048", CNN, 2048, MEMORY, steps=0),
        Case("ResNet-20, batch 128", {"kind": "resnet", "blocks": [3, 3, 3]}, 128, MEMORY, steps=0),
    ),
    "tiny": (Case("MLP 6-5-4, batch 16", {"kind": "mlp", "sizes": [6, 5, 4]}, 16, ALL, steps=20),),
}


def make(case: Case, file: Path, *, rows: int | None = None) -> dict[str, Any]:
    """Write the case's arrays; returns what is worth telling about it. ``rows`` in place of the batch size."""
    import warnings

    import numpy as np
    import torch
    import torch.nn.functional as F
    from peers.network import build

    from spectral_run.curvature.exact_layers import swap_norms

    warnings.filterwarnings("ignore", message=".*torch.jit.*")  # torch's own, from inside torch.func
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    model = swap_norms(build(case.network))
    kind = case.network["kind"]
    shape = {"mlp": tuple(case.network.get("sizes", ())[:1]), "cnn": (1, 16, 16), "resnet": (3, 32, 32)}[kind]
    classes = case.network["sizes"][-1] if kind == "mlp" else 10
    teacher = torch.randn(int(np.prod(shape)), classes)

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(rows or case.batch, *shape)
        return x, (x.flatten(1) @ teacher).argmax(1)

    parameters = list(model.parameters())
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
    for number in range(1, case.steps + 1):
        before, previous = [p.detach().clone() for p in parameters], batch()
        x, y = previous
        gradients = torch.autograd.grad(F.cross_entropy(model(x), y), parameters)
        with torch.no_grad():  # Adam, 1e-3; torch.optim takes seconds to import
            for p, g, (mean, square) in zip(parameters, gradients, moments, strict=True):
                mean.lerp_(g, 0.1)
                square.lerp_(g * g, 0.001)
                p.sub_(1e-3 * mean / (1 - 0.9**number) / ((square / (1 - 0.999**number)).sqrt() + 1e-8))
    x, y = batch()
    n = sum(p.numel() for p in parameters)
    start = torch.randn(n, generator=torch.Generator().manual_seed(SEED))
    arrays = {f"parameter {i}": p.detach().numpy() for i, p in enumerate(parameters)}
    arrays |= {"x": x.numpy(), "y": y.numpy(), "v": torch.randn(n).numpy(), "start": start.numpy()}
    arrays["seed"] = np.array(SEED)
    told: dict[str, Any] = {"parameters": n}
    here = Reference(model, x, y, parameters)
    if case.quantities == MEMORY:
        arrays["reference gradient"] = here.gradient().numpy()
    else:
        values, vectors = here.top()
        arrays |= here.arrays(arrays["v"], values, vectors)
        arrays["warm"] = Reference(model, *previous, before).top()[1][0].astype(np.float32)
        told |= {"loss": here.loss(here.w).item(), "largest eigenvalues": values}
    np.savez(file, allow_pickle=False, **arrays)
    return told


class Reference:
    """Loss, gradient and curvature in float64 by ``torch.func``: forward over reverse mode, no graph kept."""

    def __init__(self, model: Any, x: Any, y: Any, parameters: Sequence[Any]) -> None:
        import torch
        import torch.nn.functional as F
        from torch.func import functional_call

        names = [name for name, _ in model.named_parameters()]
        self.w = torch.cat([p.detach().double().reshape(-1) for p in parameters])
        sizes, shapes = [p.numel() for p in parameters], [p.shape for p in parameters]

        def loss(w: Any) -> Any:
            pieces = [piece.view(shape) for piece, shape in zip(w.split(sizes), shapes, strict=True)]
            return F.cross_entropy(functional_call(model, dict(zip(names, pieces, strict=True)), (x.double(),)), y)

        self.loss = loss

    def gradient(self) -> Any:
        from torch.func import grad

        return grad(self.loss)(self.w)

    def product(self, v: Any) -> Any:
        from torch.func import grad, jvp

        return jvp(grad(self.loss), (self.w,), (v,))[1]

    def quadratic(self, v: Any) -> Any:
        """Gradient of ``v'Hv``: reverse mode over forward mode twice."""
        from torch.func import grad, jvp

        def directional(w: Any) -> Any:
            return jvp(self.loss, (w,), (v,))[1]

        return grad(lambda w: jvp(directional, (w,), (v,))[1])(self.w)

    def top(self) -> tuple[list[float], Any]:
        """The three eigenpairs of largest modulus, vectors as rows."""
        import numpy as np
        import torch
        from scipy.sparse.linalg import LinearOperator, eigsh

        n = len(self.w)
        operator = LinearOperator(
            (n, n), matvec=lambda v: self.product(torch.from_numpy(v.reshape(-1))).numpy(), dtype=np.float64
        )
        first = np.random.default_rng(SEED).standard_normal(n)
        values, vectors = eigsh(operator, k=3, which="LM", v0=first, tol=1e-7)
        order = np.argsort(-abs(values))
        return values[order].tolist(), np.ascontiguousarray(vectors[:, order].T)

    def arrays(self, v: Any, values: Sequence[float], vectors: Any) -> dict[str, Any]:
        """What every library's results are compared with; a step for each of the eigenpairs."""
        import numpy as np
        import torch
        from peers.base import MU

        direction = torch.from_numpy(v).double()
        gradient = self.gradient()
        steps = [
            gradient + float(np.sign(value)) * MU * self.quadratic(torch.from_numpy(vector))
            for value, vector in zip(values, vectors, strict=True)
        ]
        return {
            "values": np.array(values),
            "reference gradient": gradient.numpy(),
            "reference product": self.product(direction).numpy(),
            "reference quadratic": self.quadratic(direction).numpy(),
            "reference step": torch.stack(steps).numpy(),
        }
