"""`headloc circuit show|export|import`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from headloc.circuit import Circuit
from headloc.circuit.exports import EXPORTS, export_text, left_out
from headloc.commands.arguments import split_arguments, truth, whole_number
from headloc.errors import HeadlocError
from headloc.files import write_text

_HOW = ("top", "absolute", "group", "mlps", "off_value", "positions")


def show(arguments: Sequence[str]) -> None:
    """Print a circuit."""
    paths, options = split_arguments(arguments, known=("circuit",))
    paths += [options["circuit"]] if "circuit" in options else []
    if len(paths) != 1:
        raise HeadlocError("Give one circuit folder: headloc circuit show DIR.")
    from headloc.reporting.console import Console

    Console().circuit(Circuit.load(paths[0]))


def export(arguments: Sequence[str]) -> None:
    """Write a circuit in another format."""
    paths, options = split_arguments(arguments, known=("circuit", "format", "output"))
    paths += [options["circuit"]] if "circuit" in options else []
    if len(paths) != 1 or "format" not in options or "output" not in options:
        raise HeadlocError(
            "Give the circuit, a format and a file: headloc circuit export DIR "
            f"format={'|'.join(EXPORTS)} output=FILE."
        )
    circuit = Circuit.load(paths[0])
    text = export_text(circuit, options["format"])
    write_text(Path(options["output"]), text)
    print(options["output"])
    note = left_out(circuit, options["format"])
    if note is not None:
        print(note)


def import_(arguments: Sequence[str]) -> None:
    """Read another tool's head file as a circuit of a model."""
    from headloc.interop import FORMATS, Options, read_heads
    from headloc.interop.binding import Use

    paths, given = split_arguments(arguments, known=("format", "model", "output", *_HOW))
    if len(paths) != 1 or not {"format", "model", "output"} <= given.keys():
        raise HeadlocError(
            "Give the file, its format, the model and a folder: headloc circuit import FILE "
            f"format={'|'.join(FORMATS)} model=bundled|DIR|HUB_ID output=DIR."
        )
    use = Use(
        top=whole_number(given, "top", 0) if "top" in given else None,
        absolute=truth(given, "absolute", False),
        off_value=given.get("off_value", "zero"),
        positions=given.get("positions", "last"),
    )
    # Before the model is loaded: a mistake in the file is told at once.
    options = Options(given.get("group"), truth(given, "mlps", True))
    file = Path(paths[0]).expanduser()
    read_heads(file, given["format"], options)
    from headloc.interop.importing import import_circuit, model_of
    from headloc.reporting.console import Console

    circuit = import_circuit(
        file, model_of(given["model"]), kind=given["format"], options=options, use=use
    )
    folder = circuit.save(Path(given["output"]).expanduser())
    Console().circuit(circuit)
    print(f"circuit  {folder}")
