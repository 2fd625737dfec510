"""Relaxations of head selection and the pressure towards few heads."""

from headloc.gates.base import HeadGates
from headloc.gates.hard_concrete import HardConcreteGates
from headloc.gates.l1 import L1Gates
from headloc.gates.sparsity import PenaltySparsity, SparsityControl, TargetSparsity
from headloc.gates.top_k import TopKGates

__all__ = [
    "HardConcreteGates",
    "HeadGates",
    "L1Gates",
    "PenaltySparsity",
    "SparsityControl",
    "TargetSparsity",
    "TopKGates",
]
