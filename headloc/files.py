"""Write results so that a reader never sees half of one, and a failed run never costs an earlier
one.

Everything headloc writes goes to a temporary name in the same folder first and is moved into place.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from headloc.errors import HeadlocError

_FILE_NAME = re.compile(r"(?!\.)[\w .+=-]{1,100}(?<![ .])")

_PARTIAL = ".partial"
"""End of the names of files and folders that are being written."""

_ATTEMPTS = 3
"""How often a file is written whose folder is removed meanwhile."""


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; a folder that is gone is made again.

    Raises:
        OSError: with the path of the file, whatever failed; nothing half-written is left.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return _write_once(path, content)
        except FileNotFoundError as error:
            if attempt == _ATTEMPTS:
                raise _about(error, path) from error
        except OSError as error:
            raise _about(error, path) from error


def _write_once(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(_PARTIAL, f".{path.name}.", path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        # The first error is the one to tell.
        with contextlib.suppress(OSError):
            Path(temporary).unlink(missing_ok=True)
        raise


def _about(error: OSError, path: Path) -> OSError:
    """Return an error about the file that was meant, not about its temporary name."""
    return OSError(error.errno, error.strerror or str(error), str(path))


def write_text(path: Path, content: str) -> None:
    """Write a text file atomically, in UTF-8."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write sorted, indented JSON atomically; a NaN is an error, because it is not JSON."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n")


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a CSV file: truth values as 1 and 0, nothing for None, floats to nine digits.

    Nine digits give a float32 back.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return buffer.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return int(value)
    return f"{value:.9g}" if isinstance(value, float) else value


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Fill a new folder and move it into place of `path` as a whole.

    An earlier folder of that name stays until the new one is complete, and comes back where that
    cannot take its place.

    Raises:
        OSError: with the path of the folder, whatever failed.
    """
    try:
        _fill_and_move(path, fill)
    except OSError as error:
        raise _about(error, path) from error


def _fill_and_move(path: Path, fill: Callable[[Path], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(_PARTIAL, f".{path.name}.", path.parent))
    try:
        fill(temporary)
        os.chmod(temporary, 0o777 & ~_umask())
        if path.exists():
            _exchange(temporary, path)
        else:
            os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _exchange(new: Path, path: Path) -> None:
    """Put a folder in the place of an earlier one."""
    retired = Path(tempfile.mkdtemp(_PARTIAL, f".{path.name}.old.", path.parent))
    try:
        os.replace(path, retired / path.name)
        try:
            os.replace(new, path)
        except BaseException:
            os.replace(retired / path.name, path)
            raise
    finally:
        # Where the earlier folder could not be put back it is still in there.
        if path.exists():
            shutil.rmtree(retired, ignore_errors=True)


def remove_partial(folder: Path) -> None:
    """Remove what a killed process was writing into a folder, or into one below it."""
    for path in [*folder.rglob(f".*{_PARTIAL}")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def read_json(path: Path, what: str) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        what: what it should be, for the message.

    Raises:
        HeadlocError: when it is missing, not UTF-8 or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HeadlocError(f"There is no {what} at {path}. Check the path.") from None
    except UnicodeDecodeError:
        raise HeadlocError(f"{path} is not UTF-8 text, so it is no {what}.") from None
    # ValueError: also numbers of more digits than Python converts.
    except (ValueError, RecursionError) as error:
        raise HeadlocError(f"{path} is not valid JSON ({error}), so it is no {what}.") from None


def file_name(name: str, what: str) -> str:
    """Return a name that comes from outside, where it names one file or folder and no path.

    Args:
        name: the name.
        what: what is called so, for the message.

    Raises:
        HeadlocError: when it would lead to another folder, or is no name on every system.
    """
    if not _FILE_NAME.fullmatch(name):
        raise HeadlocError(
            f"{what} is called {name!r}, which cannot name a file: write 1 to 100 letters, digits, "
            "spaces, `_`, `-`, `+`, `=` or `.`, not first a dot."
        )
    return name


def usable_output_dir(path: str | Path) -> Path:
    """Make the output folder and check, before any work is done, that it can be written to.

    Raises:
        HeadlocError: when it cannot.
    """
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise HeadlocError(
            f"output_dir={folder} cannot be written to ({error.strerror}). "
            "Choose another folder with output_dir=DIR."
        ) from None
    return folder


def jsonable(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy in which tuples are lists, as JSON would give it back."""
    return json.loads(json.dumps(dict(mapping)))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
