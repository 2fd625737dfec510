"""What users and their programs lean on: names, signatures, options, files.

    python -m tests.packaging.surface           prints what changed, status 1 if anything did
    python -m tests.packaging.surface --write   accepts it

surface.json holds it all.  A name is public when its package lists it in `__all__`, when a shipped
configuration names it as a `_target_`, or when CONTRIBUTING.md tells to subclass it.
"""

from __future__ import annotations

import csv
import difflib
import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from safetensors import safe_open

from headloc.cli import COMMANDS, config_dir, main

FILE = Path(__file__).with_name("surface.json")

PACKAGES = (
    "headloc", "headloc.analysis", "headloc.bank", "headloc.bundled", "headloc.circuit",
    "headloc.gates", "headloc.interop", "headloc.interventions", "headloc.lm",
    "headloc.objectives", "headloc.references", "headloc.tasks",
)  # fmt: skip

BASES = (
    "headloc.baselines.method.HeadRanking",
    "headloc.baselines.method.Method",
    "headloc.localizer.selection.Selection",
    "headloc.randomness.stream",
)
"""What CONTRIBUTING.md tells to subclass or call."""

ACCEPT = """
The public surface changed. If that is meant, accept it with

    python -m tests.packaging.surface --write

and add a line to CHANGELOG.md: under Changed or Removed where programs of users may break."""

Lines = list[str]


def surface() -> dict[str, dict[str, Lines]]:
    """Return the public surface: names, options and files, each as sorted lines."""
    return {"python": python(), "commands": commands(), "files": files()}


def python() -> dict[str, Lines]:
    """Return every public name with its signature, public methods and fields; each thing once."""
    found: dict[str, Lines] = {}
    first: dict[int, str] = {}
    for path, value in sorted(public().items()):
        known = first.setdefault(id(value), path)
        found[path] = described(value) if known == path else [f"is {known}"]
    return found


def public() -> dict[str, Any]:
    """Return every public name and what it stands for."""
    named = [f"{package}.{name}" for package in PACKAGES for name in import_module(package).__all__]
    found = {}
    for path in (*named, *BASES, *targets()):
        package, _, name = path.rpartition(".")
        found[path] = getattr(import_module(package), name)
    return found


def targets() -> Iterator[str]:
    """Yield the classes of headloc that the shipped configuration names."""
    for path in config_dir().rglob("*.yaml"):
        for target in re.findall(r"_target_: *(\S+)", path.read_text(encoding="utf-8")):
            if target.startswith("headloc."):
                yield target


def described(value: Any) -> Lines:
    """Return one line per thing that a caller may use."""
    if inspect.isclass(value):
        return [f"class{signature(value)}", *sorted(members(value))]
    if callable(value):
        return [f"function{signature(value)}"]
    if isinstance(value, Mapping):
        return [f"{type(value).__name__} of {', '.join(sorted(map(str, value)))}"]
    if isinstance(value, (list, tuple, set, frozenset)):
        return [f"{type(value).__name__} of {', '.join(sorted(map(str, value)))}"]
    # A value that goes with the release, as the version does, is no promise.
    return [type(value).__name__]


def members(kind: type) -> Iterator[str]:
    """Yield the public members that headloc itself gives a class."""
    seen = set()
    for owner in kind.__mro__:
        if not owner.__module__.startswith("headloc"):
            continue
        for name, value in vars(owner).items():
            if name.startswith("_") or name in seen:
                continue
            seen.add(name)
            if isinstance(value, (staticmethod, classmethod)):
                yield f"{type(value).__name__} {name}{signature(value.__func__)}"
            elif inspect.isfunction(value):
                yield f"def {name}{signature(value)}"
            elif isinstance(value, property):
                returned = getattr(value.fget, "__annotations__", {}).get("return", "")
                yield f"property {name} -> {returned}{'' if value.fset is None else ', settable'}"
            else:
                yield f"attribute {name}"


