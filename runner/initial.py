"""``init_from=<run folder or checkpoint>``: a run that starts from the weights of another, or of a published file.

A run's folder gives its selected weights (``model.pt``); a ``.pt``, ``.pth``, ``.pth.tar`` or ``.ckpt`` file a state
dict, alone or under ``state_dict``, ``model_state_dict`` or ``model``; ``.safetensors`` needs that package. No code is
unpickled. A prefix that all names share (``module.``, ``densenet121.``) is dropped where the model's have none; a model
may know its parameters by further names (``models.base.Renaming``). The whole network has to match, but for counters of
batches (``num_batches_tracked``), which old files lack.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectral_run.models.base import Origin, Pretrained, Renaming
from spectral_run.runner.settings import ConfigurationError

PICKLED = (".pt", ".pth", ".tar", ".ckpt", ".bin")
SHOWN = 5  # differences, of each kind
_UNDER = ("state_dict", "model_state_dict", "model")
_COUNTER = "num_batches_tracked"


def load(model: nn.Module, source: str) -> Origin:
    """Give the model the weights of a finished run or a file. Raises ``ConfigurationError`` saying what differs."""
    path, kind = _file(source)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"init_from: {path} can't be read: {error.strerror}.") from error
    state = _own_names(model, _state(path, content))
    own = model.state_dict()
    _refuse_differences(path, own, state)
    model.load_state_dict({**own, **state})
    return Origin(kind=kind, path=source, sha256=hashlib.sha256(content).hexdigest())


def pretrain(model: nn.Module, *, download: bool) -> Origin:
    """Published weights, where the model offers any; a random start otherwise."""
    return model.pretrain(download=download) if isinstance(model, Pretrained) else Origin(kind="random")


def _file(source: str) -> tuple[Path, str]:
    """The file with the weights, and what it is."""
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix not in (*PICKLED, ".safetensors"):
            allowed = ", ".join((*PICKLED, ".safetensors"))
            raise ConfigurationError(f"init_from must be a run's folder, or a file in {allowed}; got {source}.")
        return path, "checkpoint"
    if not path.is_dir():
        raise ConfigurationError(f"init_from: there is no file or folder {path}.")
    try:
        status = str(json.loads((path / "result.json").read_text()).get("status"))
    except FileNotFoundError:
        seeds = sorted(folder.name for folder in path.glob("seed-*"))
        hint = f"; it holds {', '.join(seeds)}: add /{seeds[0]}, or '/seed-${{seed}}'" if seeds else ""
        raise ConfigurationError(f"init_from needs a finished run, and {path} has no result.json{hint}.") from None
    except (json.JSONDecodeError, AttributeError) as error:
        raise ConfigurationError(f"init_from: {path / 'result.json'} is no result of a run.") from error
    if status != "done":
        raise ConfigurationError(f"init_from needs a finished run, and {path} has {status}.")
    if not (path / "model.pt").is_file():
        raise ConfigurationError(f"init_from needs a run's weights, and {path} has no model.pt.")
    return path / "model.pt", "run"


def _state(path: Path, content: bytes) -> dict[str, Tensor]:
    held = _safetensors(path, content) if path.suffix == ".safetensors" else _unpickled(path, content)
    for name in _UNDER:
        if isinstance(held, Mapping) and isinstance(held.get(name), Mapping):
            held = held[name]
    if not isinstance(held, Mapping) or not held or not all(isinstance(value, Tensor) for value in held.values()):
        what = ", ".join(map(str, held)) if isinstance(held, Mapping) else type(held).__name__
        raise ConfigurationError(
            f"init_from: {path} holds no state dict, alone or under {', '.join(_UNDER)}; it holds {what or 'nothing'}."
        )
    return {str(name): value for name, value in held.items()}


def _safetensors(path: Path, content: bytes) -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise ConfigurationError(f"init_from: {path.name} needs the package safetensors: pip install it.") from error
    try:
        return safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise ConfigurationError(f"init_from: {path} is damaged ({error}).") from error


def _unpickled(path: Path, content: bytes) -> Any:
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigurationError(
            f"init_from: {path} is damaged, or holds more than tensors, which is not loaded since it could run any "
            f"code ({_gist(error)}). If you trust it, save its tensors alone: "
            f"torch.save(torch.load(path, weights_only=False)['state_dict'], 'weights.pt')."
        ) from error
    except Exception as error:  # whatever the formats' readers raise over damaged bytes
        raise ConfigurationError(f"init_from: {path} can't be read: {_gist(error)}.") from error


def _gist(error: Exception) -> str:
    """torch's reason, without its advice to switch the check off."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = next((line for line in lines if line.startswith("WeightsUnpickler error:")), lines[0] if lines else "")
    reason = told.removeprefix("WeightsUnpickler error:").strip().rstrip(".")
    return reason or type(error).__name__


def _own_names(model: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    own = model.state_dict().keys()
    first = {name.partition(".")[0] for name in own}
    while len(heads := {name.partition(".")[0] for name in state}) == 1 and not heads & first:
        inner = {name.partition(".")[2]: value for name, value in state.items()}
        if "" in inner:
            break
        state = inner
    return model.own_names(state) if isinstance(model, Renaming) else state


def _refuse_differences(path: Path, own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    missing = [name for name in own if name not in state and not name.endswith(_COUNTER)]
    unknown = [name for name in state if name not in own]
    shapes = [
        f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    parts = [
        f"{len(names)} {what}: {', '.join(names[:SHOWN])}{', ...' if len(names) > SHOWN else ''}"
        for names, what in ((missing, "missing"), (unknown, "not the model's"), (shapes, "of another shape"))
        if names
    ]
    if parts:
        raise ConfigurationError(f"init_from: {path} does not fit the model. {'; '.join(parts)}.")
    for name, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ConfigurationError(f"init_from: {path}: {name} holds a number that is not finite.")
