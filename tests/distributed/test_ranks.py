"""What trainer options and the environment of a launcher say about the processes of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from headloc.errors import HeadlocError
from headloc.ranks import Ranks, launched, ranks_of
from tests.commands.runs import Headloc, quick

VARIABLES = (
    "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "RANK", "SLURM_LOCALID", "SLURM_NODEID",
    "SLURM_STEP_ID", "SLURM_NTASKS", "SLURM_PROCID",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("options", "environment", "expected"),
    [
        ({}, {}, Ranks()),
        ({"devices": 1}, {"LOCAL_RANK": "3"}, Ranks()),
        ({"devices": "auto", "accelerator": "cpu"}, {}, Ranks(on_cpu=True)),
        ({"devices": 4}, {}, Ranks(4)),
        ({"devices": "2"}, {"LOCAL_RANK": "1"}, Ranks(2, 1, 1, 1)),
        ({"devices": [4, 6]}, {"LOCAL_RANK": "1"}, Ranks(2, 1, 1, 1, (4, 6))),
        ({"devices": "4,6"}, {}, Ranks(2, devices=(4, 6))),
        ({"devices": [3]}, {}, Ranks(devices=(3,))),
        # torchrun and srun on the second of two machines.
        ({"devices": 4, "num_nodes": 2}, {"GROUP_RANK": "1", "LOCAL_RANK": "2"}, Ranks(8, 2, 6, 2)),
        (
            {"devices": 4, "num_nodes": 2},
            {"SLURM_NODEID": "1", "SLURM_LOCALID": "3"},
            Ranks(8, 2, 7, 3),
        ),
    ],
)
def test_processes_are_read_from_options_and_launcher(
    options: dict[str, object],
    environment: dict[str, str],
    expected: Ranks,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert ranks_of(options) == expected
    assert expected.first == (expected.rank == 0)


def test_the_accelerator_of_a_process_is_the_one_listed_for_it() -> None:
    assert Ranks(2, 1, 1, 1, (4, 6)).device_index == 6
    assert Ranks(2, 1, 1, 1).device_index == 1


@pytest.mark.parametrize("devices", [0, -2, True, 1.5, "many", [], [0, 0], [-1], ["x"]])
def test_devices_that_are_none_are_refused(devices: object) -> None:
    with pytest.raises(HeadlocError, match=r"trainer\.devices"):
        ranks_of({"devices": devices})


def test_a_batch_job_of_one_task_is_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not launched()
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert not launched()
    monkeypatch.setenv("SLURM_NTASKS", "2")
    assert launched()


MISTAKES = {
    "a sweep on several devices": (
        ["trainer.devices=2", "--multirun", "seed=0,1"], "--multirun runs jobs on one device",
    ),
    "several machines without a launcher": (["trainer.num_nodes=2"], "srun"),
    "no devices": (["trainer.devices=0"], "trainer.devices=0"),
    "a strategy that shards": (["trainer.strategy=fsdp"], "model.device_map=auto"),
    "a device map of nobody": (
        ["model=local", "model.path=x", "model.device_map=both"], "balanced",
    ),
    "limits without a map": (
        ["model=local", "model.path=x", "model.max_memory={0: 1GiB}"], "model.device_map=auto",
    ),
    "a place that is none": (["data.cache=disk"], "device, host, none"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_told(case: str, headloc: Headloc, tmp_path: Path) -> None:
    more, expected = MISTAKES[case]
    result = headloc(*quick(tmp_path / "out", *more))
    assert result.status == 2
    message = [line for line in result.err.splitlines() if line.startswith("headloc:")]
    assert len(message) == 1
    assert expected in message[0]


def test_processes_of_a_launcher_must_agree_on_a_folder(
    headloc: Headloc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    result = headloc("localize", "debug=fast", "trainer.devices=2", "trainer.accelerator=cpu")
    assert result.status == 2
    assert "Give output_dir=DIR" in result.err


def test_a_device_map_and_several_processes_do_not_go_together(
    headloc: Headloc, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, other_model: Path
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    result = headloc(
        *quick(tmp_path / "out", "model=local", f"model.path={other_model}"),
        "model.device_map=auto", "trainer.devices=2", "trainer.accelerator=cpu",
    )  # fmt: skip
    assert result.status == 2
    assert "spreads one model over devices" in result.err
