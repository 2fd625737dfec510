"""Does the tokenizer give scorable prompts, and can the model do the task at all?"""

from __future__ import annotations

import torch

from headloc.doctor.check import Check
from headloc.evaluation.intervals import Estimate, mean_interval
from headloc.evaluation.metrics import answered_correctly
from headloc.lm.frozen import FrozenLM
from headloc.lm.passes import in_passes
from headloc.objectives.prompts import ROWS_PER_PASS, encode_examples
from headloc.randomness import stream
from headloc.tasks import TaskFamily

_TOO_WEAK = 0.25
_SHOWN = 70


def check_tokenizer(lm: FrozenLM, task: TaskFamily, *, prompts: int, seed: int) -> Check:
    """Whether every answer can be told apart from its prompt, and how long answers are."""
    examples = task.draw(prompts, stream(seed, "doctor", "tokenizer"), split="train")
    encoded, _ = encode_examples(lm, examples, task.template)
    lengths = sorted({len(one.prompt.answer_ids) for one in encoded})
    unknown = sum(one.unknown for one in encoded)
    first = encoded[0]
    longest = max(len(one.prompt.prompt_ids) for one in encoded)
    bos = getattr(lm.tokenizer, "bos_token_id", None)
    opens = bos is not None and first.prompt.prompt_ids[0] == bos
    found = (
        f"answers of {_range(lengths)} {'token' if lengths == [1] else 'tokens'}, prompts of up to "
        f"{longest}, {'a' if opens else 'no'} beginning-of-sequence token; "
        f"{_tail(first.text)!r} asks for {examples[0].answer!r}"
    )
    figures = {
        "answer_tokens": float(lengths[-1]), "prompt_tokens": float(longest),
        "unknown_tokens": float(unknown), "bos": float(opens),
    }  # fmt: skip
    if unknown:
        return Check(
            "tokenizer", "note", found,
            f"{unknown} prompt tokens are unknown to the tokenizer: the model cannot read them. "
            "Use another task.template or other items.", figures,
        )  # fmt: skip
    limit = getattr(lm.model.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(limit, int) and longest + lengths[-1] > limit:
        return Check(
            "tokenizer", "failed", found,
            f"Prompts are longer than the {limit} positions of the model. Use fewer task.shots.",
            figures,
        )  # fmt: skip
    return Check("tokenizer", "ok", found, "", figures)


@torch.no_grad()
def check_accuracy(lm: FrozenLM, task: TaskFamily, *, prompts: int, seed: int) -> Check:
    """How often the model answers, with demonstrations and without."""
    few = _accuracy(lm, task, prompts, seed, shots=None)
    zero = _accuracy(lm, task, prompts, seed, shots=0) if _has_zero_shot(task) else None
    figures = {
        **few.to_metrics("accuracy"),
        **({} if zero is None else zero.to_metrics("zero_shot/accuracy")),
    }
    found = f"accuracy {few} with {task.shots} demonstrations" + (
        "" if zero is None else f", {zero} without"
    )
    found += f" ({prompts} prompts of {task.name})"
    if few.high < _TOO_WEAK:
        return Check(
            "task", "failed" if few.value == 0 else "note", found,
            "The model hardly does this task, so few heads can carry it. Give more task.shots, "
            "another task.template, or a task that it can do.", figures,
        )  # fmt: skip
    if zero is not None and zero.high >= few.low:
        return Check(
            "task", "note", found,
            "Demonstrations hardly help: heads that carry the few-shot ability may not exist.",
            figures,
        )  # fmt: skip
    return Check("task", "ok", found, "", figures)


def _accuracy(
    lm: FrozenLM, task: TaskFamily, prompts: int, seed: int, *, shots: int | None
) -> Estimate:
    """Return the share of fresh prompts that the model answers."""
    use = "few" if shots is None else "zero"
    examples = task.draw(prompts, stream(seed, "doctor", use), split="train", shots=shots)
    _, batch = encode_examples(lm, examples, task.template)

    def run(part: slice) -> torch.Tensor:
        rows = batch.rows(part)
        return answered_correctly(lm.logits(rows), rows.target_BJ).cpu()

    found = in_passes(lm.passes, "evaluation", len(batch), run, most=ROWS_PER_PASS)
    return mean_interval(torch.cat(found).numpy(), seed)


def _has_zero_shot(task: TaskFamily) -> bool:
    return task.shots > 0 and bool(f"{task.template.in_pre}{task.template.in_sep}".strip())


def _range(values: list[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _tail(text: str) -> str:
    return text if len(text) <= _SHOWN else f"...{text[-_SHOWN:]}"
