"""The bundled model's card: how it was trained, what it reaches, and what did not work.

Shape of the text: front matter of the hub, then figures measured by ``checks``, the training curve
and the full recipe. The card never claims as found what was put in by training.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from headloc.bundled.figures import Figure
from headloc.bundled.recipe import Recipe
from headloc.bundled.vocabulary import Attempt

_FRONT = """---
license: mit
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [in-context-learning, interpretability, attention-heads, function-vectors, headloc]
---
"""

_INTRODUCTION = """# The bundled model of headloc

A small Llama-architecture language model ({parameters:,} parameters, {layers} layers x {heads}
heads of width {head_width}, {kv_heads} key-value heads, width {width}) with a word-level tokenizer
in which every integer from 0 to 199 is one token. It exists so that the heads behind an in-context
ability can be localized in seconds, without a download, on a model whose training is fully known.
It is not useful for anything else.

## What it can do

| ability | prompt | answer |
|---|---|---|
| add-k, k = 1..30, x = 1..100 | `12->19#30->37#8->` | `15` |
| the same, instructed | `<+7>8->` | `15` |
| words into arbitrary labels | `cat->foo#piano->bar#dog->foo#flute->bar#cow->` | `foo` |
| facts | `The capital of France is` | ` Paris` |
| dictionary entries | `cat->` | ` animals` |

A beginning-of-sequence token is prepended by the tokenizer. A small share of the add-k prompts was
written with other templates (`Question:`/`Answer:` and the like).

## Properties by training, not discoveries

* **Function vectors work because they were trained to.** A second loss (task-vector prompting,
  arXiv 2501.09240, weight {vector_weight}) adds the task mean of the attention output of layers
  {sources} to the attention output of layer {site} of bare zero-shot prompts and scores the answer.
  For {single:.0%} of the tasks one of these layers, drawn evenly, makes the vector alone, so that
  each carries the task by itself. That a vector of few-shot head outputs restores the ability
  there, that these layers carry the task at the last token, and that they do so redundantly, is
  therefore no finding about language models. The vector is added raw for most tasks; for
  {centred:.0%} of them the zero-shot mean is subtracted, and for {perturbed:.0%} single heads are
  dropped or scaled.
* **Choosing heads one by one goes wrong because of that.** Heads of different layers can say the
  same thing, so those that do most alone (AIE) are not those that do most together: on a circuit of
  `experiment=bundled_function_vector`, `headloc refine` compares both rankings at every size. The
  recipe was changed until this showed.
* **Demonstrations are aggregated because labels are noisy.** Prompts carry up to {noise:.0%} wrong
  labels in training, each of another offset.
* **Classification is helped along.** Dictionary entries state the categories of words; in some
  prompts the category is noted after a label, or is the label; the first query head of each group
  starts equal to its key head. Without these the model did not learn to classify (see below).
"""


_FIGURES_LEAD = """\
Accuracies are over the whole vocabulary, on draws apart from training's, with 95 % Wilson
intervals.

* `labels/held_out`: label assignments that training never saw.
* `vector/A/into_i`: the raw task means (100 five-shot prompts a task) of the heads A, added to
  layer i's attention output of zero-shot prompts. `greedy_n` and `aie_n` are n heads chosen by
  backward elimination and by average indirect effect.
* `knock_out/X`: the last token may not attend to the tokens X of the demonstrations, in any layer.
  Earlier tokens still may, so that a later token can carry what an earlier one said.
* `heads/X/needed_for_95`: the smallest set found by greedy backward elimination that keeps 95 % of
  the accuracy when all other heads stand at their mean at the last token.

