from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console as RichConsole

from headloc.reporting.console import Console
from headloc.reporting.text import duration, plural, visible
from tests.reporting.made_up import HEADS, HOSTILE, made_up_result

LONG = Path("/a") / "/".join(["folder with a long name"] * 6)


@pytest.fixture(autouse=True)
def _eighty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("FORCE_COLOR", raising=False)


def test_summary_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    Console().summary(made_up_result(), LONG)
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert f"circuit        {LONG}/circuit" in lines
    assert f"report         {LONG}/report.html" in lines
    assert max(len(line) for line in lines if str(LONG) not in line) <= 80
    assert not any(line != line.rstrip() for line in lines)
    assert captured.err == ""
    for words in (
        "3 of 8 heads of tiny",
        "3 of 8 (37.5%), requested 4",
        "random, same layers",
        "smallest to largest",
        "Jaccard index 0.75 (smallest 0.50) with 2 replicates",
        "30 forward-equivalents",
        "1 min 01 s",
        "n = 12",
    ):
        assert words in captured.out
    for head in HEADS:
        assert str(head) in captured.out
    held_out = made_up_result().verdicts["held_out"].accuracy("circuit")
    assert str(held_out) in captured.out


def test_names_can_neither_style_nor_steer(capsys: pytest.CaptureFixture[str]) -> None:
    result = made_up_result()
    model = {**result.circuit.model, "name": "[red]x[/red] :smile: \x1b[2J\n"}
    Console().circuit(replace(result.circuit, model=model))
    out = capsys.readouterr().out
    assert "[red]x[/red] :smile: \\x1b[2J\\n" in out
    assert "\x1b" not in out


def test_a_saved_circuit(capsys: pytest.CaptureFixture[str]) -> None:
    Console().circuit(replace(made_up_result().circuit, metrics={}))
    out = capsys.readouterr().out
    assert HOSTILE in out
    assert "off_value=mean" in out
    assert "rule=kept share=0.97" in out
    assert "L1H3" in out


def test_accuracies_of_one_split(capsys: pytest.CaptureFixture[str]) -> None:
    Console().accuracies({"accuracy/full": 1.0, "accuracy/circuit": 0.5, "accuracy/circuit/n": 9})
    out = capsys.readouterr().out
    assert "circuit alone" in out
    assert "0.500" in out
    assert "held-out" not in out


def test_empty_circuit_and_no_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    result = made_up_result()
    Console().circuit(replace(result.circuit, heads=(), metrics={}))
    Console().accuracies({})
    assert "no head was selected" in capsys.readouterr().out


def test_text_that_the_stream_cannot_write(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii"))
    Console().say("caf\u00e9")
    assert raw.getvalue() == b"caf\\xe9\n"


def test_stage_in_a_pipe_has_two_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Console().stage("mean head outputs") as progress:
        for done in range(100):
            progress(done, 100)
    captured = capsys.readouterr()
    start, end = captured.err.splitlines()
    assert start == "mean head outputs ..."
    assert end.startswith("mean head outputs: ")
    assert end.endswith(" s")
    assert captured.out == ""


def test_stage_on_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    terminal = RichConsole(file=file, force_terminal=True, width=80)
    monkeypatch.setattr(Console, "_err", property(lambda self: terminal))
    monkeypatch.setattr("headloc.reporting.estimate._FIRST_SECONDS", 0.0)
    with Console().stage("verdict") as progress:
        progress(1, 4)
        progress(2, 4)
    shown = file.getvalue()
    assert "50%" in shown
    assert "left" in shown
    assert "\x1b[2mverdict  0.0 s" in shown.splitlines()[-1]


def test_a_failed_stage_closes_its_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    terminal = RichConsole(file=file, force_terminal=True, width=80)
    monkeypatch.setattr(Console, "_err", property(lambda self: terminal))

    def fail() -> None:
        with Console().stage("verdict"):
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert file.getvalue().count("\x1b[?25l") == file.getvalue().count("\x1b[?25h")


def test_words() -> None:
    assert visible("a\tb\u202ec\n", keep="\n") == "a\\tb\\u202ec\n"
    assert (plural(1, "head"), plural(1200, "head")) == ("1 head", "1,200 heads")
    assert (duration(3.21), duration(3600 + 61)) == ("3.2 s", "1 h 01 min")
