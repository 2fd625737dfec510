"""A circuit in a repository of the Hugging Face hub, by huggingface_hub's own mixin.

The repository holds the three files of a circuit's folder and a config.json that names the library.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from headloc.circuit.circuit import Circuit
from headloc.errors import CircuitError

FILES = ("circuit.json", "gates.safetensors")
"""What is needed to read a circuit; nothing else is downloaded."""

CARD = "README.md"


class HubCircuit(ModelHubMixin, library_name="headloc"):
    """A circuit as the hub's mixin sees it.

    Args:
        circuit: the circuit.
        repo_id: the repository that its card tells to load it from, where it is known.
    """

    def __init__(self, circuit: Circuit, repo_id: str | None = None) -> None:
        self.circuit, self.repo_id = circuit, repo_id
        self._hub_mixin_config = {"library_name": "headloc", "artifact": "circuit"}

    def _save_pretrained(self, save_directory: Path) -> None:
        self.circuit.write_into(save_directory, repo_id=self.repo_id)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **unused: Any,
    ) -> HubCircuit:
        if Path(model_id).is_dir():
            return cls(Circuit.load(model_id))
        folder = snapshot_download(
            model_id,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
            allow_patterns=list(FILES),
        )
        return cls(Circuit.load(folder), model_id)


def published(circuit: Circuit, base_model: str | None) -> Circuit:
    """Return the circuit without names of folders of this machine.

    Args:
        circuit: the circuit.
        base_model: hub id of its model; the name that the circuit has when None.

    Raises:
        CircuitError: when the model's name is no hub id.
    """
    name = str(circuit.model.get("name")) if base_model is None else base_model
    if not is_hub_id(name):
        raise CircuitError(
            f"The circuit's model is called {name!r}, which is no id on the hub, so nobody could "
            'load it from there. Name the model: push_to_hub(repo_id, base_model="owner/model").'
        )
    task = dict(circuit.task)
    options = task.get("options")
    if isinstance(options, Mapping) and "path" in options:
        task["options"] = {**options, "path": _without_folder(options["path"])}
    return replace(circuit, model={**circuit.model, "name": name}, task=task)


def is_hub_id(name: str) -> bool:
    """Whether a model's name can be the id of a repository."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).is_dir()


def _without_folder(path: Any) -> Any:
    if isinstance(path, list):
        return [_without_folder(item) for item in path]
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(str(path)).is_absolute():
            return kind(str(path)).name
    return path


@contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """Tell failures of the hub as a sentence.

    Raises:
        CircuitError: when the hub does not know the repository, or cannot be reached.
    """
    try:
        yield
    except HFValidationError as error:
        raise CircuitError(
            f"{repo_id!r} is neither a folder nor a hub id (owner/name): {_first_line(error)}"
        ) from None
    except (HfHubHTTPError, EntryNotFoundError, OSError) as error:
        raise CircuitError(
            f"The hub did not serve {repo_id!r}: {_first_line(error)} Check the name, the "
            "revision, the network and `hf auth login`."
        ) from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason.")
