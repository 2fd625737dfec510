"""The note that a run began, with its settings: what is killed from then on can be taken up again.

Nothing heavy is imported here, so that the note is there before a run does anything that takes
time.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headloc.errors import HeadlocError
from headloc.files import read_json, write_json

FOLDER = Path("checkpoints") / "stages"
"""Where the note and the finished stages of a run are, below its output folder."""

CHECKPOINT = Path("checkpoints") / "gates.ckpt"
"""Where the gates of a run are after every epoch of training."""

_NOTE = FOLDER / "run.json"
_FREE = ("output_dir", "resume", "logger", "callbacks", "yaml")
"""Settings that do not change what a run finds."""


def mark_started(output_dir: Path, settings: Mapping[str, Any]) -> bool:
    """Note that a run began, unless one did before: what is killed from now on can be resumed.

    Returns:
        Whether there was no note before.
    """
    path = output_dir / _NOTE
    if path.exists():
        return False
    write_json(path, _note(settings, None))
    return True


def unmark_started(output_dir: Path) -> None:
    """Take the note back where nothing stands beside it: a run that is refused leaves nothing."""
    if [path.name for path in (output_dir / FOLDER).glob("*")] == [_NOTE.name]:
        (output_dir / _NOTE).unlink()
    for folder in (output_dir / FOLDER, (output_dir / FOLDER).parent):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def was_started(output_dir: Path) -> bool:
    """Whether a run began in a folder."""
    return (output_dir / _NOTE).is_file()


def go_on(output_dir: Path) -> str:
    """Say what a run that has ended early leaves, and how to go on from there."""
    if not was_started(output_dir):
        return "Nothing was saved yet: start the same command again."
    path = output_dir / CHECKPOINT
    gates = f"The gates so far are in {path}" if path.is_file() else "No gates were saved yet"
    stages = sorted(found.stem for found in (output_dir / FOLDER).glob("*.safetensors"))
    done = f" (finished: {', '.join(stages)})" if stages else ""
    return f"{gates}{done}. Go on: {with_resume(output_dir)}."


def with_resume(output_dir: Path) -> str:
    """Name the command that takes a run up again."""
    return f"the same command with resume=true output_dir={output_dir}"


def write_note(output_dir: Path, settings: Mapping[str, Any], model: str) -> None:
    """Write the settings of a run and the fingerprint of its model down."""
    write_json(output_dir / _NOTE, _note(settings, model))


def _note(settings: Mapping[str, Any], model: str | None) -> dict[str, Any]:
    kept = {key: value for key, value in settings.items() if key not in _FREE}
    return {"settings": kept, "model": model}


def check_note(output_dir: Path, settings: Mapping[str, Any], model: str) -> None:
    """Refuse to take up a run that had other settings or another model.

    Raises:
        HeadlocError: naming the first that differs.
    """
    path = output_dir / _NOTE
    if not path.is_file():
        return
    note = read_json(path, "note of a run's settings")
    if not isinstance(note, dict) or not isinstance(note.get("settings"), dict):
        raise HeadlocError(f"{path} is broken. Start the run anew, without resume.")
    before, now = _flat(note["settings"]), _flat(_note(settings, model)["settings"])
    changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    if changed:
        key = changed[0]
        raise HeadlocError(
            f"resume=true, but the interrupted run had {key}={before.get(key)!r}, not "
            f"{now.get(key)!r}. Resume with the settings it was started with, or start anew "
            "without resume."
        )
    if note.get("model") not in (None, model):
        raise HeadlocError(
            "resume=true, but the model is another than that of the interrupted run: its weights "
            "or its configuration have changed. Start anew without resume."
        )


def _flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted key."""
    if not isinstance(settings, dict) or not settings:
        return {prefix: settings}
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
