"""The command line in this process, as for the other commands."""

from tests.commands.conftest import headloc

__all__ = ["headloc"]
