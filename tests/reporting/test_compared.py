"""Published beside measured in the report: every figure with its source, gaps marked as such."""

from __future__ import annotations

import re
from pathlib import Path

from headloc.heads import HeadId
from headloc.references import Comparison, Quantity, Reference, compare, load_reference
from headloc.reporting.report import write_report
from tests.reporting.made_up import HOSTILE, made_up_lm, made_up_result
from tests.reporting.test_report import Page

REFERENCE = load_reference("hu2025/llama3_8b_add_k")
METRICS = {
    "accuracy/full": 0.86, "accuracy/full/low": 0.83, "accuracy/full/high": 0.89,
    "accuracy/full/n": 512, "heads/count": 31, "refinement/heads/main": 3,
}  # fmt: skip
RANKING = [HeadId(15, 2), HeadId(0, 0), HeadId(13, 6), HeadId(1, 1)]


def report(found: Comparison | None, folder: Path) -> str:
    path = folder / "report.html"
    write_report(made_up_result(), "", path, made_up_lm(), comparison=found)
    return path.read_text(encoding="utf-8")


def table(html: str) -> dict[str, list[str]]:
    """The cells behind each quantity, tags left out."""
    body = html.split("Published beside measured</h2>")[1].split("</table>")[0]
    lines = re.findall(r'<th scope="row">(.*?)<small>.*?</th>(.*?)</tr>', body, flags=re.DOTALL)
    return {
        name: [
            " ".join(re.sub(r"<[^>]+>", " ", cell).split())
            for cell in re.findall(r"<td[^>]*>(.*?)</td>", cells, flags=re.DOTALL)
        ]
        for name, cells in lines
    }


def test_figures_stand_side_by_side_with_source_interval_and_n(tmp_path: Path) -> None:
    found = compare(
        REFERENCE, METRICS, model=REFERENCE.model, selected=RANKING[:1], ranking=RANKING
    )
    html = report(found, tmp_path)
    Page(html)
    rows = table(html)
    assert list(rows) == [quantity.name for quantity in REFERENCE.quantities]
    read = "results, read in the paper"
    assert rows["clean five-shot"] == [
        f"0.857 to 0.87 {read}", "0.860 [0.830, 0.890], n = 512", "within the measured interval"
    ]  # fmt: skip
    assert rows["selected heads"][1:] == ["31", "2 below the published figure"]
    assert rows["main heads"][1:] == ["3", "as published"]
    assert rows["main heads, others at mean"] == [
        f"0.7 {read}", "missing", "not measured by this run"
    ]  # fmt: skip
    assert "arXiv 2505.05145" in html
    heads = re.findall(
        r'<th scope="row">(L\d+H\d+)</th><td class="number">(.*?)</td><td>(\w+)</td>', html
    )
    assert heads[:3] == [
        ("L15H2", "1 of 4", "yes"),
        ("L15H1", "-", "no"),
        ("L13H6", "3 of 4", "no"),
    ]
    assert "1 of 3 are among the 1 selected of 4" in html
    assert html.index("Published beside measured") < html.index("Accuracy on fresh prompts")


def test_what_is_not_published_and_another_model_are_marked(tmp_path: Path) -> None:
    phi = load_reference("hu2025/phi4_add_k")
    rows = table(report(compare(phi, METRICS, model=phi.model), tmp_path))
    assert rows["clean five-shot"][0] == "missing"
    assert rows["clean five-shot"][2] == "no published figure"
    other = report(compare(REFERENCE, METRICS, model="mine"), tmp_path)
    assert table(other)["clean five-shot"][2] == "not compared: another model"
    assert table(other)["main heads, others at mean"][2] == "not measured by this run"
    assert "not comparable, the paper names those of" in other
    bundled = load_reference("hu2025/bundled_add_k")
    own = report(compare(bundled, METRICS, model=bundled.model), tmp_path)
    assert {cells[0] for cells in table(own).values()} == {"not applicable"}
    assert "Nothing is published for" in own


def test_a_reference_cannot_run_anything(tmp_path: Path) -> None:
    quantity = Quantity(HOSTILE, "accuracy/full", 0.1, 0.2, HOSTILE, "results", "digest")
    reference = Reference("a/b", HOSTILE, "1", HOSTILE, True, (quantity,), note=HOSTILE)
    html = report(compare(reference, METRICS, model="mine", changes=[HOSTILE]), tmp_path)
    Page(html)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 6
    assert "results, read in a secondary summary" in html


def test_without_a_reference_there_is_no_such_section(tmp_path: Path) -> None:
    assert "Published beside measured" not in report(None, tmp_path)
