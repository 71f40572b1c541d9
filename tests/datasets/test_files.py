from __future__ import annotations

import bz2
import gzip
import hashlib
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spectral_run.datasets.base import DataError, DataHome
from spectral_run.datasets.files import RemoteFile, fetch, file_digest, provenance, read_bytes

CONTENT = np.random.default_rng(0).bytes(1 << 20)


def remote_file(url: str, content: bytes = CONTENT) -> RemoteFile:
    return RemoteFile(name="x.bin", url=url + "x.bin", sha256=hashlib.sha256(content).hexdigest())


@pytest.fixture
def online(tmp_path: Path) -> DataHome:
    return DataHome(tmp_path / "data", download=True)


def test_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(CONTENT)
    assert file_digest(path) == hashlib.sha256(CONTENT).hexdigest()
    assert file_digest(path, "md5") == hashlib.md5(CONTENT).hexdigest()


def test_download_is_complete(server: Any, online: DataHome) -> None:
    server.content = CONTENT
    path = fetch(remote_file(server.url), online, "folder")
    assert path == online.root / "folder" / "x.bin"
    assert path.read_bytes() == CONTENT
    assert server.ranges == [None]
    assert not path.with_name("x.bin.part").exists()


def test_md5_is_checked_as_well(server: Any, online: DataHome) -> None:
    server.content = CONTENT
    remote = RemoteFile(name="x.bin", url=server.url, md5=hashlib.md5(CONTENT).hexdigest())
    assert fetch(remote, online, "folder").read_bytes() == CONTENT


def test_download_resumes_from_its_part(server: Any, online: DataHome) -> None:
    server.content = CONTENT
    part = online.root / "folder" / "x.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT[:1000])
    assert fetch(remote_file(server.url), online, "folder").read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000-"]


def test_a_whole_part_is_taken(server: Any, online: DataHome) -> None:
    server.content = CONTENT
    part = online.root / "folder" / "x.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT)
    assert fetch(remote_file(server.url), online, "folder").read_bytes() == CONTENT


def test_a_server_without_ranges_starts_over(server: Any, online: DataHome) -> None:
    server.content, server.honors_ranges = CONTENT, False
    part = online.root / "folder" / "x.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT[:1000])
    assert fetch(remote_file(server.url), online, "folder").read_bytes() == CONTENT


def test_wrong_checksum_leaves_nothing(server: Any, online: DataHome) -> None:
    server.content = b"something else"
    found = hashlib.sha256(b"something else").hexdigest()
    expected = hashlib.sha256(CONTENT).hexdigest()
    with pytest.raises(DataError, match=f"expected sha256 {expected}, found sha256 {found}"):
        fetch(remote_file(server.url), online, "folder")
    left = {path.name for path in (online.root / "folder").iterdir()}
    assert left <= {"x.bin.lock"}
    server.content = CONTENT
    assert fetch(remote_file(server.url), online, "folder").read_bytes() == CONTENT


def test_closed_connection_keeps_the_part_and_resumes(server: Any, online: DataHome) -> None:
    server.content, server.stop_after = CONTENT, 300_000
    with pytest.raises(FileNotFoundError, match=f"closed after 300000 of {len(CONTENT)} bytes; run again to resume"):
        fetch(remote_file(server.url), online, "folder")
    assert not (online.root / "folder" / "x.bin").exists()
    server.stop_after = None
    assert fetch(remote_file(server.url), online, "folder").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=300000-"]


