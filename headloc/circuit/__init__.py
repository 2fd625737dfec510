"""The circuit: what localization hands on, and how circuits compare."""

from headloc.circuit.circuit import Circuit

__all__ = ["Circuit"]
