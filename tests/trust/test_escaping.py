"""What came from data, files and tokenizers stays text: in pages, pictures, cards, on terminals."""

from __future__ import annotations

import ast
import json
import re
import shutil
import unicodedata
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from headloc.analysis.report import _environment as analysis_environment
from headloc.bundled import model_dir
from headloc.circuit import Circuit
from headloc.circuit.card import circuit_card
from headloc.reporting.console import Console
from headloc.reporting.inline import inline_svg
from headloc.reporting.page import environment_of
from headloc.reporting.pictures import STYLE, rendered
from tests.circuit.made import tiny_circuit
from tests.commands.runs import Headloc
from tests.tiny import tiny_lm

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = (
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "a | b",
    "`tick` ```",
    "line\nbreak\r\n# heading",
    "\x1b[31mred\x1b[0m\x07",
    "[bold red]markup[/bold red] [/]",
    "\u202eright to left\u2066",
    "---\nlicense: evil\n---",
    "{{ 7 * 7 }} {% raw %}",
    "[x](javascript:alert(1)) ![x](http://x.example/y.png)",
    "--> ]]> <!-- $x^2$ \\frac{1}{",
    "&lt;b&gt; &amp;",
    "nul\0 sep\u2028 zero\u200bwidth",
)
UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def unseen(text: str, keep: str = "\n") -> set[str]:
    """Characters that move a cursor, reorder a line or are not seen."""
    return {c for c in text if unicodedata.category(c) in UNSEEN and c not in keep}


class Tags(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def check_page(html: str) -> Tags:
    """Fail where a page holds anything that runs, loads, or is not seen."""
    page = Tags(html)
    names = {tag for tag, _ in page.tags}
    assert names.isdisjoint({"script", "img", "iframe", "object", "embed", "link", "base", "form"})
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("href", "xlink:href", "src"):
            assert (attributes.get(name) or "#").startswith("#"), tag
    assert not unseen(html)
    return page


@pytest.mark.parametrize("environment", ["reporting", "analysis"])
def test_every_value_in_a_page_is_escaped_whatever_the_template_says(environment: str) -> None:
    from jinja2 import DictLoader

    loader = DictLoader({"x": '<p title="{{ value }}">{{ value }}</p>{{ value | upper }}'})
    engine = environment_of(loader) if environment == "reporting" else analysis_environment()
    engine.loader = loader
    for value in HOSTILE:
        page = check_page(engine.get_template("x").render(value=value))
        assert [tag for tag, _ in page.tags] == ["p"]
        assert re.sub(r"\s", "", page.text).startswith(
            re.sub(r"\s", "", "".join(c if c not in unseen(c) else "" for c in value))[:5]
        ) or unseen(value)


def test_no_template_and_no_code_gives_text_out_as_markup() -> None:
    for path in [*ROOT.glob("headloc/**/*.j2"), *ROOT.glob("analysis/*.j2")]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\|\s*safe\b|autoescape\s+false", text), path
    makers = {
        path.relative_to(ROOT).as_posix()
        for folder in ("headloc", "analysis")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("Markup", "wandb.Html"))
    }
    assert makers == {"headloc/reporting/inline.py"}


@pytest.mark.parametrize("text", HOSTILE)
def test_a_picture_with_any_text_is_well_formed_and_inert(text: str) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE), warnings.catch_warnings():
        # The font has no picture of some characters.
        warnings.simplefilter("ignore", UserWarning)
        figure = Figure()
        axes = figure.subplots()
        axes.plot([0, 1], label=text)
        axes.set_title(text)
        axes.set_xticks([0], [text])
        axes.legend()
        drawn = rendered(figure, "svg").decode()
    tree = ET.fromstring(drawn)
    assert not [e for e in tree.iter() if str(e.tag).endswith(("script", "foreignObject"))]
    assert not unseen(drawn)
    page = check_page(str(inline_svg(drawn, text)))
    assert page.tags[0][0] == "svg"
    assert page.tags[0][1]["role"] == "img"


def circuits_called(*texts: str) -> Iterator[tuple[str, Circuit]]:
    """Circuits with one text after the other in every place of a card that a file can set."""
    made = tiny_circuit(tiny_lm("llama"))
    for text in texts:
        model = {**made.model, "name": text, "model_type": text, "revision": text}
        objective = {**made.objective, "off_value": text, "positions": text}
        yield text, replace(made, model=model, objective=objective, task={"family": text})
        imported = {"rule": "imported", "file": text, "format": text}
        yield text, replace(made, model=model, selection=imported)
        vector = {"name": "function_vector", "layer": text, "site": text, "off_value": text}
        yield text, replace(made, model=model, objective=vector, task={"family": text})


