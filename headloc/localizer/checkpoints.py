"""Checkpoints of the gates, written as everything else of a run is: whole or not at all.

Lightning writes a checkpoint to the folder for temporary files and moves it from there, which is a
copy where that is another disk: one that fills up in the middle would leave half a checkpoint in
the place of the last good one.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from headloc.files import write_bytes


class AtomicCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoints, a few kilobytes each, through `headloc.files`."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint; an earlier one of its name stays until the new one is complete.

        Raises:
            OSError: with the path, when it cannot be written.
        """
        buffer = BytesIO()
        torch.save(checkpoint, buffer)
        write_bytes(Path(path), buffer.getvalue())
