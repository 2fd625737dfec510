"""Every mistake of a user: one clear message, status 2, no traceback, earlier results intact."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from headloc.cli import main
from tests.commands.runs import SMALL, Headloc, contents

FACTS = json.dumps([{"input": str(n), "output": str(n + 1)} for n in range(1, 17)])


@pytest.fixture
def place(tmp_path: Path, finished: Path, other_model: Path) -> Path:
    """A folder with earlier results, broken things, and a model that knows no task."""
    shutil.copytree(finished, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text")
    for name, text in {
        "object.json": '{"a": 1}',
        "numbers.json": '[{"input": 1, "output": 2}]',
        "cut.json": '[{"input": "a", ',
        "few.json": '[{"input": "a", "output": "b"}]',
        "classes.json": '{"animal": "cat"}',
        "unknown_words.json": json.dumps(
            [{"input": str(n), "output": f"zzyx{n}"} for n in range(1, 60)]
        ),
        "columns.csv": "word,kind\ncat,animal\n",
        "facts.json": FACTS,
        "blank.json": '[{"input": " ", "output": "1"}, {"input": "", "output": "2"}]',
        "pairs/facts.json": FACTS,
        "pairs/copy.json": FACTS,
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    _model(other_model, tmp_path / "other", lambda folder: None)
    _model(other_model, tmp_path / "no_tokenizer", _without_tokenizer)
    _model(other_model, tmp_path / "truncated", _cut("model.safetensors"))
    _model(other_model, tmp_path / "unknown_family", _typed("lama"))
    _model(other_model, tmp_path / "encoder", _typed("t5"))
    shutil.copytree(finished / "circuit", tmp_path / "cut_circuit")
    _cut("gates.safetensors")(tmp_path / "cut_circuit")
    return tmp_path


def _model(source: Path, target: Path, change: Callable[[Path], None]) -> None:
    shutil.copytree(source, target)
    change(target)


def _without_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def _cut(name: str) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        file = folder / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return cut


def _typed(model_type: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "model_type": model_type}))

    return change


LOCALIZE: dict[str, tuple[list[str], str]] = {
    "unknown model_type": (
        ["model=local", "model.path=unknown_family"], r"model_type 'lama'.*'llama'"
    ),
    "encoder": (["model=local", "model.path=encoder"], "not a causal language model"),
    "not a model": (["model=local", "model.path=empty"], "holds no config.json"),
    "no such model": (["model=local", "model.path=./nowhere"], "There is no folder"),
    "a file as model": (["model=local", "model.path=file"], "is a file"),
    "no tokenizer": (["model=local", "model.path=no_tokenizer"], "holds no tokenizer"),
    "truncated model": (["model=local", "model.path=truncated"], "cannot be loaded"),
    "missing model.path": (["model=local"], r"model\.path is missing.*model\.path=VALUE"),
    "model that knows no task": (["model=local", "model.path=other"], "answered none of 24"),
    "path beside the bundled model": (
        ["model.path=other"], r"model\.path is an option of model=hub or model=local, not"
    ),
    "revision beside the bundled model": (["model.revision=main"], "model=hub or model=local"),
    "path of an experiment beside the bundled model": (
        ["experiment=hu2025/llama3_8b_add_k", "model=bundled", "model.dtype=auto"],
        r"model\.path='meta-llama/.*says nothing to the model that ships with headloc",
    ),
    "dtype": (["model.dtype=float23"], "Unknown dtype.*'float32'"),
    "device": (["model.device=cpuu"], "Unknown device.*'cpu'"),
    "task file with an object": (["task=pairs", "task.path=object.json"], "not a list"),
    "task file with numbers": (["task=pairs", "task.path=numbers.json"], "not text"),
    "task file cut short": (["task=pairs", "task.path=cut.json"], "cut.json"),
    "task file too short": (["task=pairs", "task.path=few.json"], "shots and a query need"),
    "task file missing": (["task=pairs", "task.path=nowhere.json"], "nowhere.json"),
    "classes without lists": (["task=labels", "task.path=classes.json"], "no list of texts"),
    "wrong columns": (["task=labels", "task.path=columns.csv"], "text"),
    "unscorable answer": (["task=pairs", "task.path=unknown_words.json"], "not scorable"),
    "unscorable sum": (["task.k=[1000]", "task.held_out_k=[]"], "not scorable"),
    "k without valid x": (["task.k=[5,9]", "task.x_max=3"], r"k=5 has 3 valid x"),
    "unknown held-out k": (["task.held_out_k=[77]"], r"names \[77\]"),
    "unknown template": (["task.template=arow"], "'arrow'"),
    "target above heads": (
        ["sparsity=target", "sparsity.heads=1000"], "more than the 48 heads"
    ),
    "top_n above heads": (
        ["selection=top_n", "selection.heads=1000"], "more than the 48 heads"
    ),
    "option of another choice": (["sparsity.heads=8"], "Add sparsity=target"),
    "unknown option": (["sparsity.wieght=1"], r"no option 'sparsity\.wieght'.*'sparsity\.weight'"),
    "option without its group": (["shots=3"], r"Did you mean 'task\.shots'"),
    "unknown group": (["gate=l1"], "no option 'gate'.*'gates'"),
    "unknown choice": (["gates=hardconcrete"], "Did you mean 'hard_concrete'"),
    "unknown experiment": (["experiment=bundled_l2"], "'bundled_l1'"),
    "null group": (["gates=null"], "cannot be null"),
    "added option": (["+gates.betta=1"], r"no option 'gates\.betta'.*'gates\.beta'"),
    "added task option": (["+task.kay=1"], r"no option 'task\.kay'"),
    "shots of the wrong type": (["task.shots=abc"], "should be a whole number"),
    "beta of the wrong type": (["gates.beta=abc"], "should be a number"),
    "beta out of range": (["gates.beta=-1"], "must be above 0"),
    "weight of the wrong type": (["sparsity.weight=[1]"], "should be a number"),
    "epochs of the wrong type": (["trainer.max_epochs=x"], "should be a whole number"),
    "no epochs": (["trainer.max_epochs=0"], "max_epochs=0"),
    "endless epochs": (["trainer.max_epochs=-1"], "max_epochs=-1"),
    "unknown trainer option": (["+trainer.max_epoch=3"], r"'trainer\.max_epochs'"),
    "unknown accelerator": (["trainer.accelerator=abacus"], "abacus"),
    "batch of the wrong type": (["data.batch_size=abc"], "should be a whole number"),
    "no prompts": (["data.train_prompts=0"], "above 0"),
    "empty zero-shot prompt": (
        [
            "objective=function_vector", "task=pairs", "task.path=facts.json",
            'task.template={in_pre:"",in_sep:"",out_pre:"",out_sep:"#"}',
        ],
        "empty in_sep and an empty out_pre",
    ),
    "query of blanks": (
        ["objective=patch", "task=pairs", "task.path=blank.json"], "blank.json.*empty|visible"
    ),
    "too few items for the shots of a function vector": (
        ["objective=function_vector", "task=pairs", "task.path=facts.json", "task.shots=9"],
        r"'facts' has \d+ items.*9 shots and a query need 10",
    ),
    "function vector without shots": (
        ["objective=function_vector", "task.shots=0"], r"few-shot prompts.*task\.shots is 0"
    ),
    "patch without shots": (["objective=patch", "task.shots=0"], "few-shot prompts"),
    "held-out task that is trained on": (
        ["task=pairs", "task.path=pairs", "task.tasks=[facts]", "task.held_out=[facts]"],
        "task.held_out names facts, also trained on",
    ),
    "held-out copy of a trained task": (
        ["task=pairs", "task.path=pairs", "task.held_out=[copy]"],
        "'copy' has the items of 'facts', so it is also trained on",
    ),
    "every k held out": (["task.k=[1,2]", "task.held_out_k=[1,2]"], "leaves nothing to train on"),
    "insertion layer above the model": (
        ["objective=function_vector", "objective.layer=6"],
        r"objective\.layer=6 is out of range.*0\.\.5.*third of the depth is 2",
    ),
    "insertion layer below zero": (
        ["objective=function_vector", "objective.layer=-1"], "objective.layer=-1 is out of range"
    ),
    "insertion site": (["objective=function_vector", "objective.site=attenton"], "'attention'"),
    "off-value of a function vector": (
        ["objective=function_vector", "objective.off_value=resample"], "'resample' is unknown"
    ),
    "means of no prompts": (
        ["objective=function_vector", "objective.prompts_per_task=0"], "prompts_per_task=0"
    ),
    "rate of the wrong type": (["optimizer.lr=abc"], "should be a number or null"),
    "rate out of range": (["optimizer.lr=0"], "must be above 0"),
    "off-value": (["objective.off_value=meen"], "Did you mean 'mean'"),
    "share": (["selection.share=2"], r"lie in \(0, 1\]"),
    "callback": (["callbacks.checkpoint=3"], "group of options"),
    "callback option": (["+callbacks.checkpoint.mood=max"], "mode"),
    "logger": (["logger.kind=paper"], "'paper' is unknown"),
    "seed below zero": (["seed=-1"], "seed=-1"),
    "seed of the wrong type": (["seed=abc"], "whole number"),
    "seed of truth": (["seed=true"], "whole number"),
    "several seeds without --multirun": (["seed=0,1"], "seed"),
    "resume of the wrong type": (["resume=maybe"], "true or false"),
    "malformed list": (["task.k=[1,2"], "cannot be read"),
    "not an override": (["foo"], "key=value"),
    "unknown flag": (["--fast"], "Unrecognized arguments: --fast"),
    "half a flag": (["--hel"], "Unrecognized arguments: --hel"),
    "interpolation": (["seed=${nothing}"], "nothing"),
    "config dir": (["--config-dir", "nowhere"], "nowhere"),
}  # fmt: skip

OTHERS: dict[str, tuple[list[str], str]] = {
    "no command": ([], "Name a command"),
    "unknown command": (["localise"], "Did you mean 'localize'"),
    "half a command": (["circuit"], "circuit show, circuit diff, circuit export"),
    "unknown half": (["circuit", "shwo"], "circuit show"),
    "show nothing": (["circuit", "show"], "headloc circuit show DIR"),
    "show no circuit": (["circuit", "show", "empty"], "holds no circuit.json"),
    "show a truncated circuit": (["circuit", "show", "cut_circuit"], "broken"),
    "diff of one": (["circuit", "diff", "out/circuit"], "two circuit folders"),
    "export without format": (["circuit", "export", "out/circuit"], "format="),
    "export format": (
        ["circuit", "export", "out/circuit", "format=headvk", "output=x"], "'headkv'"
    ),
    "export option": (["circuit", "export", "out/circuit", "fromat=csv"], "'format'"),
    "export below a file": (
        ["circuit", "export", "out/circuit", "format=csv", "output=file/x.csv"], "file"
    ),
    "evaluate nothing": (["evaluate", "output_dir=out"], "circuit is missing"),
    "evaluate no circuit": (["evaluate", "circuit=empty", "output_dir=out"], "no circuit.json"),
    "evaluate a truncated circuit": (
        ["evaluate", "circuit=cut_circuit", "output_dir=out"], "broken"
    ),
    "evaluate on another model": (
        ["evaluate", "circuit=out/circuit", "model=local", "model.path=other", "output_dir=out"],
        "6 layers of 8 heads.*3 layers of 4 heads",
    ),
    "evaluate with a wrong seed": (
        ["evaluate", "circuit=out/circuit", "seed=abc", "output_dir=out"], "whole number"
    ),
    "evaluate with an unknown option": (
        ["evaluate", "circuit=out/circuit", "sed=1", "output_dir=out"], "'seed'"
    ),
    "evaluate below a file": (["evaluate", "circuit=out/circuit", "output_dir=file/x"], "file"),
    "localize below a file": (["localize", "output_dir=file/below"], "file"),
    "localize nowhere": (["localize", "output_dir=null"], "output_dir must name a folder"),
    "train with an unknown parameter": (
        ["bundled", "train", "+recipe.stpes=1", "output_dir=out"], "stpes"
    ),
    "train with a wrong type": (
        ["bundled", "train", "+recipe.optimisation.steps=abc", "output_dir=out"], "abc"
    ),
    "train without a recipe": (["bundled", "train", "recipe=3", "output_dir=out"], "recipe"),
}  # fmt: skip


def assert_refused(headloc: Headloc, place: Path, arguments: list[str], message: str) -> None:
    before = contents(place / "out")
    result = headloc(*arguments)
    assert result.status == 2
    assert result.out == ""
    assert "Traceback" not in result.err
    assert result.err.count("headloc: ") == 1
    told = result.err.partition("headloc: ")[2]
    assert len(told) > 20
    assert re.search(message, told.replace("\n", " ")), told
    after = contents(place / "out")
    if "other" in " ".join(arguments) and arguments[0] == "localize":
        # Found out when the run had kept means of its own: it has given up the earlier stages.
        before, after = _results(before), _results(after)
    assert after == before


def _results(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: text for name, text in files.items() if not name.startswith("checkpoints/")}


@pytest.mark.parametrize("mistake", LOCALIZE)
def test_localize_refuses(mistake: str, headloc: Headloc, place: Path) -> None:
    arguments, message = LOCALIZE[mistake]
    base = ["localize", "debug=fast", "logger=none", *SMALL, "output_dir=out"]
    assert_refused(headloc, place, [*base, *arguments], message)


@pytest.mark.parametrize("mistake", OTHERS)
def test_others_refuse(mistake: str, headloc: Headloc, place: Path) -> None:
    assert_refused(headloc, place, *OTHERS[mistake])


@pytest.mark.parametrize("command", ["layers", "refine", "evaluate"])
def test_a_broken_circuit_folder_is_refused_by_every_command(
    command: str, headloc: Headloc, place: Path
) -> None:
    arguments = [command, "circuit=cut_circuit", "output_dir=out"]
    assert_refused(headloc, place, arguments, "broken")


def test_a_circuit_of_another_template_has_no_place_in_a_layer_search(
    headloc: Headloc, place: Path
) -> None:
    arguments = ["layers", "circuit=out/circuit", "task.template=a_b", "output_dir=out"]
    assert_refused(headloc, place, arguments, "found with the template")


def test_resume_needs_a_run_that_has_begun(headloc: Headloc, place: Path) -> None:
    shutil.rmtree(place / "out" / "checkpoints")
    arguments = ["localize", "output_dir=out", "resume=true"]
    assert_refused(headloc, place, arguments, "no run has begun in")


def test_resume_needs_the_checkpoint_of_such_a_run(headloc: Headloc, place: Path) -> None:
    base = ["localize", "debug=fast", "logger=none", *SMALL, "output_dir=out", "resume=true"]
    assert_refused(headloc, place, [*base, "gates=l1"], "the interrupted run had gates")
    checkpoint = place / "out" / "checkpoints" / "gates.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    assert_refused(headloc, place, base, "cannot be read")


def test_all_jobs_of_a_sweep_that_fail_are_told(headloc: Headloc, place: Path) -> None:
    arguments = ["localize", "--multirun", "sparsity=target", "sparsity.heads=99,100"]
    result = headloc(*arguments, "output_dir=sweep", "logger=none")
    assert result.status == 2
    assert "2 of 2 jobs failed" in result.err
    assert "sparsity.heads=99 is more" in result.err
    assert "sparsity.heads=100 is more" in result.err


def test_the_traceback_is_shown_when_asked_for(
    headloc: Headloc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADLOC_TRACEBACK", "1")
    from headloc.errors import HeadlocError

    with pytest.raises(HeadlocError, match="localise"):
        headloc("localise")


def test_a_bug_of_headloc_is_not_dressed_up_as_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    import headloc.cli as module

    def broken(arguments: object) -> int:
        raise AssertionError("a bug")

    monkeypatch.setattr(module, "_dispatch", broken)
    with pytest.raises(AssertionError, match="a bug"):
        main([])


@pytest.mark.parametrize("saved", [True, False])
def test_an_interrupt_tells_how_to_go_on(
    saved: bool, headloc: Headloc, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import headloc.commands.localize as module

    def interrupted(*arguments: object) -> None:
        if saved:
            (place / "new" / "checkpoints" / "gates.ckpt").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_localize", interrupted)
    result = headloc("localize", "logger=none", "output_dir=new")
    assert result.status == 130
    assert ("The gates so far are in" if saved else "No stage was finished yet") in result.err
    assert f"resume=true output_dir={place / 'new'}" in result.err
    assert "Traceback" not in result.err
