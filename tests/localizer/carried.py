"""A model in which chosen heads alone carry the task, by construction and not by training.

Every task has one label, whatever is asked: few-shot prompts show it, zero-shot prompts do not.  A
label is three bits.  Each planted head attends to all tokens alike, reads one bit of the labels it
sees, and writes it into a direction of its own, which the unembedding reads:

    label token --bit i--> planted head i --direction i--> logits of all labels with that bit

All three are needed, because labels with two bits known come in pairs.  The other heads are no
blanks: they read the same labels, bits and all, but each writes into a coordinate that nothing
reads.  So the planted heads alone carry the task in a few-shot prompt, and their task means carry
it into a zero-shot prompt, whether they are added as a function vector or replace heads' outputs.

Shapes: D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Any, ClassVar

import torch

from headloc.heads import HeadId
from headloc.lm.frozen import FrozenLM
from headloc.tasks import Example
from headloc.tasks.checks import Items
from headloc.tasks.example import Demonstration
from headloc.tasks.family import TaskFamily
from tests.tasks.zoo import word_level
from tests.tiny import tiny_model

LAYERS, HEADS, HEAD_WIDTH, WIDTH = 3, 4, 8, 32
PLANTED = (HeadId(0, 2), HeadId(1, 1), HeadId(2, 0))
LABELS = ("red", "blue", "green", "gold", "pink", "grey", "brown", "white")
BITS = tuple(product((-1.0, 1.0), repeat=3))

_READ = slice(0, 3)
"""Coordinates of the embedding that hold a label's bits."""
_IS_LABEL = 3
"""Coordinate of the embedding that is the same for every label, and zero for other tokens."""
_WRITE = slice(4, 7)
"""Coordinates of the stream that the planted heads write and the unembedding reads."""
_UNREAD = 7
"""First of the coordinates that the other heads write, one each."""
_TOKEN = slice(16, WIDTH)
"""Coordinates that tell tokens apart."""


class Constant(TaskFamily):
    """One task a label: every number is answered by it.

    Args:
        held_out: labels whose tasks are kept for evaluation.
        shots: demonstrations per example.
    """

    name: ClassVar[str] = "constant"

    def __init__(self, held_out: Sequence[str] = ("pink",), shots: int = 4) -> None:
        super().__init__(template="arrow", shots=shots)
        self.train = tuple(label for label in LABELS if label not in held_out)
        self.held_out = tuple(held_out)

    def options(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"held_out": list(self.held_out), "shots": self.shots}

    def _pairs(self, task: str, items: Items) -> list[Demonstration]:
        return [Demonstration(str(number), task) for number in range(1, 101)]

    def _relabel(self, example: Example, task: str) -> Example:
        shown = tuple(Demonstration(pair.input, task) for pair in example.demonstrations)
        return Example(task, shown, example.query, task)


@cache
def carried_lm(seed: int = 0) -> FrozenLM:
    """A Llama of three layers with four heads each, its weights set by hand."""
    tokenizer = word_level(LABELS)
    model = tiny_model(
        "llama",
        seed,
        vocab_size=len(tokenizer),
        num_hidden_layers=LAYERS,
        num_key_value_heads=HEADS,
    )
    labels_8 = torch.tensor(tokenizer.convert_tokens_to_ids(list(LABELS)))
    bits_83 = torch.tensor(BITS)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        embedding_VD = model.model.embed_tokens.weight.zero_()
        embedding_VD[:, _TOKEN] = 0.3 * torch.randn(
            len(tokenizer), WIDTH - _TOKEN.start, generator=generator
        )
        embedding_VD[labels_8, _READ] = 2.0 * bits_83
        embedding_VD[labels_8, _IS_LABEL] = 2.0
        unembedding_VD = model.lm_head.weight.zero_()
        unembedding_VD[labels_8, _WRITE] = bits_83
        model.model.norm.weight.fill_(1.0)
        for layer, block in enumerate(model.model.layers):
            block.input_layernorm.weight.fill_(1.0)
            block.mlp.down_proj.weight.zero_()
            _set_heads(block.self_attn, layer, generator)
    return FrozenLM(model, tokenizer)


def _set_heads(attention: Any, layer: int, generator: torch.Generator) -> None:
    """Set what the heads of a layer attend to, read and write."""
    # Equal scores: every head attends to all tokens alike.
    attention.q_proj.weight.zero_()
    value = attention.v_proj.weight.zero_().view(HEADS, HEAD_WIDTH, WIDTH)
    output = attention.o_proj.weight.zero_().view(WIDTH, HEADS, HEAD_WIDTH)
    others = [
        HeadId(i, j) for i in range(LAYERS) for j in range(HEADS) if HeadId(i, j) not in PLANTED
    ]
    for head in range(HEADS):
        if HeadId(layer, head) in PLANTED:
            bit = PLANTED.index(HeadId(layer, head))
            value[head, 0, bit] = 1.0
            output[_WRITE.start + bit, head, 0] = 4.0
        else:
            value[head, 0, _READ] = 0.3 * torch.randn(3, generator=generator)
            value[head, 0, _IS_LABEL] = 1.0
            output[_UNREAD + others.index(HeadId(layer, head)), head, 0] = 2.0
