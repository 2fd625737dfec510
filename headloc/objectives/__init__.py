"""Interventions by head gates and the losses that train them."""

from headloc.objectives.base import Objective
from headloc.objectives.function_vector import FunctionVector
from headloc.objectives.in_place import InPlace
from headloc.objectives.off_values import RoleMeans
from headloc.objectives.patch import Patch
from headloc.objectives.prompts import PromptSet
from headloc.objectives.registry import rebuild_objective

__all__ = [
    "FunctionVector",
    "InPlace",
    "Objective",
    "Patch",
    "PromptSet",
    "RoleMeans",
    "rebuild_objective",
]
