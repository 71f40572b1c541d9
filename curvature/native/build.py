"""Compile ``kernels.cpp`` once for this machine and load it.

The library is kept under the user's cache folder, named by a hash of source, compiler and processor: it is compiled
again when one of them changes.  Two processes at once compile it once.  Cost: some three seconds, the first time.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from filelock import FileLock

_SOURCE = Path(__file__).with_name("kernels.cpp")
_FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-ffp-contract=fast", "-shared", "-fPIC")
_COMPILERS = ("c++", "g++", "clang++")


class NoNativeCodeError(Exception):
    """There is no C++ compiler, or it failed."""


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded kernels. Raises ``NoNativeCodeError`` with the reason."""
    compiler = _compiler()
    name = f"kernels-{_fingerprint(compiler)}.so"
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spectral-run"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{name}.lock"):
            if not (folder / name).exists():
                _compile(compiler, folder / name)
        loaded = ctypes.CDLL(str(folder / name))
    except (OSError, RuntimeError) as error:  # a full or read-only disk; no home folder
        raise NoNativeCodeError(f"the kernels could not be stored or loaded ({error})") from error
    for function in (loaded.run_float, loaded.run_double):
        function.argtypes = [ctypes.c_void_p, ctypes.c_int]
        function.restype = None
    return loaded


def _compiler() -> str:
    asked = os.environ.get("CXX")
    for candidate in [asked] if asked else _COMPILERS:
        path = shutil.which(candidate)
        if path:
            return path
    raise NoNativeCodeError(f"no C++ compiler was found ({asked or ', '.join(_COMPILERS)}); install one or set CXX")


def _fingerprint(compiler: str) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    about = [_SOURCE.read_text(), compiler, version, *_FLAGS, platform.machine(), _processor()]
    return hashlib.sha256("\0".join(about).encode()).hexdigest()[:16]


def _processor() -> str:
    """What ``-march=native`` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(next((line for line in lines if line.startswith(key)), "") for key in ("model name", "flags"))


def _compile(compiler: str, target: Path) -> None:
    errors = ""
    for tuning in ("-march=native", "-mcpu=native", ""):
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            made = Path(scratch) / "kernels.so"
            command = [compiler, *_FLAGS, *([tuning] if tuning else []), "-o", str(made), str(_SOURCE)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                made.replace(target)
                return
            errors = done.stderr.strip().splitlines()[0] if done.stderr.strip() else f"exit status {done.returncode}"
    raise NoNativeCodeError(f"{Path(compiler).name} failed: {errors}")
