"""The family of curvature operators: every kind over a batch or a whole split, at the model's parameters or others.

With f the mean of the losses l_i of N rows, z_i the network's outputs, J_i their Jacobian and g_i the gradient of l_i:

    hessian              H = d2f/dw2
    gauss_newton         G = sum J' (d2f/dz2) J       any loss with a second derivative
    residual             H - G = sum df/dz d2z/dw2    what the network's own curvature adds
    fisher               1/N sum_i E[g_i g_i']        over labels drawn from the model; for cross-entropy this is G
    fisher_sampled       1/N sum_i mean_j g_ij g_ij'  over labels drawn once, a fixed matrix of mean fisher
    fisher_empirical     1/N sum_i g_i g_i'           at the true labels
    gradient_covariance  1/N sum_i g_i g_i' - g g'    g the mean of the g_i

Sources: Schraudolph 2002 (G), Amari 1998 (Fisher), Kunstner, Balles, Hennig 2019 (how they differ).
Cost of a product: hessian one Hv; residual one Hv and one Gv; all others one ``J v`` and one ``J' u``, about two thirds
of an Hv; over a split, a primal pass per batch besides.
A weight decay c of the backend, as if ``c/2 |w|^2`` were in f, adds c to the eigenvalues of hessian and gauss_newton,
and to no others: it is in no row's loss.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call

from spectral_run.curvature.backends import Backend, choose_backend
from spectral_run.curvature.exact_layers import ExactBatchNorm
from spectral_run.curvature.objective import Objective
from spectral_run.curvature.operators.base import CurvatureOperator
from spectral_run.curvature.operators.jacobian import Jacobian
from spectral_run.curvature.operators.likelihoods import Likelihood, check_mean_over_rows, likelihood
from spectral_run.curvature.operators.outputs import ExpectedScores, GivenScores, LossHessian, row_scores
from spectral_run.curvature.operators.products import Hessian, Outer, Pullback
from spectral_run.curvature.operators.split import Split, total
from spectral_run.curvature.rows import Rows

KINDS = (
    "hessian",
    "gauss_newton",
    "residual",
    "fisher",
    "fisher_sampled",
    "fisher_empirical",
    "gradient_covariance",
)


def curvature_operator(
    kind: str,
    objective: Objective,
    inputs: Rows,
    targets: Tensor,
    *,
    backend: Backend | None = None,
    batch_size: int = 1024,
    params: Float[Tensor, " n"] | None = None,
    generator: torch.Generator | None = None,
    samples: int = 1,
) -> CurvatureOperator:
    """The operator of that kind for the mean loss over all rows, at the model's own parameters or at ``params``.

    Over more than ``batch_size`` rows it is the batches' mean, each counting by its rows, and holds one at a time; for
    hessian, gauss_newton and residual f itself is then that mean of the batches' losses.  ``generator`` (on the CPU)
    draws the labels of fisher_sampled, ``samples`` per row, whatever the batch size.  Without a backend, the fastest
    that takes the network.  Raises ``ValueError`` with the kinds there are, or with what keeps this one from being.
    """
    if kind not in KINDS:
        raise ValueError(f"curvature operator: kind must be one of {', '.join(KINDS)}; got {kind!r}.")
    backend = backend or choose_backend("auto", objective, inputs[:batch_size])
    split = Split(objective, inputs, targets, backend, batch_size, params)
    loss, decay = objective.loss, backend.weight_decay
    if objective.random and not (kind == "hessian" and split.single):
        raise ValueError(f"{kind}: {_dropout(objective)} draws new masks at every pass; call model.eval().")
    if kind == "hessian":
        return Hessian(split)
    if kind in ("gauss_newton", "residual"):
        gauss_newton = Pullback(split, LossHessian(loss, targets), shift=decay)
        return gauss_newton if kind == "gauss_newton" else Hessian(split) - gauss_newton
    try:
        _refuse_mixed_rows(objective)
        classes = _outputs_per_row(split)
        if kind == "fisher":
            return Pullback(split, ExpectedScores(likelihood(loss, targets), split.rows))
        if kind == "fisher_sampled":
            labels = _drawn(split, likelihood(loss, targets), classes, generator, samples)
            return Pullback(split, GivenScores(loss, labels))
        check_mean_over_rows(loss, targets)
    except ValueError as error:
        raise ValueError(f"{kind}: {error}") from error
    empirical = Pullback(split, GivenScores(loss, targets[None]))
    return empirical if kind == "fisher_empirical" else empirical - Outer(empirical, _gradient(split))


def _drawn(
    split: Split, model: Likelihood, classes: int, generator: torch.Generator | None, samples: int
) -> Shaped[Tensor, "S rows ..."]:
    """Labels of every row from the model at the split's point."""
    if generator is None or generator.device.type != "cpu":
        raise ValueError("its labels are random: it needs a generator on the CPU.")
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}.")
    noise = model.noise(split.rows, classes, samples, generator)  # of all rows, so that batches draw the same

    def term(rows: slice, jacobian: Jacobian) -> Tensor:
        numbers = noise[:, rows].to(jacobian.outputs.device)
        return torch.stack([model.labels(jacobian.outputs, one) for one in numbers])

    return torch.cat(list(split.jacobians(term)), dim=1)


def _gradient(split: Split) -> Tensor:
    """The mean gradient over all rows."""

    def term(rows: slice, jacobian: Jacobian) -> Tensor:
        return jacobian.vjp(row_scores(split.objective.loss, jacobian.outputs, split.targets[rows]) / split.rows)

    return total(split.jacobians(term))


def _dropout(objective: Objective) -> str:
    layers = [(n, m) for n, m in objective.model.named_modules() if "Dropout" in type(m).__name__ and m.training]
    return f"layer {layers[0][0]!r} ({type(layers[0][1]).__name__})" if layers else "a layer"


def _refuse_mixed_rows(objective: Objective) -> None:
    for name, module in objective.model.named_modules():
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, ExactBatchNorm)) and (
            module.training or module.running_mean is None
        ):
            raise ValueError(
                f"layer {name!r} ({type(module).__name__}) normalizes by its batch, so a row has no gradient of its "
                "own; call model.eval(), and let it keep running statistics."
            )


def _outputs_per_row(split: Split) -> int:
    """Two rows and then three tell whether the outputs are vectors, and rows independent of each other."""
    model, pieces = split.objective.model, split.objective.split(split.params)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    point = dict(zip(names, pieces, strict=True))
    with torch.no_grad():
        two, three = (functional_call(model, point, (split.inputs[:rows],)) for rows in (2, 3))
    if two.dim() != 2:
        raise ValueError(f"the model's outputs must be of shape (rows, C), got {tuple(two.shape)}.")
    if float((three[:2] - two).norm()) > torch.finfo(two.dtype).eps ** 0.5 * float(two.norm()):
        raise ValueError("the model's outputs for a row depend on the other rows, so a row has no gradient of its own.")
    return int(two.shape[1])
