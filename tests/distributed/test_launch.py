"""Processes of a run end together, whoever of them fails."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from headloc.commands.launch import launch, with_output_dir
from headloc.errors import HeadlocError

# Every process writes its id, then does what its number is told to.
SCRIPT = """
import os, pathlib, sys, time
rank = int(os.environ["RANK"])
folder, actions = pathlib.Path(sys.argv[1]), sys.argv[2:]
(folder / f"pid-{rank}").write_text(str(os.getpid()))
assert os.environ["LOCAL_RANK"] == str(rank) and os.environ["WORLD_SIZE"] == str(len(actions))
assert os.environ["MASTER_ADDR"] and os.environ["MASTER_PORT"]
while len(list(folder.glob("pid-*"))) < len(actions):
    time.sleep(0.01)
print("process", rank, "speaks", file=sys.stderr)
if actions[rank] == "hang":
    time.sleep(600)
sys.exit(int(actions[rank]))
"""


def gone(folder: Path) -> bool:
    """Whether no process of a run is left."""
    for path in folder.glob("pid-*"):
        try:
            os.kill(int(path.read_text()), 0)
        except ProcessLookupError:
            continue
        return False
    return True


def start(folder: Path, *actions: str) -> int:
    return launch([str(folder), *actions], len(actions), ("-c", SCRIPT))


def test_the_status_is_that_of_the_first_and_only_it_is_heard(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert start(tmp_path, "0", "0", "0") == 0
    assert capfd.readouterr().err.splitlines() == ["process 0 speaks"]


def test_when_the_first_fails_the_others_do_not_wait_for_it(tmp_path: Path) -> None:
    assert start(tmp_path, "2", "hang", "hang") == 2
    assert gone(tmp_path)


def test_when_another_fails_the_first_ends_and_its_words_are_told(tmp_path: Path) -> None:
    with pytest.raises(HeadlocError, match=r"Process 1 of 2 failed \(status 7\)") as caught:
        start(tmp_path, "hang", "7")
    assert "process 1 speaks" in str(caught.value)
    assert gone(tmp_path)


def test_a_mistake_that_ends_all_of_them_is_told_by_the_first(tmp_path: Path) -> None:
    assert start(tmp_path, "2", "2") == 2


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_ending_the_command_leaves_no_process_behind(tmp_path: Path, sent: signal.Signals) -> None:
    call = (
        "import sys; from headloc.commands.launch import launch;"
        "sys.exit(launch([sys.argv[1], 'hang', 'hang'], 2, ('-c', sys.argv[2])))"
    )
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", call, str(tmp_path), SCRIPT],
        cwd=root, stderr=subprocess.DEVNULL, start_new_session=True, preexec_fn=_interruptible,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("pid-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    # An interrupt from the keyboard reaches the whole group, a request to end only one process.
    if sent == signal.SIGINT:
        os.killpg(process.pid, sent)
    else:
        process.send_signal(sent)
    try:
        process.wait(60)
    finally:
        # Nothing is left behind by a test that fails, either.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode != 0
    assert gone(tmp_path)


def _interruptible() -> None:
    """Undo what a shell does to commands in the background: they inherit SIGINT as ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_all_processes_write_to_the_same_folder(tmp_path: Path) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    folder = tmp_path / "it's, {odd}=1"
    arguments = with_output_dir(["localize", "output_dir=other", "seed=1"], folder)
    assert arguments[:2] == ["localize", "seed=1"]
    (override,) = OverridesParser.create().parse_overrides(arguments[2:])
    assert override.value() == str(folder)
