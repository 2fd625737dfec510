"""The command line in this process."""

from tests.commands.conftest import headloc

__all__ = ["headloc"]
