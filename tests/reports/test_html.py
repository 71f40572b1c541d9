"""The page: whole, closed, escaped, with everything embedded and every cell's configuration."""

import base64
import struct
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from spectral_run.reports.document import Document, FigureOut, TableOut, write
from spectral_run.reports.html import page
from spectral_run.reports.sweeps import Cell, Sweep

VOID = {"meta", "link", "img", "br", "hr"}


class Reader(HTMLParser):
    """Elements with their attributes and text; raises where one is closed that is not open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.found, self.text = [], [], {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and data.strip():
            self.text.setdefault(self.open[-1], []).append(data.strip())

    def all(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture
def document(make) -> Document:
    shown = pd.DataFrame({"model": ["<none>", "K & FAC"], "rho": ["1.50", "0.30"]})
    table = TableOut("scores", 'Models "<b>"', pd.DataFrame({"rho": [1.5, 0.3]}), shown, frozenset({(1, 1)}))
    figure = Figure(figsize=(2, 1.5))
    figure.subplots().plot([0, 1], [1, 0])
    done = make.result(config={"optimizer": {"lr": 0.001, "betas": [0.9, 0.999]}, "device": "auto"}, run_id="abababab")
    other = done | {"config": {"optimizer": {"lr": 0.1, "betas": [0.9, 0.999]}, "device": "auto"}}
    done["data"]["files"] = {"a.gz": "ef" * 32}
    done["train"]["seconds_by_phase"] = {"eigensolver": 0.75}
    failed = make.failed() | {"config": done["config"], "traceback": "Traceback <here>"}
    cells = (
        Cell({"method": "none"}, "done", "/home/x/results/n/digits/none", done),
        Cell({"method": "fast"}, "done", "/home/x/results/n/digits/fast", other),
        Cell({"method": "kfac"}, "failed", None, failed),
    )
    sweep = Sweep("table2", "smoke", Path("/home/x/results/n/sweeps/1"), cells)
    return Document(
        "all", "Scores <1>", ("Run `a & b`.",), (table, FigureOut("f", "Falls.", figure, 'A "line"')), (sweep,)
    )


@pytest.fixture
def text(document: Document, tmp_path: Path) -> str:
    write(document, tmp_path)
    return (tmp_path / "all.html").read_text()


def test_every_element_is_closed_and_ids_are_unique(text):
    reader = Reader(text)
    ids = [attributes["id"] for _, attributes in reader.found if "id" in attributes]
    assert ids == ["table-scores", "figure-f"]
    assert text.startswith("<!DOCTYPE html>")
    assert not reader.all("script")


def test_nothing_is_named_that_would_be_fetched(text):
    places = [a[k] for _, a in Reader(text).found for k in ("src", "href", "srcset", "action", "data") if k in a]
    assert len(places) == 4  # icon, CSV, LaTeX, picture
    assert all(place.startswith("data:") for place in places)
    assert "url(" not in text
    assert "@import" not in text


def test_a_picture_is_the_file_beside_the_page_at_its_size_in_inches(text, tmp_path):
    (image,) = Reader(text).all("img")
    assert base64.b64decode(image["src"].partition(",")[2]) == (tmp_path / "f.png").read_bytes()
    assert image["alt"] == 'A "line"'
    assert struct.unpack(">II", (tmp_path / "f.png").read_bytes()[16:24]) == (200, 150)  # matplotlib's own 100 a inch
    assert (image["width"], image["height"]) == ("96", "72")


def test_the_tables_files_are_the_links(text, tmp_path):
    links = {a["download"]: base64.b64decode(a["href"].partition(",")[2]) for a in Reader(text).all("a")}
    assert links == {name: (tmp_path / name).read_bytes() for name in ("scores.csv", "scores.tex")}


def test_texts_are_escaped_and_bold_cells_bold(text):
    reader = Reader(text)
    assert reader.text["h1"] == ["Scores <1>"]
    assert "a & b" in reader.text["code"]
    assert reader.text["th"][2:4] == ["<none>", "K & FAC"]
    assert "0.30" in reader.text["b"]
    assert "1.50" in reader.text["td"]


def test_gaps_stand_above_the_tables(text):
    assert text.index("Not in the numbers of table2, 1 of 3 cells: method=kfac") < text.index("<table")


def test_every_cell_has_its_configuration_hashes_and_times(text):
    reader = Reader(text)
    pre = "".join(reader.text["pre"])
    assert "optimizer.betas=[0.9, 0.999]" in pre
    assert "device=auto" in pre
    assert "Traceback <here>" in pre
    rates = [f"optimizer.lr={rate}" for rate in (0.001, 0.1, 0.001)]  # where the cells differ
    assert [bold for bold in reader.text["b"] if "=" in bold] == rates
    facts = set(zip(reader.text["th"][4:], reader.text["td"][1:], strict=False))
    assert facts >= {("folder", "n/digits/none"), ("sha256 of a.gz", "ef" * 32), ("phase: eigensolver", "0.75 s")}
    assert "/home/x" not in text
    assert "method=kfac" in reader.text["code"]


def test_a_picture_that_is_missing_is_an_error(document):
    with pytest.raises(KeyError, match="f"):
        page(document, {})
