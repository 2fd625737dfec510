"""The command line in this process, as the tests of the other commands call it."""

from tests.commands.conftest import headloc

__all__ = ["headloc"]
