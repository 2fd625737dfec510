"""`headloc task import`: prompt files of other tools as task files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from headloc.commands.arguments import split_arguments
from headloc.errors import HeadlocError
from headloc.files import write_text
from headloc.interop.prompt_files import PROMPT_FORMATS, Decode, read_prompts


def import_(arguments: Sequence[str]) -> None:
    """Read another tool's prompt file and write the file of task=prompts."""
    paths, options = split_arguments(arguments, known=("format", "output", "model"))
    if len(paths) != 1 or not {"format", "output"} <= options.keys():
        raise HeadlocError(
            "Give the file, its format and a file to write: headloc task import FILE "
            f"format={'|'.join(PROMPT_FORMATS)} output=FILE.json."
        )
    decode = _decoder(options["model"]) if "model" in options else None
    prompts = read_prompts(Path(paths[0]).expanduser(), options["format"], decode)
    entries = [prompt.to_dict() for prompt in prompts]
    target = Path(options["output"]).expanduser()
    write_text(target, json.dumps(entries, ensure_ascii=False, indent=1) + "\n")
    print(f"{len(entries)} prompts  {target}")


def _decoder(name: str) -> Decode:
    """Return what the token ids of a model's tokenizer stand for."""
    from headloc.bundled import model_dir
    from headloc.lm.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(str(model_dir()) if name == "bundled" else name)

    def decode(token: int) -> str:
        if token >= len(tokenizer):
            raise HeadlocError(
                f"The file has token id {token}, but the tokenizer of {name!r} has "
                f"{len(tokenizer)} tokens. Give the model that the file was made for."
            )
        return str(tokenizer.decode([token]))

    return decode
