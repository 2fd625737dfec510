"""Every choice that makes the bundled model: one frozen value object.

The defaults are the shipped recipe. A recipe can be read from a dictionary, so that a
configuration file can change any of it, and is written next to the weights it produced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from headloc.errors import HeadlocError


@dataclass(frozen=True)
class Architecture:
    """Shape of the Llama model, and how it is initialised.

    With ``equal_query_key`` the first query head of each group starts with the weights of its key
    head, so that tokens first attend to tokens like themselves; nothing keeps them equal.
    """

    layers: int = 6
    heads: int = 8
    kv_heads: int = 4
    head_width: int = 16
    width: int = 128
    ffn_width: int = 384
    max_positions: int = 512
    rope_theta: float = 10_000.0
    init_std: float = 0.05
    equal_query_key: bool = True


@dataclass(frozen=True)
class AddKMix:
    """Add-k demonstrations: ``tasks`` offsets with ``prompts_per_task`` prompts in a step.

    ``shot_weights[n - 1]`` is the weight of n demonstrations; a prompt draws its share of wrong
    labels from ``wrong_rates`` with ``wrong_weights``.
    """

    tasks: int = 30
    prompts_per_task: int = 3
    shot_weights: tuple[float, ...] = (3, 5, 10, 14, 34, 12, 8, 6, 4, 4)
    wrong_rates: tuple[float, ...] = (0.0, 0.1, 0.25)
    wrong_weights: tuple[float, ...] = (4, 3, 3)
    first_label_weight: float = 0.05
    demonstration_weight: float = 0.5
    structure_weight: float = 0.05
    template_share: float = 0.05
    instruction_prompts: int = 90


@dataclass(frozen=True)
class LabelMix:
    """In-context classification of words into arbitrary label words.

    Plain prompts have as many demonstrations of each class. In ``repeat_share`` of them the query
    is one of the demonstrated words, which is never so where accuracy is measured. In
    ``dense_share`` of the steps the prompts have more classes and more demonstrations, drawn from
    few words a class: matching like with like pays more there. In ``noted_share`` of the steps the
    demonstrations' labels are followed by the word's category, so that label tokens learn to carry
    it. In ``named_steps`` of the steps, ``named_share`` of the classes are labelled by their own
    name, so that the last token learns to carry the query's category.
    """

    prompts: int = 40
    three_class_share: float = 0.2
    min_per_label: int = 2
    max_per_label: int = 5
    held_out_percent: int = 15
    repeat_share: float = 0.3
    demonstration_weight: float = 0.9
    structure_weight: float = 0.05
    noted_share: float = 0.4
    note_weight: float = 0.5
    named_steps: float = 0.5
    named_share: float = 0.5
    dense_share: float = 0.5
    dense_prompts: int = 32
    dense_classes: tuple[int, ...] = (2, 3, 4, 6)
    dense_demonstrations: int = 12
    dense_words: int = 5


@dataclass(frozen=True)
class DictionaryMix:
    """Words followed by their category, one entry after another, as in
    ``cat-> animals#rain->``."""

    prompts: int = 24
    max_entries: int = 6


@dataclass(frozen=True)
class FactMix:
    """Memorised sentences; ``context_weight`` is the weight of every token but the answer."""

    sentences: int = 16
    context_weight: float = 0.1


@dataclass(frozen=True)
class TaskVectorMix:
    """The task-vector prompting loss (arXiv 2501.09240), added to zero-shot prompts.

    ``layer`` receives the vector, the heads of ``sources`` make it. In ``single_share`` of the
    tasks one of the sources, drawn evenly, makes it alone. In a share of the tasks each head's
    zero-shot mean is subtracted first, and in a share of them single heads are dropped or scaled.
    """

    layer: int = 2
    sources: tuple[int, ...] = (2, 3)
    single_share: float = 0.67
    weight: float = 0.5
    min_shots: int = 3
    centred_share: float = 0.25
    perturbed_share: float = 0.25
    perturbed_drop: float = 0.15
    perturbed_scale: float = 0.3


@dataclass(frozen=True)
class LossWeights:
    """Weight of each ability's loss."""

    add_k: float = 1.0
    instruction: float = 0.6
    labels: float = 1.0
    facts: float = 0.3
    dictionary: float = 0.3


@dataclass(frozen=True)
class Optimisation:
    """Muon for matrices and AdamW for the rest, linear warm-up, cosine decay.

    With ``bfloat16`` the matrix products of a step run in that type (a third faster on processors
    that have it); weights, gradients and optimizer states stay in float32.
    """

    bfloat16: bool = True
    steps: int = 1700
    matrix_learning_rate: float = 5e-3
    learning_rate: float = 3e-3
    final_share: float = 0.02
    warmup: int = 100
    weight_decay: float = 0.1
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.98)
    gradient_clip: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the trained weights."""

    seed: int = 7
    architecture: Architecture = field(default_factory=Architecture)
    add_k: AddKMix = field(default_factory=AddKMix)
    labels: LabelMix = field(default_factory=LabelMix)
    dictionary: DictionaryMix = field(default_factory=DictionaryMix)
    facts: FactMix = field(default_factory=FactMix)
    task_vector: TaskVectorMix = field(default_factory=TaskVectorMix)
    losses: LossWeights = field(default_factory=LossWeights)
    optimisation: Optimisation = field(default_factory=Optimisation)
    checkpoint_every: int = 250
    report_every: int = 25

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """A recipe from nested dictionaries; missing keys keep their default.

        Raises:
            HeadlocError: on a key that no part of the recipe has.
        """
        return _build(cls, values, "recipe")

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries of JSON values."""
        return asdict(self)


def _build(kind: type[Any], values: Mapping[str, Any], where: str) -> Any:
    if not isinstance(values, Mapping):
        raise HeadlocError(f"{where} must be a mapping, not {type(values).__name__}.")
    defaults = kind()
    known = {item.name for item in fields(kind)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise HeadlocError(
            f"{where} has no {', '.join(unknown)}; it has {', '.join(sorted(known))}."
        )
    chosen: dict[str, Any] = {}
    for name, value in values.items():
        current = getattr(defaults, name)
        if hasattr(current, "__dataclass_fields__"):
            chosen[name] = _build(type(current), value, f"{where}.{name}")
        elif isinstance(current, tuple):
            chosen[name] = tuple(value)
        else:
            chosen[name] = type(current)(value)
    return kind(**chosen)