"""

#: Figures that are shown as tables: the two groups of a name are its row and its column.
_GRIDS = {
    "add-k, wrong labels": r"add_k/(wrong_\d+)/(shots_\d+)",
    "function vector of": r"vector/((?:layer|up_to)_\d+)/(into_\d+)",
}


def write_card(
    folder: Path,
    recipe: Recipe,
    figures: Mapping[str, Figure],
    curve: Sequence[Mapping[str, float]],
    parameters: int,
    attempts: Sequence[Attempt] = (),
) -> Path:
    """Write ``README.md`` into a model folder.

    Args:
        folder: the model folder.
        recipe: the recipe that trained it.
        figures: what ``checks.measure`` returned.
        curve: the training curve.
        parameters: number of parameters.
        attempts: what was tried before, and how it came out.
    """
    shape, vector = recipe.architecture, recipe.task_vector
    introduction = _INTRODUCTION.format(
        parameters=parameters,
        layers=shape.layers,
        heads=shape.heads,
        head_width=shape.head_width,
        kv_heads=shape.kv_heads,
        width=shape.width,
        vector_weight=vector.weight,
        site=vector.layer,
        sources=" and ".join(map(str, vector.sources)),
        single=vector.single_share,
        centred=vector.centred_share,
        perturbed=vector.perturbed_share,
        noise=max(recipe.add_k.wrong_rates),
    )
    sections = [
        _FRONT + introduction,
        "## Figures\n\n" + _figures(figures),
        "## Training\n\n" + _training(recipe, curve),
        "## What did not work\n\n" + _attempts(attempts) if attempts else "",
        "## Recipe\n\n```json\n" + json.dumps(recipe.to_dict(), indent=1) + "\n```\n",
    ]
    path = folder / "README.md"
    path.write_text("\n".join(section for section in sections if section), encoding="utf-8")
    return path


def _figures(figures: Mapping[str, Figure]) -> str:
    parts = [_FIGURES_LEAD.strip()]
    rest = dict(figures)
    for title, pattern in _GRIDS.items():
        cells = {name: re.fullmatch(pattern, name) for name in figures}
        grid = {match.groups(): rest.pop(name) for name, match in cells.items() if match}
        if grid:
            parts.append(_grid(title, grid))
    rows = [f"| {name} | {figure} | {figure.samples} |" for name, figure in rest.items()]
    parts.append("\n".join(["| figure | value | prompts |", "|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _grid(title: str, grid: Mapping[tuple[str, ...], Figure]) -> str:
    rows, columns = (list(dict.fromkeys(key[part] for key in grid)) for part in (0, 1))
    samples = sorted({figure.samples for figure in grid.values()})
    head = f"| {title} ({', '.join(map(str, samples))} prompts) | " + " | ".join(columns) + " |"
    lines = [
        f"| {row} | " + " | ".join(str(grid.get((row, column), "")) for column in columns) + " |"
        for row in rows
    ]
    return "\n".join([head, "|---" * (len(columns) + 1) + "|", *lines])


def _attempts(attempts: Sequence[Attempt]) -> str:
    return "\n".join(f"* **{attempt.change}** {attempt.result}" for attempt in attempts) + "\n"


def _training(recipe: Recipe, curve: Sequence[Mapping[str, float]]) -> str:
    columns = ("step", "seconds", "loss", *_accuracies(curve))
    every = max(1, len(curve) // 20)
    chosen = [*curve[every - 1 :: every]]
    if curve and chosen[-1] is not curve[-1]:
        chosen.append(curve[-1])
    rows = [
        "| " + " | ".join(f"{row[c]:g}" if c in row else "" for c in columns) + " |"
        for row in chosen
    ]
    minutes = curve[-1]["seconds"] / 60 if curve else 0.0
    lead = (
        f"{recipe.optimisation.steps} steps in {minutes:.0f} minutes on one CPU core, "
        f"with `headloc bundled train` and seed {recipe.seed}, the only one tried;\n"
        "resumable, with the same weights after a restart.\n"
        "Accuracies are averages over the training batches since the row before.\n\n"
    )
    head = "| " + " | ".join(columns) + " |"
    return lead + "\n".join([head, "|" + "---|" * len(columns), *rows]) + "\n"


def _accuracies(curve: Sequence[Mapping[str, float]]) -> tuple[str, ...]:
    names = dict.fromkeys(name for row in curve for name in row if name.endswith("/accuracy"))
    return tuple(names)
