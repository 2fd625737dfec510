"""What the source distribution and the wheel hold: all of it, and nothing else."""

from __future__ import annotations

import hashlib
import stat
import tarfile
from email.message import Message
from email.parser import BytesParser
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.metadata import Metadata
from packaging.specifiers import SpecifierSet

from headloc import __version__
from tests.packaging.building import (
    ROOT,
    Built,
    build,
    files_of_sdist,
    files_of_wheel,
    installed_name,
    tracked,
)

METADATA = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}
GENERATED = {
    "PKG-INFO", "setup.cfg",
    *(f"headloc.egg-info/{name}" for name in (
        "PKG-INFO", "SOURCES.txt", "dependency_links.txt", "entry_points.txt", "requires.txt",
        "top_level.txt",
    )),
}  # fmt: skip


def metadata_of(wheel: Path) -> bytes:
    return files_of_wheel(wheel)[f"headloc-{__version__}.dist-info/METADATA"]


def message(wheel: Path) -> Message:
    return BytesParser().parsebytes(metadata_of(wheel))


def test_the_source_distribution_is_the_checkout(built: Built) -> None:
    files = files_of_sdist(built.sdist)
    assert set(files) == {*tracked(), *GENERATED}
    for name in tracked():
        assert files[name] == (ROOT / name).read_bytes(), name


def test_the_wheel_is_the_sources_and_their_metadata(built: Built) -> None:
    files = files_of_wheel(built.wheel)
    places = {name: place for name in tracked() if (place := installed_name(name))}
    info = f"headloc-{__version__}.dist-info"
    assert set(files) == {*places.values(), *(f"{info}/{name}" for name in METADATA)}
    for name, place in places.items():
        assert files[place] == (ROOT / name).read_bytes(), name
    assert {"headloc/py.typed", "headloc/conf/localize.yaml"} <= set(files)


def test_a_wheel_from_the_source_distribution_is_one_from_the_checkout(built: Built) -> None:
    assert files_of_wheel(built.wheel) == files_of_wheel(built.direct)
    assert built.wheel.read_bytes() == built.direct.read_bytes()


def test_a_second_build_gives_the_same_bits(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    again = build(tmp_path)
    for first, second in ((built.sdist, again.sdist), (built.wheel, again.wheel)):
        sums = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (first, second)]
        assert sums[0] == sums[1], first.name


def test_files_that_git_does_not_know_stay_out(built: Built) -> None:
    """A stale build folder of setuptools would otherwise get into the wheel."""
    assert not (built.source / ".venv").exists()
    assert {path.name for path in built.source.iterdir()} <= {
        *(name.partition("/")[0] for name in tracked()), "build", "headloc.egg-info",
    }  # fmt: skip


def test_no_member_leaves_its_folder_or_is_anything_but_a_plain_file(built: Built) -> None:
    top = f"headloc-{__version__}"
    with tarfile.open(built.sdist) as file:
        for member in file.getmembers():
            assert member.isfile() or member.isdir(), member.name
            assert member.name == top or member.name.startswith(f"{top}/")
            assert ".." not in Path(member.name).parts
            assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", "")
    with ZipFile(built.wheel) as wheel:
        for entry in wheel.infolist():
            assert stat.S_ISREG(entry.external_attr >> 16)
            assert not stat.S_IMODE(entry.external_attr >> 16) & 0o1002, entry.filename


def test_nothing_generic_is_installed(built: Built) -> None:
    tops = {name.partition("/")[0] for name in files_of_wheel(built.wheel)}
    assert tops == {"headloc", f"headloc-{__version__}.dist-info"}


def test_the_metadata_is_valid_and_tells_what_is_tested(built: Built) -> None:
    found = Metadata.from_email(metadata_of(built.wheel), validate=True)
    assert (found.name, str(found.version)) == ("headloc", __version__)
    assert found.license_expression == "MIT"
    assert found.license_files == ["LICENSE"]
    assert found.description_content_type == "text/markdown"
    assert found.description.strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()
    assert found.requires_python == SpecifierSet(">=3.11")
    classifiers = set(found.classifiers)
    assert {"Typing :: Typed", "Programming Language :: Python :: 3.11"} <= classifiers
    # A license expression replaces the classifiers of licenses (PEP 639).
    assert not any(name.startswith("License ::") for name in classifiers)


def test_the_readme_renders(built: Built) -> None:
    """As on the page of a package index: headings, code and tables come out as such."""
    from markdown_it import MarkdownIt

    text = Metadata.from_email(metadata_of(built.wheel)).description
    page = MarkdownIt("commonmark").enable("table").render(text)
    assert page.count("<h1>") == 1
    assert page.count("<pre><code") == text.count("\n```") // 2
    assert "```" not in page
    # Every row of a table is part of one, and no markup is left over in the text.
    rows = sum(line.startswith("|") for line in text.splitlines())
    rules = sum(set(line) <= set("|-: ") for line in text.splitlines() if line.startswith("|"))
    assert page.count("<tr>") == rows - rules


def test_the_source_distribution_and_the_wheel_say_the_same_of_themselves(built: Built) -> None:
    assert files_of_sdist(built.sdist)["PKG-INFO"] == metadata_of(built.wheel)
    assert not message(built.wheel).defects