def outline(card: str) -> tuple[list[str], list[Token]]:
    """The blocks of a card behind its front matter, and everything in them."""
    body = card.split("---\n", 2)[2]
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    flat = [t for token in tokens for t in (token, *(token.children or ()))]
    return [f"{token.type} {token.tag}" for token in tokens], flat


def test_a_card_keeps_its_shape_whatever_a_circuit_is_called() -> None:
    plain = [outline(circuit_card(circuit))[0] for _, circuit in circuits_called("name")]
    for number, (text, circuit) in enumerate(circuits_called(*HOSTILE)):
        for repo in (None, "owner/name"):
            card = circuit_card(circuit, repo)
            assert not unseen(card), text
            front = yaml.safe_load(card.split("---\n")[1])
            assert set(front) <= {"library_name", "tags", "base_model"}
            assert front["library_name"] == "headloc"
            blocks, everything = outline(card)
            assert blocks == plain[number % 3], text
            kinds = {token.type for token in everything}
            assert kinds.isdisjoint({"html_block", "html_inline", "image", "link_open"}), text


def test_the_python_of_a_card_is_one_string_for_a_name(tmp_path: Path) -> None:
    for _, circuit in circuits_called(*HOSTILE):
        for token in outline(circuit_card(circuit))[1]:
            if token.type == "fence" and token.info == "python":
                ast.parse(token.content)


def test_a_terminal_shows_a_circuit_without_obeying_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    for text, circuit in circuits_called(*HOSTILE):
        Console().circuit(circuit)
        out = capsys.readouterr().out
        # Colours of headloc's own tables are all that is left.
        assert not unseen(re.sub(r"\x1b\[[0-9;]*m", "", out)), text
        assert "\x1b[31mred" not in out
        if text.startswith("[bold"):
            assert text in out


def test_a_mistake_is_told_without_obeying_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from headloc.cli import main

    for text in HOSTILE:
        file = tmp_path / "heads.json"
        file.write_text(json.dumps({text: [[0, 0]], "other": [[0, 1]]}), encoding="utf-8")
        for arguments in (
            ["circuit", "import", str(file), "format=heads", "model=bundled", "output=x"],
            ["circuit", "show", str(tmp_path / text.replace("\0", "").replace("/", ""))],
            [text],
            ["guide", text],
        ):
            assert main(arguments) == 2
            assert not unseen(capsys.readouterr().err), text


@pytest.fixture(scope="module")
def renamed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model with a tokenizer whose numbers are called something else."""
    folder = tmp_path_factory.mktemp("models") / "renamed"
    shutil.copytree(model_dir(), folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary: dict[str, int] = content["model"]["vocab"]
    content["model"]["vocab"] = {
        f"{HOSTILE[index % len(HOSTILE)]}{token}" if token.isdecimal() else token: index
        for token, index in vocabulary.items()
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_readings_of_a_hostile_vocabulary_are_shown_and_harmless(
    renamed: Path,
    headloc: Headloc,
    tmp_path: Path,
) -> None:
    result = headloc(
        "analyze", "analysis=attribution", "model=local", f"model.path={renamed}", "task=facts",
        "analysis.prompts=6", "analysis.comparison=0", "analysis.head_counts=[]",
        "analysis.neuron_counts=[]", "analysis.random_sets=1", "logger=none",
        f"output_dir={tmp_path / 'out'}",
    )  # fmt: skip
    assert result.status == 0, result.err
    assert not unseen(result.out)
    page = check_page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    # They are there to be read: as text.
    assert "<script>alert(1)</script>" in page.text
    assert "\\x1b[31mred" in page.text
    for path in (tmp_path / "out").rglob("*.svg"):
        ET.parse(path)
        assert not unseen(path.read_text(encoding="utf-8"))
    for path in (tmp_path / "out").rglob("*.json"):
        assert not unseen(path.read_text(encoding="utf-8"))
    card = next((tmp_path / "out").rglob("README.md")).read_text(encoding="utf-8")
    assert not unseen(card)
