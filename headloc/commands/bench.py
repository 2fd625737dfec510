"""`headloc bench`: ratios of speed and memory within one run."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headloc.commands.build import build_lm, build_settings, plain
from headloc.errors import HeadlocError, suggest
from headloc.files import usable_output_dir, write_text

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from headloc.bench.result import BenchResult
    from headloc.bench.settings import BenchSettings
    from headloc.lm.frozen import FrozenLM

_DTYPES = ("float32", "bfloat16", "float16", "float64")


def run(cfg: DictConfig, output_dir: Path) -> BenchResult:
    """Measure, print the ratios and write bench.json.

    Raises:
        HeadlocError: for an unknown part, shape, dtype or device.
    """
    from omegaconf import OmegaConf, open_dict

    from headloc.bench.settings import LocalizationSizes

    folder = usable_output_dir(output_dir)
    options = plain(cfg)
    settings = _settings(options)
    sizes = build_settings("localization", LocalizationSizes, options["localization"])
    if "localization" in settings.parts and options["shape"] is None:
        raise HeadlocError(
            "parts=[localization] changes the weights of the model, so it runs on a random model "
            "only. Name one: shape=llama3_8b. To localize in a model of yours use headloc localize."
        )

    from headloc.bench.one_at_a_time import Sizes
    from headloc.bench.run import run_bench
    from headloc.bench.writing import lines, write_bench
    from headloc.reporting.console import Console, quiet_lightning

    patching = build_settings("patching", Sizes, options["patching"])
    console = Console()
    quiet_lightning()
    with console.stage("loading"):
        lm = _model(cfg, options)
    result = run_bench(
        lm,
        settings,
        localization=sizes,
        patching=patching,
        stages=console.stage,
        note=console.note,
    )
    with open_dict(cfg):
        cfg.output_dir = str(folder)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    write_bench(result, folder)
    for line in lines(result):
        console.say(line)
    console.say(f"bench  {folder / 'bench.json'}")
    return result


def _settings(options: dict[str, Any]) -> BenchSettings:
    from headloc.bench.settings import BenchSettings

    given = {field.name: options[field.name] for field in fields(BenchSettings)}
    parts = given["parts"]
    given["parts"] = tuple(parts) if isinstance(parts, list) else (parts,)
    made: BenchSettings = build_settings("bench", BenchSettings, given)
    return made


def _model(cfg: DictConfig, options: dict[str, Any]) -> FrozenLM:
    """Load the model of the configuration, or make a random one of the shape that is named."""
    from omegaconf import open_dict

    if options["shape"] is None:
        with open_dict(cfg):
            for name in ("device", "dtype", "threads"):
                if options[name] is not None:
                    cfg.model[name] = options[name]
        return build_lm(cfg.model)

    import torch

    from headloc.bench.shapes import named_shape, random_lm
    from headloc.lm.loading import parse_device

    shape, dtype = named_shape(options["shape"]), options["dtype"] or "float32"
    if dtype not in _DTYPES:
        raise HeadlocError(f"Unknown dtype {dtype!r}. {suggest(str(dtype), _DTYPES)}")
    device = parse_device(options["device"] or "auto")
    _set_threads(options["threads"])
    return random_lm(
        shape,
        name=options["shape"],
        seed=options["seed"],
        dtype=getattr(torch, dtype),
        device=device,
    )


def _set_threads(threads: Any) -> None:
    import torch

    if threads is None:
        return
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise HeadlocError(f"threads={threads!r} must be a whole number above 0, or null.")
    torch.set_num_threads(threads)
