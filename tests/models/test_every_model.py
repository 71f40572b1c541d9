"""The contract of a model, for every file of conf/model: nothing to add here when a model is added."""

from pathlib import Path

import hydra.utils
import pytest
import torch
from hydra.errors import InstantiationException
from omegaconf import OmegaConf
from torch.func import functional_call
from torch.nn import functional

CONF = Path(__file__).parents[2] / "conf" / "model"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))
SHAPES = [(1, 16, 16), (3, 32, 32), (54,)]
CLASSES = 7
ROWS = 12


def load(name):
    """The file with the one it builds upon, where it has a defaults list."""
    conf = OmegaConf.load(CONF / f"{name}.yaml")
    return OmegaConf.merge(*map(load, conf.pop("defaults", [])), conf)


def make(name, shape, classes=CLASSES):
    torch.manual_seed(0)
    conf = load(name)
    return hydra.utils.instantiate(conf, input_shape=shape, classes=classes, _convert_="all")


def accepted(name):
    shapes = []
    for shape in SHAPES:
        try:
            make(name, shape)
        except InstantiationException:
            continue
        shapes.append(shape)
    return shapes


CASES = [(name, shape) for name in NAMES for shape in accepted(name)]


def batch(shape):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(ROWS, *shape, generator=generator, dtype=torch.float64)
    return x, torch.randint(CLASSES, (ROWS,), generator=generator)


def test_every_model_is_found():
    assert {"mlp", "usps_cnn", "resnet", "densenet121", "densenet_small"} <= set(NAMES)
    assert {name for name, _ in CASES} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_first_line_describes(name):
    first = (CONF / f"{name}.yaml").read_text().splitlines()[0]
    assert first.startswith("# ")
    assert first.endswith(".")


@pytest.mark.parametrize("name", NAMES)
def test_refusal_names_the_model_and_what_came(name):
    target = load(name)["_target_"].rsplit(".", 1)[1]
    for shape in SHAPES:
        if (name, shape) not in CASES:
            with pytest.raises(InstantiationException) as error:
                make(name, shape)
            assert isinstance(error.value.__cause__, ValueError)
            assert str(error.value.__cause__).startswith(f"{target}: ")
            assert str(shape) in str(error.value.__cause__)
    with pytest.raises(InstantiationException, match=f"{target}: classes must be a positive integer, got 0"):
        make(name, SHAPES[0], classes=0)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_logits(name, shape):
    model = make(name, shape).double().eval()
    x, _ = batch(shape)
    state = torch.random.get_rng_state()
    logits = model(x)
    assert logits.shape == (ROWS, CLASSES)
    assert logits.isfinite().all()
    assert torch.equal(logits, model(x))
    assert torch.equal(state, torch.random.get_rng_state())
    torch.testing.assert_close(model(x[:5]), logits[:5], rtol=1e-12, atol=1e-12)
    assert model(x[:0]).shape == (0, CLASSES)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_same_global_seed_gives_the_same_weights(name, shape):
    first, second = make(name, shape).state_dict(), make(name, shape).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_gradient_step_lowers_the_loss(name, shape):
    model = make(name, shape).double().train()
    x, y = batch(shape)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = functional.cross_entropy(model(x), y)
    before.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    optimizer.step()
    assert functional.cross_entropy(model(x), y).item() < before.item()


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_hessian_vector_product(name, shape):
    """Against rows of the dense Hessian, and against central differences of the gradient."""
    model = make(name, shape).double().eval()
    x, y = batch(shape)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():  # with biases of 0 a channel without input lies exactly on the next ReLU's kink
        for p in model.parameters():
            p += 0.01 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    names, params = zip(*((n, p.detach().requires_grad_()) for n, p in model.named_parameters()), strict=True)

    def gradient(parameters, graph=False):
        loss = functional.cross_entropy(functional_call(model, dict(zip(names, parameters, strict=True)), (x,)), y)
        parts = torch.autograd.grad(loss, parameters, create_graph=graph)
        return torch.cat([part.flatten() for part in parts])

    def flat(parts):
        return torch.cat([part.flatten() for part in parts])

    generator = torch.Generator().manual_seed(2)
    v = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in params]
    g = gradient(params, graph=True)
    product = flat(torch.autograd.grad(g @ flat(v), params, retain_graph=True))
    assert product.isfinite().all()
    assert product.norm() > 0

    rows = torch.randperm(len(g), generator=generator)[: 8 if len(g) < 1_000_000 else 2]
    for row in rows:
        dense_row = flat(torch.autograd.grad(g[row], params, retain_graph=True, materialize_grads=True))
        torch.testing.assert_close(product[row], dense_row @ flat(v), rtol=1e-9, atol=1e-12)

    step = 1e-9  # so small that no kink of ReLU or max pooling is crossed, at the price of rounding
    ahead, behind = (gradient([p + sign * step * d for p, d in zip(params, v, strict=True)]) for sign in (1, -1))
    difference = (ahead - behind) / (2 * step)
    assert (difference - product).norm() < 1e-4 * product.norm()
