import pytest
import torch
from torch import nn

from spectral_run.models.checks import ACTIVATIONS
from spectral_run.models.mlp import MLP


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("shape", "classes", "widths", "bias", "expected"),
    [
        ((54,), 7, [20, 20, 20], True, 54 * 20 + 20 + 2 * (20 * 20 + 20) + 20 * 7 + 7),  # forest cover, 2,087
        ((1, 8, 8), 10, [64, 32], True, 65 * 64 + 65 * 32 + 33 * 10),
        ((1, 8, 8), 10, [64, 32], False, 64 * 64 + 64 * 32 + 32 * 10),
        ((4,), 3, [], True, 15),
    ],
)
def test_parameter_count(shape, classes, widths, bias, expected):
    model = MLP(input_shape=shape, classes=classes, widths=widths, bias=bias)
    assert parameters(model) == expected
    assert model(torch.zeros(2, *shape)).shape == (2, classes)


def test_no_widths_is_an_affine_map():
    model = MLP(input_shape=(2, 3), classes=4, widths=[]).double()
    x = torch.randn(5, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    layer = model.layers[-1]
    torch.testing.assert_close(model(x), x.flatten(1) @ layer.weight.T + layer.bias)


def test_activation_between_layers_only():
    model = MLP(input_shape=(3,), classes=2, widths=[4, 5], activation="tanh")
    kinds = [type(layer) for layer in model.layers]
    assert kinds == [nn.Flatten, nn.Linear, nn.Tanh, nn.Linear, nn.Tanh, nn.Linear]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_full_dense_hessian(activation):
    model = MLP(input_shape=(3,), classes=3, widths=[4], activation=activation).double()
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    w = torch.cat([p.detach().flatten() for p in model.parameters()])
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 3, dtype=torch.float64, generator=generator)
    y = torch.arange(6) % 3

    def loss(flat):
        parts = flat.split([shape.numel() for shape in shapes])
        values = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return nn.functional.cross_entropy(torch.func.functional_call(model, values, (x,)), y)

    dense = torch.autograd.functional.hessian(loss, w)
    v = torch.randn(len(w), dtype=torch.float64, generator=generator)
    w = w.requires_grad_()
    (g,) = torch.autograd.grad(loss(w), w, create_graph=True)
    (product,) = torch.autograd.grad(g @ v, w)
    torch.testing.assert_close(product, dense @ v, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("widths", [[0], [-1], [20, 0], [True]])
def test_wrong_widths(widths):
    with pytest.raises(ValueError, match=r"MLP: widths must be positive integers, got "):
        MLP(input_shape=(3,), classes=2, widths=widths)


def test_wrong_activation_lists_choices_and_the_nearest():
    with pytest.raises(
        ValueError, match=r"MLP: activation must be one of relu, tanh, .*got 'rellu'. Did you mean relu\?"
    ):
        MLP(input_shape=(3,), classes=2, activation="rellu")
    with pytest.raises(ValueError, match=r"got 'xyz'.$"):
        MLP(input_shape=(3,), classes=2, activation="xyz")


@pytest.mark.parametrize("shape", [(), (0,), (3, -1)])
def test_wrong_input_shape(shape):
    with pytest.raises(ValueError, match="MLP: input_shape must be positive integers"):
        MLP(input_shape=shape, classes=2)
