"""Find the folder of a checkpoint, on disk or from the hub, and check its files before loading.

Only safetensors weights are read: other formats are pickles, which run code when opened.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headloc.errors import HeadlocError

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
_WANTED = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.txt", "*.model"]
_PLAIN_NAME = re.compile(r"(?!\.\.?$)[^/\\\x00]{1,255}")
_UNWANTED = ["*/*", "consolidated*", "*.fp16.safetensors"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint folder whose files have been checked.

    Attributes:
        folder: where the files are.
        name: what the user called it.
        revision: the hub commit it resolved to, None for a local folder.
        config: the content of its config.json.
    """

    folder: Path
    name: str
    revision: str | None
    config: Mapping[str, Any]


def find_checkpoint(
    path: str, *, revision: str | None = None, local_only: bool = False, remote_code: bool = False
) -> Checkpoint:
    """Resolve a folder or a hub id, downloading only what loading needs.

    Raises:
        HeadlocError: when there is no such folder or hub model, the hub cannot be reached, or the
            folder does not hold a model that can be loaded.
    """
    local = Path(path).expanduser()
    if path and local.is_dir():
        if revision is not None:
            raise HeadlocError(
                f"revision {revision!r} was given with the local folder {path!r}. Revisions exist "
                "on the hub only; leave it out."
            )
        return Checkpoint(local, path, None, check_folder(local))
    if path and local.exists():
        raise HeadlocError(f"{path!r} is a file. Give the folder that holds config.json.")
    if _looks_local(path):
        raise HeadlocError(
            f"There is no folder {path!r}. Give a folder that holds config.json, weights in "
            "safetensors and a tokenizer, or a hub id such as 'openai-community/gpt2'."
        )
    folder = _download(path, revision, local_only, remote_code)
    # The hub's cache names each snapshot folder by its commit.
    return Checkpoint(folder, path, folder.name, check_folder(folder))


def check_folder(folder: Path) -> dict[str, Any]:
    """Check that a folder holds a configuration and safetensors weights; return the configuration.

    Raises:
        HeadlocError: naming the file that is missing or broken, and the remedy.
    """
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise HeadlocError(
            f"{str(folder)!r} is a PEFT adapter, not a model. Merge it into its base model "
            "(merge_and_unload, then save_pretrained) and give that folder."
        )
    config = _read_json(folder / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise HeadlocError(
            f"{str(folder / 'config.json')!r} names no model_type, so its architecture is unknown. "
            "Save the model with save_pretrained of transformers."
        )
    _check_weights(folder)
    return config


def check_tokenizer_files(folder: Path) -> None:
    """Refuse a folder without a tokenizer.

    Raises:
        HeadlocError: naming the files that were looked for.
    """
    if not any((folder / name).exists() for name in _TOKENIZER_FILES):
        raise HeadlocError(
            f"{str(folder)!r} holds no tokenizer (none of {', '.join(_TOKENIZER_FILES)}). Save it "
            "next to the model: tokenizer.save_pretrained(folder)."
        )


def _looks_local(path: str) -> bool:
    """Whether a name was meant as a folder; hub ids are `name` or `organisation/name`."""
    return (
        not path
        or path.startswith((".", "~", os.sep))
        or path.endswith(os.sep)
        or "\\" in path
        or path.count("/") > 1
    )


def _read_json(file: Path) -> dict[str, Any]:
    if not file.exists():
        raise HeadlocError(
            f"{str(file.parent)!r} is not a model folder: it holds no {file.name}. Give the folder "
            "that save_pretrained of transformers wrote."
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise HeadlocError(f"{str(file)!r} cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise HeadlocError(
            f"{str(file)!r} must hold a JSON object, not a {type(content).__name__}."
        )
    return content


def _check_weights(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = _shards(index)
        missing = [shard for shard in shards if not (folder / shard).exists()]
        if missing or not shards:
            raise HeadlocError(
                f"{str(folder)!r} lacks weight files that its index names: "
                f"{', '.join(missing) or 'all'}. Copy or download the folder again."
            )
    elif not any(folder.glob("*.safetensors")):
        pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
        found = f"only {', '.join(pickles)}" if pickles else "no weights"
        raise HeadlocError(
            f"{str(folder)!r} holds {found}; headloc reads safetensors alone, because other "
            "formats can run code when opened. Convert once, where you trust the file: "
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)."
        )


def _shards(index: Path) -> list[str]:
    """Return the weight files that an index names, each in the folder itself."""
    names = _read_json(index).get("weight_map", {})
    if not isinstance(names, dict) or not all(isinstance(one, str) for one in names.values()):
        raise HeadlocError(
            f"{str(index)!r} must map names of weights to names of files under 'weight_map'. "
            "Copy or download the folder again."
        )
    shards = sorted(set(names.values()))
    foreign = [name for name in shards if not _PLAIN_NAME.fullmatch(name)]
    if foreign:
        raise HeadlocError(
            f"{str(index)!r} names {foreign[0][:80]!r}, which is no file of its own folder. Only "
            "weights beside the index are read."
        )
    return shards


def _download(name: str, revision: str | None, local_only: bool, remote_code: bool) -> Path:
    from huggingface_hub import errors, snapshot_download

    wanted = [*_WANTED, "*.py"] if remote_code else _WANTED
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=wanted,
                ignore_patterns=_UNWANTED,
                local_files_only=local_only,
            )
        )
    except errors.HFValidationError as error:
        raise HeadlocError(
            f"{name!r} is neither a folder nor a hub id (name or organisation/name)."
        ) from error
    except errors.GatedRepoError as error:
        raise HeadlocError(
            f"The hub model {name!r} is gated. Accept its terms on its page and log in with "
            "`hf auth login`."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HeadlocError(
            f"There is no folder and no hub model {name!r} (or it is private; log in with "
            "`hf auth login`)."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HeadlocError(f"The hub model {name!r} has no revision {revision!r}.") from error
    except (errors.LocalEntryNotFoundError, OSError) as error:
        # OSError covers refused connections, timeouts and HTTP errors of the hub's client.
        raise HeadlocError(_unreachable(name, local_only)) from error


def _unreachable(name: str, local_only: bool) -> str:
    reason = "local_only is set" if local_only else "the hub cannot be reached"
    return (
        f"{name!r} is not a folder here, is not (completely) in the hub's cache, and {reason}. "
        "Give the path of a local model folder, or download the model once while online."
    )
