"""Lightning's strategy for a run on several devices: data parallel, with nothing but gates shared.

Every process holds the whole frozen model; only the gradients of the gates travel (averaged), so
the gates stay equal in all of them.  The frozen weights are never synchronised: every process has
loaded them from the same files.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from headloc.errors import HeadlocError
from headloc.ranks import LAUNCHED, ranks_of

if TYPE_CHECKING:
    from headloc.lm.frozen import FrozenLM

_KNOWN = ("auto", "ddp")


def parallel_options(options: Mapping[str, Any], lm: FrozenLM) -> dict[str, Any]:
    """Return trainer options with the strategy and devices that a run asks for.

    Args:
        options: options of `lightning.Trainer`.
        lm: the model, on the device of this process.

    Raises:
        HeadlocError: for a strategy that shards the model or does not return to its caller.
    """
    check_strategy(options)
    from lightning.pytorch.strategies import DDPStrategy

    chosen = {key: value for key, value in options.items() if key != "strategy"}
    # The gates follow the model, which stays where it was loaded.
    if chosen.get("accelerator", "auto") == "auto":
        chosen["accelerator"] = {"cpu": "cpu", "mps": "mps"}.get(lm.device.type, "gpu")
    if ranks_of(chosen).processes == 1:
        if lm.device.type == "cuda" and chosen["accelerator"] != "cpu":
            chosen["devices"] = [lm.device.index or 0]
        return chosen
    if os.environ.get(LAUNCHED):
        # A batch job of a scheduler would otherwise count as the launcher.
        from lightning.pytorch.plugins.environments import LightningEnvironment

        chosen["plugins"] = [*(chosen.get("plugins") or []), LightningEnvironment()]
    # Shares of rows are cut by the training step, which draws the noise of all of them.
    return {
        **chosen,
        "strategy": DDPStrategy(init_sync=False, broadcast_buffers=False),
        "use_distributed_sampler": False,
    }


def check_strategy(options: Mapping[str, Any]) -> None:
    """Refuse a strategy that shards the model or does not return to its caller.

    Raises:
        HeadlocError: saying which ones there are.
    """
    strategy = options.get("strategy", "auto")
    if strategy not in _KNOWN:
        raise HeadlocError(
            f"trainer.strategy={strategy!r} is not supported. Give auto or ddp (the whole model on "
            "every device); for a model that is larger than one device use trainer.devices=1 and "
            "model.device_map=auto."
        )


def check_parallel(options: Mapping[str, Any], lm: FrozenLM, batch_size: int) -> None:
    """Refuse several processes where they cannot work.

    Raises:
        HeadlocError: for a model spread over devices, or fewer rows than processes.
    """
    processes = ranks_of(options).processes
    if processes == 1:
        return
    if lm.spread:
        raise HeadlocError(
            f"trainer.devices asks for {processes} processes, each with the whole model, but "
            "model.device_map spreads one model over devices. Use one of the two: "
            "trainer.devices=1, or model.device_map=null."
        )
    if batch_size < processes:
        raise HeadlocError(
            f"data.batch_size={batch_size} is less than the {processes} processes of this run. "
            "Every process needs a row of every step."
        )
