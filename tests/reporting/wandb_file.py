"""Read an offline W&B run back: records of protocol buffers in LevelDB's log format."""

from __future__ import annotations

import json
import struct
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK = 32 * 1024
_FILE_HEADER, _RECORD_HEADER = 7, 7
_FULL, _FIRST, _LAST = 1, 2, 4


def read_run(folder: Path, patience: float = 20.0) -> dict[str, list[Any]]:
    """Return the records of an offline run that was finished, by their kind.

    W&B's service may write the file a moment after `finish` has returned: what is read is what lies
    there once the run's end does, or when patience (seconds) is over.
    """
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    end = time.monotonic() + patience
    while True:
        found = _records(path)
        if "exit" in found or time.monotonic() > end:
            return found
        time.sleep(0.1)


def _records(path: Path) -> dict[str, list[Any]]:
    from wandb.proto.wandb_internal_pb2 import Record

    found: dict[str, list[Any]] = defaultdict(list)
    for payload in _payloads(path.read_bytes()):
        record = Record()
        record.ParseFromString(payload)
        kind = record.WhichOneof("record_type")
        found[kind].append(getattr(record, kind))
    return found


def values(items: Any) -> dict[str, Any]:
    """Return the items of a config, history or summary record as plain, nested values."""
    found: dict[str, Any] = {}
    for item in items:
        *outer, last = item.nested_key or [item.key]
        place = found
        for key in outer:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
    return found


def _payloads(data: bytes) -> Iterator[bytes]:
    assert data[:4] == b":W&B"
    place, parts = _FILE_HEADER, b""
    while place + _RECORD_HEADER <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < _RECORD_HEADER:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + _RECORD_HEADER])
        if place + _RECORD_HEADER + size > len(data):
            return  # Still being written.
        body = data[place + _RECORD_HEADER : place + _RECORD_HEADER + size]
        place += _RECORD_HEADER + size
        parts = body if kind in (_FULL, _FIRST) else parts + body
        if kind in (_FULL, _LAST):
            yield parts
