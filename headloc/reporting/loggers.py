"""Open the logger that a configuration asks for: W&B, a CSV file, or none.

W&B is online only where a key is set, the agent of a sweep starts the run, or WANDB_MODE says so,
and never asks for a login.  Where it cannot start, the curves go to a CSV file: a tracker must not
cost a run.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from headloc.errors import HeadlocError, suggest
from headloc.faults import in_short

log = logging.getLogger(__name__)

CURVES = Path("curves") / "metrics.csv"
_KINDS = ("wandb", "csv", "none")
_INIT_SECONDS = 30
_FINISH_SECONDS = 120
_GRACE_SECONDS = 10
"""How long W&B may take beyond the time that it was given, before it is left alone."""


@dataclass(frozen=True, slots=True)
class RunLogger:
    """Where a run is logged.

    Attributes:
        lightning: what `lightning.Trainer(logger=...)` takes.
        wandb_run: the W&B run, or None.
    """

    lightning: Any
    wandb_run: Any = None

    @property
    def lost(self) -> bool:
        """Whether the logger has stopped working."""
        return getattr(self.lightning, "lost", None) is not None

    def close(self) -> None:
        """Finish the W&B run, as failed when an exception is on its way.

        Never raises, and never waits for long: a run must end although W&B does not answer.
        """
        if self.wandb_run is None:
            return
        failed = sys.exc_info()[0] is not None
        run, offline = self.wandb_run, _is_offline(self.wandb_run)
        place = _folder(run)
        problem = "it stopped working" if self.lost else None
        if problem is None:
            problem = bounded(
                lambda: run.finish(exit_code=int(failed)), _FINISH_SECONDS + _GRACE_SECONDS
            )
            if problem is not None:
                log.warning("The W&B run could not be finished (%s); its files are kept.", problem)
        if problem is not None:
            _leave_wandb()
        if place is not None and (offline or problem is not None):
            from headloc.reporting.console import Console

            what = "the run offline" if problem is None else "a part of the run"
            Console().note(f"W&B recorded {what}; upload it with: wandb sync {place}")


def bounded(work: Callable[[], object], seconds: float) -> str | None:
    """Do something that may never come back; return what went wrong, None where it was done.

    Args:
        work: what to do; left running in the background when it takes too long.
        seconds: how long it may take.
    """
    problems: list[str | None] = []

    def run() -> None:
        try:
            work()
        except Exception as error:
            problems.append(in_short(error))
        else:
            problems.append(None)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return problems[0] if problems else f"no answer within {seconds:g} s"


def _leave_wandb() -> None:
    """Let go of a service that has died or hangs: the end of Python would wait for it."""
    import wandb

    bounded(wandb.teardown, _GRACE_SECONDS)


def open_logger(
    options: Mapping[str, Any],
    folder: Path,
    settings: Mapping[str, Any],
    *,
    job_type: str = "localize",
) -> RunLogger:
    """Open the logger that the `logger` group describes.

    Args:
        options: the group: `kind`, and for W&B `project`, `name`, `group`, `tags`.
        folder: the output folder of the run.
        settings: the whole resolved configuration.
        job_type: what W&B calls the kind of the run.

    Raises:
        HeadlocError: for an unknown kind.
    """
    kind = str(options.get("kind"))
    if kind not in _KINDS:
        raise HeadlocError(f"logger.kind={kind!r} is unknown. {suggest(kind, _KINDS)}")
    if kind == "none":
        return RunLogger(False)
    run = _start_wandb(options, folder, settings, job_type) if kind == "wandb" else None
    if run is None:
        return RunLogger(_csv_logger(folder))
    from headloc.reporting.tolerant import TolerantWandb

    return RunLogger(TolerantWandb(experiment=run, save_dir=str(folder), log_model=False), run)


def _start_wandb(
    options: Mapping[str, Any], folder: Path, settings: Mapping[str, Any], job_type: str
) -> Any:
    """Start a W&B run, online where that is wanted and works, else offline; None if neither."""
    mode = _mode()
    if mode == "disabled":
        return None
    start = _starter(options, folder, settings, job_type)
    try:
        if mode == "online":
            return start("online")
    except Exception as error:
        log.warning("W&B cannot go online (%s): the run is recorded offline.", in_short(error))
    try:
        return start("offline")
    except Exception as error:
        log.warning(
            "W&B cannot start (%s): curves go to %s instead.", in_short(error), folder / CURVES
        )
        return None


def _starter(
    options: Mapping[str, Any], folder: Path, settings: Mapping[str, Any], job_type: str
) -> Callable[[Literal["online", "offline"]], Any]:
    def start(mode: Literal["online", "offline"]) -> Any:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        wandb.setup(settings=wandb.Settings(silent=True, quiet=True))
        if mode == "online":
            _require_key(wandb)
        run = wandb.init(
            mode=mode,
            dir=str(folder),
            project=options.get("project") or "headloc",
            name=options.get("name"),
            group=options.get("group"),
            tags=list(options.get("tags") or ()),
            job_type=job_type,
            config=_config(settings),
            reinit="create_new",
            settings=wandb.Settings(
                silent=True,
                quiet=True,
                console="off",
                init_timeout=_INIT_SECONDS,
                **_finish_timeout(wandb),
            ),
        )
        _define_metrics(run)
        return run

    return start


def _require_key(wandb: Any) -> None:
    """Make sure that W&B has a key without asking for one.

    Raises:
        HeadlocError: when it has none.
    """
    if os.environ.get("WANDB_API_KEY"):
        return
    try:
        known = wandb.login(prompt=False)
    except TypeError:
        # Before 0.22 a login without a key cannot be kept from asking.
        known = False
    if not known:
        raise HeadlocError("no API key: set WANDB_API_KEY or run `wandb login`")


def _mode() -> str:
    """Return online, offline or disabled, from the environment."""
    asked = os.environ.get("WANDB_MODE", "").lower()
    if asked in ("online", "shared"):
        return "online"
    if asked == "disabled":
        return "disabled"
    # An agent of a sweep has logged in, and waits for the figures of the runs that it starts.
    wanted = os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_SWEEP_ID")
    return "online" if wanted and not asked else "offline"


def _config(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the resolved configuration, without its text, and the versions of the packages."""
    from headloc.reporting.versions import package_versions

    config = {key: value for key, value in settings.items() if key != "yaml"}
    return {**config, "versions": package_versions()}


