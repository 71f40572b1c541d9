"""Training of a conditional GAN and drawing images from it: on the CPU, in float32, by one thread, so always the same.

Source: Goodfellow et al. 2014 (cross-entropy), Mao et al. 2017 (squared loss); settings of appendix C.3 of the
spectral-radius paper. Each step shows the discriminator a batch of training images and as many generated ones of the
same classes, then moves the generator towards what the discriminator takes for real. Targets are uniform over an
interval, drawn anew for every image (label smoothing). For a share of the batches the two sides swap their targets.

Trained once and cached (``datasets/cache.py``): the key is a hash of the rows, the recipe, the seed and ``VERSION``.
Cost on one core, USPS: 14 ms a step of the perceptrons, 33 ms of the convolutional pair, 113 steps an epoch.
Bitwise repeatable on one machine and version of torch; another may round differently, and keeps its own cache.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeAlias, final

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt8
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional

from spectral_run.datasets.base import Data, DataError
from spectral_run.datasets.cache import Arrays, cached
from spectral_run.generalization.base import derived_seed
from spectral_run.models.conditional_gan import ConvDiscriminator, ConvGenerator, MLPDiscriminator, MLPGenerator

VERSION: Final = 1  # of this file and of the networks: a change of the numbers is a new number
KINDS: Final = ("mlp", "convolutional")
LEVELS: Final = 255  # images are stored as bytes, as the USPS scans are
_BLOCK: Final = 500  # images drawn at a time

LossOfScores: TypeAlias = Callable[[Tensor, Tensor], Tensor]


@final
@dataclass(frozen=True, kw_only=True)
class TrainingImages:
    """All rows that training may see, in an order that only their content decides; float32 on the CPU."""

    images: Float32[Tensor, "rows channels height width"]
    targets: Int64[Tensor, " rows"]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(self.targets.max()) + 1

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest pixel."""
        return float(self.images.min()), float(self.images.max())

    @property
    def sha256(self) -> str:
        """Of pixels and classes."""
        digest = hashlib.sha256(str(tuple(self.images.shape)).encode())
        for tensor in (self.images, self.targets):
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()


def training_images(data: Data) -> TrainingImages:
    """Training and validation rows together, sorted: however they were split, these are the same."""
    splits = (data.train, data.validation)
    images = torch.cat([split.tensor for split in splits]).to("cpu", torch.float32).contiguous()
    targets = torch.cat([split.targets for split in splits]).cpu()
    content = [(row.tobytes(), label) for row, label in zip(images.numpy(), targets.tolist(), strict=True)]
    order = torch.tensor(sorted(range(len(content)), key=content.__getitem__))
    empty = (torch.bincount(targets) == 0).nonzero().flatten().tolist()
    if empty:
        raise DataError(f"{data.name}: a GAN needs training images of every class, and there are none of {empty}.")
    if images.min() == images.max():
        raise DataError(f"{data.name}: a GAN needs images that show something, and every pixel is {images.min():g}.")
    return TrainingImages(images=images[order], targets=targets[order])


