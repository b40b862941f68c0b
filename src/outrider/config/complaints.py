"""What the models refuse, as complaints in plain words: where it stands, what was expected, what was found, an example.

The models are checked by pydantic, whose kinds of error are translated here; none of its own sentences is shown.
"""

from __future__ import annotations

from typing import Any

from outrider.config.hints import EXAMPLES, misplaced, misspelt, other_shape
from outrider.config.known import bounds, choices, default_at, takes_fractions, value_at
from outrider.config.redaction import is_secret_key
from outrider.config.source import Document, KeyPath, Unresolved
from outrider.config.wording import Sentence, own, say, shown


def complain_of(document: Document, items: list[Any], paths: list[KeyPath]) -> None:
    """Add a complaint for every error of pydantic; `paths` are their places. What follows from another is left out."""
    refused = {path[:-1] for item, path in zip(items, paths, strict=True) if item["type"] == "not_yet"}
    unreadable = any(not problem.path and problem.severity == "error" for problem in document.problems)
    misread = {path for item, path in zip(items, paths, strict=True) if item["type"] == "extra_forbidden"}
    by_path: dict[tuple[KeyPath, str], list[Any]] = {}
    for item, path in zip(items, paths, strict=True):
        kind = item["type"]
        if kind == "switch" and (paths.count(path) > 1 or _more_is_said_below(path, paths)):
            continue  # `false` is one member of a union; what the other member says is what was meant
        if kind in ("list_type", "dict_type", "model_type") and _more_is_said_below(path, paths):
            continue  # another member of a union; what is wrong inside was meant
        if kind == "missing" and (path in refused or (unreadable and not path)):
            continue  # it follows from what has been said already
        if kind == "missing" and any(other[:-1] == path and misspelt(other, item) for other in misread):
            continue  # it is there, under another name
        missing = str(item["loc"][-1]) if kind == "missing" else ""
        by_path.setdefault((path, missing), []).append(item)
    for (path, _), kinds in by_path.items():
        _complain(document, kinds, path)


def _more_is_said_below(path: KeyPath, paths: list[KeyPath]) -> bool:
    return any(len(other) > len(path) and other[: len(path)] == path for other in paths)


def _complain(document: Document, kinds: list[Any], path: KeyPath) -> None:
    """Say what is wrong at a path: one complaint, also where a value is none of several alternatives."""
    value = value_at(document.values, path)
    if isinstance(value, Unresolved):
        return  # complained about already
    item = next((one for one in kinds if one["type"] in ("outrider", "not_yet", "scalar")), kinds[0])
    kind = item["type"]
    secret = path in document.interpolated or path[:1] == ("credentials",) or is_secret_key(path)
    if kind == "extra_forbidden":
        document.complain(path, say('unknown key "{key}"', key=path[-1]), misplaced(path, value), key=True)
    elif kind == "missing":
        missing = str(item["loc"][-1])
        document.complain(path, say('the key "{key}" is missing', key=missing), own(EXAMPLES.get(missing, "")))
    elif item["loc"][-1] == "[key]" and kind != "outrider":
        document.complain(path, *_wrong_name(str(path[-1])), key=True)
    elif kind == "scalar" and secret:
        expected, got, _ = item["msg"].partition(", got ")
        said = f"{expected}, got a value that is not shown" if got else "a value that is not shown does not fit here"
        document.complain(path, own(said), _example(path))
    elif kind in ("outrider", "scalar", "not_yet", "switch"):
        context = item.get("ctx", {})
        hint = context.get("hint") or (own("") if " like " in item["msg"] or kind == "not_yet" else _example(path))
        document.complain(path, context.get("message", item["msg"]), hint)
    elif value == "":
        document.complain(path, own("must not be empty"), own(_EMPTY_HINT))
    else:
        _complain_of_value(document, kinds, path, value, secret)


def _complain_of_value(document: Document, kinds: list[Any], path: KeyPath, value: Any, secret: bool) -> None:
    """A value of another kind, or outside of its bounds."""
    if path == ("services",) and kinds[0]["type"] == "too_short":
        document.complain(path, own("no service is named"), own(EXAMPLES["services"]))
        return
    expected = " or ".join(dict.fromkeys(_expected(item, path, value) for item in kinds))
    got = "a value that is not shown" if secret else shown(value)
    message = Sentence(f"expected {own(expected).template}, got {{got}}", {"got": got})
    remedies = (other_shape(item["type"], path, value) for item in kinds)
    document.complain(path, message, next(filter(None, remedies), None) or _example(path))


def _wrong_name(name: str) -> tuple[Sentence, Sentence]:
    """What is wrong with a name that is chosen freely, such as that of a service."""
    if ":" in name:
        return say('"{name}" is read as one word', name=name), own("a space belongs behind the colon")
    message = '"{name}" cannot be a name: use lower-case letters, digits, dots, dashes and underscores'
    return say(message, name=name), own("a name like booking-service or user_db.v2")


