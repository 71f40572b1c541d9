"""What every operator can do: arithmetic, blocks, scipy, dense matrices, the count of products."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn

from spectral_run.curvature.backends import choose_backend
from spectral_run.curvature.objective import Objective
from spectral_run.curvature.operators.base import CurvatureOperator, Layout, Matrix
from spectral_run.curvature.operators.operators import KINDS, curvature_operator

RTOL = 1e-9


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def of_network(kind: str, *, dtype: torch.dtype = torch.float64, batch_size: int = 1024) -> CurvatureOperator:
    """Nested modules, a layer frozen, a parameter that belongs to the network itself."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh())
            self.head = nn.Linear(4, 3)
            self.scale = nn.Parameter(torch.tensor([0.5, 1.0, 2.0]))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x)) * self.scale

    model = Net().to(dtype)
    model.body[2].requires_grad_(False)
    inputs, targets = torch.randn(7, 3).to(dtype), torch.randint(3, (7,))
    objective = Objective(model, F.cross_entropy)
    served = choose_backend("rop", objective, inputs)
    return curvature_operator(
        kind, objective, inputs, targets, backend=served, batch_size=batch_size, generator=generator()
    )


def symmetric(n: int, seed: int = 0) -> Matrix:
    matrix = torch.randn(n, n, dtype=torch.float64, generator=generator(seed))
    return Matrix(matrix + matrix.T)


# In the order of model.named_parameters(): the network's own come first.
PLACES = {"scale": slice(0, 3), "body.0.weight": slice(3, 15), "body.0.bias": slice(15, 19),
          "head.weight": slice(19, 31), "head.bias": slice(31, 34)}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_slices_of_the_dense_matrix(kind: str) -> None:
    whole = of_network(kind)
    matrix = whole.dense()
    assert whole.layout.names == tuple(PLACES)
    blocks = whole.blocks()
    assert list(blocks) == ["", "body.0", "head"]
    for layer, places in (("", slice(0, 3)), ("body.0", slice(3, 19)), ("head", slice(19, 34))):
        before = whole.products
        torch.testing.assert_close(blocks[layer].dense(), matrix[places, places], rtol=RTOL, atol=1e-12)
        assert whole.products - before == blocks[layer].products == blocks[layer].n
    block = whole.block(["head.bias", "scale", "body.0.bias"])  # in the flat vector's order all the same
    assert block.layout == Layout(("scale", "body.0.bias", "head.bias"), (3, 4, 3))
    places = torch.cat([torch.arange(34)[PLACES[name]] for name in block.layout.names])
    torch.testing.assert_close(block.dense(), matrix[places][:, places], rtol=RTOL, atol=1e-12)
    inner = block.block(["head.bias"])
    torch.testing.assert_close(inner.dense(), matrix[31:, 31:], rtol=RTOL, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [7, 3])
def test_is_linear_and_symmetric(kind: str, batch_size: int) -> None:
    operator = of_network(kind, batch_size=batch_size)
    u, v = torch.randn(2, operator.n, dtype=torch.float64, generator=generator(1))
    image, other = operator.matvec(u), operator.matvec(v)
    assert float(u @ other) == pytest.approx(float(v @ image), rel=1e-10)
    torch.testing.assert_close(operator.matvec(2 * u - 3 * v), 2 * image - 3 * other, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(
        operator.matvecs(torch.stack([u, v])), torch.stack([image, other]), rtol=1e-10, atol=1e-13
    )
    assert operator.products == 5
    assert operator.matvecs(u.new_empty(0, operator.n)).shape == (0, operator.n)
    assert operator.products == 5


def test_arithmetic() -> None:
    a, b = symmetric(6), symmetric(6, seed=1)
    combined = 2 * (a - b) * 0.5 + (-b)
    torch.testing.assert_close(combined.dense(), a.matrix - 2 * b.matrix)
    assert combined.products == a.products == 6
    assert b.products == 12
    with pytest.raises(ValueError, match="Combination: operators must be over the same parameters, dtype and device"):
        a + symmetric(5)
    with pytest.raises(ValueError, match="the same parameters"):
        a + Matrix(a.matrix.float())


@pytest.mark.parametrize("kind", ["hessian", "gauss_newton", "gradient_covariance"])
def test_scipys_eigenvalues_are_those_of_the_dense_matrix(kind: str) -> None:
    operator = of_network(kind, batch_size=3)
    linear = operator.to_scipy()
    matrix = operator.dense()
    assert linear.shape == (34, 34)
    assert linear.dtype == np.float64
    want = torch.linalg.eigvalsh(matrix)[-4:].numpy()
    got = eigsh(linear, k=4, which="LA", return_eigenvectors=False, v0=np.ones(34))
    np.testing.assert_allclose(np.sort(got), want, rtol=RTOL)
    columns = np.random.default_rng(0).standard_normal((34, 3))
    for product in (linear.matmat(columns), linear.rmatmat(columns), linear @ columns, linear.H @ columns):
        np.testing.assert_allclose(product, matrix.numpy() @ columns, rtol=RTOL, atol=1e-12)
    for column in (columns[:, 0], columns[:, :1]):
        assert linear.matvec(column).shape == column.shape
    np.testing.assert_allclose(linear.rmatvec(columns[:, 0]), linear.matvec(columns[:, 0]))
    np.testing.assert_allclose(
        linear.matvec(columns[::-1, 0]), matrix.numpy() @ columns[::-1, 0], rtol=RTOL, atol=1e-12
    )


def test_single_precision_stays_single() -> None:
    operator = of_network("gauss_newton", dtype=torch.float32)
    assert operator.dtype == torch.float32
    assert operator.device == torch.device("cpu")
    assert operator.to_scipy().dtype == np.float32
    assert operator.to_scipy().matvec(np.ones(34)).dtype == np.float32
    torch.testing.assert_close(operator.dense().double(), of_network("gauss_newton").dense(), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"Matrix: numpy has no torch.bfloat16"):
        Matrix(torch.eye(2, dtype=torch.bfloat16)).to_scipy()


def test_a_known_matrix() -> None:
    operator = symmetric(130)  # more than ``dense`` multiplies at once
    assert torch.equal(operator.dense(), operator.matrix)
    assert operator.products == 130
    with pytest.raises(ValueError, match="Matrix: the matrix must be symmetric"):
        Matrix(torch.tensor([[0.0, 1.0], [2.0, 0.0]]))
    with pytest.raises(ValueError, match="the layout must have 2 numbers, got 3"):
        Matrix(torch.eye(2), Layout(("w",), (3,)))


def test_refuses_other_vectors_and_other_names() -> None:
    operator = symmetric(4)
    with pytest.raises(ValueError, match=r"Matrix: vectors must have 4 numbers of torch.float64 .* got shape \(2, 3\)"):
        operator.matvecs(torch.zeros(2, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"got shape \(1, 4\) of torch.float32"):
        operator.matvec(torch.zeros(4))
    network = of_network("fisher")
    with pytest.raises(ValueError, match=r"block: names must be of scale, body.0.weight, .*; got 'body.2.weight'"):
        network.block(["scale", "body.2.weight"])  # frozen
    with pytest.raises(ValueError, match="got none"):
        network.block([])
