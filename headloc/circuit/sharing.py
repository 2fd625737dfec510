"""Saving to and loading from a model hub: the methods that every circuit has for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from headloc.circuit.circuit import Circuit


class HubMethods:
    """`save_pretrained`, `from_pretrained` and `push_to_hub`, with the meaning that they have in
    transformers; the work is done by huggingface_hub's `ModelHubMixin` (`headloc.circuit.hub`).
    """

    __slots__ = ()

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the files of a hub repository, the model card included, into a folder."""
        from headloc.circuit.hub import HubCircuit

        path = Path(folder)
        HubCircuit(cast("Circuit", self)).save_pretrained(path)
        return path

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> Circuit:
        """Load a circuit from a hub repository or a folder.

        Args:
            name: id of the repository (owner/name), or a folder.
            revision: branch, tag or commit of the repository.
            token: access token; the stored one when None.
            cache_dir: where downloads are kept.
            force_download: download again what is there.
            local_files_only: use what was downloaded before, without the network.

        Raises:
            CircuitError: when there is no such repository, or it holds no circuit.
        """
        from headloc.circuit.circuit import Circuit
        from headloc.circuit.hub import HubCircuit, hub_errors

        if Path(name).is_dir():
            return Circuit.load(name)
        with hub_errors(str(name)):
            loaded = HubCircuit.from_pretrained(
                str(name),
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
            )
        return loaded.circuit

    def push_to_hub(self, repo_id: str, *, base_model: str | None = None, **options: Any) -> str:
        """Upload the circuit to a hub repository, which is made when it is not there.

        Folders of this machine are left out of what is published.

        Args:
            repo_id: owner/name.
            base_model: hub id of the model; needed when the circuit was found on a local folder.
            options: of `ModelHubMixin.push_to_hub`: private, token, branch, create_pr,
                commit_message.

        Returns:
            The address of the commit.

        Raises:
            CircuitError: when the model has no hub id, or the hub refuses.
        """
        from headloc.circuit.hub import HubCircuit, hub_errors, published

        shared = HubCircuit(published(cast("Circuit", self), base_model), repo_id)
        with hub_errors(repo_id):
            return str(shared.push_to_hub(repo_id, **options))
