"""The in-place intervention written again with bare hooks, one unpadded prompt at a time.

Nothing of headloc's taps, batches or caches is used here, so that an agreement means something.

Shapes: T tokens of one prompt, H heads of a layer, d head width, A heads, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from headloc.lm.batch import EncodedPrompt, Role
from headloc.lm.frozen import FrozenLM
from headloc.objectives import InPlace, PromptSet
from headloc.randomness import stream
from headloc.tasks import AddK, Example, encode_all, render
from tests.tasks.zoo import qwen, word_level
from tests.tiny import HEADS, LAYERS, tiny_model

PROJECTIONS = {
    "llama": "model.layers.{}.self_attn.o_proj",
    "qwen3": "model.layers.{}.self_attn.o_proj",
    "gemma2": "model.layers.{}.self_attn.o_proj",
    "gpt2": "transformer.h.{}.attn.c_proj",
    "gpt_neox": "gpt_neox.layers.{}.attention.dense",
    "falcon_new": "transformer.h.{}.self_attention.dense",
}
"""Where each family projects the head outputs, from the modelling code of transformers."""

TOTAL = LAYERS * HEADS
Edit = Callable[[int, Tensor], Tensor]


@cache
def digit_lm(family: str, dtype: torch.dtype = torch.float32) -> FrozenLM:
    """A random model with one token a digit, so that prompts and answers vary in length."""
    tokenizer = qwen()
    model = tiny_model(family, vocab_size=len(tokenizer), dtype=dtype, max_position_embeddings=128)
    return FrozenLM(model, tokenizer)


@cache
def windowed_lm(family: str, window: int) -> FrozenLM:
    """The same with a window of attention that the few tokens of a probe stay within."""
    tokenizer = qwen()
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 128}
    return FrozenLM(tiny_model(family, sliding_window=window, **sizes), tokenizer)


@cache
def number_lm(family: str) -> FrozenLM:
    """A random model with one token a number: every answer is a single token."""
    tokenizer = word_level()
    return FrozenLM(tiny_model(family, vocab_size=len(tokenizer)), tokenizer)


def add_k(**options: object) -> AddK:
    """Offsets and inputs whose sums have one, two or three digits."""
    chosen: dict[str, object] = {"k_min": 1, "k_max": 30, "x_min": 1, "x_max": 100, "shots": 2}
    return AddK(**{**chosen, **options})  # type: ignore[arg-type]


def mixed_examples(task: AddK, rows: int = 3, seed: int = 5) -> list[Example]:
    """Examples of two lengths: some with two demonstrations, some with three."""
    rng = stream(seed, "mixed")
    return [example for n in (2, 3) for example in task.draw(rows, rng, split="train", shots=n)]


def random_gates(rows: int | None = None, seed: int = 11) -> Tensor:
    """Gates in [0, 1], a few of them exactly zero or one."""
    generator = torch.Generator().manual_seed(seed)
    shape = (TOTAL,) if rows is None else (rows, TOTAL)
    return (torch.rand(shape, generator=generator) * 1.4 - 0.2).clamp(0, 1)


@dataclass(frozen=True)
class ByHand:
    """Run prompts of a model with bare hooks."""

    lm: FrozenLM
    family: str

    def projection(self, layer: int) -> nn.Module:
        return self.lm.model.get_submodule(PROJECTIONS[self.family].format(layer))

    @torch.no_grad()
    def run(self, ids: Sequence[int], edit: Edit | None = None) -> tuple[Tensor, list[Tensor]]:
        """logits_TV and, per layer, the head outputs z_THd before any edit."""
        seen: list[Tensor] = []

        def hook(layer: int) -> Callable[[nn.Module, tuple[Tensor, ...]], object]:
            def before(module: nn.Module, args: tuple[Tensor, ...]) -> object:
                z_THd = args[0][0].view(len(ids), HEADS, -1)
                seen.append(z_THd.clone())
                return None if edit is None else (edit(layer, z_THd).reshape(args[0].shape),)

            return before

        handles = [
            self.projection(layer).register_forward_pre_hook(hook(layer)) for layer in range(LAYERS)
        ]
        try:
            logits = self.lm.model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]
        finally:
            for handle in handles:
                handle.remove()
        return logits, seen

    def gated(
        self, prompt: EncodedPrompt, gates_A: Tensor, off: Sequence[Tensor] | None, positions: str
    ) -> Tensor:
        """Logits at the predicting positions of one prompt, heads gated towards `off`."""
        start = len(prompt.prompt_ids) - 1
        first = start if positions == "last" else 0

        def edit(layer: int, z_THd: Tensor) -> Tensor:
            gate = gates_A[layer * HEADS : (layer + 1) * HEADS][:, None]
            base = torch.zeros_like(z_THd) if off is None else off[layer]
            new = z_THd.clone()
            new[first:] = gate * z_THd[first:] + (1 - gate) * base[first:]
            return new

        logits, _ = self.run(forced(prompt), edit)
        return logits[start:]

    def role_means(self, examples: Sequence[Example], task: AddK) -> list[dict[int, Tensor]]:
        """Per layer, the mean head output of every token role, by plain accumulation."""
        kept: list[dict[int, list[Tensor]]] = [{} for _ in range(LAYERS)]
        for prompt in self.encoded(examples, task):
            _, z = self.run(forced(prompt))
            for layer in range(LAYERS):
                for role, z_Hd in zip(roles(prompt), z[layer], strict=True):
                    kept[layer].setdefault(role, []).append(z_Hd)
        return [{r: torch.stack(z).double().mean(0).float() for r, z in k.items()} for k in kept]

    def encoded(self, examples: Sequence[Example], task: AddK) -> list[EncodedPrompt]:
        rendered = [render(example, task.template) for example in examples]
        return [item.prompt for item in encode_all(self.lm.tokenizer, rendered)]

    def off_values(
        self, objective: InPlace, task: AddK, examples: Sequence[Example], seed: int, means: int
    ) -> list[list[Tensor] | None]:
        """Per example and layer, what closed heads put out at every token."""
        prompts = self.encoded(examples, task)
        if objective.off_value == "zero":
            return [None] * len(prompts)
        if objective.off_value == "mean":
            drawn = task.draw(means, stream(seed, "means"), split="train", items="fit")
            tables = self.role_means(drawn, task)
            return [
                [torch.stack([table.get(r, table[Role.LAST] * 0) for r in roles(p)]) for table in
                 tables]
                for p in prompts
            ]  # fmt: skip
        rng = stream(seed, "test", "counterfactual")
        others = self.encoded([task.counterfactual(e, rng) for e in examples], task)
        return [self._aligned(other, prompt) for other, prompt in zip(others, prompts, strict=True)]

    def _aligned(self, other: EncodedPrompt, prompt: EncodedPrompt) -> list[Tensor]:
        """Outputs on the counterfactual prompt, aligned at the last prompt token."""
        _, z = self.run([*other.prompt_ids, *prompt.answer_ids[:-1]])
        shift = len(other.prompt_ids) - len(prompt.prompt_ids)
        rows = torch.arange(len(forced(prompt))) + shift
        return [z_THd[rows.clamp(min=0)] for z_THd in z]


def forced(prompt: EncodedPrompt) -> list[int]:
    """The tokens a teacher-forced pass runs."""
    return [*prompt.prompt_ids, *prompt.answer_ids[:-1]]


def roles(prompt: EncodedPrompt) -> list[int]:
    """The role of each of them."""
    answers = [int(Role.ANSWER)] * (len(prompt.answer_ids) - 1)
    return [*prompt.roles[:-1], int(Role.LAST), *answers]


def prepared(
    objective: InPlace, lm: FrozenLM, task: AddK, examples: Sequence[Example], seed: int = 3
) -> PromptSet:
    """Prepare an objective on a few prompts and encode the examples for it."""
    objective.prepare(lm, task, seed=seed, prompts=20)
    return objective.prompt_set(lm, task, examples, seed=seed, use="test")
