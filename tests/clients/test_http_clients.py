"""Real clients call a real service through Outrider, by path prefix, by port and as a proxy, and notice nothing."""

from __future__ import annotations

import gzip
import hashlib
import json
from itertools import pairwise

import pytest

from tests.clients.conftest import Outrider, Way, only
from tests.clients.drivers import Ask, Curl, Driver, Node
from tests.clients.target import COOKIES, ETAG, EVENT_PAUSE, EVENTS, SIZE, TEXT, pattern

BODY = pattern(SIZE)
CHECKSUM = hashlib.sha256(BODY).hexdigest()


def names(echoed: list[list[str]]) -> set[str]:
    return {name.lower() for name, _ in echoed}


def came_through_us(echoed: list[list[str]]) -> bool:
    return any(name == "via" and value.startswith("1.1 outrider-") for name, value in echoed)


def test_json_there_and_back(client: Driver, way: Way) -> None:
    """A POST arrives as it was sent, by way of Outrider, and its JSON answer comes back."""
    body = json.dumps({"name": "Zoë", "ids": [1, 2, 3]}).encode()
    answer = client.call(way.ask("/orders", method="POST", headers=[("Content-Type", "application/json")], body=body))
    seen = answer.json()
    assert answer.status == 200
    assert answer.get("content-type").startswith("application/json")
    assert (seen["method"], seen["target"], seen["version"]) == ("POST", "/orders", "1.1")
    assert seen["sha256"] == hashlib.sha256(body).hexdigest()
    assert came_through_us(seen["headers"])
    assert [value for name, value in seen["headers"] if name.lower() == "content-type"] == ["application/json"]


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_methods(client: Driver, way: Way, method: str) -> None:
    """Every method arrives as itself."""
    assert client.call(way.ask("/thing", method=method)).json()["method"] == method


def test_several_calls_take_one_connection(client: Driver, way: Way) -> None:
    """What the client keeps alive stays alive: answers of every framing, and ones without a body."""
    paths = ["/a", "/download", "/download?chunked", "/gzip", "/cookies", "/b"]
    assert client.connections([way.ask(path) for path in paths]) == 1


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_a_large_upload(client: Driver, way: Way, chunked: bool) -> None:
    """2 MB arrive complete and in order, framed either way."""
    seen = client.call(way.ask("/upload", method="POST", body=BODY, chunked=chunked)).json()
    assert (seen["length"], seen["sha256"]) == (SIZE, CHECKSUM)
    assert ("transfer-encoding" in names(seen["headers"])) is chunked
    assert ("content-length" in names(seen["headers"])) is not chunked


@pytest.mark.parametrize("path", ["/download", "/download?chunked"])
def test_a_large_download(client: Driver, way: Way, path: str) -> None:
    """2 MB come back complete and in order, framed either way."""
    answer = client.call(way.ask(path))
    assert (len(answer.body), hashlib.sha256(answer.body).hexdigest()) == (SIZE, CHECKSUM)


def test_head(client: Driver, way: Way) -> None:
    """HEAD is answered with the length that GET would have, no body, and the next call works."""
    answer = client.call(way.ask("/download", method="HEAD"))
    assert (answer.status, answer.body, answer.get("content-length")) == (200, b"", str(SIZE))
    assert client.call(way.ask("/after")).json()["target"] == "/after"


def test_no_content(client: Driver, way: Way) -> None:
    """204 has neither body nor framing, and the next call works."""
    answer = client.call(way.ask("/status/204"))
    assert (answer.status, answer.body) == (204, b"")
    assert not answer.get("content-length")
    assert not answer.get("transfer-encoding")
    assert client.call(way.ask("/after")).json()["target"] == "/after"


def test_not_modified(client: Driver, way: Way) -> None:
    """An entity tag comes back unchanged, is understood when sent, and 304 has no body; the next call works."""
    first = client.call(way.ask("/tagged"))
    assert (first.status, first.body, first.get("etag")) == (200, b"version one", ETAG)
    again = client.call(way.ask("/tagged", headers=[("If-None-Match", first.get("etag"))]))
    assert (again.status, again.body, again.get("etag")) == (304, b"", ETAG)
    assert client.call(way.ask("/after")).json()["target"] == "/after"


@pytest.mark.parametrize("how", ["path", "relative", "url"])
def test_a_redirect_is_followed_through_outrider(client: Driver, way: Way, how: str) -> None:
    """Following `Location` leads to the target by way of Outrider again, also under a prefix, and where it was the
    target's own address."""
    answer = client.call(way.ask(f"/redirect/{how}", follow=True))
    seen = answer.json()
    assert (answer.status, seen["target"]) == (200, "/echo?redirected=1")
    assert came_through_us(seen["headers"])
    assert answer.url == f"{way.base}/echo?redirected=1"


def test_a_redirected_post_is_posted_again(client: Driver, way: Way) -> None:
    """307 keeps method and body."""
    ask = way.ask("/redirect/path?status=307", method="POST", body=b"again", follow=True)
    seen = client.call(ask).json()
    assert (seen["method"], seen["text"]) == ("POST", "again")