def test_killed_midway_leaves_no_final_file(server: Any, online: DataHome) -> None:
    server.content, server.stop_after, server.hold = CONTENT, len(CONTENT) // 2, threading.Event()
    remote = remote_file(server.url)
    code = (
        "from pathlib import Path\n"
        "from spectral_run.datasets.base import DataHome\n"
        "from spectral_run.datasets.files import RemoteFile, fetch\n"
        f"fetch(RemoteFile(name={remote.name!r}, url={remote.url!r}, sha256={remote.sha256!r}),"
        f" DataHome(Path({str(online.root)!r})), 'folder')"
    )
    part = online.root / "folder" / "x.bin.part"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        deadline = time.monotonic() + 60
        while not (part.is_file() and part.stat().st_size == len(CONTENT) // 2):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        process.kill()
    server.hold.set()
    assert not (online.root / "folder" / "x.bin").exists()
    server.stop_after = None
    assert fetch(remote, online, "folder").read_bytes() == CONTENT
    assert server.ranges == [None, f"bytes={len(CONTENT) // 2}-"]


def test_two_at_once_fetch_it_once(server: Any, online: DataHome) -> None:
    server.content = CONTENT
    remote = remote_file(server.url)
    threads = [threading.Thread(target=fetch, args=(remote, online, "folder")) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (online.root / "folder" / "x.bin").read_bytes() == CONTENT
    assert server.ranges == [None]


def test_no_server(server: Any, online: DataHome) -> None:
    remote = remote_file("http://127.0.0.1:1/")  # port 1: refused at once
    with pytest.raises(FileNotFoundError, match="Connection refused") as caught:
        fetch(remote, online, "folder")
    for part in (str(online.root / "folder" / "x.bin"), remote.url, "SPECTRAL_DATA", "data_root=", "folder/x.bin"):
        assert part in str(caught.value)


def test_root_that_cannot_be_made(server: Any, tmp_path: Path) -> None:
    server.content = CONTENT
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match=r"fetching it failed: .*file"):
        fetch(remote_file(server.url), DataHome(tmp_path / "file" / "data"), "folder")
    assert server.ranges == []


def test_missing_without_download(home: DataHome) -> None:
    with pytest.raises(FileNotFoundError, match="download=true fetches it") as caught:
        fetch(remote_file("http://example.invalid/"), home, "folder")
    assert str(home.root / "folder" / "x.bin") in str(caught.value)
    assert not home.root.exists()


def test_present_file_is_only_read(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "x.bin").write_bytes(b"unofficial")
    before = sorted(path.name for path in folder.iterdir())
    remote = remote_file("http://example.invalid/")
    fetch(remote, DataHome(tmp_path, download=True), "folder")
    source = provenance([(remote, folder / "x.bin")])
    assert sorted(path.name for path in folder.iterdir()) == before
    assert not source.official
    digest = hashlib.sha256(b"unofficial").hexdigest()
    assert source.files == {"x.bin": digest}
    assert source.notices == (
        f"x.bin is not the official release (sha256 {digest}, expected {remote.checksum}): loaded as it is",
    )


def test_official_files_are_recognized(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(CONTENT)
    assert provenance([(remote_file("http://example.invalid/"), tmp_path / "x.bin")]).official


def test_repacked_official_bytes_are_recognized(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(CONTENT, compresslevel=1, mtime=7))
    unpacked = hashlib.md5(CONTENT).hexdigest()
    assert provenance([(RemoteFile(name="x.gz", url="", md5="0" * 32, unpacked_md5=unpacked), path)]).official
    assert not provenance([(RemoteFile(name="x.gz", url="", md5="0" * 32, unpacked_md5="1" * 32), path)]).official


@pytest.mark.parametrize("hashes", [{}, {"md5": "1", "sha256": "2"}])
def test_one_checksum(hashes: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="needs one of sha256 and md5"):
        RemoteFile(name="x", url="", **hashes)


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_reading_packed_bytes(tmp_path: Path, suffix: str, pack: Any) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(pack(CONTENT))
    assert read_bytes(path) == CONTENT
    path.write_bytes(pack(CONTENT)[:-100])
    with pytest.raises(DataError, match=rf"x\{suffix}: truncated"):
        read_bytes(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=rf"x\{suffix}: truncated"):
        read_bytes(path)
    path.write_bytes(b"plain text")
    with pytest.raises(DataError, match=rf"x\{suffix}: undecodable"):
        read_bytes(path)
