"""What the command line shows: stages and training on stderr, results on stdout.

On a terminal every long step has a bar with the time left; elsewhere it has a line at its start and
one at its end, and every now and then one that says how far it is and how long it still takes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from headloc.reporting.estimate import TimeLeft
from headloc.reporting.text import escaped, visible

if TYPE_CHECKING:
    import lightning as L
    from rich.console import Console as RichConsole
    from rich.table import Table

    from headloc.circuit import Circuit
    from headloc.localizer.run import Localization
    from headloc.objectives.prompts import Progress


_LABEL = 15
"""Width of the label of a line."""

LINE_SECONDS = 15.0
"""Time between two lines about the same step."""


def quiet_lightning() -> None:
    """Keep Lightning's news of devices and reached epochs back; warnings still come through."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


class ProgressLines:
    """How far a step is, a line every now and then.

    Args:
        name: name of the step.
        note: writes a line.
        clock: seconds that only move forwards.
    """

    def __init__(
        self,
        name: str,
        note: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._note, self._clock = name, note, clock
        self._estimate = TimeLeft(clock)
        self._last = clock()

    def __call__(self, done: int, total: int) -> None:
        """Take down how far the step is, and say so when it has been silent for a while."""
        self._estimate.report(done, total)
        if done >= total or self._clock() - self._last < LINE_SECONDS:
            return
        self._last = self._clock()
        left = self._estimate.text()
        share = f"{done / max(1, total):.0%}"
        self._note(f"  {self._name}: {share}{', ' if left else ''}{left}")


class Console:
    """Shows a run; makes its streams anew for every line, so that redirections are followed.

    Args:
        quiet: show nothing at all: another process of the run speaks.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet

    @contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        """Show a long step by its name; yields a function that takes (done, in all)."""
        start = time.monotonic()
        if self._quiet:
            yield _unseen
        elif self._err.is_terminal:
            with self._bar(name) as progress:
                yield progress
            self._err.print(f"[dim]{name}  {time.monotonic() - start:.1f} s[/dim]", highlight=False)
        else:
            self.note(f"{name} ...")
            yield ProgressLines(name, self.note)
            self.note(f"{name}: {time.monotonic() - start:.1f} s")

    def callbacks(self, trainer_options: dict[str, Any]) -> list[L.Callback]:
        """Return the callbacks that show training.

        Args:
            trainer_options: options of `lightning.Trainer`; `enable_progress_bar` is respected, and
                turned off so that Lightning adds no bar of its own.
        """
        from headloc.reporting.training import TrainingBar, TrainingLines

        quiet_lightning()
        if not trainer_options.get("enable_progress_bar", True):
            return []
        trainer_options["enable_progress_bar"] = False
        if self._quiet:
            return []
        console = self._err
        return [TrainingBar(console) if console.is_terminal else TrainingLines(self.note)]

    def summary(self, result: Localization, folder: Path) -> None:
        """Print what a localization found and where it lies."""
        from headloc.reporting import printed

        circuit = result.circuit
        self.say("")
        self.say(printed.title(circuit))
        self._table(printed.heads(circuit, result.replicates))
        if result.path is not None:
            self._table(printed.path(result.path))
        self.accuracies(result.metrics)
        self._lines(printed.fact_lines(result.metrics))
        self.say("")
        self.say(f"{'circuit':<{_LABEL}}{folder / 'circuit'}")
        self.say(f"{'report':<{_LABEL}}{folder / 'report.html'}")

    def accuracies(self, metrics: Mapping[str, float]) -> None:
        """Print the table of accuracies that flat metrics hold."""
        from headloc.reporting import printed

        table = printed.accuracies(metrics)
        if table is not None:
            self._table(table)

    def circuit(self, circuit: Circuit) -> None:
        """Print a saved circuit: its heads, where they come from and its figures."""
        from headloc.reporting import printed

        self.say(printed.title(circuit))
        self._lines(printed.provenance(circuit))
        self._table(printed.heads(circuit))
        self.accuracies(circuit.metrics)
        self._lines(printed.fact_lines(circuit.metrics))

    def say(self, text: str) -> None:
        """Print a line to stdout, never wrapped."""
        if not self._quiet:
            _line(self._out, text)

    def note(self, text: str) -> None:
        """Print a line to stderr, never wrapped; one that nobody can take costs nothing."""
        if not self._quiet:
            with suppress(OSError):
                _line(self._err, text)

    def _lines(self, pairs: list[tuple[str, str]]) -> None:
        for label, text in pairs:
            for line in _hanging(label, text, self._out.width).splitlines():
                self.say(line)

    def _table(self, table: Table) -> None:
        """Print a table; in a file without the blanks that fill its lines up."""
        console = self._out
        if console.is_terminal:
            console.print(table)
            return
        with console.capture() as captured:
            console.print(table)
        for line in captured.get().splitlines():
            self.say(line.rstrip())

    @contextmanager
    def _bar(self, name: str) -> Iterator[Progress]:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        estimate = TimeLeft()
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[share]:>4}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        with Progress(*columns, console=self._err, transient=True) as bar:
            task = bar.add_task(name, total=None, share="", left="")

            def progress(done: int, total: int) -> None:
                share = f"{done / max(1, total):.0%}"
                estimate.report(done, total)
                left = estimate.text()
                bar.update(task, completed=done, total=total, share=share, left=left)

            yield progress

    @property
    def _out(self) -> RichConsole:
        return _console(stderr=False)

    @property
    def _err(self) -> RichConsole:
        return _console(stderr=True)


def _console(stderr: bool) -> RichConsole:
    from rich.console import Console as RichConsole

    return RichConsole(stderr=stderr, markup=True, emoji=False, highlight=False)


def _line(console: RichConsole, text: str) -> None:
    shown = visible(text)
    try:
        shown.encode(getattr(console.file, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        shown = escaped(shown)
    console.print(shown, markup=False, soft_wrap=True)
    console.file.flush()


def _hanging(label: str, text: str, width: int) -> str:
    """Return a labelled line whose text wraps behind its label."""
    return fill(
        visible(text),
        max(width, 40),
        initial_indent=f"{label:<{_LABEL}}",
        subsequent_indent=" " * _LABEL,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _unseen(done: int, total: int) -> None:
    return None
