from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from spectral_run.curvature.rows import Rows, pieces
from spectral_run.datasets.base import DataError, Split
from spectral_run.datasets.chest_xray.images import Decoding, Geometry, StoredImages, listed, load_images


def stored(rows: int = 6, geometry: Geometry | None = None, seed: int = 0) -> StoredImages:
    geometry = geometry or Geometry(12, 8)
    side = geometry.resize
    pixels = np.random.default_rng(seed).integers(0, 256, (rows, side, side), np.uint8)
    return StoredImages(pixels, np.arange(rows), geometry)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(20):
        pixels = np.random.default_rng(number).integers(0, 256, (30, 20), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return folder


NAMES = [f"{number:02d}.png" for number in range(20)]
SMALL = Geometry(12, 8)


@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (64, 64), (13, 8), (12, 7), (5, 1)])
def test_inputs_are_torchvisions(folder: Path, resize: int, crop: int) -> None:
    images = load_images(folder, NAMES[:3], Geometry(resize, crop), Decoding())
    assert images.inputs.shape == (3, 3, crop, crop)
    transform = v2.Compose(
        [
            v2.Grayscale(3),
            v2.Resize([resize, resize]),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    border = (resize - crop) // 2
    for row, name in enumerate(NAMES[:3]):
        with Image.open(folder / name) as image:
            whole = transform(image)
        expected = whole[:, border : border + crop, border : border + crop]
        torch.testing.assert_close(images.inputs[row : row + 1][0], expected, rtol=1e-6, atol=1e-6)


class TestRows:
    def test_is_rows(self) -> None:
        assert isinstance(stored(), Rows)
        assert len(Split(stored(), torch.zeros(6))) == 6

    @pytest.mark.parametrize("rows", [slice(None), slice(2, 4), slice(-3, None), slice(5, 0, -2), slice(3, 3)])
    def test_slices(self, rows: slice) -> None:
        images = stored()
        whole = images[torch.arange(6)]
        assert torch.equal(images[rows], whole[list(range(6))[rows]])
        assert images[rows].is_contiguous()

    def test_numbers_in_any_order_and_twice(self) -> None:
        images = stored()
        numbers = torch.tensor([4, 0, 4, -1])
        assert torch.equal(images[numbers], images[:][numbers])
        with pytest.raises(IndexError):
            images[torch.tensor([6])]

    def test_pieces_are_the_whole(self) -> None:
        images = stored(7)
        assert torch.equal(torch.cat(list(pieces(images, 3))), images[:])
        assert torch.equal(Split(images, torch.zeros(7)).tensor, images[:])

    def test_rows_may_lie_anywhere_in_the_store(self) -> None:
        images = stored(10)
        some = StoredImages(images.pixels, np.array([7, 2, 9]), images.geometry)
        assert torch.equal(some[:], images[torch.tensor([7, 2, 9])])
        assert torch.equal(some.select(np.array([2, 0]))[:], images[torch.tensor([9, 7])])
        assert some.select(np.array([2, 0])).pixels is images.pixels

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
    def test_to(self, dtype: torch.dtype) -> None:
        images = stored()
        other = images.to(torch.device("cpu"), dtype)
        assert (images.dtype, other.dtype, other[:].dtype) == (torch.float32, dtype, dtype)
        assert other.pixels is images.pixels
        torch.testing.assert_close(
            other[:].double(), images[:].double(), rtol=0, atol=1e-2 if dtype.itemsize == 2 else 1e-6
        )

    def test_on_another_device(self) -> None:
        images = stored().to(torch.device("meta"), torch.float32)
        assert images.device.type == images[1:3].device.type == "meta"
        assert images[1:3].shape == (2, 3, 8, 8)

    def test_integers_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"StoredImages: dtype must be a floating-point one, got torch\.uint8"):
            stored().to(torch.device("cpu"), torch.uint8)


def resident() -> int:
    """Bytes of this process's own memory: pages of a mapped file, which the system can take back, do not count."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise AssertionError


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
def test_the_whole_data_set_takes_no_memory(tmp_path: Path) -> None:
    rows, geometry = 112_120, Geometry()
    path = tmp_path / "pixels.u8"
    path.touch()
    os.truncate(path, rows * geometry.resize**2)  # 7.3 GB, all holes
    pixels = np.memmap(path, np.uint8, "r", shape=(rows, geometry.resize, geometry.resize))
    images = StoredImages(pixels, np.arange(rows), geometry)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    images[order[:16]]
    before = resident()
    for start in range(0, 640, 16):
        batch = images[order[start : start + 16]]
    assert batch.shape == (16, 3, 224, 224)
    assert resident() - before < 1e8  # the 40 batches are 385 MB, the whole is 7.3 GB
    assert images.to(torch.device("cpu"), torch.float64).pixels is pixels


class TestBadImages:
    def test_left_out_named_and_counted(self, folder: Path) -> None:
        (folder / "03.png").unlink()
        (folder / "05.png").write_bytes(b"")
        images = load_images(folder, NAMES, SMALL, Decoding(bad_images_limit=0.1))
        assert images.kept.tolist() == [row for row in range(20) if row not in (3, 5)]
        assert images.inputs.shape == (18, 3, 8, 8)
        assert images.left_out == {"missing images": 1, "undecodable images": 1}
        (notice,) = images.notices
        expected = "of 20 images 1 missing (03.png), 1 undecodable (05.png: no byte in it); left out"
        assert notice == f"{folder}: {expected}"

    def test_above_the_limit_is_an_error(self, folder: Path) -> None:
        (folder / "03.png").unlink()
        (folder / "05.png").write_bytes(b"")
        with pytest.raises(DataError, match=r"03\.png.*05\.png.*bad_images_limit=0.09 allows 1\. Bring them back"):
            load_images(folder, NAMES, SMALL, Decoding(bad_images_limit=0.09))

    def test_ten_are_named(self, folder: Path) -> None:
        for name in NAMES[:12]:
            (folder / name).unlink()
        images = load_images(folder, NAMES, SMALL, Decoding(bad_images_limit=0.6))
        assert "12 missing (00.png, 01.png, " in images.notices[0]
        assert "09.png and 2 more" in images.notices[0]
        assert "10.png" not in images.notices[0]

    def test_none_left_is_an_error_at_any_limit(self, folder: Path) -> None:
        with pytest.raises(DataError, match=r"of 2 images 2 missing \(a\.png, b\.png\)"):
            load_images(folder, ["a.png", "b.png"], SMALL, Decoding(bad_images_limit=1.0))


class TestHash:
    def expected(self, folder: Path, names: list[str]) -> str:
        hashes = sorted(hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names)
        return hashlib.sha256("".join(f"{value}\n" for value in hashes).encode()).hexdigest()

    def test_of_the_sorted_hashes(self, folder: Path) -> None:
        files = load_images(folder, NAMES, SMALL, Decoding()).files
        assert files == {"images (20 files)": self.expected(folder, NAMES)}
        assert load_images(folder, NAMES[::-1], Geometry(20, 20), Decoding()).files == files

    def test_of_those_used(self, folder: Path) -> None:
        (folder / "03.png").write_bytes(b"")
        kept = [name for name in NAMES if name != "03.png"]
        files = load_images(folder, NAMES, SMALL, Decoding(bad_images_limit=0.1)).files
        assert files == {"images (19 files)": self.expected(folder, kept)}

    def test_follows_a_changed_file(self, folder: Path) -> None:
        before = load_images(folder, NAMES, SMALL, Decoding()).files
        Image.new("L", (9, 9), 7).save(folder / "00.png")
        after = load_images(folder, NAMES, SMALL, Decoding()).files
        assert after.keys() == before.keys()
        assert after != before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resize": 0}, r"Geometry: resize must be an integer >= 1, got 0\."),
        ({"crop": 0}, r"Geometry: crop must be an integer >= 1, got 0\."),
        ({"resize": 100}, r"Geometry: crop must be at most resize \(100\), got 224\."),
    ],
)
def test_geometry_refuses(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Geometry(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 0}, r"Decoding: workers must be null or an integer >= 1, got 0\."),
        ({"bad_images_limit": 1.1}, r"Decoding: bad_images_limit must be in \[0, 1\], got 1\.1\."),
        ({"bad_images_limit": float("nan")}, r"Decoding: bad_images_limit must be in \[0, 1\], got nan\."),
    ],
)
def test_decoding_refuses(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Decoding(**settings)  # type: ignore[arg-type]


def test_listed() -> None:
    assert listed(["a"]) == "a"
    assert listed([str(number) for number in range(10)]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert listed([str(number) for number in range(11)]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 1 more"
