"""Compiling the kernels: once, for one machine, and a reason where it can't be done."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from spectral_run.curvature.native.build import NoNativeCodeError, library


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.cache_clear()
    yield
    library.cache_clear()


def compiled(cache: Path) -> list[Path]:
    return list((cache / "spectral-run").glob("kernels-*.so"))


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_it_is_compiled_once_and_left_alone(tmp_path: Path) -> None:
    assert isinstance(library(), ctypes.CDLL)
    (made,) = compiled(tmp_path)
    before = made.stat().st_mtime_ns
    library.cache_clear()
    library()
    assert compiled(tmp_path) == [made]
    assert made.stat().st_mtime_ns == before
    assert {path.suffix for path in made.parent.iterdir()} == {".so", ".lock"}  # nothing is left lying about


def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "cxx"
    script.write_text("#!/bin/sh\necho 'no such processor' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    with pytest.raises(NoNativeCodeError, match="cxx failed: no such processor"):
        library()
    assert not compiled(tmp_path)


def test_a_flag_the_compiler_does_not_know_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = shutil.which("c++")
    if real is None:
        pytest.skip("no C++ compiler")
    script = tmp_path / "cxx"
    script.write_text(f'#!/bin/sh\ncase "$*" in *=native*) exit 1;; esac\nexec {real} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    assert isinstance(library(), ctypes.CDLL)


def test_nowhere_to_put_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    with pytest.raises(NoNativeCodeError, match="could not be stored"):
        library()


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NoNativeCodeError, match=r"no C\+\+ compiler was found \(c\+\+, g\+\+, clang\+\+\)"):
        library()
