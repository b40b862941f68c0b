"""Every wrong URL gets a sentence of its own, with a remedy, and without what people hide in URLs."""

from __future__ import annotations

import pytest

from outrider.config.urls import issuer_url_fault, target_url_fault

GOOD = [
    "http://127.0.0.1:3001",
    "https://payment-service",
    "http://user-service:3001/",
    "http://user-service:3001/base/path",
    "http://[2001:db8::1]:3001",
    "http://[::1]",
    "dns+http://user-service:3001",
    "dnssrv+http://_http._tcp.user",
    "file+/etc/users.yaml",
]

WRONG = [
    ("", "empty"),
    ("http://me:secret@user:3001", "user name or password"),
    ("http://me@user", "user name or password"),
    ("http://user:3001/x?key=secret", "no query"),
    ("http://user:3001?key=secret", "no query"),
    ("http://user/#secret", "no fragment"),
    ("unix:///run/user.sock", "Unix sockets"),
    ("ws://user:3001", "write http://"),
    ("wss://user:3001", "write https://"),
    ("grpc://user:3001", "not a scheme"),
    ("htps://user:3001", "not a scheme"),
    ("127.0.0.1:3001", "write http://127.0.0.1:3001"),
    ("user-service", "write http://user-service"),
    ("http://::1:3001", "needs brackets"),
    ("http://2001:db8::1", "needs brackets"),
    ("http://[::g]:3001", "IPv6 address in brackets"),
    ("http://[::1", "IPv6 address in brackets"),
    ("http://:3001", "names no host"),
    ("http://", "names no host"),
    ("http:///path", "names no host"),
    ("http://{HOST}:3001", "not a template"),
    ("http://user service:3001", "spaces"),
    ("http://user/a b", "spaces"),
    ("http://user:0", "port 0"),
    ("http://user:65536", "port 65536"),
    ("http://user:http", "port http"),
    ("http://user:", "behind the colon"),
    ("http://user:" + "9" * 5000, "port 9999"),
    ("http://m\u00fcnchen:3001", "xn--"),
    ("dnssrv+http://user:3001", "SRV records"),
    ("http://user:3001/caf\u00e9", "percent-encode"),
    ("http://user:3001/a\x7fb", "percent-encode"),
    ("file+users.yaml", "absolute path"),
]


@pytest.mark.parametrize("url", GOOD)
def test_a_good_url_is_accepted(url: str) -> None:
    """What is documented is accepted."""
    assert target_url_fault(url) is None


@pytest.mark.parametrize(("url", "words"), WRONG)
def test_a_wrong_url_says_what_is_wrong(url: str, words: str) -> None:
    """The sentence is about this very mistake, and shows no secret."""
    fault = target_url_fault(url)
    assert fault is not None
    assert words in " ".join(fault)
    assert "secret" not in " ".join(fault)


def test_a_token_endpoint_may_have_a_query() -> None:
    """As RFC 6749 section 3.2 allows, and some issuers need."""
    assert issuer_url_fault("https://login.example.com/t?tenant=1&x=%2B") is None
    assert issuer_url_fault("https://login.example.com?tenant=1") is None


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://me:secret@login.example.com/t", "client_id and client_secret"),
        ("https://login.example.com/t#x", "no fragment"),
        ("https://login.example.com/t?a b", "spaces"),
        ("https://login.example.com:0/t?a=b", "port 0"),
        ("login.example.com/t", "token_url: https://"),
        ("dns+http://login.example.com/t", "token_url: https://"),
    ],
)
def test_what_is_wrong_with_a_token_endpoint_is_said(url: str, words: str) -> None:
    """In words about token endpoints, not about targets."""
    fault = issuer_url_fault(url)
    assert fault is not None
    assert words in " ".join(fault)
    assert "target" not in " ".join(fault)
