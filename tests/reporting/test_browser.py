"""Every kind of report in a real browser: offline, without complaints, at laptop and phone width.

What is asked of a page is asked of its DOM once it is laid out, with everything folded open.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from headloc.cli import main
from tests.commands.runs import SMALL, quick
from tests.reporting.browser import Page, browser_page, find_browser

BROWSER = find_browser()
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed here")

LAPTOP, PHONE = 1280, 390
FEW_HEADS = ("sparsity=target", "sparsity.heads=6")
FEW_PROMPTS = tuple(
    f"data.{name}_prompts=16"
    for name in ("search", "selection", "test", "held_out", "truth", "finalist")
)
RUNS: dict[str, tuple[str, ...]] = {
    "localize": (*quick(Path("localize"), *FEW_HEADS),),
    "path": (*quick(Path("path"), "sparsity=path", "sparsity.weights=[0.02,0.2]",
                    "sparsity.seeds=2"),),
    "reproduce": (
        "reproduce", "hu2025/bundled_add_k", "debug=fast", "logger=none", *SMALL,
        "objective.prompts_per_task=4", "selection=top_n", "selection.heads=3",
        "refine.doses=2", "refine.scan_prompts=16", "refine.prompts=16", "refine.aie_prompts=1",
        "refine.size_prompts=32", "refine.mean_prompts=24", "refine.random_sets=2",
        "output_dir=reproduce",
    ),
    "compare": (
        "compare", "only=[gate_gradient,leave_one_out,random]", "off_values=[mean]", *FEW_PROMPTS,
        "data.seeds=1", "data.finalists=2", "data.beam=1", "data.mean_prompts=24",
        "output_dir=compare",
    ),
    "subspaces": (
        "analyze", "analysis=subspaces", "circuit=localize/circuit", "analysis.prompts=16",
        "analysis.random_sets=1", "mean_prompts=8", "logger=none", "output_dir=subspaces",
    ),
    "attribution": (
        "analyze", "analysis=attribution", "analysis.prompts=8", "analysis.comparison=8",
        "analysis.random_sets=1", "logger=none", "output_dir=attribution",
    ),
}  # fmt: skip
KINDS = {name: Path(name) / "report.html" for name in RUNS} | {
    "refine": Path("reproduce") / "refinement" / "report.html"
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a report of every kind, of runs of seconds on the bundled model."""
    folder = tmp_path_factory.mktemp("reports")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["headloc"])
        patch.setenv("HYDRA_FULL_ERROR", "1")
        for arguments in RUNS.values():
            assert main(list(arguments)) == 0
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    assert BROWSER is not None
    with browser_page(BROWSER, tmp_path_factory.mktemp("profile")) as tab:
        yield tab


