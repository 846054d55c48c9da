from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from manager import Manager


@pytest.fixture
def empty_manager(tmp_path: Path) -> Iterator[Manager]:
    """A manager without sockets."""
    manager = Manager(tmp_path)
    yield manager
    manager.close()


@pytest.fixture
def manager(empty_manager: Manager) -> Manager:
    """A manager that holds one TCP socket, named http."""
    return empty_manager.bind()
