"""How a vector of head gates changes what a frozen model answers, and what that is worth.

An objective is the only place that knows this.  Training asks it for a loss, every evaluation asks
it for logits under some gates; so a head set is always judged by the intervention that it was
found with.

Shapes: B rows, G gate sets, A heads in flat order, J predicting columns, V vocabulary; where
feed-forward blocks are gated as well, every [A] of gates is an [A + M] (`headloc.components`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from headloc.components import Components
from headloc.errors import HeadlocError
from headloc.lm.batch import RowIndex
from headloc.lm.components import components_of
from headloc.objectives.prompts import Progress, PromptSet

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM
    from headloc.tasks import Example, TaskFamily


class Objective(ABC):
    """An intervention by head gates, and the loss that trains them."""

    name: str

    #: Whether what `prepare` estimates belongs to the tasks it was estimated on.
    bound_to_task: bool = False

    #: Whether the objective can gate feed-forward blocks.
    takes_mlps: bool = False

    #: Whether it does.
    mlps: bool = False

    def components(self, lm: FrozenLM) -> Components:
        """Return what the gates stand for.

        Raises:
            UnsupportedModelError: when feed-forward blocks are asked for and cannot be located.
        """
        return components_of(lm, self.mlps)

    def cover_mlps(self) -> None:
        """Gate feed-forward blocks from now on; `prepare` must follow.

        Raises:
            HeadlocError: when the objective cannot.
        """
        if not self.takes_mlps:
            raise HeadlocError(
                f"gates.mlps=true, but the objective {self.name!r} gates attention heads only. "
                "Set gates.mlps=false."
            )
        self.mlps = True

    def _with_mlps(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Add to a description that feed-forward blocks are gated, where they are."""
        return {**settings, "mlps": True} if self.mlps else settings

    @abstractmethod
    def prepare(
        self, lm: FrozenLM, task: TaskFamily, *, seed: int, prompts: int, progress: Progress | None
    ) -> None:
        """Estimate what the intervention needs (means) on `prompts` prompts of the means stream."""

    @abstractmethod
    def prompt_set(
        self,
        lm: FrozenLM,
        task: TaskFamily,
        examples: Sequence[Example],
        *,
        seed: int,
        use: str,
        progress: Progress | None = None,
    ) -> PromptSet:
        """Encode examples and cache what does not depend on the gates.

        Args:
            lm: the frozen model.
            task: the task family that drew the examples.
            examples: the examples.
            seed: seed of the run.
            use: name of the random stream for anything drawn here (counterfactuals).
            progress: called with (rows cached, rows in all).
        """

    def prompt_key(self, example: Example) -> Hashable:
        """Return what decides an example's outcome: examples that agree in it are one prompt.

        Prompts that are tested or given an interval are drawn to be all different in it
        (`headloc.tasks.different`).
        """
        return example

    @abstractmethod
    def logits(
        self, lm: FrozenLM, prompts: PromptSet, rows: RowIndex, gates: Tensor | None
    ) -> Tensor:
        """Return logits_BJV under gates [A] or [B, A]; None is the untouched model."""

    @abstractmethod
    def loss(self, lm: FrozenLM, prompts: PromptSet, rows: RowIndex, gates_BA: Tensor) -> Tensor:
        """Return the task loss of some rows under their gates, a scalar with gradient."""

    def runs_branches(self, lm: FrozenLM) -> bool:
        """Whether several gate sets can run as branches of one row (`headloc.lm.branches`)."""
        return False

    def branched_logits(
        self, lm: FrozenLM, prompts: PromptSet, rows: RowIndex, gates_BGA: Tensor
    ) -> Tensor:
        """Return logits_BGJV of some rows under the gates of G gate sets, as branches of one row.

        Raises:
            HeadlocError: when the objective has no branches (see `runs_branches`).
        """
        raise HeadlocError(f"The objective {self.name!r} cannot run gate sets as branches.")

    def branched_losses(
        self, lm: FrozenLM, prompts: PromptSet, rows: RowIndex, gates_BGA: Tensor
    ) -> Tensor:
        """Return the task loss of every gate set, losses_G, with gradient.

        Raises:
            HeadlocError: when the objective has no branches (see `runs_branches`).
        """
        raise HeadlocError(f"The objective {self.name!r} cannot run gate sets as branches.")

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return the settings, json-able, enough to rebuild the objective."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return what was estimated by `prepare`, for saving with a circuit."""

    @abstractmethod
    def load_tensors(self, tensors: Mapping[str, Tensor], lm: FrozenLM, task: TaskFamily) -> None:
        """Take what `tensors` gave in place of `prepare`, on the task it was estimated for."""