@final
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a GAN is trained: all that decides its weights, but for rows and seed."""

    kind: str
    epochs: int
    batch_size: int = 64
    lr: float = 1e-4
    betas: Sequence[float] = (0.5, 0.999)
    fake: Sequence[float] = (0.0, 0.3)
    real: Sequence[float] = (0.7, 1.0)
    swap: float = 0.01
    latent: int = 100

    def __post_init__(self) -> None:
        def require(holds: bool, what: str, got: object) -> None:
            if not holds:
                raise ValueError(f"GAN: {what}, got {got}.")

        require(self.kind in KINDS, f"kind must be one of {', '.join(KINDS)}", repr(self.kind))
        require(self.epochs >= 1, "epochs must be at least 1", self.epochs)
        require(self.batch_size >= 2, "batch_size must be at least 2", self.batch_size)
        require(0 < self.lr < float("inf"), "lr must be positive", self.lr)
        betas = list(self.betas)
        require(len(betas) == 2 and all(0 <= b < 1 for b in betas), "betas must be two numbers in [0, 1)", betas)
        for name in ("fake", "real"):
            ends = list(getattr(self, name))
            require(len(ends) == 2 and 0 <= ends[0] <= ends[1] <= 1, f"{name} must be an interval in [0, 1]", ends)
        require(0 <= self.swap <= 1, "swap must be in [0, 1]", self.swap)
        require(self.latent >= 1, "latent must be at least 1", self.latent)

    def networks(self, input_shape: Sequence[int], classes: int) -> tuple[nn.Module, nn.Module]:
        """Generator and discriminator, untrained."""
        if self.kind == "mlp":
            generator: nn.Module = MLPGenerator(input_shape=input_shape, classes=classes, latent=self.latent)
            return generator, MLPDiscriminator(input_shape=input_shape, classes=classes)
        generator = ConvGenerator(input_shape=input_shape, classes=classes, latent=self.latent)
        return generator, ConvDiscriminator(input_shape=input_shape, classes=classes)

    @property
    def loss(self) -> LossOfScores:
        """Squared for the perceptrons, cross-entropy for the convolutional pair."""
        return functional.mse_loss if self.kind == "mlp" else functional.binary_cross_entropy_with_logits

    def targets(self, rows: int, generator: torch.Generator) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
        """The discriminator's targets of one batch: for training images, for generated ones."""
        real, fake = (
            low + (high - low) * torch.rand(rows, generator=generator) for low, high in (self.real, self.fake)
        )
        swapped = float(torch.rand((), generator=generator)) < self.swap
        return (fake, real) if swapped else (real, fake)


def entry_key(what: str, *parts: object) -> str:
    """Name of a cache entry: what it is, and a hash of all that decides it."""
    text = json.dumps([VERSION, *parts], sort_keys=True)
    return f"{what}-{hashlib.sha256(text.encode()).hexdigest()}"


def weights_key(rows: TrainingImages, recipe: Recipe, seed: int) -> str:
    """Name of the trained generator's entry."""
    return entry_key(f"gan-{recipe.kind}", rows.sha256, asdict(recipe), seed, "float32")


def trained_generator(rows: TrainingImages, recipe: Recipe, seed: int) -> Arrays:
    """Weights by name, ``losses`` of each epoch and ``seconds``, from the cache or after training."""
    return cached(weights_key(rows, recipe, seed), lambda: train(rows, recipe, seed), once=True)


