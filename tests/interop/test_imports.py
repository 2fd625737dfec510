"""Head files of other tools: round trips, files of other models, broken and hostile files."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headloc.circuit import Circuit
from headloc.circuit.exports import EXPORTS, export_text
from headloc.errors import CircuitError, HeadlocError
from headloc.heads import HeadId
from headloc.interop import FORMATS, Options
from headloc.interop.binding import Use
from headloc.interop.importing import import_circuit
from tests.circuit.made import tiny_circuit
from tests.tiny import tiny_lm

SUFFIX = {"csv": "csv"}


def take(
    tmp_path: Path, content: str | bytes, kind: str, *, suffix: str = "json", **use: Any
) -> Circuit:
    options = Options(use.pop("group", None), use.pop("mlps", True))
    path = tmp_path / f"file.{suffix}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return import_circuit(path, tiny_lm("gpt2"), kind=kind, options=options, use=Use(**use))


def some(seed: int = 0, mlps: bool = False) -> Circuit:
    circuit = tiny_circuit(tiny_lm("gpt2"), seed=seed, mlps=mlps)
    draw = torch.Generator().manual_seed(seed)
    return replace(circuit, gates=torch.rand(8, generator=draw))


@pytest.mark.parametrize("mlps", [False, True], ids=["heads", "with_mlps"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["heads", "function_vectors", "csv", "mib"])
def test_what_is_exported_comes_back(kind: str, seed: int, mlps: bool, tmp_path: Path) -> None:
    circuit = some(seed, mlps)
    assert circuit.heads
    text = export_text(circuit, kind)
    back = take(tmp_path, text, kind)
    assert back.heads == circuit.heads
    if kind in ("csv", "mib"):
        assert torch.equal(back.scores, circuit.scores)
        assert back.mlps == circuit.mlps
        if mlps:
            assert torch.equal(back.feed_forward.scores, circuit.feed_forward.scores)  # type: ignore[union-attr]
    if kind == "csv":
        assert torch.equal(back.gates, circuit.gates)
    assert export_text(back, kind) == text
    lm = tiny_lm("gpt2")
    back.save(tmp_path / "circuit")
    with Circuit.load(tmp_path / "circuit").apply(lm):
        closed = lm.model(torch.arange(3, 9)[None]).logits
    with replace(circuit, objective=back.objective, feed_forward=back.feed_forward).apply(lm):
        assert torch.equal(closed, lm.model(torch.arange(3, 9)[None]).logits)


def test_a_score_file_comes_back_as_a_ranking(tmp_path: Path) -> None:
    circuit = some()
    text = export_text(circuit, "headkv")
    back = take(tmp_path, text, "headkv", top=3)
    assert torch.equal(back.scores, circuit.gates)
    best = circuit.gates.argsort(descending=True)[:3].tolist()
    assert back.heads == tuple(sorted(HeadId(i // 4, i % 4) for i in best))
    assert back.selection == {
        "rule": "imported", "format": "headkv", "file": "file.json", "top": 3, "absolute": False,
    }  # fmt: skip


def test_every_export_can_be_imported() -> None:
    assert set(EXPORTS) == set(FORMATS)


def test_the_best_of_a_ranking_are_taken_signed_or_absolute(tmp_path: Path) -> None:
    scores = {f"{i}-{j}": [float((i * 4 + j) - 5)] for i in range(2) for j in range(4)}
    text = json.dumps(scores)
    signed = take(tmp_path, text, "headkv", top=2)
    assert signed.heads == (HeadId(1, 2), HeadId(1, 3))
    absolute = take(tmp_path, text, "headkv", top=2, absolute=True)
    assert absolute.heads == (HeadId(0, 0), HeadId(0, 1))
    assert take(tmp_path, text, "headkv", top=0).heads == ()
    with pytest.raises(CircuitError, match="top=N"):
        take(tmp_path, text, "headkv")
    with pytest.raises(CircuitError, match="scores for 8"):
        take(tmp_path, text, "headkv", top=9)


def test_ties_go_to_the_earlier_head(tmp_path: Path) -> None:
    text = json.dumps({f"{i}-{j}": [0.5] for i in (1, 0) for j in (3, 2, 1, 0)})
    assert take(tmp_path, text, "headkv", top=2).heads == (HeadId(0, 0), HeadId(0, 1))


def test_groups_of_heads_are_named(tmp_path: Path) -> None:
    text = '{"value_fetcher": [[1, 3], [0, 2]], "position": [[0, 0]]}'
    assert take(tmp_path, text, "heads", group="value_fetcher").heads == (
        HeadId(0, 2),
        HeadId(1, 3),
    )
    for options in ({}, {"group": "values"}):
        with pytest.raises(CircuitError, match="position, value_fetcher"):
            take(tmp_path, text, "heads", **options)
    assert take(tmp_path, '{"only": [[1, 1]]}', "heads").heads == (HeadId(1, 1),)
    with pytest.raises(CircuitError, match="no groups"):
        take(tmp_path, "[[0, 0]]", "heads", group="x")


def test_listed_heads_without_a_score_rank_last(tmp_path: Path) -> None:
    circuit = take(tmp_path, "[[1, 3, 0.25], [0, 2, -0.5]]", "function_vectors")
    assert circuit.heads == (HeadId(0, 2), HeadId(1, 3))
    assert circuit.scores.tolist() == [-0.5] * 7 + [0.25]


@pytest.mark.parametrize("classes", [0, 3])
def test_indirect_effects_are_averaged_over_trials(classes: int, tmp_path: Path) -> None:
    effects = torch.randn(5, 2, 4, *([classes] if classes else []))
    path = tmp_path / "task_indirect_effect.pt"
    torch.save(effects, path)
    circuit = import_circuit(path, tiny_lm("gpt2"), kind="function_vectors", use=Use(top=3))
    mean = (effects[..., -1] if classes else effects).mean(0).flatten()
    torch.testing.assert_close(circuit.scores, mean)
    best = mean.argsort(descending=True)[:3].tolist()
    assert circuit.heads == tuple(sorted(HeadId(i // 4, i % 4) for i in best))


class Hostile:
    def __reduce__(self) -> Any:
        return print, ("this code has run",)


@pytest.mark.parametrize(
    "content",
    [Hostile(), torch.zeros(1, 1, 1).expand(10**4, 10**4, 10), {"a": 1}, torch.zeros(2, 4),
     torch.full((1, 2, 4), torch.nan), torch.zeros(1, 2, 4, dtype=torch.int64)],
    ids=["code", "endless", "mapping", "flat", "nan", "integers"],
)  # fmt: skip
def test_tensor_files_run_no_code_and_hold_effects(
    content: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "effects.pt"
    torch.save(content, path)
    for data in (path.read_bytes(), pickle.dumps(Hostile()), path.read_bytes()[:100], b""):
        with pytest.raises(CircuitError):
            take(tmp_path, data, "function_vectors", suffix="pt", top=1)
    assert not capsys.readouterr().out


def graph(changes: dict[str, Any] | None = None, **config: Any) -> str:
    nodes: dict[str, Any] = {"input": {"in_graph": True}, "logits": {"in_graph": True}}
    for i in range(2):
        nodes |= {f"a{i}.h{j}": {"in_graph": j == 0, "score": float(j)} for j in range(4)}
        nodes[f"m{i}"] = {"in_graph": True}
    for name, node in (changes or {}).items():
        nodes[name] = node
    nodes = {name: node for name, node in nodes.items() if node is not None}
    cfg = {"n_layers": 2, "n_heads": 4, "parallel_attn_mlp": False, "d_model": 32, **config}
    return json.dumps({"cfg": cfg, "nodes": nodes, "edges": {"a0.h0->logits": {"score": 1.0}}})


def test_graphs_rank_feed_forward_blocks_where_these_are_scored(tmp_path: Path) -> None:
    assert take(tmp_path, graph(), "mib").feed_forward is None
    scored = {"m0": {"in_graph": False, "score": 9.0}, "m1": {"in_graph": True, "score": -1.0}}
    circuit = take(tmp_path, graph(scored), "mib")
    assert circuit.mlps == (1,)
    assert circuit.heads == (HeadId(0, 0), HeadId(1, 0))
    best = take(tmp_path, graph(scored), "mib", top=2)
    assert (best.heads, best.mlps) == ((HeadId(0, 3),), (0,))
    assert take(tmp_path, graph(scored), "mib", mlps=False).feed_forward is None


def test_a_graph_that_only_ranks_needs_a_number(tmp_path: Path) -> None:
    ranked = {f"a{i}.h0": {"in_graph": False, "score": 0.0} for i in range(2)}
    with pytest.raises(CircuitError, match="top=N"):
        take(tmp_path, graph(ranked), "mib")
    assert len(take(tmp_path, graph(ranked), "mib", top=3).heads) == 3


HEAD = {"in_graph": True, "score": 0.0}
DEEP = "[" * 100_000 + "]" * 100_000
BROKEN: dict[str, list[str]] = {
    "heads": [
        "", "{", "null", "3", '"L0H1"', "[[0]]", "[[0, 1, 2]]", "[[0, 4]]", "[[2, 0]]",
        "[[0, -1]]", "[[0, 1.0]]", "[[0, true]]", '[["0", 1]]', "[[0, 1], [0, 1]]", "[0, 1]",
        "[[0, NaN]]", f"[[0, {'9' * 5000}]]", f"[[0, {'9' * 50}]]", DEEP, '{"a": 1, "a": 2}',
        "[null]", "{}",
    ],
    "function_vectors": [
        "[[0, 1]]", "[[0, 1, null]]", "[[0, 1, Infinity]]", "[[0, 1, 1e999]]", "[[0, 4, 0.5]]",
        "[[0, 1, 0.5], [0, 1, 0.5]]", f"[[0, 1, {'9' * 400}]]", "{}",
    ],
    "headkv": [
        "[]", "{}", '{"0-0": []}', '{"0-0": 0.5}', '{"0-0": ["x"]}', '{"0.0": [1]}',
        '{"-1-0": [1]}', '{"0-0": [1]}', '{"0-0": [NaN]}', '{"0-0-0": [1]}', '{"9-9": [1]}',
        '{"\u0661-0": [1]}', '{"99999999999-0": [1]}',
    ],
    "csv": [
        "", "layer,head\n0,1\n", "layer,head,gate,score,selected\n0,0,1,1,1\n",
        "layer,head,gate,score,selected\n0,9,1,1,1\n", "layer,head,gate,score,selected\n0,0,1\n",
        "layer,head,gate,score,selected\n0,0,nan,1,1\n",
        "layer,head,gate,score,selected\n0,0,1,1,yes\n",
        "layer,head,gate,score,selected\n0,x,1,1,1\n",
        'layer,head,gate,score,selected\n0,"0,1,1,1\n',
    ],
    "mib": [
        "[]", "{}", '{"cfg": {}, "nodes": {}}', graph(n_layers=3), graph(n_heads=5),
        graph(n_heads="4"), graph({"a0.h4": HEAD}), graph({"a2.h0": HEAD}), graph({"a0.h0": None}),
        graph({"a0.h0": {"in_graph": 1, "score": 0.0}}), graph({"a0.h0": {"score": 0.0}}),
        graph({"a0.h0": {"in_graph": True}}), graph({"a0.h0": True}),
        graph({"a0.h0": {"in_graph": True, "score": float("nan")}}), graph({"x": HEAD}),
        graph({"m0": {"in_graph": True, "score": 1.0}}), graph({"a00.h0": HEAD}),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        pytest.param(kind, content, id=f"{kind}-{number}")
        for kind, contents in BROKEN.items()
        for number, content in enumerate(contents)
    ],
)
def test_a_file_that_is_wrong_is_refused_in_one_line(
    kind: str, content: str, tmp_path: Path
) -> None:
    with pytest.raises(CircuitError) as refused:
        take(tmp_path, content, kind, suffix=SUFFIX.get(kind, "json"), top=1)
    message = str(refused.value)
    assert "file." in message
    assert len(message) < 600
    assert "\n" not in message


def test_a_head_that_the_model_lacks_is_named_with_what_the_model_has(tmp_path: Path) -> None:
    with pytest.raises(CircuitError, match=r"L0H4 and 1 more.*2 layers of up to 4 heads"):
        take(tmp_path, "[[0, 1], [0, 4], [7, 7]]", "heads")
    with pytest.raises(CircuitError, match="3 layers of 4 heads"):
        take(tmp_path, graph(n_layers=3), "mib")


def test_unreadable_files_and_unknown_options_are_told(tmp_path: Path) -> None:
    lm = tiny_lm("gpt2")
    with pytest.raises(HeadlocError, match="Did you mean 'headkv'"):
        import_circuit(tmp_path, lm, kind="headvk")
    with pytest.raises(CircuitError, match="folder"):
        import_circuit(tmp_path, lm, kind="heads")
    with pytest.raises(CircuitError, match="No such file"):
        import_circuit(tmp_path / "none", lm, kind="heads")
    with pytest.raises(CircuitError, match="UTF-8"):
        take(tmp_path, b"\xff\xfe[", "heads")
    huge = tmp_path / "huge.json"
    with huge.open("wb") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(CircuitError, match="64 MiB"):
        import_circuit(huge, lm, kind="heads")
    for options in ({"off_value": "men"}, {"positions": "first"}, {"top": -1}):
        with pytest.raises(HeadlocError):
            Use(**options)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    kind=st.sampled_from(["heads", "function_vectors", "headkv", "mib"]),
    data=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["cfg", "nodes", "edges", "0-0", "a0.h0", "m0"]), inner
            )
        ),
        max_leaves=12,
    ),
)
def test_no_json_makes_an_import_fail_otherwise(kind: str, data: Any, tmp_path: Path) -> None:
    try:
        circuit = take(tmp_path, json.dumps(data), kind, top=0)
    except CircuitError:
        return
    assert circuit.heads == ()


def test_models_without_a_regular_grid_of_heads_have_no_graph_file() -> None:
    model = {"name": "x", "heads": [4, 4], "layer_indices": [0, 3], "model_type": "lfm2"}
    with pytest.raises(CircuitError, match="format=csv"):
        export_text(replace(some(), model=model), "mib")
    with pytest.raises(CircuitError, match="every gate"):
        export_text(replace(some(), gates=torch.zeros(8)), "headkv")


@pytest.mark.parametrize(("family", "parallel"), [("gptj", True), ("llama", False)])
def test_graphs_tell_whether_attention_and_feed_forward_are_parallel(
    family: str, parallel: bool
) -> None:
    text = export_text(tiny_circuit(tiny_lm(family)), "mib")
    assert json.loads(text)["cfg"]["parallel_attn_mlp"] is parallel