def _define_metrics(run: Any) -> None:
    """Draw curves over training steps, and keep the best accuracy in the summary."""
    step = "trainer/global_step"
    run.define_metric(step)
    run.define_metric("*", step_metric=step, step_sync=True)
    run.define_metric("val/accuracy", step_metric=step, step_sync=True, summary="max")
    run.define_metric("train/task_loss", step_metric=step, step_sync=True, summary="min")


def _finish_timeout(wandb: Any) -> dict[str, int]:
    """Bound the time that uploads may take at the end, where this version of W&B can."""
    known = "finish_timeout" in getattr(wandb.Settings, "model_fields", {})
    return {"finish_timeout": _FINISH_SECONDS} if known else {}


def _is_offline(run: Any) -> bool:
    return bool(getattr(run, "offline", False))


def _folder(run: Any) -> Path | None:
    settings = getattr(run, "settings", None)
    return None if settings is None else Path(str(settings.sync_dir))


def _csv_logger(folder: Path) -> Any:
    """Return a logger that writes folder/curves/metrics.csv, False where it cannot be written."""
    try:
        return _open_csv(folder)
    except OSError as error:
        log.warning(
            "%s cannot be written (%s): the run keeps no curves beside those of its report.",
            folder / CURVES,
            in_short(error),
        )
        return False


def _open_csv(folder: Path) -> Any:
    """Open the file; an earlier one is kept by number."""
    from headloc.reporting.tolerant import TolerantCsv

    path = folder / CURVES
    if path.is_file():
        number = 1
        while path.with_suffix(f".{number}.csv").exists():
            number += 1
        path.rename(path.with_suffix(f".{number}.csv"))
    logger = TolerantCsv(folder, name=CURVES.parent.name, version="")
    with warnings.catch_warnings():
        # Of the earlier files only metrics.csv would be replaced, and that one has moved.
        warnings.filterwarnings("ignore", message=".*exists and is not empty")
        _ = logger.experiment
    return logger
