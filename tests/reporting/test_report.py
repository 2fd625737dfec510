from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from headloc.lm.ledger import TokenLedger
from headloc.localizer.history import GateHistory
from headloc.localizer.run import Localization
from headloc.reporting.charts import training_panels
from headloc.reporting.outcomes import outcome_rows
from headloc.reporting.pictures import save_pictures
from headloc.reporting.report import write_report
from tests.reporting.made_up import HOSTILE, made_up_lm, made_up_result

_VOID = {"meta", "br", "hr", "img", "link", "input"}
CONFIG = f'seed: 7\nmodel:\n  path: "{HOSTILE}"\n'


class Page(HTMLParser):
    """Collects what the tests ask for, and checks that tags are balanced."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[tuple[str, str]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.text.append((self.open[-1], data))

    def all_text(self, tag: str) -> list[str]:
        return [text for name, text in self.text if name == tag]


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(made_up_result(), CONFIG, path, made_up_lm())
    return path.read_text(encoding="utf-8")


def test_it_is_balanced_and_needs_nothing_else(html: str) -> None:
    page = Page(html)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "embed"})
    for _, attributes in page.tags:
        assert not {"src", "href", "srcset", "xlink:href", "onclick", "onload"} & attributes.keys()
    assert not re.search(r"https?://|@import|url\(", html)
    assert "default-src 'none'" in html


def test_hostile_text_is_shown_and_not_run(html: str) -> None:
    assert "<script" not in html
    page = Page(html)
    shown = "".join(text for _, text in page.text)
    # In the prompt, the task, the model's name and the configuration.
    assert shown.count(HOSTILE) >= 5
    assert "\x1b" not in html
    assert "\\x1b[31m" in shown


def test_every_head_has_a_cell_that_tells_its_values(html: str) -> None:
    titles = [text for text in Page(html).all_text("title") if re.match(r"L\d+H\d+: ", text)]
    assert [title.split(":")[0] for title in titles] == [
        f"L{layer}H{head}" for layer in range(2) for head in range(4)
    ]
    assert titles[1] == "L0H1: gate 0.900, score 1.700, in the circuit, chosen by 2/2 replicates"
    assert "not in the circuit, chosen by 1/2" in titles[0]
    assert html.count('class="pick"') == 3 + 1


def test_it_tells_the_figures(html: str) -> None:
    text = " ".join(text.strip() for _, text in Page(html).text)
    for words in (
        "3 of 8 attention heads",
        "requested 4",
        "random, same layers",
        "n\xa0=\xa012",
        "Jaccard index 0.75 (smallest 0.50) with 2 replicates",
        "1007",
        "30 forward-equivalents",
        "task loss",
        "open heads",
        "seed: 7",
        "fingerprint",
        "transformers",
    ):
        assert words in text
    circuit = made_up_result().verdicts["held_out"].accuracy("circuit")
    assert str(circuit) in text


def test_right_and_wrong_are_told_in_words(html: str) -> None:
    marks = Page(html).all_text("span")
    assert any("right" in mark for mark in marks)
    assert any("wrong" in mark for mark in marks)


def test_pictures_have_text_alternatives(html: str) -> None:
    for tag, attributes in Page(html).tags:
        if tag == "svg":
            assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"


def test_curves_leave_out_what_was_not_measured() -> None:
    panels = {panel.title: panel for panel in training_panels(made_up_result())}
    accuracy = panels["accuracy, selection prompts"].curves[0]
    assert len(accuracy.points.split()) == 3
    assert len(panels["open heads"].curves) == 3


def test_the_same_result_gives_the_same_file(html: str, tmp_path: Path) -> None:
    write_report(made_up_result(), CONFIG, tmp_path / "again.html", made_up_lm())
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == html
    assert len(outcome_rows(made_up_result(), made_up_lm())) == 24


def test_the_least_that_a_run_can_find(tmp_path: Path) -> None:
    full = made_up_result()
    verdicts = {"seen": full.verdicts["seen"]}
    metrics = {**verdicts["seen"].to_metrics(), "heads/count": 0, "heads/total": 8}
    circuit = replace(full.circuit, heads=(), metrics=metrics, selection={})
    history = GateHistory()
    result = Localization(circuit, verdicts, history, TokenLedger(), metrics)
    write_report(result, "", tmp_path / "report.html", made_up_lm())
    save_pictures(result, tmp_path)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    Page(html)
    assert "No head was selected" in html
    assert 'scope="col">held-out tasks' not in html
    assert "Stability" not in html
