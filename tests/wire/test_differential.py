"""Every case of the table through Outrider, byte by byte on real sockets."""

from __future__ import annotations

import pytest

from tests.integration.conftest import Outrider
from tests.wire.cases import CASES
from tests.wire.driver import Target, in_pieces, run
from tests.wire.model import CREDENTIAL, SECRET, Case

GROUPS = {
    "CL.TE", "TE.CL", "CL+TE", "duplicate CL", "CL grammar", "TE obfuscation", "TE in HTTP/1.0", "CL.0", "0.CL",
    "line ends", "space before colon", "Host", "request line", "chunk size", "chunk extensions", "trailers",
    "credentials", "hop-by-hop requests", "hop-by-hop answers", "Expect", "HTTP/1.0", "connections and pipelining",
    "size limits", "slow", "truncated answers", "malformed answers", "response queue", "1xx", "retries", "upgrade",
}  # fmt: skip

# On the port of a service another way leads to the target, and these are about the way.
ON_ITS_PORT = {"CL.TE", "TE.CL", "Host", "credentials", "HTTP/1.0"}


def config(case: Case, target: Target) -> str:
    """A sidecar with one service, which has a credential and a port of its own."""
    short = "limits: { header_timeout: 300ms, body_idle_timeout: 300ms }\n" if case.limits == "short" else ""
    timeout = "timeout: 1s, attempt_timeout: 300ms, retry: false, " if case.limits == "short" else ""
    return (
        f"{short}credentials:\n  key: {{ header: {CREDENTIAL}, value: {SECRET.decode()} }}\n"
        f"services:\n  user: {{ url: '{target.url}', port: 0, auth: key, {timeout}circuit_breaker: false }}"
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_no_byte_is_misunderstood(outrider: Outrider, case: Case) -> None:
    """Whatever the app or the target sends, both ends get well-formed messages that are theirs, or visibly none. Where
    the segments end makes no difference, and a port that names the service is no way around it."""
    async with Target() as target, outrider(config(case, target)) as proxy:
        ways = [(case, proxy.port), (in_pieces(case), proxy.port)]
        if case.group in ON_ITS_PORT:
            ways.append((case, proxy.port_of("user")))
        for variant, port in ways:
            if variant is not None:
                wrong = await run(variant, port, target)
                assert not wrong, "\n".join([*wrong, f"app: {variant.app!r:.600}", f"target: {variant.target!r:.600}"])


def test_the_table_is_whole() -> None:
    """Every class is there, every case has a name of its own, and says which section it stands on."""
    names = [case.name for case in CASES]
    assert len(names) >= 300
    assert len(set(names)) == len(names)
    assert {case.group for case in CASES} == GROUPS
    assert all(case.rfc for case in CASES)
