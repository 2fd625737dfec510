"""`generate()` under a circuit, against a full recomputation of the text at every step.

The last prompt token and all new tokens are gated (`headloc.circuit.answering`).

Shapes: B rows, T columns, V vocabulary, S new tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from headloc.circuit import Circuit
from headloc.lm.batch import Role
from headloc.lm.components import OffValues, gate_components
from headloc.lm.frozen import FrozenLM
from headloc.objectives import RoleMeans
from tests.circuit.made import tiny_circuit
from tests.tiny import tiny_lm

NEW = 4
PROMPTS = (4, 7)
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def prompt_of(columns: int = 7, *, rows: int = 1, seed: int = 0) -> Tensor:
    """Random prompts [B, T]."""
    return torch.randint(3, 61, (rows, columns), generator=torch.Generator().manual_seed(seed))


def generated(model: Any, prompt: Tensor, *, new: int = NEW, **options: Any) -> tuple[Any, Tensor]:
    """Token ids and the logits [B, S, V] of a greedy continuation that never ends early."""
    settings = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, **options}
    mask = settings.pop("attention_mask", torch.ones_like(prompt))
    out = model.generate(
        prompt,
        attention_mask=mask,
        return_dict_in_generate=True,
        output_logits=True,
        pad_token_id=0,
        **settings,
    )
    return out.sequences, torch.stack(out.logits, dim=1)


@torch.no_grad()
def gated_pass(circuit: Circuit, lm: FrozenLM, text_BT: Tensor, prompt: int) -> Tensor:
    """Logits of the columns from the last prompt token on, by one gated pass without a cache."""
    off = OffValues()
    if circuit.objective["off_value"] == "mean":
        means = RoleMeans.from_tensors(circuit.tensors, lm, mlps=circuit.feed_forward is not None)
        seen = float(means.counts_R[int(Role.ANSWER)]) > 0
        later = int(Role.ANSWER) if seen else int(Role.LAST)
        roles = [int(Role.LAST)] + [later] * (text_BT.shape[1] - prompt)
        off = means.at(torch.tensor([roles]))
    gated = slice(prompt - 1, None) if circuit.objective["positions"] == "last" else None
    with gate_components(lm, circuit.components(lm), circuit.mask(lm), off=off, columns=gated):
        return lm.model(text_BT, use_cache=False).logits[:, prompt - 1 :]


def step_by_step(circuit: Circuit, lm: FrozenLM, prompt_1T: Tensor) -> tuple[Tensor, Tensor]:
    """Greedy decoding of one prompt, the whole text run again for every token."""
    text, steps = prompt_1T, []
    for _ in range(NEW):
        logits_1V = gated_pass(circuit, lm, text, prompt_1T.shape[1])[:, -1]
        # generate() forbids the end of the text, which a greedy step must then not choose.
        allowed = logits_1V.clone()
        allowed[:, 2] = -torch.inf
        steps.append(logits_1V)
        text = torch.cat([text, allowed.argmax(-1, keepdim=True)], dim=1)
    return text, torch.stack(steps, dim=1)


def generation(family: str) -> None:
    """Several tokens under a circuit of heads and blocks, in left-padded rows and one by one.

    The means know no answer token, so that later steps take that of the last prompt token.
    """
    lm = tiny_lm(family)
    circuit = tiny_circuit(lm, off_value="mean", mlps=True, answers_seen=False)
    rows = [prompt_of(n, seed=n) for n in PROMPTS]
    longest = max(PROMPTS)
    padded = torch.cat([torch.nn.functional.pad(row, (longest - row.shape[1], 0)) for row in rows])
    with circuit.apply(lm.model):
        text, together = generated(lm.model, padded, attention_mask=(padded != 0).long())
        alone = [generated(lm.model, row) for row in rows]
        uncached = generated(lm.model, rows[0], use_cache=False)[1]
    torch.testing.assert_close(uncached, alone[0][1], **CLOSE)
    free = [generated(lm.model, row)[1] for row in rows]
    for index, row in enumerate(rows):
        own_text, own = alone[index]
        expected_text, expected = step_by_step(circuit, lm, row)
        torch.testing.assert_close(own, expected, **CLOSE)
        assert torch.equal(own_text, expected_text)
        torch.testing.assert_close(together[index], own[0], **CLOSE)
        assert torch.equal(text[index, longest:], own_text[0, row.shape[1] :])
        assert (own - free[index]).abs().max() > 1e-3