def _expected(item: Any, path: KeyPath, value: Any) -> str:
    """What belongs at a path, for a kind of error."""
    kind = item["type"]
    key = next((str(part) for part in reversed(path) if isinstance(part, str)), "")
    if kind in ("greater_than", "greater_than_equal", "less_than_equal"):
        return _range(path)
    if kind == "literal_error":
        words = choices(path)
        return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]
    if kind == "string_pattern_mismatch":
        return _FORMS.get(key, "text of another form")
    if kind == "string_too_short":
        return f"at least {item['ctx']['min_length']} characters"
    if kind == "too_short":
        return "at least one item"
    if kind in ("int_type", "int_from_float", "int_parsing", "int_parsing_size"):
        return _range(path)
    return _KINDS.get(kind, "another value")


def _range(path: KeyPath) -> str:
    """A number and its bounds, in words."""
    least, most, exclusive = bounds(path)
    number = "a number" if exclusive or takes_fractions(path) else "a whole number"
    if least is not None and most is not None:
        return f"{number} above {least:g}, at most {most:g}" if exclusive else f"{number} from {least:g} to {most:g}"
    return f"{number} from {least:g}" if least is not None else number


def _example(path: KeyPath) -> Sentence:
    """What could stand there; empty where the sentence has an example already or there is no telling."""
    key = next((str(part) for part in reversed(path) if isinstance(part, str)), "")
    if key in _VALUES:
        return own(f"for example {key}: {_VALUES[key]}")
    default = default_at(path)
    if isinstance(default, (int, str)) and not isinstance(default, bool):
        return own(f"for example {key}: {default}")
    return own("")


_EMPTY_HINT = "if it comes from a variable, that variable is empty; ${NAME:?message} says so in your words"

_KINDS = {
    "model_type": "a map of keys",
    "dict_type": "a map of keys",
    "list_type": "a list",
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a number",
}

# What texts with a pattern look like, by their keys.
_FORMS = {
    "service": "letters, digits, dots, dashes and underscores, a letter or digit first",
    "hosts": "a host name without a port",
    "server_name": "a host name without a port",
    "jwks": "a URL or an absolute path",
    "identity": "the name of a header, or one like x-user-*",
    "methods": "a method, like POST",
    "path": "a path that begins with /",
}

# Examples for keys whose defaults are none or do not speak for themselves.
_VALUES = {
    "service": "booking-service",
    "hosts": "[users.example]",
    "server_name": "users.example",
    "jwks": "https://login.example.com/keys",
    "identity": "[x-user-id]",
    "methods": "[GET, HEAD, POST]",
    "workers": "2",
    "burst": "100",
    "status": "503",
    "on_status": "[502, 503, 504]",
    "on_errors": "[connect, reset]",
    "weight": "2",
    "port": "4104",
    "max_in_flight": "20",
    "idempotency_key": "generate",
    "alg": "RS256",
    "token": "${file:/run/secrets/admin}, made by openssl rand -hex 32",
    "audience": '"{service}"',
    "caller": "booking-service",
    "issuer": "https://login.example.com",
    "ca": "/etc/tls/ca.crt",
    "cert": "/etc/tls/tls.crt",
    "key": "${file:/run/secrets/key.pem}",
    "client_ca": "/etc/tls/callers.crt",
    "value": "${file:/run/secrets/key}",
    "instance": "booking-7",
    "header": "x-api-key",
    "browsers": "{ origins: [http://localhost:5173] }",
    "headers": "{ set: { X-Tenant: blue } }",
    "fallback": "last-good",
    "rate_limit": "50/s",
    "set": "{ X-Tenant: blue }",
    "claims": "{ role: reader }",
    "store": "/var/lib/outrider/idempotency.db",
    "balance": "least-requests",
    "access": "all",
    "json": "[]",
    "slow_factor": "10",
    "ratio": "2",
    "values": "['${KEY}']",
    "command": "[/usr/bin/print-key, --now]",
    "client_id": "booking-service",
    "client_secret": "${file:/run/secrets/client}",
    "scope": "users.read",
    "kid": "key-1",
    "certificate": "[booking-service]",
    "policy": "[slow]",
    "extends": "[slow]",
    "auth": "[internal-key]",
    "redact": "[authorization, cookie]",
    "remove": "[x-debug]",
    "require": "[x-user-id]",
    "servers": "[10.0.0.2]",
    "origins": "[http://localhost:5173]",
    "exempt": "[POST /login]",
    "protect": "[/internal]",
    "url": "http://127.0.0.1:3001",
}
