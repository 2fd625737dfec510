"""The command line in this process, as for the other commands."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.commands.conftest import finished, headloc

__all__ = ["finished", "headloc", "interruptible"]


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Undo what a shell does to commands in the background: they inherit SIGINT as ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
