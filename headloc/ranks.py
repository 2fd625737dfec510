"""How many processes train the gates together, and which of them this one is.

Nothing heavy is imported: this is read before anything else is done.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headloc.errors import HeadlocError

LAUNCHED = "HEADLOC_LAUNCHED"
"""Set in the processes that headloc starts itself."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes of a run.

    Attributes:
        processes: processes in all, on all nodes.
        nodes: machines.
        rank: number of this process, from 0.
        local: number of this process on its node.
        devices: the device index of every process of a node, where they were listed.
        on_cpu: whether they were asked to stay on the processor.
    """

    processes: int = 1
    nodes: int = 1
    rank: int = 0
    local: int = 0
    devices: tuple[int, ...] | None = None
    on_cpu: bool = False

    @property
    def first(self) -> bool:
        """Whether this is the process that writes, logs and speaks."""
        return self.rank == 0

    @property
    def device_index(self) -> int:
        """The accelerator of this process."""
        return self.local if self.devices is None else self.devices[self.local]


def ranks_of(trainer: Mapping[str, Any]) -> Ranks:
    """Read the number of processes from trainer options, and this one's number from its launcher.

    Raises:
        HeadlocError: when trainer.devices or trainer.num_nodes is not a number of devices.
    """
    nodes = trainer.get("num_nodes", 1)
    if isinstance(nodes, bool) or not isinstance(nodes, int) or nodes < 1:
        raise HeadlocError(f"trainer.num_nodes={nodes!r} must be a whole number above 0.")
    listed = _listed(trainer.get("devices", 1))
    count = _count(trainer) if listed is None else len(listed)
    processes = count * nodes
    on_cpu = trainer.get("accelerator") == "cpu"
    if processes == 1:
        return Ranks(devices=listed, on_cpu=on_cpu)
    local = _number("LOCAL_RANK", "SLURM_LOCALID")
    node = _number("NODE_RANK", "GROUP_RANK", "SLURM_NODEID")
    return Ranks(processes, nodes, node * count + local, local, listed, on_cpu)


def launched() -> bool:
    """Whether a launcher has started this process: headloc itself, torchrun, srun, ..."""
    own_step = "SLURM_STEP_ID" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1
    return "LOCAL_RANK" in os.environ or own_step


def _listed(devices: Any) -> tuple[int, ...] | None:
    """Return the indices of devices that are listed, as in [0,2] or "0,2"."""
    if isinstance(devices, str) and "," in devices:
        devices = [part for part in devices.split(",") if part.strip()]
    if isinstance(devices, str) or not isinstance(devices, Sequence):
        return None
    try:
        indices = tuple(int(part) for part in devices)
    except (TypeError, ValueError):
        indices = ()
    if not indices or min(indices) < 0 or len(set(indices)) < len(indices):
        raise _wrong(devices)
    return indices


def _count(trainer: Mapping[str, Any]) -> int:
    """Return the number of devices of a node: given, or all that there are."""
    devices = trainer.get("devices", 1)
    if isinstance(devices, str) and devices.strip().lstrip("-").isdigit():
        devices = int(devices)
    if devices in ("auto", -1):
        if trainer.get("accelerator") == "cpu":
            return 1
        import torch

        return max(1, torch.cuda.device_count())
    if isinstance(devices, bool) or not isinstance(devices, int) or devices < 1:
        raise _wrong(devices)
    return devices


def _wrong(devices: Any) -> HeadlocError:
    return HeadlocError(
        f"trainer.devices={devices!r} must be a number of devices, a list of their indices such as "
        "[0,1], or auto."
    )


def _number(*names: str) -> int:
    for name in names:
        value = os.environ.get(name, "")
        if value.isdigit():
            return int(value)
    return 0
