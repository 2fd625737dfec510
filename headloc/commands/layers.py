"""`headloc layers`: search for the layer at which a function vector works best."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headloc.commands.build import build, build_lm, build_settings, checked_seed, plain
from headloc.commands.columns import columns
from headloc.commands.fitting import check_same_model, check_same_template
from headloc.errors import CircuitError, HeadlocError, suggest
from headloc.extras import Extras
from headloc.files import usable_output_dir, write_json, write_text

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

    from headloc.circuit import Circuit
    from headloc.evaluation.layer_search import LayerSearch, PlaceScore
    from headloc.lm.frozen import FrozenLM
    from headloc.objectives.function_vector import FunctionVector
    from headloc.objectives.prompts import Progress
    from headloc.tasks import TaskFamily

_HEADS = ("all", "each_layer")
_SHOWN = 40
CSV = ("layer", "site", "heads", "accuracy", "low", "high", "n", "log_probability")


def run(cfg: DictConfig, output_dir: Path) -> LayerSearch:
    """Search, print the table with a recommendation, and write layers.json, .csv and pictures.

    Raises:
        HeadlocError: for another objective, a layer out of range, or a circuit of another model or
            template.
    """
    from headloc.evaluation.layer_picture import save_layer_picture
    from headloc.evaluation.layer_search import ALL, all_places, search_layers
    from headloc.lm.keeping import PrefixKeeper
    from headloc.localizer.settings import DataSettings
    from headloc.reporting.console import Console

    folder = usable_output_dir(output_dir)
    settings = plain(cfg)
    seed = checked_seed(settings["seed"])
    data = build_settings("data", DataSettings, settings["data"])
    objective = _objective(settings)
    task: TaskFamily = build("task", settings["task"])
    task.check_items(items="fit")
    sites, layers = _sites(settings["sites"]), _layers(settings["layers"])
    circuit = _circuit(settings["circuit"], task)
    console = Console()
    with console.stage("loading"):
        lm = build_lm(cfg.model)
    lm.keeper = PrefixKeeper(data.cache)
    places = all_places(lm.layout, sites, layers)
    sets = _head_sets(lm, settings["heads"], circuit)
    with console.stage("mean head outputs") as progress:
        objective.prepare(lm, task, seed=seed, progress=progress)
    with console.stage("prompts and prefixes") as progress:
        prompts = _prompts(objective, lm, task, data.selection_prompts, seed, progress)
    with console.stage("insertion layers") as progress:
        found = search_layers(objective, lm, prompts, sets, places, seed=seed, progress=progress)
    deciding = "circuit" if circuit is not None else ALL
    _write(found, deciding, {**settings, "output_dir": str(folder)}, lm, folder)
    extras = Extras()
    extras.attempt("pictures", lambda: save_layer_picture(found, deciding, folder))
    for line in printed(found, deciding):
        console.say(line)
    console.say(f"table    {folder / 'layers.csv'}")
    extras.check(folder)
    return found


def printed(found: LayerSearch, deciding: str) -> list[str]:
    """Return the table and the recommendation, line by line; all rows are in layers.csv."""
    shown = found.scores if len(found.scores) <= _SHOWN else found.of(deciding)
    rows = [
        [str(s.place.layer), s.place.site, s.heads, str(s.accuracy), f"{s.log_probability:.3f}"]
        for s in shown
    ]
    header = ("layer", "site", "heads", "accuracy [95 % interval]", "log p(answer)")
    alike = "; ".join(str(other.place) for other in found.alike(deciding))
    lines = columns(header, rows)
    if len(shown) < len(found.scores):
        lines.append(f"and {len(found.scores) - len(shown)} rows of other heads")
        lines += [_overall(found)]
    return [
        *lines,
        "",
        f"few-shot         {found.few_shot}  (n = {found.few_shot.n})",
        f"zero-shot        {found.zero_shot}",
        _recommendation(found.best(deciding)),
        f"not told apart   {alike or 'none: every other place is worse'}",
    ]


def _recommendation(best: PlaceScore) -> str:
    return (
        f"recommended      {best.place}: {best.accuracy} with {best.heads}  "
        f"(objective.layer={best.place.layer} objective.site={best.place.site})"
    )


def _overall(found: LayerSearch) -> str:
    top = max(found.scores, key=lambda s: (s.accuracy.value, s.log_probability))
    return f"most accurate of all: {top.heads} at {top.place}, {top.accuracy}"


def _objective(settings: dict[str, Any]) -> FunctionVector:
    from headloc.objectives import FunctionVector

    objective = build("objective", settings["objective"])
    if not isinstance(objective, FunctionVector):
        raise HeadlocError(
            f"objective={objective.name} inserts nothing at one layer. Use objective="
            "function_vector for the search over insertion layers."
        )
    if objective.layer is not None:
        raise HeadlocError(
            f"objective.layer={objective.layer} is what is searched here. Name the layers to try "
            f"instead, as in layers=[{objective.layer}]."
        )
    return objective


def _sites(value: Any) -> list[str]:
    from headloc.objectives.function_vector import SITES

    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list) or not given:
        raise HeadlocError(f"sites={value!r} must be a list of sites, as in sites=[attention].")
    for site in given:
        if site not in SITES:
            raise HeadlocError(f"sites names {site!r}, which is unknown. "
                               f"{suggest(str(site), SITES)}")  # fmt: skip
    return list(dict.fromkeys(given))


def _layers(value: Any) -> list[int] | None:
    if value is None:
        return None
    given = value if isinstance(value, list) else [value]
    whole = all(isinstance(item, int) and not isinstance(item, bool) for item in given)
    if not given or not whole:
        raise HeadlocError(f"layers={value!r} must be a list of whole numbers, or null for all.")
    return given


def _circuit(path: Any, task: TaskFamily) -> Circuit | None:
    """Load the circuit, if one is named, and refuse one of another template."""
    if path is None:
        return None
    from headloc.circuit import Circuit

    circuit = Circuit.load(str(path))
    check_same_template(circuit, task, path)
    return circuit


def _head_sets(lm: FrozenLM, heads: Any, circuit: Circuit | None) -> dict[str, Tensor]:
    import torch

    from headloc.evaluation.layer_search import ALL, layer_sets

    if heads not in _HEADS:
        raise HeadlocError(f"heads={heads!r} is unknown. {suggest(str(heads), _HEADS)}")
    sets = {ALL: torch.ones(lm.layout.total)}
    if circuit is not None:
        circuit.check_model(lm)
        check_same_model(circuit, lm)
        if circuit.mlps:
            raise CircuitError(
                "The circuit keeps feed-forward blocks, and the search over insertion layers sums "
                "heads alone. Localize with gates.mlps=false, or leave the circuit out."
            )
        sets["circuit"] = circuit.mask(lm)[: lm.layout.total]
    return sets | (layer_sets(lm.layout) if heads == "each_layer" else {})


def _prompts(
    objective: FunctionVector,
    lm: FrozenLM,
    task: TaskFamily,
    count: int,
    seed: int,
    progress: Progress,
) -> Any:
    """Draw what a localization with this seed selects its heads on, repeated prompts once."""
    from headloc.randomness import stream
    from headloc.tasks.different import draw_different

    rng = stream(seed, "selection", "train")
    examples = draw_different(
        task, count, rng, split="train", items="fit", key=objective.prompt_key
    )
    use = "selection-train"
    return objective.prompt_set(lm, task, examples, seed=seed, use=use, progress=progress)


def _write(
    found: LayerSearch, deciding: str, settings: dict[str, Any], lm: FrozenLM, folder: Path
) -> None:
    best = found.best(deciding)
    content = {
        "recommended": _entry(best),
        "not_told_apart": [_entry(other) for other in found.alike(deciding)],
        "few_shot": asdict(found.few_shot),
        "zero_shot": asdict(found.zero_shot),
        "scores": [_entry(score) for score in found.scores],
        "model": lm.source.to_dict(),
        "settings": settings,
    }
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, CSV, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_entry(score) for score in found.scores)
    write_text(folder / "layers.csv", buffer.getvalue())
    write_json(folder / "layers.json", content)


def _entry(score: PlaceScore) -> dict[str, Any]:
    accuracy = score.accuracy
    cells = (score.place.layer, score.place.site, score.heads, accuracy.value, accuracy.low,
             accuracy.high, accuracy.n, score.log_probability)  # fmt: skip
    return dict(zip(CSV, cells, strict=True))