def test_compressed_answers(client: Driver, way: Way) -> None:
    """A compressed answer keeps its coding and its bytes; who decodes it is the client."""
    answer = client.call(way.ask("/gzip", headers=[("Accept-Encoding", "gzip")]))
    assert answer.status == 200
    if isinstance(client, (Curl, Node)) and answer.body[:2] == b"\x1f\x8b":
        assert answer.get("content-encoding") == "gzip"
        assert answer.body == gzip.compress(TEXT.encode(), mtime=0)
    else:
        assert answer.body == TEXT.encode()


def test_events_arrive_one_by_one(client: Driver, way: Way) -> None:
    """Server-sent events are passed on as they come, not gathered."""
    for _ in range(3):  # another process may have had the processor just then
        times = client.events(way.ask("/events"))
        assert len(times) == EVENTS
        if min(later - earlier for earlier, later in pairwise(times)) > EVENT_PAUSE / 2:
            return
    pytest.fail(f"they came in bunches: {times}")


@only("prefix", "proxy")
def test_an_unknown_service(client: Driver, way: Way, outrider: Outrider) -> None:
    """A name that nobody knows is a 502 with a problem document, and the connection goes on."""
    url = "http://nobody.test/x" if way.proxy else f"http://127.0.0.1:{outrider.port}/nobody/x"
    answer = client.call(Ask(url, proxy=way.proxy))
    assert (answer.status, answer.get("content-type")) == (502, "application/problem+json")
    assert answer.json()["error"] == "UNKNOWN_SERVICE"
    assert client.call(way.ask("/after")).status == 200


def test_a_target_that_does_not_answer(client: Driver, way: Way) -> None:
    """A call that takes too long is a 504 with a problem document, and the client is fit for the next."""
    answer = client.call(way.ask("/hang"))
    assert (answer.status, answer.get("content-type")) == (504, "application/problem+json")
    assert answer.json()["origin"]
    assert client.call(way.ask("/after")).status == 200


@pytest.mark.parametrize("status", [400, 404, 409, 418, 429, 500, 503])
def test_errors_of_the_target(client: Driver, way: Way, status: int) -> None:
    """What the target answers is what the client gets, also when it is an error."""
    answer = client.call(way.ask(f"/status/{status}", method="POST", body=b"x"))
    assert (answer.status, answer.body) == (status, f"status {status}".encode())


def test_several_cookies(client: Driver, way: Way) -> None:
    """Set-Cookie fields stay apart and in order; by prefix, they are scoped to their service."""
    scope = "/" + way.base.split("/", 3)[3] if way.name == "prefix" else "/"
    scoped = [cookie.replace("Path=/", f"Path={scope}") for cookie in COOKIES]
    assert client.call(way.ask("/cookies")).get_all("set-cookie") == scoped


@pytest.mark.parametrize(
    "path",
    [
        "/caf%C3%A9/%E2%9C%93/%F0%9F%98%80",
        "/a%2Fb/c%20d",
        "/search?q=%C3%BC+x&a=1&a=2&empty=&flag",
        "/search?redirect=http%3A%2F%2Fx%2Fy%3Fz",
        "/a//b/",
        "/semi;v=1/at@x/colon:y/~tilde",
    ],
)
def test_targets_arrive_byte_for_byte(client: Driver, way: Way, path: str) -> None:
    """Percent-encoded paths, doubled slashes and query strings are not touched."""
    assert client.call(way.ask(path)).json()["target"] == path


def test_headers_keep_their_case_and_bytes(client: Driver, way: Way) -> None:
    """Header names come through as they are written, and values with all their bytes."""
    value = 'a, "b;c"; d=\ttab   three spaces'
    answer = client.call(way.ask("/headers", headers=[("X-WeiRD-Case", value), ("X-Empty", "0")]))
    seen = answer.json()["headers"]
    assert ["X-WeiRD-Case", value] in seen
    answered = "X-MiXeD-Case" if client.keeps_answer_case else "x-mixed-case"
    assert (answered, "kept") in [(name, value) for name, value in answer.headers]


def test_nothing_of_the_hop_to_outrider_arrives(client: Driver, way: Way) -> None:
    """What a client says to its proxy alone is not passed on (RFC 9110 §7.6.1)."""
    seen = client.call(way.ask("/hop")).json()["headers"]
    assert names(seen).isdisjoint({"proxy-connection", "keep-alive", "te", "proxy-authorization"})
    assert next(value for name, value in seen if name.lower() == "host").startswith("127.0.0.1:")


def test_a_client_that_leaves_in_the_middle(client: Driver, way: Way, outrider: Outrider) -> None:
    """Hanging up in the middle of an answer ends that call only; the same client and all others go on."""
    for _ in range(3):
        client.abort(way.ask("/endless"), 100_000)
    assert client.call(way.ask("/after")).json()["target"] == "/after"
    outrider.wait_for("outrider_in_flight_requests", 0)
    assert outrider.metric("outrider_internal_errors_total") == 0
