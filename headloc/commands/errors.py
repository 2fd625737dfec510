"""Turn an exception into the sentence that a user is told, or None for what is a bug of headloc."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from headloc.errors import HeadlocError, suggest
from headloc.faults import causes, fault

_KEY = re.compile(r"Could not override '([^']+)'|Key '([^']+)'|full_key: (\S+)")


def explain(error: BaseException) -> str | None:
    """Return the message for a mistake of the user or a fault around the run, None for a bug."""
    chain = list(causes(error))
    for cause in chain:
        if isinstance(cause, HeadlocError):
            return str(cause)
    for cause in chain:
        message = _explain_hydra(cause) or fault(cause) or _explain_lightning(cause)
        if message is not None:
            return message
    return None


def explain_composition(error: BaseException, own_files: bool) -> str | None:
    """Return the message for an error that Hydra let through while it read configuration files.

    Args:
        error: the error.
        own_files: whether files of the user's were among them; what goes wrong in the shipped ones
            alone is a bug.
    """
    from yaml import YAMLError

    if isinstance(error, YAMLError):
        mark = getattr(error, "problem_mark", None)
        place = "" if mark is None else f"{mark.name}, line {mark.line + 1}: "
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        return f"The configuration is not valid YAML. {place}{what}. Correct it there."
    # Hydra and OmegaConf raise nearly anything on files of the wrong form.
    if own_files and isinstance(error, Exception):
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return (
            f"The configuration cannot be composed: {first}. Check the files of --config-dir: each "
            "is a mapping of options in UTF-8, with its `# @package` line first."
        )
    return None


def _explain_hydra(error: BaseException) -> str | None:
    from hydra.errors import (
        ConfigCompositionException,
        HydraException,
        MissingConfigException,
        OverrideParseException,
    )
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    if isinstance(error, MissingMandatoryValue):
        key = getattr(error, "full_key", None) or str(error).rsplit(":", 1)[-1].strip()
        return f"{key} is missing. Give it on the command line as {key}=VALUE."
    if isinstance(error, ValueError) and str(error).startswith("Config group override"):
        return (
            "A group of the configuration cannot be null here. Choose one of its files, as in "
            "gates=l1; `headloc COMMAND --help` lists them."
        )
    if isinstance(error, MissingConfigException):
        return _unknown_choice(error)
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override!r} cannot be read: {str(error).splitlines()[0]}. Write options as "
            "key=value, and quote what holds spaces, brackets or commas."
        )
    if isinstance(error, ConfigCompositionException | OmegaConfBaseException):
        return _unknown_key(error)
    return str(error) if isinstance(error, HydraException) else None


def _unknown_choice(error: Any) -> str:
    """Explain a group choice that does not exist, such as gates=hardconcrete."""
    match = re.search(r"Could not (?:find|load) '([^']+)'", str(error))
    given = match[1] if match else str(getattr(error, "missing_cfg_file", ""))
    options = getattr(error, "options", None)
    group, _, choice = given.rpartition("/")
    if options:
        return f"{group}={choice} does not exist. {suggest(choice, options)}"
    return str(error)


def _unknown_key(error: BaseException) -> str:
    """Explain an option that does not exist, with the closest ones that do."""
    match = _KEY.search(str(error))
    key = next((part for part in match.groups() if part), None) if match else None
    if key is None:
        return str(error).strip()
    if key.startswith("hydra.") and key.endswith(".dir"):
        return "output_dir must name a folder, as in output_dir=outputs/mine."
    choices = _choices_with(key)
    if choices and "Could not override" in str(error):
        group = key.partition(".")[0]
        named = " or ".join(f"{group}={choice}" for choice in choices)
        add = f"Add {named}." if len(choices) == 1 else "Add one of these choices."
        return f"{key} is an option of {named}, not of the choice made here. {add}"
    # What cannot be overridden is not there, although another command may have it.
    if key in _known_keys() and "Could not override" not in str(error):
        return f"{key} cannot be set so: {str(error).splitlines()[0].strip()}"
    return (
        f"There is no option {key!r}. {_closest(key)} `headloc COMMAND --help` lists all of them."
    )


def _closest(key: str) -> str:
    known = _known_keys() - {key}
    # An option is often right but in the wrong group, or without its group.
    last = key.rpartition(".")[2]
    same = sorted(name for name in known if name.rpartition(".")[2] == last)
    if same:
        return f"Did you mean {' or '.join(repr(name) for name in same[:3])}?"
    group = key.partition(".")[0]
    inside = {name for name in known if name.startswith(f"{group}.")} if "." in key else set()
    text = suggest(key, inside or {name for name in known if "." not in name})
    return text if text.startswith("Did you mean") or inside else ""


def _known_keys() -> set[str]:
    """Return every option of the shipped configuration, as dotted keys."""
    groups = {path.parent.name for path, _ in _shipped() if path.parent != Path()}
    return groups.union(*(keys for _, keys in _shipped()))


def _choices_with(key: str) -> list[str]:
    """Return the choices of a key's group that have this option."""
    group = Path(key.partition(".")[0])
    return [path.stem for path, keys in _shipped() if path.parent == group and key in keys]


def _primary() -> str:
    """Return the name of the primary configuration of the command that runs."""
    from headloc.cli import COMMANDS

    words = tuple(sys.argv[0].split()[1:])
    configs = (command.config for command in COMMANDS if command.words == words)
    # `reproduce` composes the configuration of `localize`.
    return next(configs, None) or "localize"


def _shipped() -> list[tuple[Path, set[str]]]:
    """Return the files of this command, relative to conf/, with their options as dotted keys."""
    import yaml

    from headloc.cli import config_dir

    folder = config_dir()
    primary = folder / f"{_primary()}.yaml"
    defaults = (yaml.safe_load(primary.read_text(encoding="utf-8")) or {}).get("defaults", [])
    groups = {name for entry in defaults if isinstance(entry, dict) for name in entry}
    found = []
    for path in sorted(folder.rglob("*.yaml")):
        place = path.relative_to(folder)
        if path != primary and place.parts[0] not in groups:
            continue
        text = path.read_text(encoding="utf-8")
        whole = "@package _global_" in text or place.parent == Path()
        keys = _flat(yaml.safe_load(text) or {}, "" if whole else place.parts[0])
        kept = {key for key in keys if "defaults" not in key and "_target_" not in key}
        found.append((place, kept))
    return found


def _flat(content: Any, prefix: str) -> set[str]:
    if not isinstance(content, dict):
        return {prefix}
    keys = {prefix} if prefix else set()
    for name, value in content.items():
        keys |= _flat(value, f"{prefix}.{name}" if prefix else str(name))
    return keys


def _explain_lightning(error: BaseException) -> str | None:
    if type(error).__name__ == "MisconfigurationException":
        return f"Lightning refuses these trainer options: {error}"
    return None
