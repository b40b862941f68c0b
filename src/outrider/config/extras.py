"""Libraries that only some configurations need, and that are installed only when asked for."""

from __future__ import annotations

from importlib.util import find_spec

from outrider.config.schema import Config
from outrider.config.source import Document, KeyPath


def check_extras(config: Config, document: Document) -> None:
    """Complain where a configuration asks for something whose library is not installed."""
    tokens: list[KeyPath] = [("credentials", name, "jwt") for name, one in config.credentials.items() if one.jwt]
    if config.inbound is not None:
        tokens += [("inbound", "accept", index, "jwt") for index, one in enumerate(config.inbound.accept) if one.jwt]
    if tokens and find_spec("jwt") is None:
        document.complain(tokens[0], "tokens need PyJWT", "pip install 'outrider[jwt]'")
    remembered = config.inbound.idempotency if config.inbound is not None else None
    if remembered and remembered.store == "redis" and find_spec("redis") is None:
        document.complain(("inbound", "idempotency", "store"), "redis needs redis-py", "pip install 'outrider[redis]'")
    for name, service in config.services.items():
        if any(target.url.startswith("dnssrv+") for target in service.url) and find_spec("dns") is None:
            document.complain(("services", name), "dnssrv+ needs dnspython", "pip install 'outrider[dns]'")
