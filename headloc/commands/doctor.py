"""`headloc doctor`: is this checkpoint fit for headloc on this machine?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from headloc.commands.build import build, build_lm, checked_seed, plain
from headloc.errors import HeadlocError
from headloc.files import usable_output_dir, write_json, write_text

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from headloc.doctor.check import Check, Diagnosis

_NAME, _STATUS = 14, 9


def run(cfg: DictConfig, output_dir: Path) -> Diagnosis:
    """Check the model, print what is found, and write doctor.json.

    Raises:
        HeadlocError: when a check failed, after everything is printed and written.
    """
    from omegaconf import OmegaConf, open_dict

    folder = usable_output_dir(output_dir)
    options = plain(cfg)
    seed = checked_seed(options["seed"])
    prompts = _count(options, "prompts", 1)
    trial = _count(options, "trial_prompts", 0)

    from headloc.doctor.run import diagnose
    from headloc.reporting.console import Console, quiet_lightning
    from headloc.reporting.versions import package_versions

    console = Console()
    quiet_lightning()
    task = build("task", options["task"])
    with console.stage("loading"):
        lm = build_lm(cfg.model)
    console.say(f"{lm.source.name}, {lm.source.model_type} in {lm.source.dtype} on {lm.device}")

    def tell(check: Check) -> None:
        for line in lines(check):
            console.say(line)

    found = diagnose(
        lm, task, prompts=prompts, trial_prompts=trial, seed=seed, stages=console.stage, tell=tell
    )
    with open_dict(cfg):
        cfg.output_dir = str(folder)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    write_json(folder / "doctor.json", {**found.to_dict(), "versions": package_versions()})
    console.say(f"{'written':<{_NAME}}{folder / 'doctor.json'}")
    if found.failed:
        names = ", ".join(check.name for check in found.failed)
        raise HeadlocError(
            f"{len(found.failed)} of {len(found.checks)} checks failed ({names}). What to do "
            "stands beside each of them."
        )
    return found


def lines(check: Check) -> list[str]:
    """Return a check as lines of text."""
    first = f"{check.name:<{_NAME}}{check.status:<{_STATUS}}{check.found}"
    return [first, *([f"{'':<{_NAME + _STATUS}}{check.advice}"] if check.advice else [])]


def _count(options: dict[str, object], name: str, least: int) -> int:
    value = options[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise HeadlocError(f"{name}={value!r} must be a whole number, {least} or above.")
    return value
