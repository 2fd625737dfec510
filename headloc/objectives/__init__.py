"""Interventions by head gates and the losses that train them."""

from headloc.objectives.base import Objective
from headloc.objectives.in_place import InPlace
from headloc.objectives.off_values import RoleMeans
from headloc.objectives.prompts import PromptSet

__all__ = ["InPlace", "Objective", "PromptSet", "RoleMeans"]
