"""Let a disk fail at every write of a localization, and see how each attempt ends.

    python -m tests.trust.faults                  every write
    python -m tests.trust.faults --positions 8    some of them

For every position the run is made twice: on a disk that is full from that write on, and on one
where this write alone fails.  A run ends well when it is finished, or ends with one message, no
traceback and nothing half-written; and when what the message says to do then gives the result of a
run without any fault, byte for byte apart from the wall-clock time.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.commands.runs import SMALL
from tests.trust.injection import Disk
from tests.trust.killing import differences, wait

ARGUMENTS = ("localize", "debug=fast", "logger=csv", *SMALL, "objective=function_vector",
             "objective.prompts_per_task=4", "objective.layer=3")  # fmt: skip
ERRORS = (errno.ENOSPC, errno.EROFS, errno.EIO)
ENDS = {0: "finished", 2: "stopped with a message", 3: "finished without its extras"}


@dataclass(frozen=True)
class Attempt:
    """How a run ended.

    Attributes:
        status: its exit status.
        told: what it wrote to stderr.
        writes: writes that it came to.
    """

    status: int
    told: str
    writes: int

    @property
    def messages(self) -> list[str]:
        """The lines that end a command."""
        return [line for line in self.told.splitlines() if line.startswith("headloc: ")]


def attempt(
    folder: Path,
    arguments: Sequence[str],
    at: int | None = None,
    error: int = 0,
    lasts: bool = True,
) -> Attempt:
    """Run a command in a forked process on a disk that fails, and wait for it."""
    log, count = folder.with_suffix(".log"), folder.with_suffix(".count")
    log.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        status = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
            sys.argv = ["headloc"]
            from headloc.cli import main

            disk = Disk(folder, at, error, lasts)
            disk.install()
            try:
                status = main([*arguments, f"output_dir={folder}"])
            except BaseException:
                import traceback

                traceback.print_exc()
            count.write_text(str(disk.writes))
        finally:
            sys.stderr.flush()
            os._exit(status)
    ended = wait(child)
    assert ended is not None
    return Attempt(ended, log.read_text(), int(count.read_text()))


def problems(first: Attempt, folder: Path, reference: Path, arguments: Sequence[str]) -> list[str]:
    """Return what is wrong with how a run on a failing disk ended, and with what came of it."""
    found = []
    if first.status not in ENDS:
        found.append(f"status {first.status}")
    if "Traceback" in first.told:
        found.append(f"a traceback: {first.told[-1500:]}")
    if len(first.messages) != (first.status != 0):
        found.append(f"{len(first.messages)} messages: {first.messages}")
    if first.status in (0, 3) and not (folder / "circuit" / "circuit.json").is_file():
        found.append("finished without a circuit")
    found += [f"left half-written: {path}" for path in folder.rglob(".*.partial")]
    # What the message says to do, once the disk is well again.
    resumes = any("resume=true" in line for line in first.messages)
    then = attempt(folder, [*arguments, *(["resume=true"] if resumes else [])])
    if then.status:
        return [*found, f"did not go on: {then.told[-1500:]}"]
    return found + [line for line in differences(folder, reference) if "curves/" not in line]


def main() -> int:
    """Try every position, or some; print how the runs ended and what was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--positions", type=int, help="how many, drawn at random; all when left out"
    )
    parser.add_argument("--seed", type=int, default=0)
    given, options = parser.parse_known_args()
    import headloc.commands.localize
    import headloc.localizer.run
    import headloc.reporting.pictures
    import headloc.reporting.report  # noqa: F401

    arguments = [*ARGUMENTS, *options]
    rng, begun = np.random.default_rng(given.seed), time.monotonic()
    ends: Counter[str] = Counter()
    wrong: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as place:
        reference = Path(place) / "reference"
        whole = attempt(reference, arguments)
        assert whole.status == 0, whole.told
        positions = np.arange(whole.writes)
        if given.positions is not None:
            positions = np.sort(rng.choice(positions, given.positions, replace=False))
        for position in positions.tolist():
            for lasts in (True, False):
                error = ERRORS[int(rng.integers(len(ERRORS)))]
                name = f"{position}{'+' if lasts else ''} {errno.errorcode[error]}"
                folder = Path(place) / name.replace(" ", "-").replace("+", "on")
                one = attempt(folder, arguments, position, error, lasts)
                ends[ENDS.get(one.status, "badly")] += 1
                bad = problems(one, folder, reference, arguments)
                if bad:
                    wrong[name] = bad
                    print(f"write {name}: {json.dumps(bad, indent=1)}", flush=True)
    tried = sum(ends.values())
    print(f"{tried} runs on failing disks, {len(positions)} of {whole.writes} writes, "
          f"{time.monotonic() - begun:.0f} s")  # fmt: skip
    for end, number in ends.most_common():
        print(f"  {end:<28} {number}")
    print(f"{len(wrong)} ended badly or did not go on to the same result")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
