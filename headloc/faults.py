"""What can go wrong around a run through nobody's mistake, and the sentence that each is told in.

A disk that is full, a folder that cannot be written to, memory that has run out, a process that has
died.  Everything that decides whether an error is such a fault asks here.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CLOSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_BROKEN = {
    errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE,
    errno.ENOLCK,
}  # fmt: skip
_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "can't start new thread",
    "failed to map segment",
)
"""What torch says on a processor, on an accelerator, and where cuBLAS finds no room; then Python,
where no thread can be started and no library be loaded."""

_DEAD_WORKERS = ("TerminatedWorkerError", "BrokenProcessPool", "UncompletedJobError")
"""Errors of joblib, concurrent.futures and submitit, known by name so that none is imported."""

_LOST_PEERS = ("Connection closed by peer", "Connection reset by peer", "Connection refused")
"""What gloo says; NCCL raises errors of its own types."""


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it came from, latest first."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def fault(error: BaseException) -> str | None:
    """Return what went wrong and what helps, None where an error is no fault of this kind.

    Args:
        error: an error; what it came from counts as well.
    """
    for cause in causes(error):
        told = _of_system(cause) or _of_memory(cause) or _of_processes(cause)
        if told is not None:
            return told
    return None


def in_short(error: BaseException) -> str:
    """Return the first line of what an error says, its kind where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the host, has no memory left."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    own = isinstance(error, RuntimeError | ImportError)
    return own and any(words in str(error) for words in _MEMORY)


def lost_peer(error: BaseException) -> bool:
    """Whether an error says that another process of a run is gone."""
    return any(_is_lost_peer(cause) for cause in causes(error))


def dead_worker(error: BaseException) -> bool:
    """Whether an error says that a process of a launcher is gone."""
    return any(_is_dead_worker(cause) for cause in causes(error))


def _is_dead_worker(error: BaseException) -> bool:
    return type(error).__name__ in _DEAD_WORKERS


def _is_lost_peer(error: BaseException) -> bool:
    if type(error).__name__ in ("DistBackendError", "DistNetworkError"):
        return True
    lost = any(words in str(error) for words in _LOST_PEERS)
    return isinstance(error, RuntimeError) and lost


def _of_system(error: BaseException) -> str | None:
    if not isinstance(error, OSError) or not error.strerror or out_of_memory(error):
        return None
    if error.filename is None and error.errno not in _FULL | _CLOSED | _BROKEN:
        # An error without a path that no disk gives is as likely a bug.
        return None
    place = "A file" if error.filename is None else str(Path(str(error.filename)))
    if error.errno in _FULL:
        return f"{place} cannot be written ({error.strerror}). Free some space there."
    if error.errno in _CLOSED:
        return (
            f"{place} cannot be used ({error.strerror}). Check its permissions, or name another "
            "place."
        )
    return f"{place} cannot be used ({error.strerror}). Check the path and its disk."


def _of_memory(error: BaseException) -> str | None:
    if not out_of_memory(error):
        return None
    return (
        f"Memory has run out ({in_short(error)}). Use a smaller dtype (model.dtype=bfloat16), "
        "fewer or shorter prompts, data.cache=none, or a machine with more."
    )


def _of_processes(error: BaseException) -> str | None:
    if _is_dead_worker(error):
        return (
            "A worker process died without a word: it was killed, most often because memory ran "
            "out. Run fewer at once (hydra.launcher.n_jobs), or give them more memory."
        )
    if _is_lost_peer(error):
        return f"Another process of this run is gone ({in_short(error)})."
    return None
