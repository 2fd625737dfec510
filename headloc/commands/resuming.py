"""A command that is killed anywhere and goes on: its note, its finished stages, and how it ends.

    run = Resumable.of("compare", folder, settings)
    with run.noted():
        ...                                   # load the model
        journal = run.journal(model=fingerprint)
        ...                                   # every expensive piece: journal.once(...)
        extras.check(folder, run.again)

The configuration of such a command has `resume: false`; its name is in `run_note.RESUMABLE`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headloc.errors import HeadlocError, NoRoomError
from headloc.faults import fault
from headloc.run_note import Run, check_begun, go_on, with_resume

if TYPE_CHECKING:
    from headloc.journal import Journal


@dataclass(frozen=True, slots=True)
class Resumable:
    """The run of a command, in a folder where it can be taken up again.

    Attributes:
        run: command, folder and settings.
        resume: whether an interrupted run is taken up.
        writes: whether this process speaks for the run, where there are several.
    """

    run: Run
    resume: bool
    writes: bool = True

    @classmethod
    def of(
        cls, command: str, folder: Path, settings: Mapping[str, Any], *, writes: bool = True
    ) -> Resumable:
        """Read the settings of a command, `resume` among them.

        Raises:
            HeadlocError: when `resume` is no truth value, or no run has begun in the folder.
        """
        resume = settings["resume"]
        if not isinstance(resume, bool):
            raise HeadlocError(f"resume={resume!r} must be true or false.")
        if resume:
            check_begun(folder)
        return cls(Run(command, folder, settings), resume, writes)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note that the run has begun; a fault inside is told with how to go on.

        A run that is refused before it has finished anything leaves no note.

        Raises:
            HeadlocError: for a fault around the run.
        """
        marked = False
        try:
            marked = self.writes and self.run.mark()
            yield
        except Exception as error:
            if marked:
                with suppress(OSError):
                    self.run.unmark()
            told = None if isinstance(error, HeadlocError) else fault(error)
            if isinstance(error, NoRoomError):
                told = str(error)
            if told is None:
                raise
            raise HeadlocError(f"{told} {go_on(self.run.folder)}") from error

    def journal(self, **inputs: str) -> Journal:
        """Open the journal of finished stages.

        Args:
            inputs: fingerprints of what the settings only name, by what each is of: the model, the
                task, a circuit.  A run is not taken up with another one.

        Raises:
            HeadlocError: when the run that is to be taken up had other settings or inputs.
        """
        from headloc.journal import open_journal

        return open_journal(self.run, inputs, resume=self.resume, writes=self.writes)

    @property
    def again(self) -> str:
        """The sentence that tells how to make what could not be written."""
        return f"Then make them: {with_resume(self.run.folder)}."


def fingerprint(description: Mapping[str, Any]) -> str:
    """Return the fingerprint of what describes itself in JSON values, such as a task."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
