"""Without a GPU, Triton's kernels run in its interpreter; with one, on it."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

HAS_TRITON = importlib.util.find_spec("triton") is not None
HAS_GPU = torch.cuda.is_available()


def _interpret() -> None:
    """Kernels defined from now on are interpreted, and so are the functions of Triton's own library.

    Those are bound when Triton is imported, which torch may have done long before.
    """
    os.environ["TRITON_INTERPRET"] = "1"
    import triton.language
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    library = [m for name, m in sys.modules.items() if name.startswith("triton.language")]
    interpreted: dict[int, Any] = {}
    for module in [*library, triton.language.tensor]:
        for name, value in list(vars(module).items()):
            if isinstance(value, JITFunction):
                interpreted.setdefault(id(value), InterpretedFunction(value.fn))
                setattr(module, name, interpreted[id(value)])


if HAS_TRITON and not HAS_GPU:
    _interpret()


@pytest.fixture(autouse=True)
def _whole_single_precision() -> Iterator[None]:
    """What recordings are compared with does not round factors to TF32 either, which is torch's way in convolutions."""
    from spectral_run.curvature.cuda.plan import _matrix_products

    with _matrix_products("ieee"):
        yield


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where kernels run in these tests."""
    return torch.device("cuda" if HAS_GPU else "cpu")


@pytest.fixture(scope="session")
def _triton() -> None:
    if not HAS_TRITON:
        pytest.skip("Triton is not installed")
