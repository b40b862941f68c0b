"""Secrets in URLs stay out of everything that is shown."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from outrider.model.addresses import hidden_parts, hide_in_urls


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("nothing to hide", "nothing to hide"),
        ("http://127.0.0.1:3001/path", "http://127.0.0.1:3001/path"),
        ("http://[::1]:80/x", "http://[::1]:80/x"),
        ("see http://[::1].", "see http://[::1]."),
        ("redis://:p@ss@host:6379/0", "redis://***@host:6379/0"),
        ("redis://user:p@@host", "redis://***@host"),
        ("redis://:p/ss@host/0", "redis://***"),
        ("redis://:p?ss@host/0", "redis://***"),
        ("redis://:p#ss@host/0", "redis://***"),
        ("https://a:b@host/keys?token=c#d", "https://***@host/keys?***"),
        ("https://host:443/keys?mail=a@b", "https://***"),
        ("https://host/@scope/keys", "https://host/@scope/keys"),
        ("https://host/keys?mail=a@b", "https://host/keys?***"),
        ("https://host/keys#secret", "https://host/keys#***"),
        ("unix:///run/redis.sock?password=x", "unix:///run/redis.sock?***"),
        ("dns+http://u:p@name:80", "dns+http://***@name:80"),
        ("two: http://u:p@a/?x=1, and https://v:q@b.", "two: http://***@a/?***, and https://***@b."),
        ("/health?token=abc answered 500", "/health?*** answered 500"),
        ("what? no", "what? no"),
        ("url='http://u:p@h/x?y'", "url='http://***@h/x?***'"),
    ],
)
def test_what_is_shown_of_urls(text: str, shown: str) -> None:
    """User information and query are hidden, the rest stays readable."""
    assert hide_in_urls(text) == shown


@given(st.text(st.characters(codec="ascii", exclude_characters=" \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f")))
@example("@/")
@example("@?@#")
@example('"')
def test_no_password_is_shown(password: str) -> None:
    """Whatever characters a password has, encoded or not, nothing of it is shown."""
    assert "Zx9" not in hide_in_urls(f"amqp://user:Zx9{password}Zx9@host.example/vhost")


def test_the_pieces_that_are_hidden() -> None:
    """Whoever quotes only a part of a URL must hide these."""
    assert hidden_parts("http://me:pw@host:1/x?key=v") == {"me", "pw", "key", "v"}
    assert hidden_parts("http://host:1/x") == set()
    assert "pw" in hidden_parts("http://me:pw/@host:1")


@given(st.text(max_size=200))
def test_any_text_can_be_hidden_in(text: str) -> None:
    """No text breaks it, and hiding twice changes nothing more."""
    once = hide_in_urls(text)
    assert hide_in_urls(once) == once
