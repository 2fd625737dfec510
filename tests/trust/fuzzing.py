"""Feed broken files to everything that reads files of a user's, and see how each attempt ends.

    python -m tests.trust.fuzzing --mutations 100000 --drawn 20000 --seed 0

An attempt ends well when the files are read, or refused with a HeadlocError (on the command line:
with status 2).  Anything else is a finding: another exception, more than `SECONDS` of time, or more
memory than `BYTES` above what the process had.  The mutation of an attempt follows from seed,
target and number, so that every finding can be made again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np

from headloc.errors import HeadlocError
from tests.trust.mutation import mutate
from tests.trust.target import Target
from tests.trust.targets import targets

SECONDS = 10
BYTES = 2 * 2**30


class TooSlow(BaseException):
    """An attempt took too long; no `except Exception` catches it."""


@dataclass(frozen=True)
class Finding:
    """An attempt that ended badly."""

    target: str
    file: str
    number: int
    error: str
    where: str
    content: bytes


def attempt(target: Target, folder: Path, number: int, seed: int) -> str | Finding:
    """Break one file of a target and read it; return "read", "refused" or a finding."""
    rng = np.random.default_rng([seed, number, *target.name.encode()])
    names = sorted(target.files)
    broken = names[int(rng.integers(len(names)))]
    for name, content in target.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(mutate(content, rng) if name == broken else content)
    content = (folder / broken).read_bytes()
    try:
        with silent(), limited():
            target.read(folder)
    except HeadlocError as error:
        message = str(error)
        if not message.strip() or len(message) > 5_000:
            return Finding(target.name, broken, number, f"message of {len(message)}", "", content)
        return "refused"
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)
        own = [f"{Path(e.filename).name}:{e.lineno}" for e in where if "headloc" in e.filename]
        told = f"{type(error).__name__}: {str(error)[:150]}"
        return Finding(target.name, broken, number, told, " ".join(own[-3:]), content)
    return "read"


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Keep what is printed and warned of to itself."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), \
            contextlib.redirect_stderr(io.StringIO()):  # fmt: skip
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Raise `TooSlow` after a while."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TooSlow(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fuzz(
    target: Target, mutations: int, seed: int, first: int = 0
) -> tuple[Counter[str], list[Finding]]:
    """Make many attempts on a target; return how often they ended how, and the findings."""
    counts: Counter[str] = Counter()
    findings = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(first, first + mutations):
            result = attempt(target, Path(folder), number, seed)
            counts[result if isinstance(result, str) else "finding"] += 1
            if isinstance(result, Finding):
                findings.append(result)
    return counts, findings


def main() -> int:
    """Fuzz every target, print a table and the findings, one of a kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=100_000, help="in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--drawn", type=int, default=0, help="further ones by hypothesis, in all")
    parser.add_argument("--only", help="part of a target's name")
    given = parser.parse_args()
    from tests.trust.drawing import check

    sys.argv = ["headloc"]
    kinds: dict[tuple[str, str, str], Finding] = {}
    with tempfile.TemporaryDirectory() as made:
        chosen = [t for t in targets(Path(made)) if not given.only or given.only in t.name]
        _limit_memory()
        for target in chosen:
            start = time.monotonic()
            counts, findings = fuzz(target, given.mutations // len(chosen), given.seed)
            told = ", ".join(f"{counts[name]} {name}" for name in ("read", "refused", "finding"))
            print(f"{target.name:<28} {told}  ({time.monotonic() - start:.0f} s)", flush=True)
            for one in findings:
                kinds.setdefault((one.target, one.error.split(":")[0], one.where), one)
            if given.drawn:
                # Raises for what it finds, with the smallest file that breaks.
                check(target, given.drawn // len(chosen))
                print(f"{'':<28} {given.drawn // len(chosen)} drawn by hypothesis", flush=True)
    for one in kinds.values():
        print(f"\n{one.target}, {one.file}, number {one.number}: {one.error}\n  at {one.where}")
        print(f"  {one.content[:200]!r}")
    print(f"\n{len(kinds)} kinds of findings")
    return 1 if kinds else 0


def _limit_memory() -> None:
    """Let no attempt allocate much more than the process holds already."""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + BYTES, resource.RLIM_INFINITY))


if __name__ == "__main__":
    raise SystemExit(main())
