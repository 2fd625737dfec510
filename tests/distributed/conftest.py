"""The command line in this process, as the tests of the commands have it."""

from tests.commands.conftest import headloc, other_model

__all__ = ["headloc", "other_model"]
