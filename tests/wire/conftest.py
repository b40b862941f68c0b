"""The wire tests run on the event loop of production and on a sidecar, as the integration tests do."""

from __future__ import annotations

from tests.integration.conftest import outrider, pytest_asyncio_loop_factories

__all__ = ["outrider", "pytest_asyncio_loop_factories"]
