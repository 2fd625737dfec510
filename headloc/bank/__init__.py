"""A bank of gate sets trained side by side on one frozen model: a sparsity path in one run."""

from headloc.bank.result import PathResult
from headloc.bank.settings import Member, PathSparsity

__all__ = ["Member", "PathResult", "PathSparsity"]
