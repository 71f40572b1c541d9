"""Grad-CAM against plain autograd, the top pixels against sorting, and Jaccard's index against sets."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from spectral_run.curvature.exact_layers import swap_norms
from spectral_run.generalization.gradcam import choose_layer, feature_layers, heat_maps, jaccard, top_pixels


class Net(nn.Module):
    """Two convolutions with BatchNorm, and a head that mixes them."""

    def __init__(self, outputs: int = 5) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Tanh(), nn.Conv2d(6, 8, 3, stride=2), nn.BatchNorm2d(8)
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, outputs))

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x)
        y: Tensor = self.head(self.pool(F.relu(features, inplace=True)).flatten(1))
        return y


def images(rows: int = 4, size: int = 13, dtype: torch.dtype = torch.float64, seed: int = 3) -> Tensor:
    return torch.randn(rows, 3, size, size + 2, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def network(dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Net().to(dtype)
        model(images(8, dtype=dtype, seed=9))  # running statistics that are not 0 and 1
    return swap_norms(model)


def by_autograd(model: nn.Module, x: Tensor, output: int) -> Tensor:
    """Weights: mean over positions of d y / d A; map: relu of the weighted sum; then bilinear."""
    features = model.body(x).detach().requires_grad_()
    (slopes,) = torch.autograd.grad(model.head(features.relu().mean((2, 3)))[:, output].sum(), features)
    coarse = (slopes.mean((2, 3), keepdim=True) * features.detach()).sum(1, keepdim=True).relu()
    return F.interpolate(coarse, x.shape[2:], mode="bilinear", align_corners=False)[:, 0]


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-10), (torch.float32, 1e-6)])
@pytest.mark.parametrize("layer", ["body", "body.4"])
def test_maps_are_those_of_plain_autograd(layer: str, dtype: torch.dtype, error: float) -> None:
    model, x = network(dtype), images(dtype=dtype)
    wanted = [4, 0, 2]
    found = heat_maps(model, layer, x, wanted)
    assert found.shape == (4, 3, 13, 15)
    model.eval()
    for i, output in enumerate(wanted):
        expected = by_autograd(model, x, output)
        assert expected.max() > 1e-3
        assert (found[:, i] - expected).abs().max() < error


def test_one_pass_and_one_by_one_agree() -> None:
    # body.4 is followed by body, which gives the same tensor: once it is the last layer and once it is not.
    model, x = network(), images()
    assert torch.equal(heat_maps(model, "body", x, [1, 3]), heat_maps(model, "body.4", x, [1, 3]))


def test_densenet_with_exact_layers() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = swap_norms(torchvision.models.DenseNet(8, (2, 2), 8, 2, num_classes=14)).double()
    x = images(2, 32)
    layer = choose_layer(model, x[:1], None)
    assert layer == "features"
    with pytest.raises(ValueError, match=r"features\.conv0, .*, features or of the \d+ layers in these, got 'layer4'"):
        choose_layer(model, x[:1], "layer4")
    maps = heat_maps(model, layer, x, [1, 12])
    model.eval()
    features = model.features(x).detach().requires_grad_()
    y = model.classifier(features.relu().mean((2, 3)))
    for i, output in enumerate([1, 12]):
        (slopes,) = torch.autograd.grad(y[:, output].sum(), features, retain_graph=True)
        coarse = (slopes.mean((2, 3), keepdim=True) * features.detach()).sum(1, keepdim=True).relu()
        expected = F.interpolate(coarse, x.shape[2:], mode="bilinear", align_corners=False)[:, 0]
        assert (maps[:, i] - expected).abs().max() < 1e-10
    deeper = heat_maps(model, "features.denseblock1", x, [1])  # its output goes through more layers
    assert deeper.shape == (2, 1, 32, 34)
    assert deeper.max() > 0


def test_rows_do_not_depend_on_each_other() -> None:
    model, x = network(), images()
    whole = heat_maps(model, "body", x, [0, 1])
    torch.testing.assert_close(torch.cat([heat_maps(model, "body", row[None], [0, 1]) for row in x]), whole)


def test_the_network_is_left_as_it_was() -> None:
    model, x = network(), images()
    model.train()
    model.body[1].eval()
    model.head[0].bias.requires_grad_(False)
    before, random = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    modes = [module.training for module in model.modules()]
    heat_maps(model, "body", x, [0, 1])
    with pytest.raises(RuntimeError):
        heat_maps(model, "body", x[:, :2], [0])
    assert [module.training for module in model.modules()] == modes
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["head.0.bias"]
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.enable_grad():
        assert model(x).requires_grad


def test_choice_of_the_layer() -> None:
    model, x = network(), images(1)
    assert feature_layers(model, x) == ["body.0", "body.1", "body.2", "body.3", "body.4", "body"]  # the pool has 1x1
    assert choose_layer(model, x, None) == "body"
    assert choose_layer(model, x, "body.2") == "body.2"
    with pytest.raises(ValueError, match=r"layer must be one of Net's body\.0, .*, body, got 'pool'"):
        choose_layer(model, x, "pool")
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 13 * 15, 4)).double()
    with pytest.raises(ValueError, match="Sequential has no layer whose output is a map"):
        choose_layer(flat, x, None)


def test_a_layer_that_is_used_twice() -> None:
    relu = nn.ReLU()
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3), relu, nn.Conv2d(4, 4, 3), relu, nn.Flatten(), nn.Linear(4 * 9 * 11, 3)
        )
    model = model.double()
    x = images(2)
    features = model[:4](x).detach().requires_grad_()
    y = model[4:](features)
    found = heat_maps(model, "1", x, [0, 2])
    for i, output in enumerate([0, 2]):
        (slopes,) = torch.autograd.grad(y[:, output].sum(), features, retain_graph=True)
        coarse = (slopes.mean((2, 3), keepdim=True) * features.detach()).sum(1, keepdim=True).relu()
        expected = F.interpolate(coarse, x.shape[2:], mode="bilinear")[:, 0]
        assert (found[:, i] - expected).abs().max() < 1e-10


@pytest.mark.parametrize("share", [0.1, 0.05, 0.5, 0.999])
def test_top_pixels_against_sorting(share: float) -> None:
    random = np.random.default_rng(0)
    maps = np.round(random.random((3, 2, 7, 9)), 1)  # many equal ones
    chosen = top_pixels(maps, share)
    count = math.ceil(share * 63)
    for flat, mask in zip(maps.reshape(6, 63), chosen.reshape(6, 63), strict=True):
        best = sorted(range(63), key=lambda i: (-flat[i], i))[:count]
        assert sorted(best) == np.flatnonzero(mask).tolist()


def test_exactly_a_tenth() -> None:
    maps = np.random.default_rng(1).random((5, 10, 10))
    assert top_pixels(maps, 0.1).sum(-1).tolist() == [10] * 5  # ceil(0.1 * 100), though 0.1 is above a tenth
    assert top_pixels(maps[:, :5], 0.1).sum(-1).tolist() == [5] * 5
    assert top_pixels(np.ones((1, 224, 224)), 0.1).sum() == 5018


def test_an_empty_map_has_no_top() -> None:
    maps = np.zeros((2, 4, 5))
    maps[1, 2, 3] = 1e-30
    chosen = top_pixels(maps, 0.1)
    assert not chosen[0].any()
    assert np.flatnonzero(chosen[1]).tolist() == [0, 13]  # the positive pixel, and the first of the others


def test_jaccard_against_sets() -> None:
    random = np.random.default_rng(2)
    a, b = random.random((2, 6, 3, 45)) < 0.3
    a[0, 0] = False
    b[1, 1] = False
    found = jaccard(np.packbits(a, axis=-1), np.packbits(b, axis=-1))
    for place in np.ndindex(6, 3):
        one, other = (set(np.flatnonzero(mask[place]).tolist()) for mask in (a, b))
        if one and other:
            assert found[place] == len(one & other) / len(one | other)
        else:
            assert np.isnan(found[place])
    assert np.array_equal(jaccard(np.packbits(a, axis=-1), np.packbits(a, axis=-1))[1:], np.ones((5, 3)))
