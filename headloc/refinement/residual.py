"""The whole-residual task vector of Hendel et al. 2023 (arXiv 2310.15916), as a reference.

    theta_k[l] = mean over few-shot prompts of task k of the stream at the output of layer l

both at the last prompt token; there theta_k[l] *replaces* the stream of a zero-shot prompt.

Shapes: K tasks, L layers, B rows, T columns of the current forward, N prompts, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from headloc.evaluation.metrics import answered_correctly
from headloc.lm.hooks import attached, column_range, splice
from headloc.objectives.prompts import Progress, PromptSet, chunks, encode_examples
from headloc.randomness import stream
from headloc.refinement.injection import ROWS_PER_PASS, known_tasks, last_column

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM
    from headloc.tasks import TaskFamily

Edit = Callable[[Tensor], Tensor | None]


class _OutputTap:
    """A hook on the output of a decoder layer, which is a tensor or a tuple that begins with it."""

    def __init__(self, lm: FrozenLM, layer: int, edit: Edit) -> None:
        self.layer = layer
        self.fired = 0
        self._module = lm.model.get_submodule(f"{lm.family.layers}.{layer}")
        self._edit = edit

    def attach(self) -> RemovableHandle:
        return self._module.register_forward_hook(self._after)

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        self.fired += 1
        new = self._edit(output[0] if isinstance(output, tuple) else output)
        if new is None:
            return None
        return (new, *output[1:]) if isinstance(output, tuple) else new


def depth(lm: FrozenLM) -> int:
    """Return the number of decoder layers."""
    return len(list(lm.model.get_submodule(lm.family.layers).children()))


@contextmanager
def replacing_output(
    lm: FrozenLM, layer: int, vector_BD: Tensor, *, columns: slice
) -> Iterator[None]:
    """Replace the stream at the output of a layer.

    Args:
        lm: the frozen model.
        layer: decoder layer.
        vector_BD: the new stream of every row.
        columns: columns of the current forward that are replaced.

    Raises:
        TapError: on leaving the block, when the layer did not fire.
    """

    def edit(x_BTD: Tensor) -> Tensor:
        start, stop = column_range(columns, x_BTD.shape[1])
        part_BTD = vector_BD[:, None].to(x_BTD).expand(-1, stop - start, -1)
        return splice(x_BTD, part_BTD, start, stop)

    with attached([_OutputTap(lm, layer, edit)]):
        yield


@torch.no_grad()
def residual_means(
    lm: FrozenLM,
    task: TaskFamily,
    names: Sequence[str],
    *,
    prompts: int,
    seed: int,
    progress: Progress | None = None,
) -> Tensor:
    """Return theta_KLD in float32: the mean stream of some tasks at the output of every layer.

    Args:
        lm: the frozen model.
        task: the task family.
        names: K tasks of the family.
        prompts: few-shot prompts per task, of the stream ("means", "residual", task).
        seed: seed of the run.
        progress: called with (tasks done, tasks in all).
    """
    means = []
    for done, name in enumerate(names, start=1):
        rng = stream(seed, "means", "residual", name)
        examples = [task.example(name, rng, items="fit") for _ in range(prompts)]
        _, batch = encode_examples(lm, examples, task.template)
        total_LD = torch.zeros(depth(lm), lm.width, dtype=torch.float64)
        for part in chunks(len(batch)):
            total_LD += _last_outputs(lm, batch.rows(part)).double().sum(1).cpu()
        means.append((total_LD / prompts).float())
        if progress is not None:
            progress(done, len(names))
    return torch.stack(means).to(lm.device)


def _last_outputs(lm: FrozenLM, batch: Any) -> Tensor:
    """Return x_LBD, the stream at the output of every layer at the last prompt token."""
    seen: list[Tensor] = []
    last = batch.prompt_columns - 1

    def keep(x_BTD: Tensor) -> None:
        seen.append(x_BTD[:, last].to(lm.device))

    with ExitStack() as stack:
        stack.enter_context(attached([_OutputTap(lm, layer, keep) for layer in range(depth(lm))]))
        lm.logits(batch)
    return torch.stack(seen)


@torch.no_grad()
def score_residual(
    lm: FrozenLM,
    prompts: PromptSet,
    theta_KLD: Tensor,
    layer: int,
    *,
    rows_per_pass: int = ROWS_PER_PASS,
) -> NDArray[np.bool_]:
    """Return correct_N of zero-shot prompts whose stream is replaced at the output of a layer."""
    task_rows = known_tasks(prompts)
    found = []
    for part in chunks(len(prompts), rows_per_pass):
        batch = prompts.batch.rows(part)
        prefix = None if prompts.prefix is None else prompts.prefix.rows(part)
        vector_BD = theta_KLD[task_rows[part], layer]
        with replacing_output(lm, layer, vector_BD, columns=last_column(prompts)):
            logits_BJV = lm.logits(batch, prefix)
        found.append(answered_correctly(logits_BJV, batch.target_BJ))
    return torch.cat(found).cpu().numpy()


def best_layer(lm: FrozenLM, prompts: PromptSet, theta_KLD: Tensor) -> tuple[int, list[float]]:
    """Return the layer with the best accuracy on some prompts, and the accuracy of every layer.

    The prompts must not be those that are finally scored.
    """
    accuracies = [
        float(score_residual(lm, prompts, theta_KLD, layer).mean()) for layer in range(depth(lm))
    ]
    return int(np.argmax(accuracies)), accuracies