def drawn_images(rows: TrainingImages, recipe: Recipe, seed: int, count: int) -> Arrays:
    """``images`` as bytes and ``targets``, ``count`` in all; ``losses`` and ``seconds`` of training."""

    def make() -> Arrays:
        entry = trained_generator(rows, recipe, seed)
        with repeatable(0):
            generator, _ = recipe.networks(rows.images.shape[1:], rows.classes)
        weights = {name.removeprefix("weights."): value for name, value in entry.items() if name.startswith("weights.")}
        generator.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})
        images, targets = draw(generator, recipe.latent, rows.classes, count // rows.classes, seed)
        return {
            "images": images.numpy(),
            "targets": targets.numpy(),
            "losses": entry["losses"],
            "seconds": entry["seconds"],
        }

    return cached(f"{weights_key(rows, recipe, seed)}-{count}", make, once=True)


def train(rows: TrainingImages, recipe: Recipe, seed: int) -> Arrays:
    """Train, and give the generator's weights with what training was like."""
    began = time.perf_counter()
    low, high = rows.range
    images, targets = 2 * (rows.images - low) / (high - low) - 1, rows.targets
    size = min(recipe.batch_size, len(images))
    steps = len(images) // size
    order, latent, smoothing = (
        torch.Generator().manual_seed(derived_seed(seed, "gan", recipe.kind, purpose))
        for purpose in ("order", "latent", "targets")
    )
    losses = []
    with repeatable(derived_seed(seed, "gan", recipe.kind, "networks")), torch.enable_grad():
        pair = _Pair(recipe, tuple(images.shape[1:]), rows.classes, recipe.epochs * steps)
        with progress(f"training GAN ({recipe.kind})", recipe.epochs) as advance:
            for _ in range(recipe.epochs):
                epoch = torch.zeros(2)
                for batch in torch.split(torch.randperm(len(images), generator=order)[: steps * size], size):
                    z = torch.randn(size, recipe.latent, generator=latent)
                    epoch += pair.step(images[batch], targets[batch], z, smoothing)
                losses.append((epoch / steps).numpy())
                advance()
        weights = {f"weights.{name}": value.numpy() for name, value in pair.generator.state_dict().items()}
    return {**weights, "losses": np.stack(losses), "seconds": np.array(time.perf_counter() - began)}


@final
class _Pair:
    """Generator and discriminator with their optimizers."""

    def __init__(self, recipe: Recipe, input_shape: tuple[int, ...], classes: int, steps: int) -> None:
        self.recipe = recipe
        networks = [n.to(memory_format=torch.channels_last) for n in recipe.networks(input_shape, classes)]
        self.generator, self.discriminator = networks
        beta1, beta2 = recipe.betas
        self._optimizers = [torch.optim.Adam(n.parameters(), recipe.lr, (beta1, beta2), fused=True) for n in networks]
        self._schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, steps) for o in self._optimizers]

    def step(self, images: Tensor, classes: Tensor, z: Tensor, smoothing: torch.Generator) -> Tensor:
        """One step of each; the discriminator's and the generator's loss."""
        rows, loss = len(images), self.recipe.loss
        own, others = self._optimizers
        real, fake = self.recipe.targets(rows, smoothing)
        drawn = self.generator(z, classes)
        scores = self.discriminator(torch.cat([images, drawn.detach()]), torch.cat([classes, classes]))
        seen = loss(scores, torch.cat([real, fake]))
        others.zero_grad()
        seen.backward()  # type: ignore[no-untyped-call]
        others.step()

        low, high = self.recipe.real
        wanted = low + (high - low) * torch.rand(rows, generator=smoothing)
        self.discriminator.requires_grad_(False)
        passed = loss(self.discriminator(drawn, classes), wanted)
        own.zero_grad()
        passed.backward()  # type: ignore[no-untyped-call]
        own.step()
        self.discriminator.requires_grad_(True)
        for schedule in self._schedules:
            schedule.step()
        return torch.stack([seen.detach(), passed.detach()])


def draw(
    generator: nn.Module, latent: int, classes: int, per_class: int, seed: int
) -> tuple[UInt8[Tensor, "rows channels height width"], Int64[Tensor, " rows"]]:
    """``per_class`` images of each class, one class after the other, with the statistics of training (eval mode)."""
    was, parts = generator.training, []
    generator.eval()
    with repeatable(0), torch.no_grad():
        for label in range(classes):
            source = torch.Generator().manual_seed(derived_seed(seed, "gan", "images", label))
            for begin in range(0, per_class, _BLOCK):
                # Whole blocks are drawn, so that the first images do not depend on how many there are.
                z = torch.randn(_BLOCK, latent, generator=source)[: per_class - begin]
                images = generator(z, torch.full((len(z),), label))
                parts.append(((images + 1) * (LEVELS / 2)).round().clamp(0, LEVELS).to(torch.uint8))
    generator.train(was)
    return torch.cat(parts).contiguous(), torch.arange(classes).repeat_interleave(per_class)


@contextmanager
def repeatable(seed: int) -> Iterator[None]:
    """One thread and torch's own random numbers (initialization, dropout) from ``seed``; both as before afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums of several threads depend on their number
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def progress(what: str, steps: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, nothing elsewhere; gives what is called after each step."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} epochs"))
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=steps)
        yield lambda: bar.advance(task)


def described(recipe: Recipe) -> Mapping[str, Any]:
    """The recipe as plain values."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(recipe).items()}
