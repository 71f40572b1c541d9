from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from spectral_run.datasets.base import DataError
from spectral_run.datasets.chest_xray.label_files import parsed, read_columns, refuse_repeats


def test_columns_by_name_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a,b,c\n1,2,3\n\n4, 5 ,\n")
    assert read_columns(path, ["c", "b"]) == [["3", ""], ["2", "5"]]


@pytest.mark.parametrize(
    "text",
    [
        "a,b,w[x,y]\n1,2,3,4\n",  # a comma in an unquoted name
        'a,b,"w[x,y]"\n1,2,3,4\n',  # quoted in the header alone
        "a,b,w[x,y],\n1,2,3,4,\n",  # every line ends in a comma
        "a,b\n1,2,3,4\n",
        "\ufeffa,b\r\n1,2\r\n",
        'a,b\n"1",2\n',
    ],
)
def test_headers_that_are_off(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(text.encode())
    assert read_columns(path, ["a", "b"]) == [["1"], ["2"]]


def test_gzipped(tmp_path: Path) -> None:
    path = tmp_path / "x.csv.gz"
    path.write_bytes(gzip.compress(b"a\n1\n"))
    assert read_columns(path, ["a"]) == [["1"]]
    path.write_bytes(gzip.compress(b"a\n1\n")[:-3])
    with pytest.raises(DataError, match="truncated"):
        read_columns(path, ["a"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,c\n1,2\n", r"must have a column 'b', has 'a', 'c'\."),
        (b"b,a,b\n1,2,3\n", r"must have a column 'b'"),
        (b"a,b\n", r"has a header and no row\."),
        (b"a,b\n1,2\n3\n", r"row 2 has 1 columns, the header has 2\."),
        (b"\xff\xfe,b\n", r"no CSV table"),
        (b'a,b\n1,"2\n3,4\n', r"no CSV table \(unexpected end of data\)"),  # an open quote swallows all that follows
        (b"", r"truncated"),
    ],
)
def test_refusals_name_the_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"x\.csv: {message}"):
        read_columns(path, ["a", "b"])


def test_cells_that_do_not_parse(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    assert parsed(path, "n", ["1", "-2"], int, "an integer") == [1, -2]
    with pytest.raises(DataError, match=r"x\.csv: row 2, column 'n' must be an integer, got 'two'\."):
        parsed(path, "n", ["1", "two"], int, "an integer")


def test_repeats(tmp_path: Path) -> None:
    refuse_repeats(tmp_path, "n", ["a", "b"])
    with pytest.raises(DataError, match=r"rows 1 and 3 both have 'a' in column 'n'\."):
        refuse_repeats(tmp_path / "x.csv", "n", ["a", "b", "a"])
