"""The command line in this process, and a model that knows no task."""

from tests.commands.conftest import headloc, other_model

__all__ = ["headloc", "other_model"]
