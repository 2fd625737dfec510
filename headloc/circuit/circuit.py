"""The circuit: the one thing that localization hands on.

A circuit names a set of heads of one model, the gates behind the choice, the intervention under
which the set was found, and where all of it came from.  It is saved as a folder that needs neither
the run nor the task to be read again:

    circuit.json       heads, provenance, metrics        (`schema_version` 1)
    gates.safetensors  gates [A], scores [A], and the off-values of the closed heads
    README.md          a model card for people and for a model hub

Shapes: A heads in flat order (`HeadLayout`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headloc import __version__
from headloc.errors import CircuitError, HeadlocError
from headloc.files import jsonable, read_json, write_folder, write_json, write_text
from headloc.heads import HeadId

if TYPE_CHECKING:
    from torch import Tensor

    from headloc.lm.frozen import FrozenLM

SCHEMA_VERSION = 1
_REQUIRED = {"schema_version", "heads", "model", "objective", "task", "seed"}
_LARGEST_JSON = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Circuit:
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

    @property
    def heads_per_layer(self) -> tuple[int, ...]:
        """Number of heads of each attention layer of the model."""
        return tuple(self.model["heads"])

    def check_model(self, lm: FrozenLM) -> None:
        """Refuse a model whose layers or heads differ.

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

    def mask(self, lm: FrozenLM) -> Tensor:
        """Return gates [A] of one on the circuit's heads and zero elsewhere.

        Raises:
            CircuitError: when the model has other layers or heads.
        """
        import torch

        self.check_model(lm)
        mask_A = torch.zeros(lm.layout.total)
        mask_A[lm.layout.indices(self.heads)] = 1.0
        return mask_A

    @contextmanager
    def apply(self, lm: FrozenLM) -> Iterator[None]:
        """Run the model with every head outside the circuit at its off-value.

        Works with any call of `lm.model`, `generate()` included.  Heads are closed at the positions
        where the circuit was found: for positions="last" the last column of every pass.

        Raises:
            CircuitError: for another model, or for resampled off-values, which need counterfactual
                prompts and so exist in an evaluation only.
        """
        from headloc.circuit.application import closed_outside

        with closed_outside(self, lm):
            yield

    def save(self, folder: str | Path) -> Path:
        """Write the circuit's folder; an earlier one is replaced only when all is written."""
        path = Path(folder)
        write_folder(path, self._fill)
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
        known = _checked(data, path)
        tensors = read_gates(path / "gates.safetensors", sum(known["model"]["heads"]))
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
            tensors=tensors,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the content of circuit.json."""
        return jsonable(
            {
                "schema_version": SCHEMA_VERSION,
                "headloc_version": __version__,
                "heads": [[head.layer, head.head] for head in sorted(self.heads)],
                "model": dict(self.model),
                "objective": dict(self.objective),
                "task": dict(self.task),
                "selection": dict(self.selection),
                "seed": self.seed,
                "metrics": dict(self.metrics),
            }
        )

    def _fill(self, folder: Path) -> None:
        from safetensors.torch import save

        from headloc.circuit.card import circuit_card
        from headloc.files import write_bytes

        write_json(folder / "circuit.json", self.to_dict())
        tensors = {"gates": self.gates, "scores": self.scores, **self.tensors}
        packed = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
        write_bytes(folder / "gates.safetensors", save(packed, metadata={"format": "pt"}))
        write_text(folder / "README.md", circuit_card(self))


def _checked(data: Any, path: Path) -> dict[str, Any]:
    """Check the shape of circuit.json, field by field.

    Raises:
        CircuitError: naming the first field that is wrong.
    """
    where = path / "circuit.json"

    def refuse(what: str) -> CircuitError:
        return CircuitError(f"{where} is not a headloc circuit: {what}.")

    if not isinstance(data, dict):
        raise refuse("it is not a JSON object")
    missing = sorted(_REQUIRED - data.keys())
    if missing:
        raise refuse(f"it lacks {', '.join(missing)}")
    version = data["schema_version"]
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise CircuitError(
            f"{where} has schema_version {version!r}; this headloc reads up to {SCHEMA_VERSION}. "
            "Install a newer headloc."
        )
    for key in ("model", "objective", "task"):
        if not isinstance(data[key], dict):
            raise refuse(f"{key!r} is not an object")
    counts = data["model"].get("heads")
    if not _are_counts(counts):
        raise refuse("model.heads is not a list of head counts per layer")
    layers = data["model"].get("layer_indices", list(range(len(counts))))
    if not _are_counts(layers, smallest=0) or len(layers) != len(counts):
        raise refuse(
            "model.layer_indices is not a list of one layer index per entry of model.heads"
        )
    sizes = dict(zip(layers, counts, strict=True))
    if not isinstance(data["heads"], list):
        raise refuse("'heads' is not a list of [layer, head] pairs")
    seen = set()
    for pair in data["heads"]:
        if not _are_counts(pair, smallest=0) or len(pair) != 2:
            raise refuse(f"{pair!r} in 'heads' is not a [layer, head] pair")
        if not pair[1] < sizes.get(pair[0], 0):
            raise refuse(f"the model it names has no head L{pair[0]}H{pair[1]}")
        if tuple(pair) in seen:
            raise refuse(f"head L{pair[0]}H{pair[1]} stands in it twice")
        seen.add(tuple(pair))
    if not isinstance(data["seed"], int):
        raise refuse("'seed' is not an integer")
    return data


def _are_counts(value: Any, smallest: int = 1) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, int) and not isinstance(item, bool) and smallest <= item <= 10**6
        for item in value
    )


def _shape(heads: tuple[int, ...]) -> str:
    if len(set(heads)) == 1:
        return f"{len(heads)} layers of {heads[0]} heads"
    return f"{len(heads)} layers of {list(heads)} heads"
