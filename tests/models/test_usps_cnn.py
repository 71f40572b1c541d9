import pytest
import torch
from torch import nn

from spectral_run.models.usps_cnn import USPSCNN


def test_parameter_count():
    model = USPSCNN(input_shape=(1, 16, 16), classes=10)
    convolutions = (9 * 1 + 1) * 8 + (9 * 8 + 1) * 16 + (9 * 16 + 1) * 32
    assert convolutions + (32 * 2 * 2 + 1) * 64 + (64 + 1) * 10 == 14_794
    assert sum(p.numel() for p in model.parameters()) == 14_794


def test_layers_are_the_papers():
    model = USPSCNN(input_shape=[1, 16, 16], classes=10)
    stage = [nn.Conv2d, nn.ReLU, nn.MaxPool2d]
    assert [type(m) for m in model.layers] == 3 * stage + [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear]
    x = torch.zeros(2, 1, 16, 16)
    sizes = []
    for layer in model.layers:
        x = layer(x)
        if isinstance(layer, nn.MaxPool2d):
            sizes.append(tuple(x.shape[1:]))
    assert sizes == [(8, 8, 8), (16, 4, 4), (32, 2, 2)]


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (16, 16), (54,)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(
        ValueError, match=r"USPSCNN: input_shape must be \(1, 16, 16\), got .*model=mlp takes any shape"
    ):
        USPSCNN(input_shape=shape, classes=10)


def test_wrong_activation():
    with pytest.raises(ValueError, match=r"USPSCNN: activation must be one of .*Did you mean gelu\?"):
        USPSCNN(input_shape=(1, 16, 16), classes=10, activation="GELU")
