"""Single training steps as they are in a run, callable one by one.

A step is what Lightning does between two batches: sample gates, run the model, differentiate, check
the numbers, step Adam, bring the gates back into range.  Logging, validation and Lightning's own
loop stay outside.

Shapes: B rows of a step, N prompts, J predicting columns, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from headloc.bank.module import BankLocalizer
from headloc.bank.settings import Member
from headloc.gates import HardConcreteGates, PenaltySparsity
from headloc.lm.batch import IGNORE, last_columns
from headloc.lm.frozen import FrozenLM
from headloc.localizer.data import EpochOrder
from headloc.localizer.module import GateTraining, HeadLocalizer, OptimizerSettings
from headloc.objectives import InPlace, Objective, PromptSet
from headloc.objectives.prompts import Progress
from headloc.randomness import stream
from headloc.tasks import TaskFamily

WEIGHT = 0.05


class _Driven:
    """What a training step asks the trainer for, where there is none."""

    steps_done = 0

    @property
    def global_step(self) -> int:
        return self.steps_done

    @property
    def progress(self) -> float:
        return 0.0

    def _logs_now(self) -> bool:
        return False


class _DrivenLocalizer(_Driven, HeadLocalizer):
    pass


class _DrivenBank(_Driven, BankLocalizer):
    pass


@dataclass(frozen=True, slots=True)
class Material:
    """A model with prepared prompts, from which steps of any kind are made.

    Attributes:
        lm: the frozen model.
        task: the task family.
        objective: the prepared in-place objective with mean off-values at the last token.
        prompts: N prompts with their prefix cache.
        batch_size: rows of a step.
        seed: seed of gates, noise and the order of prompts.
    """

    lm: FrozenLM
    task: TaskFamily
    objective: InPlace
    prompts: PromptSet
    batch_size: int
    seed: int

    @property
    def without_prefix(self) -> PromptSet:
        """The same prompts without their prefix cache: every pass runs all columns."""
        return replace(self.prompts, prefix=None)

    def step(self, *, cached: bool = True, objective: Objective | None = None) -> GateStep:
        """Return a training step of one gate set.

        Args:
            cached: behind the prefix cache, or through full passes.
            objective: another prepared objective than that of the last token.
        """
        prompts = self.prompts if cached else self.without_prefix
        parts = (HardConcreteGates(), PenaltySparsity(WEIGHT), prompts, prompts)
        module = _DrivenLocalizer(
            self.lm, objective or self.objective, *parts, OptimizerSettings(), self.seed
        )
        return GateStep(module, self.batch_size, self.seed)

    def bank_step(self, gate_sets: int) -> GateStep:
        """Return a training step of a bank behind the prefix cache."""
        members = [Member(WEIGHT, self.seed + number) for number in range(gate_sets)]
        gates, prompts = HardConcreteGates(), (self.prompts, self.prompts)
        module = _DrivenBank(self.lm, self.objective, gates, members, *prompts)
        return GateStep(module, self.batch_size, self.seed)

    def bare_step(self, *, cached: bool) -> BareStep:
        """Return forward and backward of the untouched model on the tokens of a gated step."""
        prompts = self.prompts if cached else self.without_prefix
        return BareStep(self.lm, prompts, self.batch_size, self.seed)


def material(
    lm: FrozenLM,
    task: TaskFamily,
    *,
    prompts: int,
    batch_size: int,
    seed: int,
    progress: Progress = lambda done, total: None,
) -> Material:
    """Draw prompts and run their prefixes; means are taken over as many prompts as a step has.

    Args:
        lm: the frozen model.
        task: the task family.
        prompts: N, prompts whose prefixes are cached.
        batch_size: rows of a step.
        seed: seed of prompts and steps.
        progress: called with (rows run, rows in all).
    """
    objective, total = InPlace("mean"), batch_size + prompts
    objective.prepare(
        lm, task, seed=seed, prompts=batch_size, progress=lambda done, _: progress(done, total)
    )
    examples = task.draw(prompts, stream(seed, "bench"), split="train", items="fit")
    made = objective.prompt_set(
        lm,
        task,
        examples,
        seed=seed,
        use="bench",
        progress=lambda done, _: progress(batch_size + done, total),
    )
    return Material(lm, task, objective, made, batch_size, seed)


class GateStep:
    """A training step of one gate set or a bank; every call is the next step.

    Args:
        module: a localizer or bank that no trainer drives.
        batch_size: rows of a step.
        seed: seed of the order of prompts.
    """

    def __init__(self, module: GateTraining, batch_size: int, seed: int) -> None:
        self.module = module.to(module.train_prompts.device)
        settings = module.optimizer_settings
        self.optimizer = torch.optim.Adam(
            [parameter for gates in module.gate_sets for parameter in gates.parameters()],
            lr=module.gate_sets[0].default_lr,
            betas=(settings.beta1, settings.beta2),
        )
        self._batch_size, self._seed = batch_size, seed
        self._rows = _batches(module.train_prompts, batch_size, seed)

    def __call__(self) -> Tensor:
        """Take a step and return its loss (the sum over gate sets), still on the device."""
        module = self.module
        loss: Tensor = module.training_step(next(self._rows), 0)
        loss.backward()
        module.on_before_optimizer_step(self.optimizer)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        rate = self.optimizer.param_groups[0]["lr"]
        for gates, control in zip(module.gate_sets, module.controls, strict=True):
            gates.after_step(control.shrinkage(rate))
            control.after_step(gates, module.progress)
        module.steps_done += 1
        return loss.detach()

    def first_gradient(self) -> tuple[Tensor, Tensor]:
        """Return what the first step differentiates, without taking it.

        Returns:
            The loss (the sum over gate sets), a scalar, and its gradient to the parameters of the
            first gate set, flat. Gate sets share no parameter, so that is the gradient of the
            first one's own loss.
        """
        rows = next(_batches(self.module.train_prompts, self._batch_size, self._seed))
        loss: Tensor = self.module.training_step(rows, 0)
        parameters = list(self.module.gate_sets[0].parameters())
        gradients = torch.autograd.grad(loss, parameters)
        return loss.detach(), torch.cat([gradient.flatten() for gradient in gradients])


class BareStep:
    """Forward and backward of the frozen model without any gate, to its input embeddings.

    It runs the tokens of a gated step with the same loss, behind the same cache or without.

    Args:
        lm: the frozen model.
        prompts: the prompts, with their prefix for cached passes.
        batch_size: rows of a step.
        seed: seed of the order of prompts.
    """

    def __init__(self, lm: FrozenLM, prompts: PromptSet, batch_size: int, seed: int) -> None:
        self.lm, self.prompts = lm, prompts
        self._embed = lm.model.get_input_embeddings()
        self._rows = _batches(prompts, batch_size, seed)

    def __call__(self) -> Tensor:
        """Return the loss of the next rows, its gradient taken and dropped."""
        rows = next(self._rows)
        batch, prefix = self.prompts.batch.rows(rows), self.prompts.prefix
        columns = slice(None) if prefix is None else batch.predicting
        with torch.no_grad():
            embedded = self._embed(batch.ids_BT[:, columns])
        embedded.requires_grad_()
        answers = batch.target_BJ.shape[1]
        inputs: dict[str, Any] = {"inputs_embeds": embedded, "attention_mask": batch.mask_BT}
        if self.lm.takes_positions:
            inputs["position_ids"] = batch.position_ids_BT[:, columns]
        if self.lm.keeps_logits:
            inputs["logits_to_keep"] = answers
        cache = None if prefix is None else prefix.rows(rows).fresh()
        out = self.lm.model(**inputs, past_key_values=cache, use_cache=cache is not None)
        logits_BJV = last_columns(out.logits, answers).float()
        total = cross_entropy(
            logits_BJV.flatten(0, 1), batch.target_BJ.flatten(), ignore_index=IGNORE
        )
        torch.autograd.grad(total, embedded)
        return total.detach()


def _batches(prompts: PromptSet, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Yield the rows of one step after another, on the device, as the data loader orders them."""
    order = EpochOrder(len(prompts), batch_size, seed, shuffle=True)
    epoch = 0
    while True:
        order.set_epoch(epoch)
        for rows in order:
            yield torch.tensor(rows, device=prompts.device)
        epoch += 1
