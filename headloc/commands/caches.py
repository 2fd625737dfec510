"""Caches of other libraries that cannot be written to: those that would end a run are moved."""

from __future__ import annotations

import logging
import os
import tempfile

log = logging.getLogger(__name__)

_COMPILED = "TORCHINDUCTOR_CACHE_DIR"


def usable_caches() -> None:
    """See to it that torch can be imported.

    It makes its folder for compiled code then, which headloc has no use for, and fails where it
    cannot.  The other libraries go without their caches.
    """
    folder = os.environ.get(_COMPILED)
    if folder is None:
        return
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        other = os.path.join(tempfile.gettempdir(), "torchinductor_headloc")
        log.warning("%s=%s cannot be used (%s): it is %s for this run.", _COMPILED, folder,
                    error.strerror, other)  # fmt: skip
        os.environ[_COMPILED] = other
