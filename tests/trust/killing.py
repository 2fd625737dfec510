"""Kill a localization again and again, take it up each time, and compare with one left in peace.

    python -m tests.trust.killing --kills 30 --seed 0

A run is killed (SIGKILL) at a moment drawn evenly from the time that the uninterrupted run takes,
and started again with `resume=true`, until it ends by itself; then the next begins, until there
have been enough kills.  Every process is forked from one that has imported everything, so that the
moments fall into the work and not into the imports.

Compared byte by byte: the gates, heads.csv and outcomes.csv; and the circuit and the metrics, apart
from the wall-clock time.
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
SAME_BYTES = ("circuit/gates.safetensors", "heads.csv", "outcomes.csv",
              "replicates/1/gates.safetensors")  # fmt: skip
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


def differences(folder: Path, reference: Path) -> list[str]:
    """Return what differs between two finished runs."""
    found = [
        name for name in SAME_BYTES
        if (folder / name).read_bytes() != (reference / name).read_bytes()
    ]  # fmt: skip
    for name in ("metrics.json", "circuit/circuit.json", "replicates/1/circuit.json"):
        own, other = (_without_clock(path / name) for path in (folder, reference))
        found += [f"{name}: {key}" for key in own.keys() | other.keys()
                  if own.get(key) != other.get(key)]  # fmt: skip
    if not (folder / "report.html").read_text().rstrip().endswith("</html>"):
        found.append("report.html")
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
        reference, begun = Path(place) / "reference", time.monotonic()
        assert wait(start(reference, options)) == 0, reference.with_suffix(".log").read_text()
        whole = time.monotonic() - begun
        number = 0
        while sum(interrupted.values()) < given.kills:
            folder, number = Path(place) / str(number), number + 1
            status, more = None, []
            while status is None:
                status = wait(
                    start(folder, [*options, *more]), float(rng.uniform(0.1, 1.0)) * whole
                )
                if status is None:
                    interrupted[reached(folder)] += 1
                    more = ["resume=true"] if (folder / "checkpoints").is_dir() else []
            if status:
                wrong.append(folder.with_suffix(".log").read_text()[-2000:])
            else:
                wrong += differences(folder, reference)
    print(f"{sum(interrupted.values())} kills in {number} runs of {whole:.1f} s, after the stage:")
    for stage, count in interrupted.most_common():
        print(f"  {stage:<18} {count}")
    print(f"{len(wrong)} differences from the uninterrupted run")
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
