"""A desk to type at."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.desk import GPUNODES, POLICIES, Desk, desk_at
from tests.cli.objects import fleet


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """With the fleet of `objects.py` behind it."""
    with desk_at(tmp_path) as found:
        policies, nodes = fleet()
        found.server.lists = {POLICIES: policies, GPUNODES: nodes}
        yield found
