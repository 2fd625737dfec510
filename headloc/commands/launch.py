"""Start the processes of a run on several devices, watch over them, and end them together.

The command is started once per device with the environment that Lightning and torch read
(LOCAL_RANK, MASTER_ADDR, ...) and the same output folder.  This process only waits: when one of
them fails the others are ended, so that none waits for ever for a process that is gone.  What the
processes beside the first would show goes to a file, and is told when one of them fails alone.

Machines of a cluster are started by torchrun or srun; this is for one machine.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from headloc.commands.ending import Terminated, terminable
from headloc.errors import HeadlocError
from headloc.ranks import LAUNCHED
from headloc.run_note import go_on

_POLL_SECONDS = 0.1
_GRACE_SECONDS = 20.0
_LINES = 15


def launch(
    arguments: Sequence[str],
    processes: int,
    program: Sequence[str] = ("-m", "headloc"),
    *,
    folder: Path | None = None,
) -> int:
    """Run a headloc command in several processes and return its exit status.

    Args:
        arguments: the arguments of the command line, with an output_dir.
        processes: processes to start.
        program: what Python runs in each of them.
        folder: output folder of the run, for the word on how to go on when one of them dies.

    Raises:
        HeadlocError: when another process than the first failed, with the end of what it said.
    """
    with ExitStack() as stack:
        logs = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(processes - 1)]
        started: list[subprocess.Popen[bytes]] = []
        stack.callback(_end, started)
        stack.enter_context(terminable())
        port = _free_port()
        for rank in range(processes):
            log = None if rank == 0 else logs[rank - 1]
            started.append(_start([*program, *arguments], rank, processes, port, log))
        failed = _watch(started)
        if failed is None or (failed == 0 and (started[0].returncode or 0) >= 0):
            return started[0].returncode
        code = started[failed].returncode
        message = f"Process {failed} of {processes} {_how(code)}; the others were ended."
        if code >= 0:
            message += f" It said last:\n{_tail(logs[failed - 1])}"
        elif folder is not None:
            message += f" {go_on(folder)}"
        raise HeadlocError(message)


def _start(
    arguments: Sequence[str], rank: int, processes: int, port: int, log: IO[bytes] | None
) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        LAUNCHED: "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "NODE_RANK": "0",
        "LOCAL_RANK": str(rank),
        "RANK": str(rank),
        "WORLD_SIZE": str(processes),
    }
    return subprocess.Popen([sys.executable, *arguments], env=environment, stdout=log, stderr=log)


def _watch(started: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Wait until all are done or one has failed; return the number of the one that failed."""
    while True:
        try:
            codes = [process.poll() for process in started]
            failed = [rank for rank, code in enumerate(codes) if code]
            if failed:
                killed = [rank for rank in failed if (codes[rank] or 0) < 0]
                # A mistake of the user ends all of them; the first one tells it.
                return killed[0] if killed else _settle(started[0], failed[0])
            if all(code == 0 for code in codes):
                return None
            time.sleep(_POLL_SECONDS)
        except Terminated:
            raise
        except KeyboardInterrupt:
            # The processes got the interrupt as well, and the first one tells of it.
            _wait(started[0])
            return 0


def _settle(first: subprocess.Popen[bytes], failed: int) -> int:
    _wait(first, 3.0)
    return 0 if first.poll() else failed


def _how(code: int) -> str:
    """Say how a process has ended; the kernel kills where memory runs out."""
    if code >= 0:
        return f"failed (status {code})"
    why = ", most often because memory ran out" if -code == signal.SIGKILL else ""
    return f"was killed (signal {-code}{why})"


def _wait(process: subprocess.Popen[bytes], seconds: float = _GRACE_SECONDS) -> None:
    try:
        process.wait(seconds)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        return


def _end(started: Sequence[subprocess.Popen[bytes]]) -> None:
    """End what still runs: politely, and then not."""
    for process in started:
        if process.poll() is None:
            process.terminate()
    for process in started:
        _wait(process, 5.0)
        if process.poll() is None:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _tail(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode("utf-8", "replace").strip().splitlines()
    return "\n".join(f"  {line}" for line in lines[-_LINES:]) or "  (nothing)"


def with_output_dir(arguments: Sequence[str], folder: Path) -> list[str]:
    """Return arguments that name the output folder, so that all processes agree on it."""
    kept = [argument for argument in arguments if not argument.startswith("output_dir=")]
    text = str(folder.resolve()).replace("\\", "\\\\").replace("'", "\\'")
    return [*kept, f"output_dir='{text}'"]
