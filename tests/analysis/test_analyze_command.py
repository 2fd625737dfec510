"""`headloc analyze` from the command line: files, report, W&B, skipped analyses, mistakes."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from headloc.analysis.base import Analysis, Findings, Picture, Progress, Subject, Table
from headloc.analysis.report import cell_text, write_report
from headloc.analysis.saving import save_findings
from headloc.circuit import Circuit
from headloc.cli import config_dir
from headloc.commands.analyze import chosen
from headloc.tasks import AddK
from tests.analysis.subjects import bundled_lm, circuit_of, tiny_subject
from tests.commands.conftest import headloc  # noqa: F401
from tests.commands.runs import Headloc, contents
from tests.reporting.wandb_file import read_run, values

NAMES = sorted(p.stem for p in (config_dir() / "analysis").glob("*.yaml") if p.stem != "all")
LABELS = {"bias", "extraction", "flow", "label_flip", "towers"} & set(NAMES)
"""Analyses of label words, which do not apply to arithmetic."""
NUMBERS = [name for name in NAMES if name not in LABELS]
SMALL_LABELS = (
    "analysis.towers.prompts=16",
    "analysis.towers.random_sets=5",
    "analysis.towers.pictured_prompts=4",
    "analysis.extraction.prompts=8",
    "analysis.extraction.vocabulary_prompts=4",
    "analysis.extraction.other_heads=2",
    "analysis.label_flip.prompts=4",
    "analysis.flow.prompts=4",
    "analysis.flow.fit_prompts=8",
    "analysis.flow.windows=2",
    "analysis.bias.prompts=4",
    "analysis.bias.orders=2",
    "analysis.bias.random_sets=1",
)
SMALL = (
    "mean_prompts=6",
    "analysis.subspaces.prompts=16",
    "analysis.subspaces.random_sets=1",
    "analysis.subspaces.sizes=[0,2]",
    "analysis.signals.prompts=32",
    "analysis.signals.fit_prompts=32",
    "analysis.periodic.permutations=40",
    "analysis.periodic.resamples=20",
    "analysis.steering.prompts=30",
    "analysis.steering.random_sets=1",
    "analysis.steering.steered_prompts=1",
    "analysis.self_correction.prompts=32",
    "analysis.self_correction.shots=[2,3]",
    "analysis.self_correction.corrupted_prompts=8",
    "analysis.self_correction.orders=1",
    "analysis.self_correction.shuffles=10",
    "analysis.attribution.prompts=6",
    "analysis.attribution.queries=1",
    "analysis.attribution.shown=2",
    "analysis.attribution.classes=2",
    "analysis.attribution.candidates=8",
    "analysis.attribution.comparison=2",
    "analysis.attribution.random_sets=1",
    "analysis.attribution.neuron_counts=[2]",
    "analysis.attribution.head_counts=[1]",
)


@pytest.fixture
def composing() -> Iterator[None]:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        yield


@pytest.fixture(scope="module")
def circuit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A circuit of the bundled model, found by nobody."""
    lm = bundled_lm()
    heads = tuple(list(lm.layout)[i] for i in (1, 17, 20))
    return circuit_of(lm, AddK(), heads).save(tmp_path_factory.mktemp("circuit") / "circuit")


@pytest.mark.usefixtures("composing")
@pytest.mark.parametrize("name", [*NAMES, "all"])
def test_every_analysis_composes_and_is_built_with_its_own_defaults(name: str) -> None:
    settings = OmegaConf.to_container(
        compose("analyze", [f"analysis={name}", "circuit=somewhere"]), resolve=True
    )
    assert isinstance(settings, dict)
    built = chosen(settings["analysis"])
    assert [one.name for one in built] == ([name] if name != "all" else [one.name for one in built])
    if name == "all":
        assert sorted(one.name for one in built) == NAMES
    for one in built:
        assert one.options() == type(one)().options()


class _Page(HTMLParser):
    """What a page would load, and the ids that it can jump to."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.jumps: set[str] = set()
        self.pictures = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        self.pictures += tag == "svg"
        self.ids.add(known.get("id") or "")
        link = known.get("href") or known.get("src") or ""
        if tag == "a":
            self.jumps.add(link.removeprefix("#"))
        elif tag in ("script", "img", "link", "iframe"):
            self.loads.append(tag)


def test_all_analyses_write_their_findings_and_one_report(
    headloc: Headloc,  # noqa: F811
    circuit: Path,
    tmp_path: Path,
) -> None:
    found = headloc("analyze", f"circuit={circuit}", "logger=none", "output_dir=out", *SMALL)
    assert found.status == 0, found.err
    for name in NUMBERS:
        folder = tmp_path / "out" / "findings" / name
        summary = json.loads((folder / "summary.json").read_text())
        assert summary
        assert all(value is None or isinstance(value, float) for value in summary.values())
        described = json.loads((folder / "findings.json").read_text())
        assert described["seed"] == 3000
        assert len(described["heads"]) == 3
        for table in described["tables"]:
            rows = list(csv.reader((folder / f"{table}.csv").read_text().splitlines()))
            assert len({len(row) for row in rows}) == 1
        for picture in described["pictures"]:
            assert (folder / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
            assert b"<svg" in (folder / f"{picture}.svg").read_bytes()
        for sentence in described["sentences"]:
            assert sentence in found.out
    page = _Page()
    report = (tmp_path / "out" / "report.html").read_text()
    page.feed(report)
    assert not page.loads
    # The page's policy bars bitmaps, embedded ones too.
    assert "<image" not in report
    assert set(NUMBERS) <= page.ids
    assert page.jumps <= page.ids
    assert page.pictures >= len(NUMBERS)
    again = headloc("analyze", "analysis=periodic", f"circuit={circuit}", "logger=none",
                    "mean_prompts=6", "output_dir=again", "analysis.permutations=40",
                    "analysis.resamples=20")  # fmt: skip
    assert again.status == 0
    first = contents(tmp_path / "out" / "findings" / "periodic")
    assert contents(tmp_path / "again" / "findings" / "periodic") == first


def test_what_does_not_apply_is_left_out_of_all_and_an_error_alone(
    headloc: Headloc,  # noqa: F811
    circuit: Path,
    tmp_path: Path,
) -> None:
    words = ("task=labels", f"circuit={circuit}", "logger=none", "mean_prompts=2")
    kept = ("signals", "periodic", *LABELS)
    small = [option for option in SMALL[1:] if "signals" in option]
    small += [f"~analysis.{name}" for name in NAMES if name not in kept]
    found = headloc("analyze", *words, "output_dir=out", "task.max_tasks=8", *small,
                    *SMALL_LABELS)  # fmt: skip
    assert found.status == 0, found.err
    for name in LABELS:
        assert (tmp_path / "out" / "findings" / name / "summary.json").is_file()
    assert "periodic does not apply" in found.err
    assert (tmp_path / "out" / "findings" / "signals").is_dir()
    assert not (tmp_path / "out" / "findings" / "periodic").exists()
    assert "Left out" in (tmp_path / "out" / "report.html").read_text()
    alone = headloc("analyze", *words, "analysis=periodic", "output_dir=alone")
    assert alone.status == 2
    assert "features of a number" in alone.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["analysis=subspace"], "Did you mean 'subspaces'"),
        (["analysis=signals", "analysis.promts=3"], "analysis.prompts"),
        (["analysis=signals", "analysis.prompts=many"], "should be a whole number"),
        (["mean_prompts=1"], "mean_prompts=1"),
        (["circuit=nowhere"], "is not a circuit"),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    headloc: Headloc,  # noqa: F811
    circuit: Path,
    words: list[str],
    message: str,
) -> None:
    found = headloc("analyze", f"circuit={circuit}", "logger=none", *words)
    assert found.status == 2
    assert message in found.err
    assert "Traceback" not in found.err


def test_wandb_gets_the_findings_and_the_circuit_s_name(
    headloc: Headloc,  # noqa: F811
    circuit: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "own"))
    found = headloc(
        "analyze", "analysis=periodic", f"circuit={circuit}", "mean_prompts=4",
        "analysis.permutations=20", "analysis.resamples=10", "output_dir=out",
    )  # fmt: skip
    assert found.status == 0, found.err
    records = read_run(tmp_path / "out")
    summary: dict[str, object] = {}
    for record in records["summary"]:
        summary |= values(record.update)
    assert summary["circuit/artifact"] == "circuit-add_k"
    assert any(key.startswith("periodic/") for key in summary)
    assert next(run.job_type for run in records["run"]) == "analyze"


def test_wandb_takes_tables_of_text_and_numbers(tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    from headloc.analysis.self_correction import SelfCorrection
    from headloc.analysis.tracking import _media

    rows = (("L0H1", 2, 0.5), ("L0H1", "all later", None), ("L0H2", None, 1))
    table = Table("kappa", ("head", "read_at", "kappa"), rows)
    found = Findings({}, (table,))
    uploaded = _media(SelfCorrection(), found, tmp_path)["self_correction/kappa"]
    assert isinstance(uploaded, wandb.Table)
    assert uploaded.data == [["L0H1", "2", 0.5], ["L0H1", "all later", None], ["L0H2", None, 1]]
    assert table.rows == rows


def test_an_online_run_uses_the_circuit_as_an_artifact(circuit: Path, tmp_path: Path) -> None:
    from headloc.analysis.tracking import use_circuit

    circuit = Path(shutil.copytree(circuit, tmp_path / "circuit"))
    (tmp_path / "secret").write_text("of the user's")
    (circuit / "notes.txt").write_text("of the user's")
    (circuit / "README.md").unlink()
    (circuit / "README.md").symlink_to(tmp_path / "secret")

    class Config:
        def update(self, *args: object, **options: object) -> None: ...

    class Run:
        offline = False
        config = Config()
        used: list[object] = []  # noqa: RUF012

        def use_artifact(self, artifact: object) -> None:
            self.used.append(artifact)

    run = Run()
    use_circuit(run, Circuit.load(circuit), circuit)
    (artifact,) = run.used
    assert artifact.type == "circuit"  # type: ignore[attr-defined]
    # Neither what else lies there nor what a link leads to is uploaded.
    assert set(artifact.manifest.entries) == {"circuit.json", "gates.safetensors"}  # type: ignore[attr-defined]


class _Odd(Analysis):
    """An analysis with everything that needs escaping."""

    name = "odd"
    question = "Is <b>1</b> & 2 escaped?"

    def run(self, subject: Subject, progress: Progress) -> Findings:
        """Return odd findings."""
        from matplotlib.figure import Figure

        return Findings(
            {"nan": float("nan"), "one": 1},
            (Table("t", ("a", "b"), [["<script>alert(1)</script>", None]], "<i>"),),
            (Picture("p", 'a "quoted" <caption>', Figure),),
            ("1 < 2 & 3",),
        )


def test_findings_are_escaped_and_undefined_figures_are_null(tmp_path: Path) -> None:
    subject, odd = tiny_subject(), _Odd()
    found = odd.run(subject, lambda done, total: None)
    folder = save_findings(odd, subject, found, tmp_path)
    assert json.loads((folder / "summary.json").read_text()) == {"nan": None, "one": 1.0}
    write_report(subject, [(odd, found)], {"other": "<reason>"}, "a: <b>", tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert "<script>" not in text
    assert "<reason>" not in text
    assert "1 &lt; 2 &amp; 3" in text
    page = _Page()
    page.feed(text)
    assert not page.loads


def test_a_row_of_the_wrong_length_is_an_error() -> None:
    with pytest.raises(ValueError, match="2 cells"):
        Table("t", ("a", "b"), [[1, 2], [1]])


def test_cells_are_written_for_people() -> None:
    cells = (None, True, 0.0, 0.12345, 1e-7, 3, "x")
    assert [cell_text(cell) for cell in cells] == ["-", "yes", "0.000", "0.123", "1e-07", "3", "x"]
