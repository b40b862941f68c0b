"""Keeps pages in a browser from using the calls port (docs/decisions/0015).

Any page may make the browser on this machine send requests to 127.0.0.1, and would get them carried with the
credentials of the platform. Browsers say where a request comes from (`Origin`, Fetch Metadata), except where a page has
made its own name resolve to this machine (DNS rebinding): then the name in `Host` is not one of ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from outrider.dataplane.engine.routing import bare_host
from outrider.model.failure import Failure, Kind

if TYPE_CHECKING:
    from outrider.dataplane.call import Call
    from outrider.dataplane.engine.routing import RouteTable

ANY: Final = "*"
# Fetch Metadata §2.3: what our own pages send, and what somebody has typed into the address bar.
_OWN_SITES: Final = frozenset((b"same-origin", b"none"))
# Names that nobody can register, so that no page can come from them (RFC 6761 §6; `internal` is reserved by ICANN).
_NOT_REGISTERED: Final = (b".localhost", b".test", b".internal")
_ADDRESS: Final = re.compile(rb"[0-9]{1,3}(?:\.[0-9]{1,3}){3}|\[[0-9a-f:.]+\]")
_LOCAL_ORIGIN: Final = re.compile(
    rb"https?://(?:localhost|[a-z0-9.-]{1,240}\.localhost|127(?:\.[0-9]{1,3}){3}|\[::1\])(?::[0-9]{1,5})?/?"
)
# Host values that are kept, and how long they may be: a name of 255 bytes, and a port.
_MOST_HOSTS: Final = 256
_LONGEST_HOST: Final = 262
_SHOWN: Final = 80  # bytes of what a stranger has sent


class Browsers:
    """Refuses requests of pages. `fine` are the Host values that have been found to be ours."""

    __slots__ = ("_any_origin", "_hosts", "_origins", "fine")

    def __init__(self, hosts: Iterable[str] = (), origins: Iterable[str] = ()) -> None:
        """`hosts` are further names that we are called by, `origins` those of pages that may call us, or ANY."""
        self._hosts = frozenset(host.lower().encode() for host in hosts)
        self._origins = frozenset(origin.lower().rstrip("/").encode() for origin in origins)
        self._any_origin = ANY.encode() in self._origins
        self.fine: set[bytes | None] = {None}

    def refuse_page(self, call: Call) -> Failure | None:
        """Why a request that says where it comes from is refused; None if it is not."""
        if self._any_origin:
            return None
        origin, site = call.noted.get(b"origin"), call.noted.get(b"sec-fetch-site")
        if origin is not None and origin.lower() in self._origins:
            return None
        if site is not None:
            own = site in _OWN_SITES
        else:
            # Some clients that are no browsers say that they come from here, because they have to say something.
            own = origin is None or self._is_local(origin.lower(), call.noted.get(b"host", b""))
        if own:
            return None
        shown = origin[:_SHOWN].decode("latin-1") if origin is not None else "another site"
        return Failure(
            Kind.FORBIDDEN,
            f"pages in a browser may not call from {shown} (browsers); if the app passes browsers' requests on,"
            " let it take Origin and Sec-Fetch-Site off, or write browsers: pass",
        )

    def refuse_host(self, host: bytes, table: RouteTable) -> Failure | None:
        """Why a request over the loopback interface is refused for its Host; None if that is one of ours."""
        name = bare_host(host)
        if not self._is_ours(name, table):
            shown = name[:_SHOWN].decode("latin-1")
            return Failure(
                Kind.FORBIDDEN,
                f'the Host "{shown}" is not a name of ours, so a page in a browser may have chosen it;'
                f" if it is, add it to browsers.hosts",
            )
        if len(self.fine) < _MOST_HOSTS and len(host) <= _LONGEST_HOST:
            self.fine.add(host)
        return None

    def _is_ours(self, name: bytes, table: RouteTable) -> bool:
        return (
            b"." not in name  # one label is nobody's name on the Internet
            or name.endswith(_NOT_REGISTERED)
            or name in table.hosts
            or name in self._hosts
            or _ADDRESS.fullmatch(name) is not None
        )

    def _is_local(self, origin: bytes, host: bytes) -> bool:
        return _LOCAL_ORIGIN.fullmatch(origin) is not None or origin.partition(b"://")[2] == host.lower()
