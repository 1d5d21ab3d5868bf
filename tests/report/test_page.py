"""The page holds everything, refers to nothing outside, and takes no model output for markup."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser

import pytest

from report.record_factory import ENTRANTS, make_fault, make_record, make_tree
from slipstream.errors import InputError
from slipstream.records.record import parse_record
from slipstream.report.charts import charts
from slipstream.report.files import write_report
from slipstream.report.style import drawing
from slipstream.report.svg import inline, svg_text

VOID = {"meta", "link", "br", "hr", "img", "input", "path", "use", "rect"}
HOSTILE = '<script>alert("1")</script> & $x^2$ \x07'


class Outline(HTMLParser):
    """Elements with their attributes, and whether every one is closed where it was opened."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    pytest.importorskip("matplotlib", reason="figures need matplotlib: pip install 'slipstream-llm[plots]'")
    folder = tmp_path_factory.mktemp("report")
    tree = {**make_tree("eagle2", 0.0, first=HOSTILE), "prefix": HOSTILE}
    faults = [make_fault(), make_fault("eagle2-60", "fault")]
    entrants = [*ENTRANTS[:3], ENTRANTS[5]]
    record = parse_record(make_record(entrants=entrants, tasks=["gsm8k"], trees=[tree], faults=faults))
    return record, write_report(record, folder / "out" / "report.html", folder / "figures")


@pytest.fixture(scope="module")
def outline(written):
    return Outline(written[1].page.read_text(encoding="utf-8"))


def test_every_figure_is_on_the_page_and_in_files(written, outline):
    record, files = written
    names = [chart.name for chart in charts(record)]
    assert names == [
        *("speed-t0", "tau-t0", "speed-t1", "tau-t1"),
        *("accept-lengths-t0", "accept-lengths-t1", "time-split", "verify-cost"),
        *("calibration-t0", "calibration-t1", "positions-t0", "positions-t1", "depth", "tree-eagle2"),
    ]
    assert [one["id"] for one in outline.all("figure")] == [f"figure-{name}" for name in names]
    assert len(outline.all("svg")) == len(names)
    assert all(one["aria-label"] for one in outline.all("svg"))
    assert [path.name for path in files.figures] == [f"{name}.{kind}" for name in names for kind in ("svg", "png")]
    assert all(path.stat().st_size > 2000 for path in files.figures)


def test_figures_stand_before_tables_and_the_best_method_first(written):
    page = written[1].page.read_text(encoding="utf-8")
    assert (
        page.index('class="best">best here: eagle2') < page.index('id="figure-speed-t0"') < page.index('id="tables-1"')
    )
    assert page.rindex("<figure ") < page.index('id="tables-1"')


def test_terms_are_explained_where_they_stand(written):
    page = written[1].page.read_text(encoding="utf-8")
    caption = page[page.index('id="figure-positions-t0"') :].partition("</figcaption>")[0]
    assert "P1 to P6 are places in a draft tree" in caption
    assert "Acceptance: of the cycles" in caption
    drawn = page[page.index('id="figure-positions-t0"') :].partition("</figure>")[0]
    assert drawn.index("places in the tree") < drawn.index("surest third of cycles")
    table = page[page.index("Identity, repetition and memory") :].partition("</p>")[0]
    assert "rounding: identical in float64" in table


def test_the_page_refers_to_nothing_outside_but_citations(outline):
    for tag, attributes in outline.found:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith("#") or (tag == "a" and name == "href"), (tag, value)
    assert not outline.all("link")


def test_style_and_figures_load_nothing(written):
    page = written[1].page.read_text(encoding="utf-8")
    assert not re.search(r"url\((?!#)|@import|@font-face", page)


def test_ids_are_unique_and_every_reference_has_one(outline, written):
    ids = [attributes["id"] for _, attributes in outline.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    page = written[1].page.read_text(encoding="utf-8")
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', page))
    assert used <= set(ids)


def test_model_output_is_text_and_not_markup(written, outline):
    page = written[1].page.read_text(encoding="utf-8")
    assert len(outline.all("script")) == 1  # the page's own
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt; &amp; $x^2$" in page
    assert "&lt;scrip" in page  # in the node


def test_tables_have_headers_and_all_answers_that_differ_are_listed(outline, written):
    assert all(one.get("scope") in ("col", "row", "colgroup") for one in outline.all("th"))
    page = written[1].page.read_text(encoding="utf-8")
    listed = page[page.index('id="differences"') :]
    row = r'<th scope="row">([^<]+)</th><td>1</td><td>GSM8K</td><td>7</td><td>2</td><td>1</td>'
    assert re.findall(row, listed) == ["eagle2", "eagle2-60"]
    assert "<td>rounding</td>" in listed
    assert "<td>fault</td>" in listed


def test_the_same_record_gives_the_same_figure(written):
    record, files = written
    chart = next(chart for chart in charts(record) if chart.name == "calibration-t0")
    with drawing(chart.name):
        again = svg_text(chart.draw())
    assert again == next(path for path in files.figures if path.name == "calibration-t0.svg").read_text(
        encoding="utf-8"
    )


def test_a_run_that_has_hardly_begun_gives_a_page(tmp_path):
    data = make_record(
        rows=[], verify_cost=[], calibration=[], positions=[], depths=[], trees=[], complete=False, num_prompts_done=0
    )
    page = write_report(parse_record(data), tmp_path / "r.html").page.read_text(encoding="utf-8")
    assert "The run is not complete" in page
    assert "<figure" not in page
    Outline(page)


def test_ids_of_a_figure_get_its_name_in_front():
    document = (
        '<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><metadata>x</metadata>'
        '<g id="unused"/><path id="m1"/><clipPath id="c"/><use xlink:href="#m1"/><g clip-path="url(#c)"/></svg>'
    )
    found = inline(document, "tau", 'a "quoted" label')
    assert found == (
        '<svg role="img" aria-label="a &quot;quoted&quot; label"><g/><path id="tau-m1"/><clipPath id="tau-c"/>'
        '<use xlink:href="#tau-m1"/><g clip-path="url(#tau-c)"/></svg>'
    )


def test_without_matplotlib_the_error_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install matplotlib"):
        write_report(parse_record(make_record()), tmp_path / "report.html")


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    data = make_record(rows=[], verify_cost=[], calibration=[], positions=[], depths=[], trees=[])
    with pytest.raises(InputError, match="cannot write"):
        write_report(parse_record(data), tmp_path / "file" / "report.html")
