"""How a command ends before it is done: by Ctrl-C, by a request to terminate, by a closed pipe."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from headloc.ranks import LAUNCHED
from headloc.run_note import RESUMABLE, go_on, with_resume

if TYPE_CHECKING:
    from omegaconf import DictConfig


class Terminated(KeyboardInterrupt):
    """A request to terminate (SIGTERM: `kill`, a cluster that takes the machine back).

    It goes the way of an interrupt, so that what keeps a run then keeps it here.
    """


@contextmanager
def terminable() -> Iterator[None]:
    """Turn the first SIGTERM inside the block into `Terminated`; further ones change nothing.

    Does nothing outside of the main thread, where no signal arrives, and where somebody has taken
    the signal already.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def left(cfg: DictConfig, folder: Path) -> str:
    """Return what a command that was interrupted leaves, and how to go on.

    Args:
        cfg: its configuration.
        folder: its output folder.
    """
    if "resume" in cfg:
        return go_on(folder)
    written = folder.is_dir() and any(folder.iterdir())
    kept = f"What was finished lies in {folder}" if written else "Nothing was written"
    return f"{kept}. Start the same command again."


def of_sweep(cfg: DictConfig, config: Any) -> str:
    """Return what a sweep leaves that was interrupted in one of its jobs.

    Args:
        cfg: the configuration of the job.
        config: Hydra's own configuration.
    """
    job = f"This was job {config.job.num} ({','.join(config.overrides.task)})"
    kept = f"{job}; what earlier jobs found is kept in {config.sweep.dir}."
    if "resume" in cfg:
        return f"{kept} Go on: {with_resume(Path(config.sweep.dir))}."
    return f"{kept} Start the same command again."


def of_workers(command: str | None, arguments: Sequence[str]) -> str:
    """Return what a sweep leaves one of whose processes has died.

    Args:
        command: name of the command's configuration.
        arguments: its arguments.
    """
    given = [text for text in arguments if text.startswith("output_dir=")]
    place = given[-1] if given else "output_dir= that of this sweep"
    kept = "What other jobs found is kept in their folders."
    if command not in RESUMABLE:
        return f"{kept} Start those that are missing again."
    return f"{kept} Go on: the same command with resume=true {place}."


def told(interrupt: KeyboardInterrupt) -> str:
    """Return the sentence about an interrupt, with what its command has to say of it."""
    name = "Terminated" if isinstance(interrupt, Terminated) else "Interrupted"
    return f"{name}. {interrupt}".strip()


def someone_else_tells() -> bool:
    """Whether this is a process that another one has started and watches over."""
    return LAUNCHED in os.environ


def status(interrupt: KeyboardInterrupt) -> int:
    """Return the exit status that shells know: 128 and the number of the signal."""
    ended_by = signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT
    return 128 + ended_by


def closed_pipe() -> int:
    """End quietly where nobody reads on, as in `headloc circuit show DIR | head`."""
    # What is still buffered must not be flushed into the pipe when Python ends.
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE
