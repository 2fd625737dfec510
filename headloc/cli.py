"""The command line: `headloc COMMAND [key=value ...]`.

This module imports nothing heavy, so that help and mistakes answer at once.  Hydra composes the
configuration of a command; a mistake of the user is told in one message, without a traceback unless
HEADLOC_TRACEBACK=1 is set, and ends with status 2.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from headloc import __version__
from headloc.commands import ending
from headloc.errors import HeadlocError, suggest
from headloc.faults import causes, fault, lost_peer

if TYPE_CHECKING:
    from omegaconf import DictConfig

_OVERRIDE = re.compile(r"[+~]*[A-Za-z_][\w.@/]*=")

_USAGE = """\
headloc {version}: find the few attention heads that carry a few-shot ability, and read them.

  headloc COMMAND [key=value ...]

Commands
{commands}

  headloc COMMAND --help     the options of a command
  headloc guide NAME         a short guide to a command; gotchas: symptom, cause, fix
  headloc --version

Hydra's own flags work with localize, evaluate, refine, analyze, reproduce, layers, compare,
bench, doctor and bundled train: --multirun, --cfg job, --config-dir DIR (your own experiments).
HEADLOC_TRACEBACK=1 shows the traceback of an error.
"""


@dataclass(frozen=True, slots=True)
class Command:
    """A command of the command line.

    Attributes:
        words: the words that name it.
        summary: one line of help.
        config: its primary configuration, or None for a command that Hydra does not configure.
        run: imports and runs it; takes the configuration and the output folder, or the arguments.
        usage: further lines of help for a command without configuration.
    """

    words: tuple[str, ...]
    summary: str
    run: Callable[..., Any]
    config: str | None = None
    usage: str | Callable[[], str] = ""


def _localize(cfg: DictConfig, output_dir: Path) -> None:
    from headloc.commands.localize import run

    run(cfg, output_dir)


def _evaluate(cfg: DictConfig, output_dir: Path) -> None:
    from headloc.commands.evaluate import run

    run(cfg, output_dir)


def _layers(cfg: DictConfig, output_dir: Path) -> None:
    from headloc.commands.layers import run

    run(cfg, output_dir)


def _compare(cfg: DictConfig, output_dir: Path) -> None:
    from headloc.commands.compare import run

    run(cfg, output_dir)


def _reproduce(arguments: Sequence[str]) -> int:
    from headloc.commands.reproduce import read_request, run

    request = read_request(arguments)
    job = Command(("reproduce",), "", partial(run, request=request), "localize")
    return _with_hydra(job, list(request.arguments), ["reproduce", *arguments])


def _reproduce_usage() -> str:
    from headloc.commands.reproduce import usage

    return usage()


def _refine(cfg: DictConfig, output_dir: Path) -> None:
    from headloc.commands.refine import run

    run(cfg, output_dir)


def _analyze(cfg: DictConfig, output_dir: Path) -> None:
    from headloc.commands.analyze import run

    run(cfg, output_dir)


def _doctor(cfg: DictConfig, output_dir: Path) -> None:
    from headloc.commands.doctor import run

    run(cfg, output_dir)


def _bench(cfg: DictConfig, output_dir: Path) -> None:
    from headloc.commands.bench import run

    run(cfg, output_dir)


def _bundled_train(cfg: DictConfig, output_dir: Path) -> None:
    from headloc.commands.bundled import run

    run(cfg, output_dir)


def _circuit_show(arguments: Sequence[str]) -> None:
    from headloc.commands.circuit import show

    show(arguments)


def _circuit_diff(arguments: Sequence[str]) -> None:
    from headloc.commands.circuit_diff import diff

    diff(arguments)


def _circuit_export(arguments: Sequence[str]) -> None:
    from headloc.commands.circuit import export

    export(arguments)


def _task_import(arguments: Sequence[str]) -> None:
    from headloc.commands.task import import_

    import_(arguments)


def _circuit_import(arguments: Sequence[str]) -> None:
    from headloc.commands.circuit import import_

    import_(arguments)


def _guide(arguments: Sequence[str]) -> None:
    from headloc.commands.guide import run

    run(arguments)


COMMANDS = (
    Command(("localize",), "find the heads that carry a task", _localize, "localize"),
    Command(("evaluate",), "score a saved circuit on a model and a task", _evaluate, "evaluate"),
    Command(("refine",), "find which selected heads carry the task alone", _refine, "refine"),
    Command(
        ("reproduce",),
        "run a paper's experiment and print published beside measured",
        _reproduce,
        usage=_reproduce_usage,
    ),
    Command(("analyze",), "read the heads of a circuit", _analyze, "analyze"),
    Command(("layers",), "search for the best insertion layer", _layers, "layers"),
    Command(("compare",), "compare methods of finding heads", _compare, "compare"),
    Command(
        ("circuit", "show"),
        "print a saved circuit",
        _circuit_show,
        usage="headloc circuit show DIR\n\nPrints the heads, where they come from and the figures.",
    ),
    Command(
        ("circuit", "diff"),
        "compare saved circuits",
        _circuit_diff,
        usage="headloc circuit diff DIR DIR [DIR ...] [accuracy=auto|true|false] [prompts=512]\n"
        "    [seed=1000] [output=FILE.json]\n\n"
        "Shared heads, Jaccard index and rank correlation of every pair; of two circuits also the\n"
        "accuracy of their intersection and union on fresh prompts of their task, if their model "
        "is\non this machine (accuracy=true fetches it); of more than two also how often each head "
        "is chosen.",
    ),
    Command(
        ("circuit", "export"),
        "write a circuit in another tool's format",
        _circuit_export,
        usage="headloc circuit export DIR format=FORMAT output=FILE\n\n"
        "heads             JSON list of [layer, head]\n"
        "function_vectors  JSON list of [layer, head, score], best first\n"
        "csv               one row per head: layer, head, gate, score, selected\n"
        "mib               MIB / EAP-IG graph JSON, heads scored\n"
        "headkv            retrieval-head / HeadKV score file",
    ),
    Command(
        ("circuit", "import"),
        "read another tool's head file as a circuit of a model",
        _circuit_import,
        usage="headloc circuit import FILE format=FORMAT model=bundled|DIR|HUB_ID output=DIR\n\n"
        "heads             JSON list of [layer, head], or DCM's groups of them (group=NAME)\n"
        "function_vectors  JSON list of [layer, head, score], or *_indirect_effect.pt\n"
        "csv               headloc's own table\n"
        "mib               MIB / EAP-IG graph JSON (mlps=false: leave feed-forward blocks alone)\n"
        "headkv            retrieval-head / HeadKV score file\n\n"
        "model=      also the folder of a circuit, whose model is meant\n"
        "top=N       keep the N best of the scores; needed where a file chooses nothing\n"
        "absolute=   true: rank by the absolute value of the scores\n"
        "off_value=  zero (default), mean or resample; means are estimated when it is evaluated\n"
        "positions=  last (default) or all",
    ),
    Command(
        ("task", "import"),
        "read another tool's prompt file as a task file",
        _task_import,
        usage="headloc task import FILE format=FORMAT output=FILE.json [model=DIR|HUB_ID]\n\n"
        "auto_circuit  JSON with clean, corrupt, answers, wrong_answers\n"
        "eap_ig        CSV with clean, corrupted, correct_idx, incorrect_idx; needs model=, whose\n"
        "              tokenizer the token ids are of\n"
        "edge_pruning  JSON lines with clean and corrupted, answers in <predict>...</predict>\n\n"
        "The result is for task=prompts task.path=FILE.json. The pairs of function_vectors are\n"
        "read as they are: task=pairs task.path=FILE.",
    ),
    Command(("doctor",), "check a model, and what a localization costs", _doctor, "doctor"),
    Command(("bench",), "measure speed and memory as ratios", _bench, "bench"),
    Command(
        ("bundled", "train"), "train the bundled model from its recipe", _bundled_train,
        "bundled_train",
    ),
    Command(
        ("guide",),
        "read a guide, without a network",
        _guide,
        usage="headloc guide [NAME]\n\n"
        "Without a name: the guides, one to each command, and the page of gotchas.",
    ),
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with ending.terminable():
            status = _dispatch(arguments)
            sys.stdout.flush()
            return status
    except KeyboardInterrupt as interrupt:
        # A request to terminate is told by the process that has passed it on.
        if not (isinstance(interrupt, ending.Terminated) and ending.someone_else_tells()):
            print(f"\nheadloc: {ending.told(interrupt)}", file=sys.stderr)
        return ending.status(interrupt)
    except BrokenPipeError:
        return ending.closed_pipe()
    except Exception as error:
        message = _explained(error)
        if message is None or os.environ.get("HEADLOC_TRACEBACK") == "1":
            raise
        if not (lost_peer(error) and ending.someone_else_tells()):
            print("headloc:", message, file=sys.stderr)
        return next((e.status for e in causes(error) if isinstance(e, HeadlocError)), 2)


def _explained(error: Exception) -> str | None:
    """Return the message of an error, None for a bug of headloc."""
    try:
        from headloc.commands.errors import explain
        from headloc.reporting.text import visible

        message = explain(error)
        # Names and texts of files stand in messages: none may move the cursor of a terminal.
        return None if message is None else visible(message, keep="\n")
    except (MemoryError, OSError, ImportError):
        # Memory that has run out does not suffice to import what explains it.
        return fault(error)


def _dispatch(arguments: list[str]) -> int:
    if not arguments:
        raise HeadlocError(f"Name a command.\n\n{_usage()}")
    if arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if "--version" in arguments:
        print(f"headloc {__version__}")
        return 0
    command, rest = _find(arguments)
    if any(flag in rest for flag in ("-h", "--help")):
        print(_help(command))
    elif command.config is None:
        return command.run(rest) or 0
    else:
        return _with_hydra(command, rest, arguments)
    return 0


def _find(arguments: list[str]) -> tuple[Command, list[str]]:
    for command in COMMANDS:
        size = len(command.words)
        if tuple(arguments[:size]) == command.words:
            return command, arguments[size:]
    names = [" ".join(command.words) for command in COMMANDS]
    begun = [name for name in names if name.startswith(f"{arguments[0]} ")]
    if begun:
        if any(flag in arguments for flag in ("-h", "--help")):
            print(_usage())
            raise SystemExit(0)
        raise HeadlocError(f"`headloc {arguments[0]}` needs one of: {', '.join(begun)}.")
    raise HeadlocError(f"There is no command {arguments[0]!r}. {suggest(arguments[0], names)}")


def _usage() -> str:
    width = max(len(" ".join(command.words)) for command in COMMANDS)
    lines = [f"  {' '.join(c.words):<{width}}   {c.summary}" for c in COMMANDS]
    return _USAGE.format(version=__version__, commands="\n".join(lines))


def _help(command: Command) -> str:
    """Return the help of a command: its commented configuration is its documentation."""
    name = " ".join(command.words)
    if command.config is None:
        usage = command.usage if isinstance(command.usage, str) else command.usage()
        return f"{command.summary}\n\n  {usage}{_pointer(command)}"
    folder = config_dir()
    text = (folder / f"{command.config}.yaml").read_text(encoding="utf-8")
    parts = [f"headloc {name} [key=value ...]: {command.summary}", "", text.rstrip()]
    for group in sorted(path for path in folder.iterdir() if path.is_dir()):
        if f"- {group.name}:" not in text:
            continue
        parts += ["", f"{group.name}="]
        for choice in sorted(group.rglob("*.yaml")):
            label = choice.relative_to(group).with_suffix("").as_posix()
            options = [
                line for line in choice.read_text(encoding="utf-8").splitlines()
                if not line.startswith(("_target_", "# @package"))
            ]  # fmt: skip
            parts += [f"  {label}", *(f"      {line}" for line in options)]
    return "\n".join(parts) + _pointer(command)


def _pointer(command: Command) -> str:
    """Return the line that ends a command's help, nothing where there is no guide to it."""
    from headloc.guides import guide_of

    guide = guide_of(command.words)
    return "" if guide is None else f"\n\nGuide: headloc guide {guide}"


def config_dir() -> Path:
    """Return the folder of the shipped configuration, in the package or beside it in a checkout."""
    here = Path(__file__).resolve().parent
    for folder in (here / "conf", here.parent / "conf"):
        if (folder / "localize.yaml").is_file():
            return folder
    raise HeadlocError(f"The configuration of headloc is missing beside {here}. Reinstall headloc.")


def _with_hydra(command: Command, arguments: list[str], typed: Sequence[str]) -> int:
    """Let Hydra compose the configuration (and sweep over it), and run the command on each.

    Args:
        command: the command.
        arguments: its arguments.
        typed: the whole command line, which further processes of a run are started with.

    Returns:
        The exit status.
    """
    import hydra

    from headloc.commands.caches import usable_caches

    usable_caches()
    # Hydra reads options behind its flags only.
    arguments = sorted(arguments, key=lambda argument: bool(_OVERRIDE.match(argument)))
    _check_flags(arguments)
    # Hydra prints errors itself and exits, unless it is asked to raise them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = [f"headloc {' '.join(command.words)}", *arguments]

    failures: list[tuple[str, Exception]] = []
    begun: list[Path] = []
    statuses: list[int] = []
    here = os.getpid()

    def task(cfg: DictConfig) -> None:
        from hydra.core.hydra_config import HydraConfig

        config = HydraConfig.get()
        folder = Path(config.runtime.output_dir)
        begun.append(folder)
        sweep = config.mode is not None and config.mode.name == "MULTIRUN"
        if sweep:
            _begin_or_resume(cfg, folder)
        try:
            processes = _processes_to_start(cfg, config)
            if processes == 1:
                command.run(cfg, folder)
            else:
                from headloc.commands.launch import launch, with_output_dir

                statuses.append(launch(with_output_dir(typed, folder), processes, folder=folder))
        except KeyboardInterrupt as interrupt:
            left = ending.of_sweep(cfg, config) if sweep else ending.left(cfg, folder)
            raise type(interrupt)(left) from None
        except Exception as error:
            if os.getpid() != here:
                # A launcher's own process: Hydra brings the error back, this list stays behind.
                raise
            # Kept for the end: one job that fails must not cost the others of a sweep.
            job = ",".join(config.overrides.task)
            failures.append((job, error))

    start = hydra.main(
        version_base="1.3", config_path=str(config_dir()), config_name=command.config
    )
    with _composing(arguments, command.config):
        start(task)()
    if failures:
        raise _joined(failures, len(begun))
    return next((status for status in statuses if status), 0)


def _begin_or_resume(cfg: DictConfig, folder: Path) -> None:
    """Let a sweep that is taken up begin the jobs that it had not come to."""
    from omegaconf import open_dict

    from headloc.run_note import was_started

    if cfg.get("resume") is True and not was_started(folder):
        with open_dict(cfg):
            cfg.resume = False


@contextmanager
def _composing(arguments: Sequence[str], config: str | None) -> Iterator[None]:
    """Tell of configuration files of the user's that Hydra cannot read.

    Hydra lets errors of its YAML reader through as they are.  What a command raises does not come
    by here.
    """
    from headloc.commands.errors import explain, explain_composition
    from headloc.faults import dead_worker

    try:
        yield
    except Exception as error:
        own = any(text.startswith(("--config-", "-cd", "-cp")) for text in arguments)
        message = explain(error) or explain_composition(error, own)
        if message is None:
            raise
        if dead_worker(error):
            message = f"{message} {ending.of_workers(config, arguments)}"
        raise HeadlocError(message) from error


def _processes_to_start(cfg: DictConfig, config: Any) -> int:
    """Return the processes that this one starts and waits for; 1 where it does the work itself.

    Raises:
        HeadlocError: when several devices meet a multi-run, or several machines no launcher.
    """
    if "trainer" not in cfg:
        return 1
    from omegaconf import OmegaConf

    from headloc.ranks import launched, ranks_of

    trainer: Any = OmegaConf.to_container(cfg.trainer, resolve=True)
    ranks = ranks_of(trainer)
    if ranks.processes == 1:
        return 1
    if config.mode is not None and config.mode.name == "MULTIRUN":
        raise HeadlocError(
            f"--multirun runs jobs on one device each, but trainer.devices="
            f"{trainer.get('devices')} and trainer.num_nodes={ranks.nodes} make {ranks.processes} "
            "processes of a job, whose copies would start the whole sweep again. Set "
            "trainer.devices=1, or start the runs one by one."
        )
    if launched():
        if not any(text.startswith("output_dir=") for text in config.overrides.task):
            raise HeadlocError(
                "Several processes were started for this run, and must write to the same place. "
                "Give output_dir=DIR."
            )
        return 1
    if ranks.nodes > 1:
        raise HeadlocError(
            f"trainer.num_nodes={ranks.nodes} needs a launcher on every machine: start the command "
            "with srun, or with `torchrun --nnodes=N --nproc-per-node=M -m headloc localize ...`."
        )
    return ranks.processes


def _joined(failures: list[tuple[str, Exception]], jobs: int) -> Exception:
    """Return one error for those of several jobs that failed, or the first that is a bug."""
    from headloc.commands.errors import explain

    if jobs == 1:
        return failures[0][1]
    kept = "" if len(failures) == jobs else "; what the others found is kept"
    lines = [f"{len(failures)} of {jobs} jobs failed{kept}:"]
    messages = set()
    for job, error in failures:
        message = explain(error)
        if message is None:
            return error
        messages.add(message)
        lines.append(f"  {job}\n    {message}")
    alike = len(messages) == 1 and not kept
    return HeadlocError(messages.pop() if alike else "\n".join(lines))


def _check_flags(arguments: list[str]) -> None:
    """Refuse flags that Hydra does not know, which it would answer with its own usage."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    # --hel would print Hydra's help, which knows nothing of headloc's options.
    parser.allow_abbrev = False

    def refuse(message: str) -> NoReturn:
        raise HeadlocError(
            f"{message[:1].upper()}{message[1:]}. Options are written as key=value; "
            "`headloc COMMAND --help` lists them."
        )

    parser.error = refuse
    parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
