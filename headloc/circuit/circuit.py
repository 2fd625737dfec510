"""The circuit: the one thing that localization hands on.

A circuit names a set of heads of one model, the gates behind the choice, the intervention under
which the set was found, and where all of it came from.  It is saved as a folder that needs neither
the run nor the task to be read again:

    circuit.json       heads, provenance, metrics        (`schema_version` 1; 2 with `mlps`)
    gates.safetensors  gates [A], scores [A], and the off-values of what is closed
    README.md          a model card for people and for a model hub

Where feed-forward blocks were gated as well, circuit.json lists those that stay on (`mlps`) and all
that were gated (`mlp_layers`), and gates.safetensors holds `mlp_gates` [M] and `mlp_scores` [M].

Shapes: A heads in flat order (`HeadLayout`), M gated feed-forward blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headloc import __version__
from headloc.circuit.checking import SCHEMA_VERSION, checked
from headloc.circuit.feed_forward import FeedForward
from headloc.circuit.sharing import HubMethods
from headloc.components import Components
from headloc.errors import CircuitError, HeadlocError
from headloc.files import jsonable, read_json, write_folder, write_json, write_text
from headloc.heads import HeadId

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from headloc.lm.frozen import FrozenLM

_LARGEST_JSON = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Circuit(HubMethods):
    """A set of attention heads with its provenance.

    Attributes:
        heads: the chosen heads, sorted.
        gates: trained gates [A], float32.
        scores: what the heads were ranked by [A], float32.
        model: `ModelSource.to_dict()` of the model it belongs to.
        objective: settings of the intervention.
        task: `describe()` of the task family.
        selection: the rule that chose the heads, and its settings.
        seed: seed of the run.
        metrics: flat figures of the run's verdict.
        tensors: further tensors of the intervention (off-values), by name.
        feed_forward: the feed-forward part, or None where these blocks were not gated.
    """

    heads: tuple[HeadId, ...]
    gates: Tensor
    scores: Tensor
    model: Mapping[str, Any]
    objective: Mapping[str, Any]
    task: Mapping[str, Any]
    selection: Mapping[str, Any]
    seed: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    feed_forward: FeedForward | None = None

    @property
    def mlps(self) -> tuple[int, ...] | None:
        """Layers whose feed-forward blocks stay on; None where none was gated, so all stay on."""
        return None if self.feed_forward is None else self.feed_forward.kept

    @property
    def heads_per_layer(self) -> tuple[int, ...]:
        """Number of heads of each attention layer of the model."""
        return tuple(self.model["heads"])

    def check_model(self, lm: FrozenLM) -> None:
        """Refuse a model of another type, or whose layers, heads or gated blocks differ.

        Raises:
            CircuitError: naming both.
        """
        found = tuple(layer.heads for layer in lm.layout.layers)
        if found != self.heads_per_layer:
            raise CircuitError(
                f"This circuit belongs to {self.model.get('name')!r} with "
                f"{_shape(self.heads_per_layer)}; {lm.source.name!r} has {_shape(found)}. "
                "Load the model that the circuit names."
            )
        model_type = self.model.get("model_type")
        if model_type is not None and model_type != lm.source.model_type:
            raise CircuitError(
                f"This circuit belongs to {self.model.get('name')!r}, a {model_type} model; "
                f"{lm.source.name!r} is of type {lm.source.model_type}. Load the model that the "
                "circuit names."
            )
        if self.feed_forward is not None:
            self.feed_forward.check(tuple(site.layer for site in lm.mlps), lm.source.name)

    def components(self, lm: FrozenLM) -> Components:
        """Return what the gates of this circuit stand for in a model."""
        return Components(lm.layout, () if self.feed_forward is None else self.feed_forward.layers)

    def chosen(self, lm: FrozenLM) -> list[int]:
        """Return the sorted flat indices of the kept heads and feed-forward blocks.

        Raises:
            CircuitError: when the model has other layers or heads.
        """
        self.check_model(lm)
        return self.components(lm).indices(self.heads, self.mlps or ())

    def mask(self, lm: FrozenLM) -> Tensor:
        """Return gates of one on the circuit and zero elsewhere.

        Returns:
            [A], or [A + M] where feed-forward blocks were gated.

        Raises:
            CircuitError: when the model has other layers or heads.
        """
        import torch

        mask_A = torch.zeros(self.components(lm).total)
        mask_A[self.chosen(lm)] = 1.0
        return mask_A

    @contextmanager
    def apply(self, model: FrozenLM | PreTrainedModel, *, answer_tokens: int = 1) -> Iterator[None]:
        """Run a model with every gated component outside the circuit at its off-value.

        Works with any call of the model, `generate()` included.  Components are closed where the
        circuit was found: for positions="last" at the tokens that predict the answer, which are the
        last prompt token and, in `generate()`, every new one (`headloc.circuit.answering`).

        Args:
            model: a causal language model of transformers, in eval mode inside the block and as
                before behind it; or a FrozenLM, whose `model` is called.
            answer_tokens: how many last columns of a direct call predict an answer token: 1 for a
                prompt, J for a prompt and J - 1 tokens of its answer.

        Raises:
            CircuitError: for another model, prompts padded on the right, or resampled off-values,
                which need counterfactual prompts and so exist in an evaluation only.
        """
        from headloc.circuit.application import closed_outside
        from headloc.circuit.plain_model import located

        with located(model) as lm, closed_outside(self, lm, answer_tokens=answer_tokens):
            yield

    def save(self, folder: str | Path) -> Path:
        """Write the circuit's folder; an earlier one is replaced only when all is written."""
        path = Path(folder)
        write_folder(path, self.write_into)
        return path

    @classmethod
    def load(cls, folder: str | Path) -> Circuit:
        """Read a circuit's folder.

        Raises:
            CircuitError: when a file is missing, broken, or of a newer schema.
        """
        from headloc.circuit.reading import read_gates

        path = Path(folder)
        if path.is_file() and path.name == "circuit.json":
            path = path.parent
        if not (path / "circuit.json").is_file():
            raise CircuitError(
                f"{path} is not a circuit: it holds no circuit.json. Give the circuit/ folder that "
                "`headloc localize` wrote."
            )
        if (path / "circuit.json").stat().st_size > _LARGEST_JSON:
            raise CircuitError(f"{path / 'circuit.json'} is larger than 64 MiB: not a circuit.")
        try:
            data = read_json(path / "circuit.json", "circuit")
        except HeadlocError as error:
            raise CircuitError(str(error)) from None
        known = checked(data, path)
        blocks = len(known["mlp_layers"]) if "mlps" in known else None
        tensors = read_gates(path / "gates.safetensors", sum(known["model"]["heads"]), blocks)
        return cls(
            heads=tuple(sorted(HeadId(*pair) for pair in known["heads"])),
            gates=tensors.pop("gates"),
            scores=tensors.pop("scores"),
            model=known["model"],
            objective=known["objective"],
            task=known["task"],
            selection=known.get("selection", {}),
            seed=known["seed"],
            metrics=known.get("metrics", {}),
            feed_forward=None if blocks is None else FeedForward.take(known, tensors),
            tensors=tensors,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the content of circuit.json."""
        return jsonable(
            {
                # Only a reader that knows of feed-forward blocks may read a circuit with them.
                "schema_version": 1 if self.feed_forward is None else SCHEMA_VERSION,
                "headloc_version": __version__,
                "heads": [[head.layer, head.head] for head in sorted(self.heads)],
                **({} if self.feed_forward is None else self.feed_forward.to_dict()),
                "model": dict(self.model),
                "objective": dict(self.objective),
                "task": dict(self.task),
                "selection": dict(self.selection),
                "seed": self.seed,
                "metrics": dict(self.metrics),
            }
        )

    def write_into(self, folder: Path, *, repo_id: str | None = None) -> None:
        """Write the circuit's files into a folder, one by one.

        Args:
            folder: where to; it must exist.
            repo_id: hub repository that the card tells to load it from.
        """
        from safetensors.torch import save

        from headloc.circuit.card import circuit_card
        from headloc.files import write_bytes

        write_json(folder / "circuit.json", self.to_dict())
        tensors = {"gates": self.gates, "scores": self.scores, **self.tensors}
        if self.feed_forward is not None:
            tensors |= self.feed_forward.to_tensors()
        # Copies, because safetensors refuses tensors that share their memory.
        packed = {
            name: tensors[name].detach().cpu().contiguous().clone() for name in sorted(tensors)
        }
        write_bytes(folder / "gates.safetensors", save(packed, metadata={"format": "pt"}))
        write_text(folder / "README.md", circuit_card(self, repo_id))


def _shape(heads: tuple[int, ...]) -> str:
    if len(set(heads)) == 1:
        return f"{len(heads)} layers of {heads[0]} heads"
    return f"{len(heads)} layers of {list(heads)} heads"
