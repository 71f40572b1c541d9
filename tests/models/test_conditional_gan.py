from itertools import pairwise

import pytest
import torch

from spectral_run.models.conditional_gan import ConvDiscriminator, ConvGenerator, MLPDiscriminator, MLPGenerator

GENERATORS, DISCRIMINATORS = (MLPGenerator, ConvGenerator), (MLPDiscriminator, ConvDiscriminator)
SHAPES = [(1, 16, 16), (1, 8, 8), (3, 8, 12)]


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def parameters(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", GENERATORS)
def test_generator(kind, shape):
    generator = kind(input_shape=shape, classes=3, latent=5)
    images = generator(torch.randn(7, 5), torch.tensor([0, 1, 2, 0, 1, 2, 0])).detach()
    assert images.shape == (7, *shape)
    assert -1 < float(images.min()) < float(images.max()) < 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", DISCRIMINATORS)
def test_discriminator(kind, shape):
    scores = kind(input_shape=shape, classes=3)(torch.rand(4, *shape), torch.tensor([0, 1, 2, 0]))
    assert scores.shape == (4,)


@pytest.mark.parametrize("kind", GENERATORS)
def test_image_depends_on_class_and_latent_numbers_alone_in_evaluation_mode(kind):
    generator = kind(input_shape=(1, 8, 8), classes=3, latent=5)
    z = torch.randn(6, 5)
    for _ in range(3):
        generator(z, torch.tensor([0, 1, 2, 0, 1, 2]))
    generator.eval()
    first, second = (generator(z, torch.full((6,), label)) for label in (0, 1))
    assert (first - second).abs().amax((1, 2, 3)).min() > 1e-3
    assert (first[0] - first[1]).abs().max() > 1e-3
    torch.testing.assert_close(generator(z[:2], torch.zeros(2, dtype=torch.long)), first[:2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", DISCRIMINATORS)
def test_score_depends_on_class(kind):
    discriminator = kind(input_shape=(1, 8, 8), classes=3).eval()
    image = torch.rand(1, 1, 8, 8).expand(3, 1, 8, 8)
    assert len(set(discriminator(image, torch.arange(3)).tolist())) == 3


def test_parameter_counts():
    widths = (110, 128, 256, 512, 1024)
    layers = sum((a + 1) * b + 2 * b for a, b in pairwise(widths))
    assert parameters(MLPGenerator(input_shape=(1, 16, 16), classes=10, latent=100)) == 100 + layers + 1025 * 256
    assert 100 + layers + 1025 * 256 == 970_468
    assert parameters(MLPDiscriminator(input_shape=(1, 16, 16), classes=10)) == (100 + 267 * 512 + 2 * 513 * 512 + 513)
    assert 100 + 267 * 512 + 2 * 513 * 512 + 513 == 662_629
    generator = 100 + 110 * 2048 + 128 * 64 * 16 + 64 * 32 * 16 + 2 * (128 + 64 + 32) + 32 * 9 + 1
    assert parameters(ConvGenerator(input_shape=(1, 16, 16), classes=10, latent=100)) == generator == 389_957
    discriminator = (11 * 16 + 1) * 64 + (64 * 16 + 1) * 128 + 2049 * 128 + 129
    assert parameters(ConvDiscriminator(input_shape=(1, 16, 16), classes=10)) == discriminator == 404_929


def test_convolutional_discriminator_keeps_the_signal():
    """He's initialization: features of the hidden layer have about the scale of the input."""
    discriminator = ConvDiscriminator(input_shape=(1, 16, 16), classes=10)
    images, classes = 2 * torch.rand(50, 1, 16, 16) - 1, torch.arange(50) % 10
    label = torch.nn.functional.one_hot(classes, 10)[:, :, None, None].expand(-1, -1, 16, 16)
    inputs = torch.cat([images, label.float()], 1)
    hidden = discriminator.layers[:-2](inputs).detach()
    assert 0.4 < float(hidden.square().mean().sqrt() / inputs.square().mean().sqrt()) < 2.5
    assert float(discriminator(images, classes).detach().abs().max()) < 1


@pytest.mark.parametrize("kind", GENERATORS + DISCRIMINATORS)
def test_refusals(kind):
    latent = {"latent": 5} if kind in GENERATORS else {}
    with pytest.raises(ValueError, match=rf"{kind.__name__}: input_shape must be \(channels, height, width\).*\(54,\)"):
        kind(input_shape=(54,), classes=3, **latent)
    with pytest.raises(ValueError, match=f"{kind.__name__}: classes must be a positive integer, got 0"):
        kind(input_shape=(1, 8, 8), classes=0, **latent)
    if kind in (ConvGenerator, ConvDiscriminator):
        with pytest.raises(ValueError, match=rf"{kind.__name__}: .* sides that are multiples of 4, got \(1, 10, 8\)"):
            kind(input_shape=(1, 10, 8), classes=3, **latent)
    if latent:
        with pytest.raises(ValueError, match=f"{kind.__name__}: latent must be a positive integer, got 0"):
            kind(input_shape=(1, 8, 8), classes=3, latent=0)
