"""Every figure of the bundled model's card, measured on draws that training never made.

The random stream is apart from training's; classification is measured on label assignments that
training never saw. Names are flat: ``ability/condition``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from headloc.bundled import check_vectors
from headloc.bundled.assignments import Assignments, ClassificationShape
from headloc.bundled.check_heads import knock_out, sparsity, token_groups
from headloc.bundled.check_vectors import VectorTest, layer_sets, task_means, top_heads
from headloc.bundled.figures import Figure
from headloc.bundled.mixture import AddKPrompts, fact_batch
from headloc.bundled.probes import accuracy, last_logits
from headloc.bundled.prompts import RARE_TEMPLATES, Batch
from headloc.bundled.recipe import AddKMix, LabelMix
from headloc.bundled.tokenizer import pieces
from headloc.bundled.vocabulary import OFFSETS, Fact, facts, kinds

_LOG = logging.getLogger(__name__)
#: Checks draw from seeds far above any training step's seed.
_SEED_BASE = 2**60


@dataclass(frozen=True)
class CheckSizes:
    """Prompts of each check; ``*_per_task`` counts are for each of the add-k tasks.

    ``per_round`` is the number of heads that the greedy eliminations switch off at once.
    """

    per_task: int = 30
    labels: int = 1000
    mean_per_task: int = 100
    vector_per_task: int = 20
    shuffled_per_task: int = 10
    search_per_task: int = 10
    per_round: int = 1
    shots: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
    wrong_rates: tuple[float, ...] = (0.0, 0.1, 0.3)


SMALL = CheckSizes(
    per_task=5,
    labels=160,
    mean_per_task=20,
    vector_per_task=3,
    shuffled_per_task=2,
    search_per_task=2,
    per_round=4,
    shots=(1, 5, 10),
    wrong_rates=(0.0, 0.3),
)


@torch.no_grad()
def measure(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    seed: int = 0,
    sizes: CheckSizes | None = None,
) -> dict[str, Figure]:
    """All figures, in the order of the card."""
    model.eval()
    bench = Bench(model, tokenizer, seed, sizes or CheckSizes())
    parts: tuple[Callable[[], dict[str, Figure]], ...] = (
        bench.add_k,
        bench.labels,
        bench.facts,
        bench.token_groups,
        bench.vectors,
        bench.sparsity,
    )
    figures: dict[str, Figure] = {}
    for part in parts:
        figures |= part()
        _LOG.info("measured %s", ", ".join(f"{name} {value}" for name, value in figures.items()))
    return figures


class Bench:
    """The checks of one model; each method is one family of figures."""

    def __init__(
        self,
        model: LlamaForCausalLM,
        tokenizer: PreTrainedTokenizerFast,
        seed: int,
        sizes: CheckSizes,
    ) -> None:
        self._model = model
        self._vocabulary = tokenizer.get_vocab()
        self._seed = _SEED_BASE + seed * 1_000_003
        self._sizes = sizes
        self._prompts = AddKPrompts(self._vocabulary, AddKMix())
        self._assignments = Assignments(self._vocabulary, LabelMix().held_out_percent)

    def add_k(self) -> dict[str, Figure]:
        """Accuracy by number of demonstrations and share of wrong labels; zero-shot; instructed."""
        rows = self._sizes.per_task
        zero = self._prompts.zero_shot(_tasks(rows), self._rng(1))
        stated = self._prompts.instructed(_tasks(rows), self._rng(2))
        out = {"add_k/zero_shot": self._accuracy(zero), "add_k/instruction": self._accuracy(stated)}
        for rate in self._sizes.wrong_rates:
            for shots in self._sizes.shots:
                name = f"add_k/wrong_{round(100 * rate)}/shots_{shots}"
                out[name] = self._accuracy(self._few_shot(rows, shots, 3, rate))
        for template in RARE_TEMPLATES:
            batch = self._prompts.scored(_tasks(rows), 5, 0.0, self._rng(18), template)
            out[f"add_k/template/{template.before}/shots_5"] = self._accuracy(batch)
        return out

    def labels(self) -> dict[str, Figure]:
        """Classification of held-out assignments by demonstrations a label; and of trained ones."""
        out = {}
        for classes, per_label in ((2, 2), (2, 3), (2, 4), (3, 3)):
            batch = self._labelled(classes, per_label, 4)
            out[f"labels/held_out/classes_{classes}/per_label_{per_label}"] = self._accuracy(batch)
        batch = self._labelled(2, 3, 5, held_out=False)
        return out | {"labels/trained/classes_2/per_label_3": self._accuracy(batch)}

    def facts(self) -> dict[str, Figure]:
        """Share of facts whose answer is the most likely next token, in all and by relation."""
        right = {fact: self._recalls(fact) for fact in facts()}
        entries = [self._recalls(entry) for entry in kinds()]
        out = {
            "facts/all": Figure.share(sum(right.values()), len(right)),
            "dictionary/all": Figure.share(sum(entries), len(entries)),
        }
        for relation in dict.fromkeys(fact.relation for fact in right):
            values = [value for fact, value in right.items() if fact.relation == relation]
            out[f"facts/{relation}"] = Figure.share(sum(values), len(values))
        return out

    def token_groups(self) -> dict[str, Figure]:
        """Five-shot accuracy when the last token may not attend to one kind of token."""
        batch = self._few_shot(self._sizes.per_task, 5, 6)
        groups = token_groups(5)
        out = {
            f"knock_out/{name}": knock_out(self._model, batch, blocked_T)
            for name, blocked_T in groups.items()
        }
        others_T = groups["inputs"] | groups["arrows"] | groups["separators"]
        return out | {"knock_out/all_but_labels": knock_out(self._model, batch, others_T)}

    def vectors(self) -> dict[str, Figure]:
        """Function vectors by heads and by insertion layer, against AIE's choice of heads."""
        sizes, model = self._sizes, self._model
        layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
        means = task_means(model, self._few_shot(sizes.mean_per_task, 5, 7), len(OFFSETS))
        zero = self._prompts.zero_shot(_tasks(sizes.vector_per_task), self._rng(8))
        test = VectorTest(model, means, zero)
        out = {}
        for name, gates_LH in layer_sets(layers, heads).items():
            for layer in range(layers):
                out[f"vector/{name}/into_{layer}"] = test.accuracy(gates_LH, layer)
        shuffled = check_vectors.shuffle_labels(
            self._few_shot(sizes.shuffled_per_task, 5, 9), 5, self._rng(10)
        )
        effects_LH = check_vectors.indirect_effects(model, means, shuffled)
        search = self._prompts.zero_shot(_tasks(sizes.search_per_task), self._rng(11))
        site = layers // 3
        greedy = check_vectors.greedy_vector_heads(
            VectorTest(model, means, search), (layers, heads), site, sizes.per_round
        )
        for count in (n for n in (1, 2, 3, 4, 6, 8, 12, 16) if n <= layers * heads):
            greedy_LH = greedy.gates(count, (layers, heads))
            out[f"vector/greedy_{count}/into_{site}"] = test.accuracy(greedy_LH, site)
            aie_LH = top_heads(effects_LH, count)
            out[f"vector/aie_{count}/into_{site}"] = test.accuracy(aie_LH, site)
        return out

    def sparsity(self) -> dict[str, Figure]:
        """Heads needed at the last token for 95 % of the accuracy, by greedy elimination."""
        rows = self._sizes
        per_task = (rows.mean_per_task, rows.search_per_task, rows.per_task)
        few = [self._few_shot(n, 5, 12 + i) for i, n in enumerate(per_task)]
        counts = (10 * rows.per_task, 30 * rows.search_per_task, rows.labels)
        held = [self._labelled(2, 3, 15 + i, count=n) for i, n in enumerate(counts)]
        out = {}
        for name, (means, search, test) in {"add_k": few, "labels": held}.items():
            needed, reached, off, _ = sparsity(
                self._model, means, search, test, per_round=rows.per_round
            )
            out[f"heads/{name}/needed_for_95"] = needed
            out[f"heads/{name}/accuracy_with_them"] = reached
            out[f"heads/{name}/accuracy_with_none"] = off
        total = self._model.config.num_hidden_layers * self._model.config.num_attention_heads
        return out | {"heads/total": Figure(total, 0)}

    def _rng(self, stream: int) -> torch.Generator:
        return torch.Generator().manual_seed(self._seed + stream)

    def _few_shot(self, rows: int, shots: int, stream: int, wrong_rate: float = 0.0) -> Batch:
        return self._prompts.scored(_tasks(rows), shots, wrong_rate, self._rng(stream))

    def _labelled(
        self,
        classes: int,
        per_label: int,
        stream: int,
        *,
        held_out: bool = True,
        count: int | None = None,
    ) -> Batch:
        shape = ClassificationShape(classes, per_label)
        rows = count or self._sizes.labels
        return self._assignments.draw(rows, shape, self._rng(stream), held_out=held_out)

    def _accuracy(self, batch: Batch) -> Figure:
        return accuracy(last_logits(self._model, batch.ids_BT), batch.answers_B)

    def _recalls(self, fact: Fact) -> bool:
        sentence = fact_batch((fact,), self._vocabulary, 0.0)
        length = 1 + len(pieces(fact.prompt))
        logits_BV = last_logits(self._model, sentence.ids_BT[:, :length])
        return int(logits_BV.argmax()) == self._vocabulary[fact.target]


def _tasks(rows: int) -> Tensor:
    return torch.tensor(OFFSETS).repeat_interleave(rows)
