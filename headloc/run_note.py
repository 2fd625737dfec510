"""The note that a run began, with its settings: what is killed from then on can be taken up again.

Any command may keep one.  Nothing heavy is imported here, so that the note is there before a run
does anything that takes time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headloc.errors import HeadlocError
from headloc.files import read_json, write_json

FOLDER = Path("checkpoints") / "stages"
"""Where the note and the finished stages of a run are, below its output folder."""

CHECKPOINT = Path("checkpoints") / "gates.ckpt"
"""Where the gates of a localization are after every epoch of training."""

RESUMABLE = ("localize", "compare")
"""Commands that keep a note and take `resume=true`, by the name of their configuration."""

_NOTE = FOLDER / "run.json"
_FREE = ("output_dir", "resume", "logger", "callbacks", "yaml")
"""Settings that do not change what a run finds."""

_LISTED = 8
"""Most stages that are named one by one."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run of a command.

    Attributes:
        command: name of the command.
        folder: its output folder.
        settings: its configuration.
    """

    command: str
    folder: Path
    settings: Mapping[str, Any]

    def mark(self) -> bool:
        """Note that it began, unless one did before: what is killed from now on can be resumed.

        Returns:
            Whether there was no note before.
        """
        if was_started(self.folder):
            return False
        self.write({})
        return True

    def unmark(self) -> None:
        """Take the note back where nothing stands beside it: what is refused leaves nothing."""
        if [path.name for path in (self.folder / FOLDER).glob("*")] == [_NOTE.name]:
            (self.folder / _NOTE).unlink()
        for folder in (self.folder / FOLDER, (self.folder / FOLDER).parent):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def write(self, inputs: Mapping[str, str]) -> None:
        """Write the note.

        Args:
            inputs: fingerprints of what the settings only name, as by a path, by what each is of.
        """
        note = {**inputs, "command": self.command, "settings": self._kept()}
        write_json(self.folder / _NOTE, note)

    def check(self, inputs: Mapping[str, str]) -> None:
        """Refuse to go on from a run that had other settings or other inputs.

        Args:
            inputs: as for `write`.

        Raises:
            HeadlocError: naming the first that differs.
        """
        path = self.folder / _NOTE
        if not path.is_file():
            return
        note = read_json(path, "note of a run's settings")
        if not isinstance(note, dict) or not isinstance(note.get("settings"), dict):
            raise HeadlocError(f"{path} is broken. Start the run anew, without resume.")
        command = note.get("command", self.command)
        if command != self.command:
            raise HeadlocError(
                f"resume=true, but the run in {self.folder} was headloc {command}, not headloc "
                f"{self.command}. Give the output_dir of the interrupted run."
            )
        before, now = _flat(note["settings"]), _flat(self._kept())
        changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        if changed:
            key = changed[0]
            raise HeadlocError(
                f"resume=true, but the interrupted run had {key}={before.get(key)!r}, not "
                f"{now.get(key)!r}. Resume with the settings it was started with, or start anew "
                "without resume."
            )
        for what, fingerprint in inputs.items():
            if note.get(what) not in (None, fingerprint):
                raise HeadlocError(
                    f"resume=true, but the {what} is another than that of the interrupted run: its "
                    "content has changed since. Start anew without resume."
                )

    def _kept(self) -> dict[str, Any]:
        return {key: value for key, value in self.settings.items() if key not in _FREE}


def was_started(output_dir: Path) -> bool:
    """Whether a run began in a folder."""
    return (output_dir / _NOTE).is_file()


def check_begun(output_dir: Path) -> None:
    """Refuse to take up a run where none began.

    Raises:
        HeadlocError: when there is neither a note nor a checkpoint.
    """
    if not was_started(output_dir) and not (output_dir / CHECKPOINT).is_file():
        raise HeadlocError(
            f"resume=true, but no run has begun in {output_dir}. Give the output_dir of the "
            "interrupted run, or start it without resume."
        )


def go_on(output_dir: Path) -> str:
    """Say what a run that has ended early leaves, and how to go on from there."""
    if not was_started(output_dir):
        return "Nothing was saved yet: start the same command again."
    path = output_dir / CHECKPOINT
    stages = sorted(found.stem for found in (output_dir / FOLDER).glob("*.safetensors"))
    named = ", ".join(stages) if len(stages) <= _LISTED else f"{len(stages)} stages"
    if path.is_file():
        kept = f"The gates so far are in {path}" + (f" (finished: {named})" if stages else "")
    else:
        kept = f"Finished so far: {named}" if stages else "No stage was finished yet"
    return f"{kept}. Go on: {with_resume(output_dir)}."


def with_resume(output_dir: Path) -> str:
    """Name the command that takes a run up again."""
    return f"the same command with resume=true output_dir={output_dir}"


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted key."""
    if not isinstance(settings, dict) or not settings:
        return {prefix: settings}
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
