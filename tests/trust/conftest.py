"""The command line in this process, as for the other commands."""

from tests.commands.conftest import finished, headloc

__all__ = ["finished", "headloc"]
