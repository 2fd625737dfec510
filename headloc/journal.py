"""What a run has finished, stage by stage, so that a killed one goes on where it was.

A stage that ends leaves one file, written atomically: its tensors, and beside them its plain facts
and what it has cost.  A run that is taken up again reads the stages it finds and makes the others.
The training of a localization has checkpoints of its own; the prefixes of prompts are run again, as
they are too large to be worth their place on disk.

Only the process that speaks for a run writes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from headloc.files import remove_partial, write_bytes
from headloc.lm.ledger import StageCost, TokenLedger
from headloc.run_note import CHECKPOINT, FOLDER, Run

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """What a stage leaves behind.

    Attributes:
        tensors: by name.
        facts: JSON values.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


class Journal:
    """The finished stages of a run.

    Args:
        folder: where they are; None keeps nothing.
        resume: whether stages that lie there are used.
        writes: whether this process writes.
        clear: removes what an earlier run left; called before anything is written, so that a run
            that is refused before leaves the earlier one as it was.
        note: writes the run's settings down; called where a stage is to be kept and they are gone.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        resume: bool = False,
        writes: bool = True,
        clear: Callable[[], None] | None = None,
        note: Callable[[], None] | None = None,
    ) -> None:
        self._folder, self._writes = folder, writes and folder is not None
        self._clear, self._note = clear, note
        # Looked up once, so that all processes of a run decide alike.
        found = folder.glob("*.safetensors") if folder is not None and resume else ()
        self._finished = {path.stem for path in found}

    def begin(self) -> None:
        """Give the stages of an earlier run up, unless that was done before."""
        clear, self._clear = self._clear, None
        if clear is not None:
            clear()

    def once(
        self,
        name: str,
        work: Callable[[], T],
        pack: Callable[[T], Entry],
        unpack: Callable[[Entry], T],
        *,
        ledger: TokenLedger | None = None,
        stage: str = "",
    ) -> T:
        """Return what a stage gives: read where it is finished, else made and kept.

        Args:
            name: name of the stage, also of its file.
            work: makes it.
            pack: turns it into an entry.
            unpack: turns an entry back into it.
            ledger: where the passes of `work` are counted.
            stage: under which name they are counted there.
        """
        entry = self._read(name)
        if entry is not None:
            if ledger is not None:
                ledger.add(stage, StageCost(**entry.facts["cost"]))
            return unpack(Entry(entry.tensors, entry.facts["facts"]))
        before = StageCost() if ledger is None else ledger.cost(stage)
        made = work()
        if self._writes:
            cost = StageCost() if ledger is None else ledger.cost(stage) - before
            self._write(name, pack(made), cost)
        return made

    def _read(self, name: str) -> Entry | None:
        """Return an entry; a broken one counts as none, and its stage is made again."""
        if name not in self._finished or self._folder is None:
            return None
        try:
            with safe_open(str(self._folder / f"{name}.safetensors"), framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                text, digest = (file.metadata()[key] for key in ("headloc", "digest"))
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            return None
        return Entry(tensors, json.loads(text)) if digest == _digest(text, tensors) else None

    def _write(self, name: str, entry: Entry, cost: StageCost) -> None:
        assert self._folder is not None  # `_writes` is false without one
        self.begin()
        if self._note is not None and not self._folder.is_dir():
            # Somebody has removed the folder; without the note what follows could not be resumed.
            self._note()
        tensors = {
            key: entry.tensors[key].cpu().contiguous().clone() for key in sorted(entry.tensors)
        }
        facts = json.dumps({"facts": dict(entry.facts), "cost": asdict(cost)}, sort_keys=True)
        metadata = {"format": "pt", "headloc": facts, "digest": _digest(facts, tensors)}
        content = save(tensors, metadata=metadata)
        write_bytes(self._folder / f"{name}.safetensors", content)


def _digest(facts: str, tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of a stage, by which damage of any kind is told."""
    digest = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        digest.update(tensors[name].view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def open_journal(run: Run, inputs: Mapping[str, str], *, resume: bool, writes: bool) -> Journal:
    """Open the journal of a run; without `resume` what an earlier run left is removed.

    It is removed when this run begins to keep something of its own, not before.

    Args:
        run: command, output folder and settings.
        inputs: fingerprints of what the settings only name, by what each is of.
        resume: whether an interrupted run is taken up.
        writes: whether this process writes.

    Raises:
        HeadlocError: when the run that is to be taken up had other settings or other inputs.
    """
    folder = run.folder / FOLDER

    def note() -> None:
        run.write(inputs)

    if resume:
        run.check(inputs)
        if writes:
            remove_partial(run.folder)
            note()
        return Journal(folder, resume=True, writes=writes, note=note)

    def clear() -> None:
        # Killed before its own first gates, this run must not go on from those of an earlier one.
        (run.folder / CHECKPOINT).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        note()

    return Journal(folder, writes=writes, clear=clear if writes else None, note=note)
