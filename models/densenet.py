"""DenseNet-BC as torchvision builds it, with a head of our own size; DenseNet-121 can start from ImageNet weights.

Source: Huang, Liu, van der Maaten, Weinberger, "Densely connected convolutional networks", CVPR 2017; CheXNet
(Rajpurkar et al. 2017) is DenseNet-121 with 14 outputs. A 7x7 convolution and a max pooling quarter the image; then
come dense blocks, each of whose layers (1x1 convolution to ``bottleneck * growth_rate`` channels, 3x3 to
``growth_rate``) reads all layers before it, with a transition between blocks that halves channels, height and width.
Outputs are logits: the sigmoid belongs to the loss. Parameters: 6,968,206 for 14 outputs with the defaults.

The layers are torchvision's under torchvision's names (``features``, ``classifier``), so that published weights fit,
CheXNet's among them. BatchNorm ties the rows of a batch together, in training mode also in their Hessian.
"""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Literal, TypeAlias, final, get_args

import torch
import torch.nn.functional as F
import torchvision
from filelock import FileLock
from jaxtyping import Float
from torch import Tensor, nn

from spectral_run.datasets.files import file_digest
from spectral_run.models.base import Origin
from spectral_run.models.checks import check_interface, positive_integer

Weights: TypeAlias = Literal["none", "imagenet", "imagenet_required"]

DENSENET121 = (32, (6, 12, 24, 16), 64, 4)
TIMEOUT = 10.0  # seconds without a byte before a server counts as unreachable
_IMAGENET = torchvision.models.DenseNet121_Weights.IMAGENET1K_V1
_FILE = str(_IMAGENET.url).rpartition("/")[2]
_SHA256 = _FILE.removesuffix(".pth").rpartition("-")[2]  # its first digits, which torchvision puts into the name
_OTHER_NAMES = (  # torchvision's before 0.2.1; a head in a Sequential, as CheXNet's
    (re.compile(r"^(features\..*denselayer\d+\.(?:norm|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"^classifier\.0\."), "classifier."),
)


@final
class DenseNet(nn.Module):
    """Dense blocks of any size, for color images."""

    def __init__(
        self,
        *,
        input_shape: Sequence[int],
        classes: int,
        growth_rate: int = 32,
        blocks: Sequence[int] = (6, 12, 24, 16),
        initial: int = 64,
        bottleneck: int = 4,
        weights: Weights = "none",
    ) -> None:
        """``weights``: ``none`` for random ones, ``imagenet`` for random ones where those can't be had."""
        super().__init__()
        check_interface("DenseNet", tuple(input_shape), classes)
        for name, value in (("growth_rate", growth_rate), ("initial", initial), ("bottleneck", bottleneck)):
            if not positive_integer(value):
                raise ValueError(f"DenseNet: {name} must be a positive integer, got {value!r}.")
        if not blocks or not all(positive_integer(layers) for layers in blocks):
            raise ValueError(f"DenseNet: blocks must be positive integers, one at least, got {blocks!r}.")
        smallest = 4 * 2 ** (len(blocks) - 1)  # the last block then sees one pixel
        if len(input_shape) != 3 or input_shape[0] != 3 or min(input_shape[1:]) < smallest:
            raise ValueError(
                f"DenseNet: input_shape must be (3, height, width), height and width >= {smallest}, "
                f"got {tuple(input_shape)}."
            )
        if weights not in get_args(Weights):
            raise ValueError(f"DenseNet: weights must be one of {', '.join(get_args(Weights))}, got {weights!r}.")
        if weights != "none" and (growth_rate, tuple(blocks), initial, bottleneck) != DENSENET121:
            raise ValueError(
                "DenseNet: ImageNet weights are DenseNet-121's (growth_rate 32, blocks [6, 12, 24, 16], initial 64, "
                f"bottleneck 4), got {growth_rate}, {list(blocks)}, {initial}, {bottleneck}; others need weights=none."
            )
        self.weights = weights
        layers = torchvision.models.DenseNet(growth_rate, tuple(blocks), initial, bottleneck, num_classes=classes)
        self.features: nn.Module = layers.features
        self.classifier: nn.Linear = layers.classifier

    def forward(self, x: Float[Tensor, "rows 3 height width"]) -> Float[Tensor, "rows classes"]:
        """Logits of a batch."""
        maps = F.relu(self.features(x))
        logits: Tensor = self.classifier(torch.flatten(F.adaptive_avg_pool2d(maps, 1), 1))
        return logits

    def pretrain(self, *, download: bool) -> Origin:
        """Take torchvision's ImageNet weights for all layers but the classifier, as ``weights`` says.

        The file is looked for in ``$TORCH_HOME/hub/checkpoints``, and fetched where it is missing. Raises
        ``FileNotFoundError`` where it can't be had and is required, ``ValueError`` where another file has its name.
        """
        if self.weights == "none":
            return Origin(kind="random")
        path = Path(torch.hub.get_dir()) / "checkpoints" / _FILE
        if why := _fetch(path, download):
            where = f"fetch {_IMAGENET.url} and put it into {path.parent}"
            if self.weights == "imagenet_required":
                raise FileNotFoundError(f"DenseNet: there are no ImageNet weights ({why}); {where}.")
            notice = f"DenseNet starts from random weights, there are none of ImageNet ({why}); to have them, {where}"
            return Origin(kind="random", notices=(notice,))
        sha256 = file_digest(path)
        if not sha256.startswith(_SHA256):
            raise ValueError(f"DenseNet: {path} has sha256 {sha256}, torchvision's begins with {_SHA256}; remove it.")
        state = dict(self.own_names(torch.load(path, map_location="cpu", weights_only=True)))
        del state["classifier.weight"], state["classifier.bias"]  # ImageNet's thousand classes
        self.load_state_dict(self.state_dict() | state)
        return Origin(kind="imagenet", path=_FILE, sha256=sha256)

    def own_names(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Names of files by old versions of torchvision (``norm.1`` for ``norm1``), and of a head in a Sequential."""
        own = {}
        for name, value in state.items():
            for other, ours in _OTHER_NAMES:
                name = other.sub(ours, name)
            own[name] = value
        return own


def _fetch(path: Path, download: bool) -> str:
    """Bring the file to ``path``; or why it can't be had."""
    if path.is_file():
        return ""
    if not download:
        return "download=false"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f"{_FILE}.lock")), _patience(TIMEOUT):  # runs of one sweep start together
            if not path.is_file():
                torch.hub.download_url_to_file(_IMAGENET.url, str(path), _SHA256, progress=sys.stderr.isatty())
    except (OSError, HTTPException) as error:
        return f"fetching them failed: {error}"
    except RuntimeError as error:  # torch's, for a wrong hash
        return f"what came is not the file: {error}"
    return ""


@contextmanager
def _patience(seconds: float) -> Iterator[None]:
    """How long connections wait: torch's download takes no such argument."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
