"""Every test run enforces the shapes written in signatures, uses one thread, and keeps its hands off the network."""

import importlib.util
import os
import sys
from pathlib import Path

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


@pytest.fixture
def chest_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes X-rays in the official layouts below ``tmp_path/data``; decoded ones stay in ``tmp_path`` too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return chest_makers().ChestFiles(tmp_path / "data")


def chest_makers():
    """The module ``tests/datasets/chest_xray/makers.py``."""
    name = "chest_xray_makers"
    if name not in sys.modules:
        path = Path(__file__).parent / "datasets" / "chest_xray" / "makers.py"
        spec = importlib.util.spec_from_file_location(name, path)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(scope="session")
def makers():
    """The module with the X-ray makers: ``ChestFiles``, ``xray``, ``save``, ``write_table``, ``Site``."""
    return chest_makers()
