"""Files of other tools: head sets as circuits, prompt files as task files.

Importing this package loads neither torch nor transformers.
"""

from __future__ import annotations

from headloc.interop.found import Blocks, ForeignHeads
from headloc.interop.reading import FORMATS, Options, read_heads

__all__ = ["FORMATS", "Blocks", "ForeignHeads", "Options", "read_heads"]
