"""The two layouts CIFAR-10 comes in, read into bytes: ``images (rows, 3, 32, 32)`` uint8, ``labels (rows,)`` int64.

Python pickles (Krizhevsky 2009, what ``torchvision.datasets.CIFAR10`` opens) and Parquet shards (what Hugging Face
serves). Pickles can run code when they are loaded, so only what arrays of numbers need is let through.
"""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64, UInt8
from PIL import Image

from spectral_run.datasets.base import DataError
from spectral_run.datasets.cache import cached

CLASSES = 10
SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32
SHARD = re.compile(r"(?P<split>train|test)-(?P<number>\d{5})-of-(?P<count>\d{5})\.parquet")

_SAMPLE = np.zeros(1, np.uint8)
# What numpy's own pickles name, under the module names of numpy 1 and 2.
_RECONSTRUCT = _SAMPLE.__reduce__()[0]
_FROMBUFFER = _SAMPLE.__reduce_ex__(5)[0]


def _encode(text: str, encoding: str) -> bytes:
    """Bytes as protocol 2 writes them; ``codecs.encode`` itself would also decompress."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding} is not allowed")
    return text.encode("latin1")


ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy.core.numeric", "_frombuffer"): _FROMBUFFER,
    ("numpy._core.numeric", "_frombuffer"): _FROMBUFFER,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a batch of images") from None


# "_", not "rows": one signature may hold a training and a test set
Rows = tuple[UInt8[np.ndarray, "_ 3 32 32"], Int64[np.ndarray, " _"]]


def read_pickle(path: Path) -> Rows:
    """One batch file: a dictionary with ``data (rows, 3072)`` and ``labels``. ``DataError`` if it is anything else."""
    try:
        with path.open("rb") as file:
            batch = _ArrayUnpickler(file, encoding="latin1").load()
    except EOFError as error:
        raise DataError(f"{path}: truncated ({error}).") from error
    # damaged opcodes surface as whatever the virtual machine trips over
    except (pickle.UnpicklingError, ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        state = "truncated" if "truncated" in str(error) else "undecodable"
        raise DataError(f"{path}: {state} ({error}).") from error
    batch = {_text(key): value for key, value in batch.items()} if isinstance(batch, dict) else {}
    data, labels = batch.get("data"), batch.get("labels")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2:
        raise DataError(f"{path}: its 'data' must be a two-dimensional array of bytes.")
    if data.shape[1] != PIXELS:
        raise DataError(f"{path}: its 'data' must have {PIXELS} columns, got {data.shape[1]}.")
    return data.reshape(-1, *SHAPE), _labels(path, labels, len(data))


def _text(key: object) -> object:
    return key.decode("latin1") if isinstance(key, bytes) else key


def _labels(path: Path, labels: object, rows: int) -> Int64[np.ndarray, " rows"]:
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DataError(f"{path}: its labels must be a list of integers.")
    if len(labels) != rows:
        raise DataError(f"{path}: {len(labels)} labels for {rows} images.")
    for row, label in enumerate(labels, 1):
        if not 0 <= label < CLASSES:
            raise DataError(f"{path}: row {row}, column label must be in [0, {CLASSES - 1}], got {label}.")
    return np.array(labels, np.int64)


def find_shards(folder: Path, split: str) -> list[Path]:
    """The shards of one split in order, [] if there is none; ``FileNotFoundError`` naming one the series lacks."""
    found = [match for path in sorted(folder.glob("*.parquet")) if (match := SHARD.fullmatch(path.name))]
    counts = {match["count"] for match in found if match["split"] == split}
    if not counts:
        return []
    if len(counts) > 1:
        raise DataError(f"{folder}: {split} shards of several series: {', '.join(sorted(counts))} files.")
    count = counts.pop()
    paths = [folder / f"{split}-{number:05d}-of-{count}.parquet" for number in range(int(count))]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(
                f"no file {path.absolute()}, one of a series of {int(count)}; the others are there."
            )
    return paths


def read_parquet(path: Path, sha256: str) -> Rows:
    """One shard with the columns ``img`` {bytes, path} and ``label``, from the cache if it was decoded before."""
    # another version of Pillow may come with another JPEG decoder, whose pixels can differ by one
    arrays = cached(f"cifar10-{sha256}-pillow-{PIL.__version__}", lambda: _decode_shard(path))
    return arrays["images"], arrays["labels"]


def _decode_shard(path: Path) -> dict[str, np.ndarray]:
    try:
        table = pq.read_table(path)
        encoded = table["img"].combine_chunks().field("bytes").to_pylist()
        labels = table["label"].to_pylist()
    except KeyError as error:
        raise DataError(f"{path}: must have the columns img {{bytes, path}} and label ({error}).") from error
    except (pa.ArrowException, OSError, AttributeError) as error:
        raise DataError(f"{path}: truncated or undecodable ({error}).") from error
    images = np.empty((len(encoded), *SHAPE), np.uint8)
    # in turn: on images this small, threads wait for the interpreter's lock and took 1.6 times as long
    for row, content in enumerate(encoded):
        images[row] = _decode(path, row, content)
    return {"images": images, "labels": _labels(path, labels, len(images))}


def _decode(path: Path, row: int, content: bytes | None) -> UInt8[np.ndarray, "3 32 32"]:
    try:
        with Image.open(io.BytesIO(content or b"")) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: row {row + 1}, column img is undecodable ({error}).") from error
    if pixels.shape != (32, 32, 3):
        raise DataError(f"{path}: row {row + 1}, column img must be 32x32, got {pixels.shape[1]}x{pixels.shape[0]}.")
    return pixels.transpose(2, 0, 1)
