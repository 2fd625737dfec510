"""Interventions on chosen heads by name, as taps: what is done to a model, and then measured."""

from headloc.interventions.base import Intervention
from headloc.interventions.position_free import PositionFree
from headloc.interventions.value_boost import ValueBoost

__all__ = ["Intervention", "PositionFree", "ValueBoost"]
