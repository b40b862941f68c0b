"""What all tests on real sockets share: the event loop of production, and a sidecar to start."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path

import pytest
import uvloop

from tests.integration.harness import Sidecar, sidecar

LoopFactory = Callable[[], asyncio.AbstractEventLoop]
Outrider = Callable[[str], AbstractAsyncContextManager[Sidecar]]


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, LoopFactory]:
    """Production runs on uvloop, whose transports differ from asyncio's in the details that matter here."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def outrider(tmp_path: Path) -> Outrider:
    """`async with outrider(config_text) as proxy`."""
    return partial(sidecar, tmp_path)
