"""The distributions, built once."""

from __future__ import annotations

import pytest

from tests.packaging.building import ROOT, Built, build


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Source distribution and wheels of the sources as they are now."""
    if not (ROOT / ".git").exists():
        pytest.skip("Distributions are built from a checkout.")
    return build(tmp_path_factory.mktemp("release"))