def signature(value: Any) -> str:
    """Return a signature with its defaults; places in memory are left out."""
    try:
        return re.sub(r" at 0x[0-9a-f]+", "", str(inspect.signature(value)))
    except (TypeError, ValueError):
        return "(...)"


def commands() -> dict[str, Lines]:
    """Return every command with its options, and every choice of a group with its defaults."""
    found: dict[str, Lines] = {}
    for command in COMMANDS:
        usage = command.usage if isinstance(command.usage, str) else command.usage()
        options = sorted(set(re.findall(r"\b([a-z_]+)=", usage)))
        configured = [f"conf/{command.config}.yaml"] if command.config else []
        found[f"headloc {' '.join(command.words)}"] = [*configured, *options]
    for path in sorted(config_dir().rglob("*.yaml")):
        place = path.relative_to(config_dir()).as_posix()
        # An experiment is a choice of options, which may follow its paper more closely at any time.
        content = {} if place.startswith("experiment/") else yaml.safe_load(path.read_text("utf-8"))
        found[f"conf/{place}"] = sorted(flattened(content or {}))
    return found


def flattened(value: Any, key: str = "") -> Iterator[str]:
    """Yield the leaves of nested settings as `key=value`."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from flattened(inner, f"{key}.{name}" if key else str(name))
    elif key:
        yield f"{key}={json.dumps(value)}"


def files() -> dict[str, Lines]:
    """Return the files that a localization of the bundled model leaves, and what each holds."""
    with TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        run = Path(folder) / "run"
        status = main(["localize", "debug=fast", "logger=csv", f"output_dir={run}"])
        if status:
            raise RuntimeError(f"The localization ended with status {status}.")
        return contents(run)


def contents(run: Path) -> dict[str, Lines]:
    """Return what the files of a run hold: keys, columns, tensors; checkpoints are private."""
    found = {}
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        name = path.relative_to(run).as_posix()
        if not name.startswith(("checkpoints/", "curves/")):
            found[f"localize: {name}"] = inside(path)
    return found


def inside(path: Path) -> Lines:
    """Return the keys, columns or tensors of a file."""
    if path.suffix == ".json":
        return sorted(set(keys(json.loads(path.read_text("utf-8")))))
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return next(csv.reader(file))
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as tensors:
            return sorted({re.sub(r"\d+", "N", name) for name in tensors.keys()})  # noqa: SIM118
    return []


def keys(value: Any, key: str = "") -> Iterator[str]:
    """Yield the keys of nested JSON."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from keys(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for inner in value:
            yield from keys(inner, f"{key}[]")
    elif key:
        yield key


def text(found: Mapping[str, Mapping[str, Lines]]) -> str:
    """Return the surface as the text of its file."""
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def difference(frozen: str, now: str) -> str:
    """Return what changed, line by line, under the names it belongs to; empty when nothing did."""
    before, after = json.loads(frozen), json.loads(now)
    lines = []
    for part in sorted({*before, *after}):
        old, new = before.get(part, {}), after.get(part, {})
        for name in sorted({*old, *new}):
            if old.get(name) == new.get(name):
                continue
            state = "new" if name not in old else "gone" if name not in new else "changed"
            lines.append(f"{name} ({state})")
            changes = difflib.ndiff(old.get(name, []), new.get(name, []))
            lines += [f"  {line}" for line in changes if line[0] in "+-"]
    return "\n".join(lines)


def run(arguments: list[str]) -> None:
    """Print what changed, or accept it; ends with status 1 where something changed."""
    now = text(surface())
    changed = difference(FILE.read_text("utf-8") if FILE.is_file() else "{}", now)
    if changed:
        print(changed)
    if "--write" in arguments:
        FILE.write_text(now, encoding="utf-8")
    elif changed:
        print(ACCEPT)
        sys.exit(1)


if __name__ == "__main__":
    run(sys.argv[1:])
