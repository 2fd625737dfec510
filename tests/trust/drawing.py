"""Broken files drawn by hypothesis, which shrinks what it finds to the least that breaks.

JSON documents get any values in any place, or are any document at all; other files get any bytes in
place of any others.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headloc.errors import HeadlocError
from tests.trust.fuzzing import limited, silent
from tests.trust.target import Target

NUMBERS = st.integers() | st.floats() | st.sampled_from([0, -1, 2**31, 2**63, 10**30, 1e-320])
SCALARS = st.none() | st.booleans() | NUMBERS | st.text()
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)
"""Any JSON value."""


@st.composite
def bent_documents(draw: st.DrawFn, document: Any) -> Any:
    """A JSON document with another value, or none, somewhere."""
    if not isinstance(document, dict | list) or not document or draw(st.integers(0, 5)) == 0:
        return draw(VALUES)
    keys = list(document) if isinstance(document, dict) else list(range(len(document)))
    key = draw(st.sampled_from(keys))
    changed: Any = dict(document) if isinstance(document, dict) else list(document)
    if draw(st.integers(0, 9)) == 0:
        del changed[key]
    else:
        changed[key] = draw(bent_documents(changed[key]))
    if isinstance(changed, dict) and draw(st.integers(0, 9)) == 0:
        changed[draw(st.text())] = draw(VALUES)
    return changed


@st.composite
def bent_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """A file with other bytes in place of some."""
    start = draw(st.integers(0, len(content)))
    stop = draw(st.integers(start, min(len(content), start + 200)))
    put = draw(st.binary(max_size=100) | st.text(max_size=100).map(_encoded))
    return content[:start] + put + content[stop:]


def bent_files(content: bytes) -> st.SearchStrategy[bytes]:
    """Broken copies of a file."""
    try:
        document = json.loads(content)
    except ValueError:
        return bent_bytes(content)
    told = (bent_documents(document) | VALUES).map(lambda value: json.dumps(value).encode())
    return told | bent_bytes(content)


def check(target: Target, examples: int) -> None:
    """Draw broken files of a target and read them.

    Raises:
        Exception: what reading raised, if it was no HeadlocError, for the smallest such file.
    """

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.data())
    def read(data: st.DataObject) -> None:
        broken = data.draw(st.sampled_from(sorted(target.files)))
        with tempfile.TemporaryDirectory() as place:
            for name, content in target.files.items():
                path = Path(place) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(
                    data.draw(bent_files(content), label=name) if name == broken else content
                )
            try:
                with silent(), limited():
                    target.read(Path(place))
            except HeadlocError as error:
                message = str(error).strip()
            else:
                message = "read"
            assert 0 < len(message) < 5_000

    read()


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
