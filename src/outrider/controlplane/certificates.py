"""Certificates and keys: contexts made from their files, made anew when a file changes, and when they expire."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from time import time

from outrider.blocking import run_apart
from outrider.config.schema import ClientTls
from outrider.config.schema import ServerTls as ServerFiles
from outrider.config.tls import LARGEST, load_client, load_server
from outrider.controlplane.endpoints import EndpointMaker
from outrider.controlplane.upkeep import repeat
from outrider.dataplane.upstream.tls import ResumingContext
from outrider.errors import StartError
from outrider.files import READ_TIMEOUT, FileError, read_small_file

log = logging.getLogger("outrider")

# Seconds between looks. Contents are compared, not times: orchestrators replace mounted files by renaming.
_INTERVAL = 1.0
_SOON = 7 * 24 * 3600.0


@dataclass(slots=True, frozen=True)
class Made:
    """A context made of files, and what they held."""

    put_to_use: Callable[[], None]
    contents: dict[str, bytes] = field(repr=False)
    expiries: dict[str, float]


@dataclass(slots=True)
class Watched:
    """Files that make one context. `owners` are those that use it; `build` reads the files and returns what puts the
    context to use; `expiries` are Unix times by file kind."""

    owners: list[str]
    files: dict[str, str]
    build: Callable[[], Callable[[], None]]
    contents: dict[str, bytes] = field(default_factory=dict, repr=False)
    expiries: dict[str, float] = field(default_factory=dict)
    failures: int = 0  # looks in a row at which the files could not be used

    @property
    def shown(self) -> str:
        """The owners in a sentence."""
        first, *others = self.owners
        return f"{first} and {len(others)} more" if others else first

    def use(self, made: Made | None) -> None:
        """Put a new context to use."""
        if made is not None:
            made.put_to_use()
            self.contents, self.expiries, self.failures = made.contents, made.expiries, 0


class SharedContext:
    """The context of all targets whose files are the same. Making one with the system's authorities takes 25 ms and a
    megabyte, so a thousand services do not have one each. Those of one host share its sessions."""

    def __init__(self, files: ClientTls) -> None:
        self._files = files
        self._makers: list[EndpointMaker] = []
        self._context: ResumingContext | None = None

    def add(self, maker: EndpointMaker) -> None:
        """Let the endpoints of a service use it, from when there is one."""
        self._makers.append(maker)
        if self._context is not None:
            maker.use(self._context)

    def build(self) -> Callable[[], None]:
        """Make it anew. Returns what puts it to use. Raises ValueError."""
        context = ResumingContext()
        load_client(context, self._files)

        def put_to_use() -> None:
            self._context = context
            for maker in self._makers:
                maker.use(context)

        return put_to_use


class Certificates:
    """All TLS of a configuration: of https targets, and of the inbound listener (`server`, None without TLS)."""

    def __init__(self) -> None:
        self.server: ssl.SSLContext | None = None
        self.on_new_server: Callable[[ssl.SSLContext], None] = lambda context: None
        self._watched: list[Watched] = []
        self._shared: dict[tuple[str | None, ...], tuple[SharedContext, list[str]]] = {}  # by their files
        self._targets: list[EndpointMaker] = []

    def secure(self, maker: EndpointMaker) -> None:
        """Give the https endpoints of a service their context, those to come included. Raises StartError."""
        files = maker.files
        named = {"ca": files.ca, "cert": files.cert, "key": files.key}
        key = tuple(named.values())
        if key in self._shared:
            shared, owners = self._shared[key]
            shared.add(maker)
            owners.append(maker.name)
        else:
            shared = SharedContext(files)
            shared.add(maker)
            self._shared[key] = shared, self._watch(maker.name, named, shared.build).owners
        self._targets.append(maker)

    def serve(self, files: ServerFiles, client_optional: bool = False) -> None:
        """Make the context of the inbound listener; with `client_optional`, callers need not show a certificate.
        Raises StartError."""

        def build() -> Callable[[], None]:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            load_server(context, files, client_optional)
            return lambda: self._use_server(context)

        named = {"cert": files.cert, "key": files.key, "client_ca": files.client_ca}
        self._watch("inbound", named, build)

    def _use_server(self, context: ssl.SSLContext) -> None:
        self.server = context
        self.on_new_server(context)

    def _watch(self, owner: str, named: dict[str, str | None], build: Callable[[], Callable[[], None]]) -> Watched:
        watched = Watched([owner], {kind: file for kind, file in named.items() if file is not None}, build)
        try:
            made = _made(watched)
        except (ValueError, FileError) as error:
            raise StartError(f"the certificates of {owner}: {error}") from None
        watched.use(made)
        if watched.files:
            self._watched.append(watched)
        return watched

    async def watch(self) -> None:
        """Look again and again, until cancelled."""
        looks = (
            repeat(f"certificates of {one.owners[0]}", partial(self._look, one), _INTERVAL) for one in self._watched
        )
        await asyncio.gather(*looks)

    async def _look(self, watched: Watched) -> float:
        await self.refresh(watched)
        return _INTERVAL

    async def refresh(self, watched: Watched) -> None:
        """Use new files, if they are usable together; otherwise keep the last ones, and say so once."""
        try:
            made = await run_apart(("certificates", watched.owners[0]), lambda: _made(watched), READ_TIMEOUT)
            watched.failures = 0 if made is None else watched.failures
            if made is None:
                return
        except (ValueError, FileError, OSError) as error:
            watched.failures += 1
            if watched.failures == 2:  # certificate and key are not replaced in the same instant
                why = "their files could not be read in time" if isinstance(error, TimeoutError) else error
                log.error("%s: the last certificates are kept: %s", watched.shown, why)
            return
        watched.use(made)
        log.info("new certificates for %s", watched.shown)

    def expiries(self) -> Iterator[tuple[str, str, float]]:
        """`(owner, which, Unix time)`: of our own certificate, of the authorities (the first to expire), and of what
        targets have shown."""
        for watched in self._watched:
            for kind, when in watched.expiries.items():
                yield from ((owner, kind, when) for owner in watched.owners)
        shown: dict[str, float] = {}
        for maker in self._targets:
            for endpoint, _ in maker.made:
                if endpoint.tls is not None and endpoint.tls.peer_expires:
                    shown[maker.name] = min(shown.get(maker.name, float("inf")), endpoint.tls.peer_expires)
        for service, when in shown.items():
            yield service, "target", when


def _made(watched: Watched) -> Made | None:
    """What the files of a context hold now, or None if that is what they held before. Raises ValueError or
    FileError."""
    contents = {file: read_small_file(file, LARGEST) for file in watched.files.values()}
    if watched.contents and contents == watched.contents:
        return None
    put_to_use = watched.build()
    return Made(put_to_use, contents, _expiries(watched, contents))


def _expiries(watched: Watched, contents: dict[str, bytes]) -> dict[str, float]:
    """When the certificates in each file expire; the earliest counts."""
    from cryptography import x509  # imported only where there are certificates of our own

    found = {}
    for kind, file in watched.files.items():
        if kind == "key":
            continue
        try:
            certificates = x509.load_pem_x509_certificates(contents[file])
        except ValueError:
            continue  # nothing that OpenSSL has minded
        when = min(one.not_valid_after_utc.timestamp() for one in certificates)
        found[kind] = when
        if when - time() < _SOON:
            log.warning("%s: %s expires in %.1f days", watched.shown, file, (when - time()) / 86400)
    return found
