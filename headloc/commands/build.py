"""From a composed configuration to objects, with errors that speak of the configuration."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from headloc.errors import HeadlocError, suggest

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from headloc.lm.frozen import FrozenLM
    from headloc.ranks import Ranks


def plain(node: Any) -> Any:
    """Return a resolved configuration node as plain dicts, lists and values."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(node, resolve=True, throw_on_missing=True)


def build(group: str, options: Mapping[str, Any]) -> Any:
    """Make the object that a group's `_target_` names from the options beside it.

    Raises:
        HeadlocError: for an option that the target does not take, or a value of the wrong type.
    """
    from hydra.utils import get_class, instantiate

    if not isinstance(options, Mapping):
        raise HeadlocError(f"{group}={options!r} must be a group of options with a _target_.")
    given = dict(options)
    target = given.get("_target_")
    if not isinstance(target, str):
        raise HeadlocError(f"The group {group!r} names no _target_. Choose one of its files.")
    try:
        cls = get_class(target)
    except Exception as error:
        raise HeadlocError(f"{group}._target_={target!r} cannot be imported: {error}") from None
    values = {key: value for key, value in given.items() if not key.startswith("_")}
    check_options(group, cls, values)
    return instantiate({**given, "_convert_": "all"})


def build_settings(group: str, cls: type, options: Mapping[str, Any]) -> Any:
    """Make a settings dataclass from a group's options, with the same checks as `build`."""
    if not isinstance(options, Mapping):
        raise HeadlocError(f"{group}={options!r} must be a group of options.")
    check_options(group, cls, options)
    return cls(**options)


def check_options(group: str, cls: type, options: Mapping[str, Any]) -> None:
    """Check names and simple types of options against a constructor.

    Raises:
        HeadlocError: naming the option, what was given and what was expected.
    """
    parameters = inspect.signature(cls).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    hints = get_type_hints(inspect.unwrap(getattr(cls, "__init__")))  # noqa: B009
    for key, value in options.items():
        if key not in parameters:
            if open_ended:
                continue
            names = [f"{group}.{name}" for name in parameters]
            raise HeadlocError(
                f"There is no option '{group}.{key}'. {suggest(f'{group}.{key}', names)}"
            )
        hint = hints.get(key)
        if hint is not None and not _fits(value, hint):
            raise HeadlocError(f"{group}.{key}={value!r} should be {_in_words(hint)}.")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value fits an annotation; True for annotations that are not simple."""
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str):
        return isinstance(value, hint)
    if hint is type(None):
        return value is None
    origin = get_origin(hint)
    if origin is None or str(origin) not in ("typing.Union", "<class 'types.UnionType'>"):
        return True
    return any(_fits(value, part) for part in get_args(hint))


def _in_words(hint: Any) -> str:
    names = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}
    if hint in names:
        return names[hint]
    parts = [
        names.get(part, "null" if part is type(None) else str(part)) for part in get_args(hint)
    ]
    return " or ".join(parts)


def checked_seed(value: Any) -> int:
    """Return a seed of the configuration.

    Raises:
        HeadlocError: when it is not a whole number of zero or more.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise HeadlocError(f"seed={value!r} must be a whole number, 0 or above.")
    return value


def build_lm(cfg: DictConfig, ranks: Ranks | None = None) -> FrozenLM:
    """Load the model that a `model` group describes, onto the device of this process.

    Raises:
        HeadlocError: for options that are wrong, or that do not go together.
    """
    from headloc.bundled import load_bundled
    from headloc.lm.loading import load_lm

    options = plain(cfg)
    source = options.pop("source", None)
    _set_threads(options.pop("threads", None))
    if ranks is not None and (ranks.processes > 1 or ranks.devices is not None):
        options["device"] = _own_device(options, ranks)
    if source == "bundled":
        _refuse_a_place(options)
        return load_bundled(**options)
    if source not in ("local", "hub"):
        raise HeadlocError(f"model.source={source!r} is unknown. {suggest(str(source), _SOURCES)}")
    check_options("model", _LoadOptions, options)
    return load_lm(options.pop("path"), local_only=source == "local", **options)


def _refuse_a_place(options: dict[str, Any]) -> None:
    """Take the options of a checkpoint's place out of those of the bundled model.

    Raises:
        HeadlocError: where one is set, which the bundled model would silently stand in for.
    """
    for key in ("path", "revision"):
        value = options.pop(key, None)
        if value is not None:
            raise HeadlocError(
                f"model.{key}={value!r} says nothing to the model that ships with headloc, which "
                "model=bundled (the default) takes. Add model=local or model=hub, or set "
                f"model.{key}=null."
            )


def _own_device(options: Mapping[str, Any], ranks: Ranks) -> str:
    """Return the device of one process among several, or of one on a device that is listed."""
    import torch

    if options.get("device_map") is not None and ranks.processes == 1:
        return str(options.get("device", "auto"))
    if options.get("device_map") is not None:
        raise HeadlocError(
            f"trainer.devices asks for {ranks.processes} processes, each with the whole model, but "
            f"model.device_map={options['device_map']!r} spreads one model over devices. Use one "
            "of the two: trainer.devices=1, or model.device_map=null."
        )
    asked = str(options.get("device", "auto"))
    if asked not in ("auto", "cpu", "cuda"):
        raise HeadlocError(
            f"model.device={asked!r} and trainer.devices both name devices. Give model.device=cuda "
            "or cpu, and list devices as trainer.devices=[0,1]."
        )
    free = asked == "auto" and torch.cuda.is_available() and not ranks.on_cpu
    wants_cuda = asked == "cuda" or free
    return f"cuda:{ranks.device_index}" if wants_cuda else "cpu"


def _set_threads(threads: Any) -> None:
    """Let torch use a number of threads on the CPU; None leaves torch's own choice."""
    import torch

    if threads is None:
        return
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise HeadlocError(f"model.threads={threads!r} must be a whole number above 0, or null.")
    torch.set_num_threads(threads)


_SOURCES = ("bundled", "local", "hub")


class _LoadOptions:
    """The options of `load_lm` that a configuration may set, for checking names and types."""

    def __init__(
        self,
        path: str,
        revision: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
        device_map: str | Mapping[str, Any] | None = None,
        max_memory: Mapping[str, str] | None = None,
    ) -> None: ...
