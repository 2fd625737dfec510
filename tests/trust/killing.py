"""Kill a localization again and again, take it up each time, and compare with one left in peace.

    python -m tests.trust.killing --kills 30 --seed 0

A run is killed (SIGKILL) and started again with `resume=true`, twice at most, then left to end, and
the next begins, until there have been enough kills.  A moment is drawn evenly within a stage of the
uninterrupted run, and the stage evenly, so that short ones are hit as well.  Every process is
forked from one that has imported everything: the moments fall into the work, not the imports.

Compared byte by byte: every table and every file of tensors that the run leaves as its result; and
its JSON files, apart from the wall-clock time.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.commands.runs import SMALL

ARGUMENTS = ("localize", "debug=fast", "logger=none", *SMALL, "trainer.max_epochs=4",
             "verdict.greedy=true", "verdict.greedy_share=0.5")  # fmt: skip
_CLOCK = "time/seconds"


def start(folder: Path, more: Sequence[str] = ()) -> int:
    """Fork a process that localizes into a folder; return its number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        sys.stderr = open(folder.with_suffix(".log"), "a")  # noqa: SIM115
        sys.argv = ["headloc"]
        from headloc.cli import main

        status = main([*ARGUMENTS, f"output_dir={folder}", *more])
    finally:
        sys.stderr.flush()
        os._exit(status)


def wait(child: int, seconds: float | None = None) -> int | None:
    """Wait for a process; after `seconds` kill it.  Return its exit status, None where killed."""
    end = None if seconds is None else time.monotonic() + seconds
    while end is None or time.monotonic() < end:
        done, status = os.waitpid(child, 0 if end is None else os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def finishes(folder: Path) -> list[float]:
    """Return when a run finished its stages, and last its report, by the clock."""
    stages = (folder / "checkpoints" / "stages").glob("*.safetensors")
    others = (folder / "checkpoints" / "gates.ckpt", folder / "circuit", folder / "report.html")
    return [path.stat().st_mtime for path in (*stages, *others)]


def reached(folder: Path) -> str:
    """Return the last stage that a run has finished."""
    if (folder / "circuit").is_dir():
        return "written"
    stages = sorted(
        (folder / "checkpoints" / "stages").glob("*.safetensors"), key=lambda p: p.stat().st_mtime
    )
    trained = (folder / "checkpoints" / "gates.ckpt").is_file()
    if stages and stages[-1].stem != "means":
        return stages[-1].stem
    return "training" if trained else stages[-1].stem if stages else "started"


def results(folder: Path) -> set[str]:
    """Return the files of a run that hold results: tables, tensors and JSON."""
    return {
        str(path.relative_to(folder)) for path in folder.rglob("*")
        if path.suffix in (".csv", ".safetensors", ".json")
        and path.relative_to(folder).parts[0] not in ("checkpoints", "wandb")
    }  # fmt: skip


def differences(folder: Path, reference: Path) -> list[str]:
    """Return what differs between two finished runs."""
    expected = results(reference)
    found = [f"{name}: in one of them only" for name in expected ^ results(folder)]
    for name in sorted(expected & results(folder)):
        if name.endswith(".json"):
            own, other = (_without_clock(path / name) for path in (folder, reference))
            found += [f"{name}: {key}" for key in own.keys() | other.keys()
                      if own.get(key) != other.get(key)]  # fmt: skip
        elif (folder / name).read_bytes() != (reference / name).read_bytes():
            found.append(name)
    if not (folder / "report.html").read_text().rstrip().endswith("</html>"):
        found.append("report.html")
    found += [f"{path.name}: left half written" for path in folder.rglob(".*.partial")]
    return found


def _without_clock(path: Path) -> dict[str, Any]:
    data = json.loads(path.read_text())
    data.pop(_CLOCK, None)
    data.get("metrics", {}).pop(_CLOCK, None)
    return data


def main() -> int:
    """Kill as often as asked for, print what was interrupted and what differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    # Further arguments are options of `headloc localize`.
    given, options = parser.parse_known_args()
    import headloc.commands.localize
    import headloc.localizer.run
    import headloc.reporting.report  # noqa: F401

    rng = np.random.default_rng(given.seed)
    interrupted: Counter[str] = Counter()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as place:
        reference, begun = Path(place) / "reference", time.time()
        assert wait(start(reference, options)) == 0, reference.with_suffix(".log").read_text()
        moments = [0.0, *sorted(moment - begun for moment in finishes(reference))]
        number = 0
        while sum(interrupted.values()) < given.kills:
            folder, number = Path(place) / str(number), number + 1
            status, more = None, []
            for last in (False, False, True):
                stage = int(rng.integers(len(moments) - 1))
                moment = None if last else float(rng.uniform(*moments[stage : stage + 2]))
                status = wait(start(folder, [*options, *more]), moment)
                if status is not None:
                    break
                interrupted[reached(folder)] += 1
                more = ["resume=true"] if (folder / "checkpoints").is_dir() else []
            if status:
                wrong.append(folder.with_suffix(".log").read_text()[-2000:])
            else:
                wrong += differences(folder, reference)
    kills = sum(interrupted.values())
    print(f"{kills} kills in {number} runs of {moments[-1]:.1f} s, after the stage:")
    for stage, count in interrupted.most_common():
        print(f"  {stage:<18} {count}")
    print(f"{len(wrong)} differences from the uninterrupted run")
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
