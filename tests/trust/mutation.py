"""Break a file: bytes that flip, vanish, repeat or come from elsewhere, JSON values that lie."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 2**31, 2**63, 10**30, -1e308, 1e-320, 0.5, "", " ", "\x00", "\ud800",
    "../../etc/passwd", "/dev/zero", "a" * 5000, "<script>alert(1)</script>", "${oc.env:HOME}",
    "[/bold]", [], {}, [[]], {"": None}, [None], [[0, 0]] * 40, {"family": {}}, [1, "a"],
)  # fmt: skip
"""Values that stand where others are expected."""

_TEXTS = (
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"NaN", b"Infinity", b"-", b"1e999", b"9" * 5000,
    b"[" * 3000, b'{"a":' * 3000, b'"', b"\\u0000", b"\\ud800", b"\n", b"\r\n", b"{}", b"null",
    b"\x80\x04\x95", b"PK\x03\x04", b"!!python/object/apply:os.system ['true']",
)  # fmt: skip
"""Pieces that parsers stumble over."""


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Return a broken copy, by one to four changes."""
    if rng.random() < 0.5:
        changed = _lie(content, rng)
        if changed is not None:
            return changed
    for _ in range(int(rng.integers(1, 5))):
        content = _bend(content, rng)
    return content


def _bend(content: bytes, rng: np.random.Generator) -> bytes:
    """One change of the bytes."""
    size = len(content)
    start = int(rng.integers(size + 1))
    stop = min(size, start + int(rng.integers(1, 65)))
    match int(rng.integers(7)):
        case 0:
            return content[:start]
        case 1:
            return content[:start] + content[stop:]
        case 2:
            return content[:stop] + content[start:]
        case 3:
            return content[:start] + _TEXTS[int(rng.integers(len(_TEXTS)))] + content[start:]
        case 4:
            return content[:start] + rng.bytes(int(rng.integers(1, 17))) + content[stop:]
        case 5 if start < size:
            flipped = content[start] ^ (1 << int(rng.integers(8)))
            return content[:start] + bytes([flipped]) + content[start + 1 :]
    other = int(rng.integers(size + 1))
    return content[:start] + content[other : other + 64] + content[stop:]


def _lie(content: bytes, rng: np.random.Generator) -> bytes | None:
    """Put a hostile value into a JSON document, or take one out; None where it is no JSON."""
    try:
        data = json.loads(content)
    except ValueError:
        return None
    for _ in range(int(rng.integers(1, 4))):
        data = _lie_once(data, rng)
    return json.dumps(data).encode()


def _lie_once(data: Any, rng: np.random.Generator) -> Any:
    value = HOSTILE[int(rng.integers(len(HOSTILE)))]
    if not isinstance(data, dict | list) or not data or rng.random() < 0.15:
        return value
    keys = list(data) if isinstance(data, dict) else list(range(len(data)))
    key = keys[int(rng.integers(len(keys)))]
    chance = rng.random()
    changed = dict(data) if isinstance(data, dict) else list(data)
    if chance < 0.1:
        del changed[key]
    elif chance < 0.2 and isinstance(changed, dict):
        changed[f"{key}_"] = changed[key]
    else:
        changed[key] = _lie_once(data[key], rng)
    return changed
