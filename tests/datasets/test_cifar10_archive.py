from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spectral_run.datasets import cifar10
from spectral_run.datasets.base import DataError, DataHome
from spectral_run.datasets.cifar10 import CIFAR10

NAMES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
CONTENT = np.random.default_rng(0).bytes(3000)


def pack(tmp_path: Path, extra: Callable[[tarfile.TarFile], None] | None = None) -> bytes:
    folder = tmp_path / "made" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in [*NAMES, "readme.html"]:
        (folder / name).write_bytes(CONTENT + name.encode())
    with tarfile.open(tmp_path / "made.tar.gz", "w:gz") as tar:
        tar.add(folder, "cifar-10-batches-py")
        if extra is not None:
            extra(tar)
    return (tmp_path / "made.tar.gz").read_bytes()


def test_download_is_unpacked(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def climb(tar: tarfile.TarFile) -> None:
        member = tarfile.TarInfo("../../climbed")
        tar.addfile(member, io.BytesIO())

    server.content = pack(tmp_path, climb)
    md5 = hashlib.md5(server.content).hexdigest()
    monkeypatch.setattr(cifar10, "ARCHIVE", replace(cifar10.ARCHIVE, url=server.url, md5=md5))
    home = DataHome(tmp_path / "root" / "data", download=True)
    CIFAR10().prepare(home)
    CIFAR10().prepare(home)
    assert len(server.ranges) == 1
    folder = home.root / "cifar10" / "cifar-10-batches-py"
    assert sorted(path.name for path in folder.iterdir()) == NAMES
    assert not list(tmp_path.rglob("climbed"))
    assert (folder / "test_batch").read_bytes() == CONTENT + b"test_batch"


def test_a_folder_that_cannot_be_made(home: DataHome, tmp_path: Path) -> None:
    (home.root / "cifar10").mkdir(parents=True)
    (home.root / "cifar10" / "cifar-10-python.tar.gz").write_bytes(pack(tmp_path))
    (home.root / "cifar10" / "cifar-10-batches-py").write_text("a file")
    with pytest.raises(FileNotFoundError, match=r"cifar-10-batches-py .*unpacking cifar-10-python\.tar\.gz failed"):
        CIFAR10().prepare(home)


def test_link_in_the_archive(tmp_path: Path, home: DataHome) -> None:
    target = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(target, "w:gz") as tar:
        for name in NAMES:
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/hostname"
            tar.addfile(member)
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=r"tar\.gz: "):
        cifar10.unpack(target, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_damaged_archives(tmp_path: Path) -> None:
    path = tmp_path / "cifar-10-python.tar.gz"
    whole = pack(tmp_path)
    for content, message in ((whole[:-500], "truncated"), (b"no archive", "undecodable"), (b"", "undecodable")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"tar\.gz: .*{message}"):
            cifar10.unpack(path, tmp_path / "out")
    with tarfile.open(path, "w:gz"):
        pass
    with pytest.raises(DataError, match=r"data_batch_1.* not found"):
        cifar10.unpack(path, tmp_path / "out")
