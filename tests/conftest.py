"""Every test run enforces the shapes written in signatures, uses one thread, and keeps its hands off the network."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "disabled")

from jaxtyping import install_import_hook

for folder in ("curvature", "regularizers", "generalization", "models", "datasets"):
    install_import_hook(f"spectral_run.{folder}", "beartype.beartype")

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
