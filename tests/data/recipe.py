"""Train the tiny GPT-2 that the baselines are compared on: 4 layers of 4 heads, add-k in context.

    python -m tests.data.recipe [FOLDER]

Numbers are single tokens, prompts are those of `headloc.tasks.AddK` with the options below, and
every label but the first of a prompt is predicted.  Half of the batch are look-ups of arbitrary
pairs, so that not all heads are there for add-k.  Training takes 3 minutes on one core; the weights
are kept in float16 and meant to be loaded as float32.  All subsets of the sixteen heads are tried,
and the best of every size written to best_sets.json.

Shapes: B prompts, T tokens, V vocabulary.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from headloc.files import write_json
from headloc.randomness import torch_generator
from headloc.tasks import AddK
from tests.tasks.zoo import word_level

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent / "gpt2_tiny"
SHOTS, OFFSETS, INPUTS = 5, 8, 16
OPTIONS: dict[str, Any] = {
    "k_max": OFFSETS,
    "x_min": 1,
    "x_max": INPUTS,
    "held_out_k": [],
    "shots": SHOTS,
}
"""Options of the task family that the model is trained on."""

LAYERS, HEADS, WIDTH = 4, 4, 64
STEPS, BATCH, RATE, WARMUP = 3000, 128, 2e-3, 200


def task() -> AddK:
    """Return the task family."""
    return AddK(**OPTIONS)


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer in which every number up to the largest label is a token."""
    return word_level(largest=OFFSETS + INPUTS)


def model(vocabulary: int) -> GPT2LMHeadModel:
    """Return the untrained model."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocabulary, n_positions=32, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPT2LMHeadModel(config)


class Prompts:
    """Random prompts as tokens: the text of `AddK`, and look-ups that other heads can serve.

    A look-up shows arbitrary pairs behind `:` and asks for one of them again.

    Args:
        words: the tokenizer.
    """

    def __init__(self, words: PreTrainedTokenizerFast) -> None:
        self.number = torch.tensor(
            words.convert_tokens_to_ids([str(n) for n in range(OFFSETS + INPUTS + 1)])
        )
        self.bos, self.arrow, self.end, self.colon = words.convert_tokens_to_ids(
            ["<s>", "->", "#", ":"]
        )

    def add_k(self, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return ids_BT and target_BT of add-k, where -100 is not predicted."""
        x_BS = torch.rand(rows, INPUTS, generator=generator).argsort(1)[:, : SHOTS + 1] + 1
        k_B1 = torch.randint(1, OFFSETS + 1, (rows, 1), generator=generator)
        return self._as_tokens(x_BS, x_BS + k_B1, self.arrow, first=1)

    def look_up(self, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return ids_BT and target_BT of look-ups; the last pair stood in the prompt before."""
        x_BS = torch.rand(rows, INPUTS, generator=generator).argsort(1)[:, : SHOTS + 1] + 1
        y_BS = torch.randint(1, OFFSETS + INPUTS + 1, x_BS.shape, generator=generator)
        again_B1 = torch.randint(0, SHOTS, (rows, 1), generator=generator)
        x_BS[:, -1:], y_BS[:, -1:] = x_BS.gather(1, again_B1), y_BS.gather(1, again_B1)
        return self._as_tokens(x_BS, y_BS, self.colon, first=SHOTS)

    def _as_tokens(
        self, x_BS: Tensor, y_BS: Tensor, between: int, first: int
    ) -> tuple[Tensor, Tensor]:
        """Write pairs as tokens; labels are asked for from pair `first` on."""
        rows = len(x_BS)
        blank = torch.full((rows, 1), -100)
        parts, targets = [torch.full((rows, 1), self.bos)], [blank]
        for shot in range(SHOTS + 1):
            x, y = self.number[x_BS[:, shot]][:, None], self.number[y_BS[:, shot]][:, None]
            parts += [x, torch.full_like(x, between), y, torch.full_like(x, self.end)]
            targets += [blank, y if shot >= first else blank, blank, blank]
        return torch.cat(parts, 1)[:, :-2], torch.cat(targets, 1)[:, :-2]


def train(folder: Path = HERE) -> float:
    """Train, save the model with its tokenizer, and return the accuracy of the last label."""
    words = tokenizer()
    lm = model(len(words)).train()
    prompts = Prompts(words)
    generator = torch_generator(0, "gpt2_tiny")
    optimizer = torch.optim.AdamW(lm.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, (STEPS - step) / (STEPS - WARMUP))
    )
    for step in range(STEPS):
        both = (prompts.add_k(BATCH // 2, generator), prompts.look_up(BATCH // 2, generator))
        ids_BT, target_BT = (torch.cat(parts) for parts in zip(*both, strict=True))
        logits_BTV = lm(input_ids=ids_BT).logits
        loss = cross_entropy(logits_BTV.flatten(0, 1), target_BT.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 200 == 0 or step == STEPS - 1:
            print(step, round(loss.item(), 3), round(_accuracy(lm, prompts), 3), flush=True)
    accuracy = _accuracy(lm.eval(), prompts)
    lm.half().save_pretrained(folder)
    words.save_pretrained(folder)
    write_json(folder / "recipe.json", {"accuracy": accuracy, "task": OPTIONS, "steps": STEPS})
    return accuracy


def best_sets(folder: Path = HERE) -> None:
    """Try all subsets of heads, under either off-value, and write the best set of every size."""
    from headloc import InPlace, load_lm
    from headloc.compare.optimum import find_optimum
    from headloc.evaluation.subsets import SubsetScorer
    from headloc.randomness import stream

    lm, family = load_lm(str(folder), dtype="float32", local_only=True), task()
    found = {}
    for off_value in ("mean", "zero"):
        objective = InPlace(off_value)
        objective.prepare(lm, family, seed=0, prompts=500)
        scorers = []
        for use, count in (("truth", 256), ("finalists", 2048)):
            examples = family.draw(count, stream(77, use), split="train", items="fit")
            prompts = objective.prompt_set(lm, family, examples, seed=77, use=use)
            scorers.append(SubsetScorer.of(objective, lm, prompts))
        best = find_optimum(scorers[0], scorers[1], beam=1, finalists=16)
        found[off_value] = {str(size): list(own) for size, own in best.sets.items()}
    write_json(folder / "best_sets.json", found)


@torch.no_grad()
def _accuracy(lm: GPT2LMHeadModel, prompts: Prompts) -> float:
    ids_BT, target_BT = prompts.add_k(2000, torch_generator(1, "gpt2_tiny", "test"))
    return float((lm(input_ids=ids_BT).logits[:, -1].argmax(-1) == target_BT[:, -1]).float().mean())


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    print(train(target))
    best_sets(target)