OPEN_ALL = "document.querySelectorAll('details').forEach(d => d.open = true)"
OVERFLOW = """
(() => {
  const width = innerWidth;
  const out = [...document.querySelectorAll('body *')].filter(e =>
    !e.closest('.scroll') && !e.closest('pre') && e.getBoundingClientRect().right > width + 1);
  return [document.documentElement.scrollWidth, width,
          out.slice(0, 3).map(e => e.outerHTML.slice(0, 80))];
})()
"""
UNNAMED = """
[...document.querySelectorAll('img, svg')].filter(e => {
  if (e.closest('[aria-hidden=true]')) return false;
  if (e.tagName === 'IMG') return !(e.getAttribute('alt') || '').trim();
  return !(['img', 'group'].includes(e.getAttribute('role'))
           && (e.getAttribute('aria-label') || '').trim());
}).map(e => e.outerHTML.slice(0, 120))
"""
HEADINGS = """
[...document.querySelectorAll('h1, h2, h3, h4, h5, h6')].map(e => +e.tagName[1])
"""
UNSCOPED = """
[...document.querySelectorAll('th')].filter(e => !e.scope).map(e => e.outerHTML)
"""
HEADLESS_TABLES = """
[...document.querySelectorAll('table')].filter(t =>
  !t.querySelector('th')).map(t => t.outerHTML.slice(0, 120))
"""
UNREACHABLE = """
[...document.querySelectorAll('.scroll, pre')].filter(e =>
  e.scrollWidth > e.clientWidth + 1 && e.tabIndex !== 0).map(e => e.outerHTML.slice(0, 80))
"""
REMOTE = """
[...document.querySelectorAll('*')].flatMap(e => ['src', 'srcset', 'href', 'xlink:href', 'action',
  'data', 'poster', 'formaction'].map(name => e.getAttribute(name))).filter(
  value => value && !value.startsWith('#'))
"""
BASICS = """
({lang: document.documentElement.lang, title: document.title,
  viewport: document.querySelector('meta[name=viewport]')?.content,
  scripts: document.scripts.length, main: document.querySelectorAll('main').length,
  ids: [...document.querySelectorAll('section[id]')].length
       === new Set([...document.querySelectorAll('section[id]')].map(e => e.id)).size,
  regions: [...document.querySelectorAll('[role=region]')].every(
    e => e.getAttribute('aria-label'))})
"""
# WCAG 2.1: 4.5 for text; 3 where it is large (24 px, or 18.66 px and bold).
FAINT = """
(() => {
  const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(
    v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4).reduce(
    (sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] === 1) return c;
      if (c[3] > 0) return null;
    }
    return [255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const faint = new Set();
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !e.getClientRects().length) continue;
    if (['STYLE', 'TITLE', 'title', 'desc'].includes(e.tagName)) continue;
    const style = getComputedStyle(e), svg = e.closest('svg');
    const ink = parse(svg ? style.fill : style.color), paper = behind(svg || e);
    if (!paper || ink.length < 3) { faint.add('unknown: ' + e.outerHTML.slice(0, 80)); continue; }
    const [a, b] = [light(ink), light(paper)].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if ((a + 0.05) / (b + 0.05) < (large ? 3 : 4.5)) faint.add(e.outerHTML.slice(0, 80));
  }
  return [...faint];
})()
"""
SMALLEST_TEXT = """
Math.min(...[...document.querySelectorAll('main svg text')].filter(
  e => e.getClientRects().length).map(e => e.getBoundingClientRect().height))
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_report_opens_offline_without_complaints(kind: str, reports: Path, page: Page) -> None:
    for width in (LAPTOP, PHONE):
        for dark in (False, True):
            page.open(reports / KINDS[kind], width=width, dark=dark)
            page.evaluate(OPEN_ALL)
            assert page.complaints == []
            assert all(url.startswith(("file:", "data:")) for url in page.requests)
            assert page.evaluate(REMOTE) == []


@pytest.mark.parametrize("width", [LAPTOP, PHONE])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_has_to_be_scrolled_sideways_but_tables_and_pictures(
    kind: str, width: int, reports: Path, page: Page
) -> None:
    page.open(reports / KINDS[kind], width=width)
    page.evaluate(OPEN_ALL)
    page_width, window, beyond = page.evaluate(OVERFLOW)
    assert page_width <= window == width
    assert beyond == []
    assert page.evaluate(UNREACHABLE) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_report_can_be_read_without_seeing_it(kind: str, reports: Path, page: Page) -> None:
    page.open(reports / KINDS[kind], width=LAPTOP)
    page.evaluate(OPEN_ALL)
    assert page.evaluate(UNNAMED) == []
    assert page.evaluate(UNSCOPED) == []
    assert page.evaluate(HEADLESS_TABLES) == []
    levels = page.evaluate(HEADINGS)
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    basics: dict[str, Any] = page.evaluate(BASICS)
    assert basics.pop("title").strip()
    assert basics == {
        "lang": "en",
        "viewport": "width=device-width, initial-scale=1",
        "scripts": 0,
        "main": 1,
        "ids": True,
        "regions": True,
    }


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("kind", KINDS)
def test_text_stands_out_in_light_and_dark(
    kind: str, dark: bool, reports: Path, page: Page
) -> None:
    page.open(reports / KINDS[kind], width=PHONE, dark=dark)
    page.evaluate(OPEN_ALL)
    assert page.evaluate(FAINT) == []


@pytest.mark.parametrize("kind", ["localize", "path", "refine"])
def test_charts_stay_legible_on_a_phone(kind: str, reports: Path, page: Page) -> None:
    page.open(reports / KINDS[kind], width=PHONE)
    assert page.evaluate(SMALLEST_TEXT) >= 10


def test_the_checks_notice_what_they_look_for(tmp_path: Path, page: Page) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<html><body><h1>a</h1><h3>b</h3><svg></svg><img src='https://example.org/x.png'>"
        "<table><tr><th>c</th></tr></table><p style='width:2000px;color:#999'>wide</p>"
        "<script>console.error('no')</script></body></html>",
        encoding="utf-8",
    )
    page.open(bad, width=LAPTOP)
    assert page.complaints
    assert "https://example.org/x.png" in page.requests
    assert page.evaluate(REMOTE) == ["https://example.org/x.png"]
    page_width, window, beyond = page.evaluate(OVERFLOW)
    assert page_width > window
    assert len(beyond) == 1
    assert len(page.evaluate(UNNAMED)) == 2
    assert len(page.evaluate(UNSCOPED)) == 1
    assert page.evaluate(HEADINGS) == [1, 3]
    assert len(page.evaluate(FAINT)) == 1
