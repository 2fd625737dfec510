"""A circuit in a hub repository: folders, and a push to a stand-in for the hub on this machine.

The hub's client runs in a process of its own, because it reads its address when it is imported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from headloc.circuit import Circuit
from headloc.errors import CircuitError
from tests.circuit.hub_stand_in import SHA, serve
from tests.circuit.made import tiny_circuit
from tests.tiny import tiny_lm

FILES = ["README.md", "circuit.json", "config.json", "gates.safetensors"]


def some(**model: Any) -> Circuit:
    circuit = tiny_circuit(tiny_lm("gpt2"))
    return replace(circuit, model={**circuit.model, "name": "someone/tiny", **model})


def same(a: Circuit, b: Circuit) -> bool:
    tensors = set(a.tensors) == set(b.tensors) and all(
        torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors
    )
    return a.to_dict() == b.to_dict() and tensors and torch.equal(a.scores, b.scores)


def test_a_folder_of_a_repository_is_a_circuit_and_the_other_way_round(tmp_path: Path) -> None:
    circuit = some()
    folder = circuit.save_pretrained(tmp_path / "repository")
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert json.loads((folder / "config.json").read_text())["library_name"] == "headloc"
    assert same(Circuit.from_pretrained(folder), circuit)
    assert same(Circuit.load(folder), circuit)
    assert same(Circuit.from_pretrained(circuit.save(tmp_path / "plain")), circuit)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, list[str], Path]]:
    root = tmp_path / "hub"
    root.mkdir()
    server, address, seen = serve(root)
    yield address, seen, root
    server.shutdown()
    server.server_close()


def client(address: str, tmp_path: Path, code: str, *arguments: str) -> str:
    """Run Python with the stand-in for a hub; its output."""
    settings = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "HF_ENDPOINT": address,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\nfrom headloc import Circuit\n{code}", *arguments],
        env=settings,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_circuit_is_pushed_and_loaded_over_the_hubs_interface(
    hub: tuple[str, list[str], Path], tmp_path: Path
) -> None:
    address, seen, root = hub
    local = some(name=str(tmp_path / "a folder"))
    local = replace(local, task={"family": "pairs", "options": {"path": f"{tmp_path}/facts.json"}})
    code = """
c = Circuit.load(sys.argv[1])
print(c.push_to_hub("someone/heads", base_model="someone/tiny", token="hf_made_up"))
back = Circuit.from_pretrained("someone/heads")
print(back.save(sys.argv[2]))
again = Circuit.from_pretrained("someone/heads", local_files_only=True)
assert again.to_dict() == back.to_dict()
from headloc.errors import CircuitError
for name, options in (("someone/none", {}), ("no such/id/here", {}),
                      ("someone/none", {"local_files_only": True})):
    try:
        Circuit.from_pretrained(name, **options)
    except CircuitError as error:
        print(error)
"""
    out = client(
        address, tmp_path, code, str(local.save(tmp_path / "circuit")), str(tmp_path / "back")
    ).splitlines()
    assert out[0] == f"{address}/someone/heads/commit/{SHA}"
    assert [line[:25] for line in out[2:]] == [
        "The hub did not serve 'so", "'no such/id/here' is neit", "The hub did not serve 'so",
    ]  # fmt: skip
    pushed = root / "someone" / "heads"
    assert sorted(path.name for path in pushed.iterdir()) == FILES
    for file in pushed.iterdir():
        assert str(tmp_path).encode() not in file.read_bytes()
    back = Circuit.load(tmp_path / "back")
    assert back.heads == local.heads
    assert back.model["name"] == "someone/tiny"
    assert back.task["options"]["path"] == "facts.json"
    card = (pushed / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: headloc\n")
    assert 'base_model: "someone/tiny"' in card
    assert 'Circuit.from_pretrained("someone/heads")' in card
    assert not [path for path in seen if path.startswith("GET") and path.endswith("README.md")]


def test_a_model_without_a_hub_id_must_be_named(tmp_path: Path) -> None:
    for name in (str(tmp_path), "a b", "a/b/c"):
        with pytest.raises(CircuitError, match="base_model="):
            some(name=name).push_to_hub("someone/heads")


def test_the_cards_front_matter_is_valid_and_names_no_folder(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    for name in ("someone/tiny", "gpt2", str(tmp_path), "x\n---\nevil: yes"):
        folder = some(name=name).save_pretrained(tmp_path / "c")
        data = ModelCard.load(folder / "README.md").data.to_dict()
        assert data["library_name"] == "headloc"
        assert "evil" not in data
        assert data.get("base_model") == (name if name in ("someone/tiny", "gpt2") else None)
