"""A whole path on a model whose task heads are known: what it recommends, reports and saves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from headloc import localize
from headloc.bank import PathSparsity
from headloc.bank.export import write_path
from headloc.circuit import Circuit
from headloc.errors import HeadlocError
from headloc.evaluation.scoring import score
from headloc.gates import HardConcreteGates, L1Gates, TopKGates
from headloc.localizer.run import Localization
from headloc.localizer.selection import Elbow, as_gates
from headloc.objectives import InPlace
from headloc.reporting.loggers import open_logger
from headloc.reporting.pictures import save_pictures
from headloc.reporting.report import write_report
from headloc.reporting.wandb_run import log_result
from tests.localizer.planted import HEADS, LAYERS, PLANTED, OwnAnswers, planted_lm, small
from tests.localizer.test_localize import Interrupt, no_stage
from tests.localizer.test_module import checkpointing
from tests.reporting.test_report import Page
from tests.reporting.wandb_file import read_run, values

TOTAL = LAYERS * HEADS
WEIGHTS = (0.02, 0.1, 4.0)
EPOCHS = 12


def run(path: PathSparsity | None = None, **changes: Any) -> Localization:
    lm = planted_lm()
    options = {"objective": InPlace("zero"), **changes}
    return localize(lm, OwnAnswers(lm), sparsity=path or PathSparsity(WEIGHTS), **small(**options))


@pytest.fixture(scope="module")
def result() -> Localization:
    return run()


def test_the_recommended_circuit_is_the_planted_heads(result: Localization) -> None:
    everything = run(PathSparsity(WEIGHTS, keep=1.0))
    assert set(everything.circuit.heads) == set(PLANTED)
    assert everything.metrics["accuracy/circuit"] == 1.0
    assert set(result.circuit.heads) <= set(PLANTED)
    assert result.metrics["accuracy/circuit"] >= 0.85
    assert result.path is not None
    planted = planted_lm().layout.indices(PLANTED)
    best = result.path.ranking.argsort(descending=True)[:3].tolist()
    assert sorted(best) == sorted(planted)


def test_every_figure_is_that_of_its_head_set(result: Localization) -> None:
    """Scored again, one head set at a time and without branches."""
    lm, objective, path = planted_lm(), InPlace("zero"), result.path
    assert path is not None
    task = OwnAnswers(lm)
    from headloc.randomness import stream

    examples = task.draw(48, stream(0, "selection", "train"), split="train", items="fit")
    prompts = objective.prompt_set(lm, task, examples, seed=0, use="again")

    def accuracy(heads: tuple[int, ...]) -> float:
        return score(objective, lm, prompts, as_gates(list(heads), TOTAL)).accuracy

    for own in path.gate_sets:
        assert own.heads == tuple((own.gates > 0.5).nonzero().flatten().tolist())
        assert own.accuracy == pytest.approx(accuracy(own.heads))
    order = path.ranking.argsort(descending=True, stable=True).tolist()
    for point in path.curve:
        assert point.accuracy == pytest.approx(accuracy(tuple(order[: point.size])))
    chosen = path.recommended
    assert chosen.accuracy == pytest.approx(accuracy(chosen.heads))
    assert chosen.accuracy >= path.keep * path.full
    assert chosen.stability >= path.stable_share


def test_gate_sets_lie_on_a_path(result: Localization) -> None:
    path = result.path
    assert path is not None
    assert path.weights == sorted(WEIGHTS)
    assert path.seeds == 3
    assert len(path.gate_sets) == 9
    sizes = [point.size.mean for point in path.penalties]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]
    for number, weight in enumerate(path.weights):
        same = [own for own in path.gate_sets if own.member.weight == weight]
        often = torch.tensor([sum(i in own.heads for own in same) / 3 for i in range(TOTAL)])
        torch.testing.assert_close(path.stability_WA[number].float(), often)
    assert [point.size for point in path.curve] == list(range(TOTAL + 1))
    torch.testing.assert_close(
        path.stability_NA.sum(1), torch.arange(TOTAL + 1, dtype=torch.float64)
    )
    assert path.stability_NA[3].nonzero().flatten().tolist() == planted_lm().layout.indices(PLANTED)
    assert path.curve[path.elbow].size <= len(PLANTED)


def test_the_documented_figures_are_there(result: Localization) -> None:
    metrics = result.metrics
    expected = {
        "path/members": 9,
        "path/penalties": 3,
        "path/seeds": 3,
        "path/accuracy_full": 1.0,
        "path/keep": 0.95,
        "path/recommended/heads": len(result.circuit.heads),
        "heads/count": len(result.circuit.heads),
    }
    for key, value in expected.items():
        assert metrics[key] == value, key
    for name in ("accuracy", "kept", "stability"):
        assert 0 < metrics[f"path/recommended/{name}"] <= 1
    for name in ("penalty/0.02/heads", "penalty/4.0/accuracy", f"size/{TOTAL}/accuracy"):
        key = f"path/{name}"
        assert metrics[f"{key}/smallest"] <= metrics[key] <= metrics[f"{key}/largest"]
    assert {"path/penalty/0.1/jaccard", "path/penalty/0.1/stable"} <= set(metrics)
    assert {"path/elbow/heads", "path/elbow/accuracy", "path/size/0/accuracy"} <= set(metrics)
    assert metrics[f"path/size/{TOTAL}/accuracy"] == 1.0
    assert all(math.isfinite(value) for value in metrics.values())
    assert "stability/replicates" not in metrics


def test_branches_count_their_own_tokens_only(result: Localization) -> None:
    train = result.ledger.stages["train"]
    # Every epoch runs one token of 128 prompts with gradient, and of 48 without, per gate set.
    assert train.backward_tokens == 9 * EPOCHS * 128
    assert train.forward_tokens == 9 * EPOCHS * (128 + 48)


def test_gates_with_a_proximal_step_have_a_path_too() -> None:
    found = run(PathSparsity((0.05, 0.5), seeds=2), gates=L1Gates(), trainer={"max_epochs": 16})
    assert found.path is not None
    light, heavy = found.path.penalties
    assert heavy.size.mean < light.size.mean


def test_everything_is_written_and_reads_back(result: Localization, tmp_path: Path) -> None:
    path = result.path
    assert path is not None
    write_path(path, result.circuit, tmp_path)
    save_pictures(result, tmp_path)
    write_report(result, "seed: 0\n", tmp_path / "report.html", planted_lm())
    lines = (tmp_path / "path.csv").read_text().splitlines()
    assert len(lines) == 10
    for number, own in enumerate(path.gate_sets, start=1):
        circuit = Circuit.load(tmp_path / "path" / f"{number:03d}")
        assert planted_lm().layout.indices(circuit.heads) == list(own.heads)
        assert circuit.selection["weight"] == own.member.weight
        assert circuit.selection["seed"] == circuit.seed == own.member.seed
        assert torch.equal(circuit.gates, own.gates)
        assert circuit.metrics["path/accuracy"] == own.accuracy
        assert lines[number].startswith(f"{number},{own.member.weight:g},{own.member.seed},")
    assert len((tmp_path / "path" / "curve.csv").read_text().splitlines()) == TOTAL + 2
    table = (tmp_path / "path" / "stability.csv").read_text().splitlines()
    assert len(table) == TOTAL + 1
    assert table[0].startswith("layer,head,rank,weight_0.02,weight_0.1,weight_4.0,size_0,size_1,")
    assert (tmp_path / "pictures" / "path.png").stat().st_size > 10_000
    page = Page((tmp_path / "report.html").read_text())
    assert "Sparsity path" in page.all_text("h2")
    titles = " ".join(page.all_text("title"))
    for name in ("recommended circuit: ", "elbow: ", "L0H2 at penalty 0.02: emitted by 3 of 3"):
        assert name in titles


def test_a_resumed_path_is_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    def train(folder: Path, *more: Any, **options: Any) -> Localization:
        callbacks: list[Any] = [checkpointing(folder), *more]
        return run(callbacks=callbacks, trainer={"max_epochs": 4}, **options)

    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "part", Interrupt(2))
    checkpoint = tmp_path / "part" / "checkpoints" / "gates.ckpt"
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert set(state) == {f"gates.{i}.log_alpha" for i in range(9)}
    resumed = train(tmp_path / "part", resume_from=checkpoint)
    assert isinstance(checkpointing(tmp_path), ModelCheckpoint)
    for one, other in zip(whole.history.values, resumed.history.values, strict=True):
        assert torch.equal(one, other)
    assert resumed.circuit.heads == whole.circuit.heads


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": []}, r"sparsity\.weights=\[\] must be a list"),
        ({"weights": 0.1}, r"sparsity\.weights=0\.1 must be a list"),
        ({"weights": [0.1, -0.1]}, "holds -0.1"),
        ({"weights": [0.1, "a"]}, "holds 'a'"),
        ({"weights": [float("nan")]}, "holds nan"),
        ({"weights": [0.1, 0.1]}, "twice"),
        ({"seeds": 0}, r"sparsity\.seeds=0"),
        ({"seeds": 1.5}, r"sparsity\.seeds=1\.5"),
        ({"keep": 0.0}, r"sparsity\.keep=0\.0"),
        ({"keep": 1.1}, r"sparsity\.keep=1\.1"),
        ({"stable_share": 0}, r"sparsity\.stable_share=0"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(HeadlocError, match=message):
        PathSparsity(**options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gates": TopKGates()}, "TopKGates takes none"),
        ({"selection": Elbow()}, "selection=elbow would have no effect"),
    ],
)
def test_what_a_path_cannot_use_is_refused_before_any_work(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(HeadlocError, match=message):
        run(**changes, stages=no_stage)


def test_members_start_with_the_run_itself() -> None:
    first, second, third = PathSparsity([0.2, 0.1], seeds=2).members(5)[:3]
    assert (first.weight, first.seed) == (0.1, 5)
    assert second.weight == 0.1
    assert second.seed != 5
    assert (third.weight, third.seed) == (0.2, 5)
    assert HardConcreteGates().penalty_in_loss


def test_wandb_gets_the_curve_the_gate_sets_and_the_picture(
    result: Localization, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("DATA", "CACHE", "CONFIG", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "own"))
    logger = open_logger({"kind": "wandb", "project": "p"}, tmp_path, {"seed": 0})
    save_pictures(result, tmp_path)
    log_result(logger, result, {"seed": 0}, tmp_path)
    logger.close()
    history = [values(record.item) for record in read_run(tmp_path)["history"]]
    media = next(row for row in history if "path/curve" in row)
    assert media["path/curve"]["nrows"] == TOTAL + 1
    assert media["path/gate_sets"]["nrows"] == 9
    assert media["path/picture"]["_type"] == "image-file"
