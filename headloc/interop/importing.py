"""From a head file of another tool to a circuit of a model, in one call."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from headloc.circuit import Circuit
from headloc.errors import CircuitError
from headloc.interop.binding import Use, bind
from headloc.interop.reading import Options, read_heads

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM


def import_circuit(
    path: str | Path,
    lm: FrozenLM | Circuit,
    *,
    kind: str,
    options: Options | None = None,
    use: Use | None = None,
) -> Circuit:
    """Read a head file of another tool as a circuit of a model.

    Args:
        path: the file.
        lm: the model, or any circuit of it.
        kind: format of the file, one of `headloc.interop.FORMATS`.
        options: what the file may leave open.
        use: how the heads are used: how many of a ranking, the off-value, the positions.

    Raises:
        CircuitError: when the file is broken, or not of this model.
    """
    file = Path(path).expanduser()
    found = read_heads(file, kind, options)
    if isinstance(lm, Circuit):
        return bind(found, lm.model, use, kind=kind, where=str(file))
    circuit = bind(found, lm.source.to_dict(), use, kind=kind, where=str(file))
    circuit.check_model(lm)
    return circuit


def model_of(name: str) -> FrozenLM | Circuit:
    """Return what a name on the command line means: the bundled model, a circuit, or a model.

    Args:
        name: `bundled`, the folder of a circuit (whose model is meant; nothing is loaded), the
            folder of a model, or a hub id.

    Raises:
        HeadlocError: when it cannot be loaded.
    """
    from headloc.bundled import BUNDLED_NAME, load_bundled
    from headloc.lm.loading import load_lm

    if not name:
        raise CircuitError("model= is empty. Give bundled, a folder, a hub id, or a circuit.")
    if name in ("bundled", BUNDLED_NAME):
        return load_bundled()
    folder = Path(name).expanduser()
    if (folder / "circuit.json").is_file():
        return Circuit.load(folder)
    return load_lm(name)
