from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms.functional import resize as torchvision_resize

from spectral_run.datasets.cache import cache_folder
from spectral_run.datasets.chest_xray.store import CHUNK, decode, decode_folder

SIDE = 16


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def noise(seed: int, side: int = 24) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side), np.uint8)


def fill(folder: Path, count: int, first: int = 0) -> list[str]:
    names = [f"{number:04d}.png" for number in range(first, first + count)]
    for number, name in enumerate(names, first):
        (folder / name).write_bytes(encode(noise(number)))
    return names


def index() -> Path:
    folder = cache_folder()
    assert folder is not None
    (path,) = folder.glob("images/*/index.jsonl")
    return path


def lines() -> list[list]:
    return [json.loads(line) for line in index().read_text().splitlines()[1:]]


def test_pixels_are_torchvisions(folder: Path) -> None:
    names = fill(folder, 5)
    decoded = decode_folder(folder, names, SIDE)
    assert decoded.rows.tolist() == [0, 1, 2, 3, 4]
    assert isinstance(decoded.pixels, np.memmap)
    for row, name in enumerate(names):
        with Image.open(folder / name) as image:
            expected = np.asarray(torchvision_resize(image, [SIDE, SIDE]))
        np.testing.assert_array_equal(decoded.pixels[row], expected)
    assert not decoded.bad
    assert not decoded.notices


def test_hashes_are_those_of_the_files(folder: Path) -> None:
    names = fill(folder, 3)
    hashes = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names]
    assert list(decode_folder(folder, names, SIDE).hashes) == hashes
    assert list(decode_folder(folder, names[::-1], SIDE).hashes) == hashes[::-1]  # from the index


def test_not_square_is_squeezed_whole(folder: Path) -> None:
    wide = np.zeros((10, 40), np.uint8)
    wide[:, 20:] = 255
    grey = decode(encode(wide), 8)
    assert grey.shape == (8, 8)
    np.testing.assert_array_equal(grey[0] > 127, [False] * 4 + [True] * 4)


class TestKinds:
    def test_color(self) -> None:
        color = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
        np.testing.assert_array_equal(decode(encode(color), 8), np.asarray(Image.fromarray(color).convert("L")))

    def test_grey_as_color_is_the_grey(self) -> None:
        grey = noise(0, 8)
        alpha = noise(1, 8)
        for stacked in ([grey] * 3, [grey, grey, grey, alpha]):
            np.testing.assert_array_equal(decode(encode(np.stack(stacked, 2)), 8), grey)

    def test_16_bits_are_scaled_not_cut(self) -> None:
        levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
        np.testing.assert_array_equal(decode(encode(levels * 257), 16), levels)
        assert decode(encode(np.full((16, 16), 32768, np.uint16)), 16).tolist() == [[128] * 16] * 16

    def test_palette_with_transparency_without_a_warning(self) -> None:
        image = Image.fromarray(noise(0, 8)).convert("P")
        file = io.BytesIO()
        image.save(file, "PNG", transparency=bytes(range(256)))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_array_equal(decode(file.getvalue(), 8), np.asarray(image.convert("L")))

    def test_jpeg(self) -> None:
        smooth = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8) * 3
        assert np.abs(decode(encode(smooth, "JPEG"), 32).astype(int) - smooth).max() <= 4


BAD = {
    "empty.png": b"",
    "text.png": b"<html>not found</html>",
    "cut.png": encode(noise(1))[:200],
    "cut.jpg": encode(noise(1), "JPEG")[:300],
    "damaged.png": encode(noise(1))[:60] + b"\x00" * 20 + encode(noise(1))[80:],
    "picture.gif": encode(noise(1), "GIF"),
}


