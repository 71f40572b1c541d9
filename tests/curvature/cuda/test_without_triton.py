"""Without Triton everything still imports, and a solve on the processor is decided in Python."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import pkgutil, sys
sys.modules["triton"] = None  # importing it raises ImportError
import torch
import spectral_run.curvature.cuda as package
from spectral_run.curvature.cuda.problem import CudaNetwork, CudaProblem
from spectral_run.curvature.lanczos import Lanczos
from spectral_run.curvature.objective import Objective

for found in pkgutil.iter_modules(package.__path__):
    __import__(f"{package.__name__}.{found.name}")
objective = Objective(torch.nn.Linear(3, 2), torch.nn.functional.cross_entropy)
problem = CudaProblem(CudaNetwork(objective), objective, torch.ones(4, 3), torch.arange(4) % 2)
print(problem.eigenpair(Lanczos(), torch.ones(8)[: problem.n] + torch.arange(problem.n)).reason)
try:
    CudaNetwork(objective, fused=True)
except ValueError as error:
    print(error)
"""


def test_without_triton() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    reason, refusal = done.stdout.splitlines()
    assert reason == "residual"
    assert refusal == "CudaNetwork: fused needs Triton, which does not run on this device (cpu)."
