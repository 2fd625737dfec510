"""The source distribution: what setuptools takes, and what it takes to develop and test.

pyproject.toml names the class, so that no further file stands at the top level.  With
SOURCE_DATE_EPOCH set, the archive is the same bits wherever it is built.
"""

from __future__ import annotations

import gzip
import os
import tarfile
from pathlib import Path
from typing import Any

from setuptools.command.sdist import sdist

EXTRA = (
    ".ci", ".gitignore", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "constraints.txt", "tests",
)  # fmt: skip
"""What a checkout has beside the sources of the wheel; what is not there is left out."""


def extra_files(root: Path) -> list[str]:
    """Return the files of `EXTRA`, relative to the root; caches are no sources."""
    found: list[Path] = []
    for name in EXTRA:
        path = root / name
        found += [path] if path.is_file() else sorted(path.rglob("*"))
    return [
        path.relative_to(root).as_posix()
        for path in found
        if path.is_file() and not {"__pycache__", ".hypothesis"} & set(path.parts)
    ]


class SourceDistribution(sdist):
    """`sdist` with the tests, as one reproducible archive."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Add what setuptools does not know of."""
        super().make_release_tree(base_dir, sorted({*files, *extra_files(Path.cwd())}))

    def make_archive(self, base_name: Any, format: str, *args: Any, **options: Any) -> str:
        """Write the archive, with the time of SOURCE_DATE_EPOCH where it is set."""
        epoch = os.environ.get("SOURCE_DATE_EPOCH")
        if format != "gztar" or epoch is None:
            return super().make_archive(base_name, format, *args, **options)
        archive = Path(f"{base_name}.tar.gz")
        archive.parent.mkdir(parents=True, exist_ok=True)
        write_archive(Path(options["base_dir"]), archive, int(epoch))
        return str(archive)


def write_archive(folder: Path, archive: Path, seconds: int) -> None:
    """Write a folder as .tar.gz: sorted, of nobody's, every file of the same time."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mtime, member.uid, member.gid, member.uname, member.gname = seconds, 0, 0, "", ""
        executable = member.isdir() or member.mode & 0o100
        member.mode = 0o755 if executable else 0o644
        return member

    with (
        archive.open("wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=seconds) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in (folder, *sorted(folder.rglob("*"))):
            tar.add(path, recursive=False, filter=plain)
