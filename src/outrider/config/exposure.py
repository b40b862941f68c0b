"""Ports that are open to more than the app."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address

from outrider.config.schema import Config
from outrider.config.source import Document


def check_exposure(config: Config, with_credentials: Sequence[str], document: Document) -> None:
    """Warn where others than the app can use the credentials that Outrider adds; `with_credentials` are the services
    that get some."""
    host, port = config.listen
    if with_credentials and not _is_loopback(host):
        names = ", ".join(with_credentials[:3]) + (", ..." if len(with_credentials) > 3 else "")
        message = f"whoever reaches {host}:{port} calls {names} with the credentials of this configuration"
        hint = f"listen: 127.0.0.1:{port}; the containers of a pod share it"
        document.complain(("listen",), message, hint, warn=True)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
