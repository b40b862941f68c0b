"""Contexts for TLS to targets: as many as there are different files, and replaced for all that share one."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from outrider.config.schema import ClientTls
from outrider.controlplane.certificates import Certificates
from outrider.controlplane.endpoints import EndpointMaker
from outrider.dataplane.runtime.counters import ClusterStats
from outrider.dataplane.upstream.cluster import Endpoint


def endpoint_of(certificates: Certificates, name: str, files: ClientTls, host: str = "h") -> Endpoint:
    """An https endpoint of a service with these files."""
    maker = EndpointMaker(name, files, stats=ClusterStats(), idle_timeout=60.0)
    endpoint = maker.from_url(f"https://{host}:1")
    certificates.secure(maker)
    return endpoint


def context_of(endpoint: Endpoint) -> object:
    assert endpoint.tls is not None
    return endpoint.tls.context


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    file = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(file))
    return file


def test_services_with_the_same_files_share_a_context(authority: Path) -> None:
    """A thousand https services have one context, not a thousand; each keeps the name it expects."""
    certificates = Certificates()
    plain = [endpoint_of(certificates, f"p{number}", ClientTls(), f"h{number}") for number in range(3)]
    other = [endpoint_of(certificates, f"o{number}", ClientTls(ca=str(authority))) for number in range(2)]
    named = endpoint_of(certificates, "n", ClientTls(server_name="other.test"))
    assert len({id(context_of(one)) for one in (*plain, named)}) == 1
    assert len({id(context_of(one)) for one in other}) == 1
    assert context_of(plain[0]) is not context_of(other[0])
    assert [one.tls.server_name for one in (*plain, named) if one.tls] == ["h0", "h1", "h2", "other.test"]


async def test_a_new_file_reaches_everybody_who_uses_it(authority: Path) -> None:
    """All services get the new context, which is made once; and the expiry is shown for each of them."""
    certificates = Certificates()
    ends = [endpoint_of(certificates, name, ClientTls(ca=str(authority))) for name in ("a", "b", "c")]
    before = context_of(ends[0])
    (watched,) = certificates._watched
    await certificates.refresh(watched)
    assert context_of(ends[0]) is before  # nothing has changed
    trustme.CA().cert_pem.write_to_path(str(authority))
    await certificates.refresh(watched)
    assert len({id(context_of(one)) for one in ends}) == 1
    assert context_of(ends[0]) is not before
    assert [(owner, which) for owner, which, _ in certificates.expiries()] == [(name, "ca") for name in "abc"]
    assert watched.shown == "a and 2 more"