def test_bad_files_are_named_with_a_reason(folder: Path) -> None:
    names = fill(folder, 2)
    for name, content in BAD.items():
        (folder / name).write_bytes(content)
    asked = [names[0], *BAD, "absent.png", "no/where.png", names[1]]
    decoded = decode_folder(folder, asked, SIDE)
    assert decoded.rows.tolist() == [0, *[-1] * 8, 1]
    assert list(decoded.bad) == asked[1:-1]
    assert decoded.bad["absent.png"] == decoded.bad["no/where.png"] == "missing"
    assert decoded.bad["empty.png"] == "no byte in it"
    assert decoded.bad["text.png"] == decoded.bad["picture.gif"] == "no PNG or JPEG image"
    assert "truncated" in decoded.bad["cut.jpg"].lower()
    assert all(decoded.bad.values())
    again = decode_folder(folder, asked, SIDE)
    assert again.bad == decoded.bad
    assert len(lines()) == 2 + len(BAD)  # bad ones are not tried again, missing ones looked for every time
    fill(folder, 1, first=1000)
    (folder / "1000.png").rename(folder / "absent.png")
    assert decode_folder(folder, asked, SIDE).rows[-2:].tolist() == [-1, 1]
    assert "absent.png" not in decode_folder(folder, asked, SIDE).bad


def test_a_folder_in_a_files_place_is_tried_again(folder: Path) -> None:
    names = fill(folder, 1)
    (folder / "x.png").mkdir()
    decoded = decode_folder(folder, [*names, "x.png"], SIDE)
    assert decoded.bad == {"x.png": "Is a directory"}
    assert [line[0] for line in lines()] == names
    (folder / "x.png").rmdir()
    fill(folder, 1, first=7)
    (folder / "0007.png").rename(folder / "x.png")
    assert not decode_folder(folder, [*names, "x.png"], SIDE).bad


def test_only_what_changed_is_decoded_again(folder: Path) -> None:
    names = fill(folder, 4)
    before = decode_folder(folder, names, SIDE)
    held = np.array(before.pixels)
    (folder / names[2]).write_bytes(encode(noise(99)))
    after = decode_folder(folder, names, SIDE)
    assert after.rows.tolist() == [0, 1, 4, 3]
    np.testing.assert_array_equal(after.pixels[4], decode(encode(noise(99)), SIDE))
    assert after.hashes[2] != before.hashes[2]
    np.testing.assert_array_equal(before.pixels, held)  # what is mapped stays


def test_more_names_join_the_same_store(folder: Path) -> None:
    names = fill(folder, 6)
    assert decode_folder(folder, names[3:], SIDE).rows.tolist() == [0, 1, 2]
    assert decode_folder(folder, names, SIDE).rows.tolist() == [3, 4, 5, 0, 1, 2]
    assert decode_folder(folder, [], SIDE).rows.tolist() == []


def test_each_size_and_folder_has_its_own_store(folder: Path) -> None:
    names = fill(folder, 2)
    assert decode_folder(folder, names, 8).pixels.shape == (2, 8, 8)
    assert decode_folder(folder, names, 12).pixels.shape == (2, 12, 12)
    other = folder.parent / "other" / "set"
    other.mkdir(parents=True)
    fill(other, 2, first=50)
    assert decode_folder(other, ["0050.png"], 8).pixels.shape == (1, 8, 8)


@pytest.mark.parametrize("workers", [1, 2, 7, None])
def test_workers_change_nothing(folder: Path, workers: int | None) -> None:
    names = fill(folder, 2 * CHUNK + 3)
    decoded = decode_folder(folder, names, SIDE, workers)
    assert decoded.rows.tolist() == list(range(len(names)))
    for row in (0, CHUNK - 1, CHUNK, 2 * CHUNK + 2):
        np.testing.assert_array_equal(decoded.pixels[row], decode((folder / names[row]).read_bytes(), SIDE))


def test_torn_tail_and_lost_pixels_are_made_again(folder: Path) -> None:
    names = fill(folder, 6)
    whole = np.array(decode_folder(folder, names, SIDE).pixels)
    path = index()
    kept = path.read_bytes().splitlines(keepends=True)
    for damage in (
        b"".join(kept[:4]) + kept[4][:40],  # a line cut short, the others lost: their pixels lie there unclaimed
        b"".join(kept[:3]) + b'{"what": 1}\n[1, 2]\n\xff\xfe\n' + b"".join(kept[3:]),
        b"".join(kept[1:]),  # no header
        b"",
    ):
        path.write_bytes(damage)
        decoded = decode_folder(folder, names, SIDE)
        np.testing.assert_array_equal(decoded.pixels[decoded.rows], whole)
        mended = path.read_bytes()
        decode_folder(folder, names, SIDE)
        assert path.read_bytes() == mended  # nothing more to do
    pixels = path.with_name("pixels.u8")
    os.truncate(pixels, 3 * SIDE**2 + 5)
    decoded = decode_folder(folder, names, SIDE)
    np.testing.assert_array_equal(decoded.pixels[decoded.rows], whole)
    pixels.unlink()
    decoded = decode_folder(folder, names, SIDE)
    np.testing.assert_array_equal(decoded.pixels[decoded.rows], whole)


