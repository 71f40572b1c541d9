import pytest
import torch

from spectral_run.models.resnet import BasicBlock, ResNet


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [((3, 3, 3), 269_722), ((5, 5, 5), 464_154), ((1, 1, 1), 75_290)],
)
def test_parameter_count(blocks, expected):
    """ResNet-20 and -32 of He et al., table 6: 0.27 and 0.46 million."""
    model = ResNet(input_shape=(3, 32, 32), classes=10, blocks=blocks)
    assert sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 13), (5, 16, 16)])
@pytest.mark.parametrize("width", [3, 8])
def test_shapes(norm, shape, width):
    model = ResNet(input_shape=shape, classes=4, width=width, blocks=(1, 2, 1), norm=norm)
    assert model(torch.zeros(2, *shape)).shape == (2, 4)


def test_shortcut_is_every_second_pixel_and_zero_channels():
    block = BasicBlock(2, 4, 2, torch.nn.BatchNorm2d).eval()
    torch.nn.init.zeros_(block.norm2.weight)
    x = torch.rand(3, 2, 7, 8, generator=torch.Generator().manual_seed(0))
    y = block(x)
    assert torch.equal(y[:, :2], x[:, :, ::2, ::2])
    assert torch.equal(y[:, 2:], torch.zeros(3, 2, 4, 4))


def test_group_norm_treats_each_example_alone():
    x = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.manual_seed(0)
    group = ResNet(input_shape=(3, 8, 8), classes=4, norm="group").double().train()
    torch.testing.assert_close(group(x)[:2], group(x[:2]), rtol=1e-12, atol=1e-12)
    batch = ResNet(input_shape=(3, 8, 8), classes=4, norm="batch").double().train()
    assert (batch(x)[:2] - batch(x[:2])).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_shape": (3, 7, 8)}, r"ResNet: input_shape must be .* >= 8, got \(3, 7, 8\); model=mlp"),
        ({"input_shape": (54,)}, r"ResNet: input_shape must be .*got \(54,\)"),
        ({"width": 0}, "ResNet: width must be a positive integer, got 0"),
        ({"blocks": (1, 1)}, r"ResNet: blocks must be three positive integers, got \(1, 1\)"),
        ({"blocks": (1, 0, 1)}, "ResNet: blocks must be three positive integers"),
        ({"norm": "layer"}, "ResNet: norm must be one of batch, group, got 'layer'"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**{"input_shape": (3, 8, 8), "classes": 4, **arguments})