DECODE = """
import sys
from pathlib import Path
from spectral_run.datasets.chest_xray.store import decode_folder
folder = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
decode_folder(folder, sorted(path.name for path in folder.iterdir()), int(sys.argv[2]), 1)
"""


def start(folder: Path, size: int) -> subprocess.Popen[str]:
    """A process that has imported everything, and waits for a line to begin."""
    command = [sys.executable, "-c", DECODE, str(folder), str(size)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def large_images(folder: Path, count: int) -> list[str]:
    """Many names of one file that takes milliseconds to decode."""
    (folder / "0000.png").write_bytes(encode(noise(0, 800)))
    names = [f"{number:04d}.png" for number in range(count)]
    for name in names[1:]:
        os.link(folder / names[0], folder / name)
    return names


def test_a_killed_decode_goes_on(folder: Path) -> None:
    names = large_images(folder, 4 * CHUNK)
    process = start(folder, SIDE)
    go(process)
    deadline = time.monotonic() + 60
    cache = cache_folder()
    assert cache is not None
    while not any(path.read_bytes().count(b"\n") > CHUNK for path in cache.glob("images/*/index.jsonl")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    before = index().read_bytes()
    done = before.count(b"\n") - 1
    assert CHUNK <= done < len(names)
    decoded = decode_folder(folder, names, SIDE)
    assert not decoded.bad
    assert decoded.rows.tolist() == list(range(len(names)))
    assert index().read_bytes().startswith(before[: before.rindex(b"\n") + 1])
    assert [line[0] for line in lines()] == names  # each once: none was decoded again
    expected = decode((folder / names[0]).read_bytes(), SIDE)
    assert (decoded.pixels == expected).all()


def test_two_runs_at_once_decode_once(folder: Path) -> None:
    names = large_images(folder, 2 * CHUNK)
    both = [start(folder, SIDE) for _ in range(2)]
    for process in both:
        go(process)
    for process in both:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert err == out == ""  # no terminal: nothing is shown
    assert [line[0] for line in lines()] == names
    assert index().with_name("pixels.u8").stat().st_size == len(names) * SIDE**2


def test_without_a_cache_into_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = fill(folder, 3)
    expected = np.array(decode_folder(folder, names, SIDE).pixels)
    blocked = folder.parent / "file"
    blocked.write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    (folder / "0001.png").unlink()
    decoded = decode_folder(folder, names, SIDE)
    assert not isinstance(decoded.pixels, np.memmap)
    assert decoded.rows.tolist() == [0, -1, 1]
    np.testing.assert_array_equal(decoded.pixels, expected[[0, 2]])
    (notice,) = decoded.notices
    assert "2 images" in notice
    assert "into memory (0.0 MB)" in notice
    assert str(blocked) in notice


def test_a_whole_store_that_cannot_be_written_is_read(folder: Path) -> None:
    names = fill(folder, 3)
    expected = np.array(decode_folder(folder, names, SIDE).pixels)
    lock = index().with_name("lock")
    lock.unlink(missing_ok=True)
    lock.mkdir()  # nobody can lock this, root included
    decoded = decode_folder(folder, names, SIDE)
    assert isinstance(decoded.pixels, np.memmap)
    assert not decoded.notices
    np.testing.assert_array_equal(decoded.pixels, expected)
    more = [*names, *fill(folder, 1, first=10)]
    decoded = decode_folder(folder, more, SIDE)
    assert not isinstance(decoded.pixels, np.memmap)
    assert decoded.rows.tolist() == [0, 1, 2, 3]
    assert len(decoded.notices) == 1


def test_a_full_disk_is_told_before_the_work(folder: Path) -> None:
    names = fill(folder, 2)
    with pytest.raises(OSError, match=r"needs \d+\.\d GB for decoded images, and .* are free; make room"):
        decode_folder(folder, names, 100_000_000)
