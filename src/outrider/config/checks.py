"""What a single value may be: functions that take what stands in the YAML and give back what the models keep, and the
types made of them. Whatever is refused is told together with what was expected instead."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from outrider.config.scalars import Duration
from outrider.config.urls import Fault, issuer_url_fault, later_scheme, target_url_fault, wrong_port
from outrider.config.wording import Sentence, say, shown
from outrider.model.messages import HOP_BY_HOP, is_field_value
from outrider.model.methods import is_other_spelling
from outrider.model.patterns import PathPattern, comparable, covering
from outrider.model.units import parse_duration

# Characters of a secret that nobody can guess; HS256 demands as many (RFC 7518 §3.2).
SHORTEST_SECRET: Final = 32

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
BALANCERS = ("least-latency", "least-requests", "round-robin")
_HASH = re.compile(r"hash:header:[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FRAMING = HOP_BY_HOP | {b"host", b"content-length"}


def fail(message: str, hint: str = "", **values: object) -> PydanticCustomError:
    """A complaint about a value, with a remedy if that is not in the message. Both are templates for the values, in
    which a {brace} that stands for itself is doubled, or sentences already."""
    said = message if isinstance(message, Sentence) else say(message, **values)
    remedy = hint if isinstance(hint, Sentence) else say(hint, **values)
    return PydanticCustomError("outrider", "{message}", {"message": said, "hint": remedy})


def _text(value: Any) -> str:
    """The text of a scalar as it is written; of anything else, what it is."""
    return str(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else shown(value)


def listen(value: Any) -> Any:
    """An address to listen on, `HOST:PORT`: a name, an IPv4 address, or an IPv6 address in brackets."""
    text = _text(value)
    host, colon, port = text.rpartition(":")
    if not colon or not host or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        alone = re.fullmatch(r":?[0-9]{1,5}", text)
        hint = say("write 127.0.0.1:{port}", port=text.lstrip(":")) if alone else _listen_hint(text)
        raise fail(_LISTEN, hint, got=text)
    if not _is_host(host):
        raise fail(_LISTEN, _listen_hint(text), got=text)
    return host.strip("[]"), int(port)


_LISTEN = "expected HOST:PORT like 127.0.0.1:4100, got {got}"
_NAME = re.compile(r"[0-9A-Za-z_]([0-9A-Za-z_.-]*[0-9A-Za-z_.])?")


def _is_host(text: str) -> bool:
    if text.startswith("["):
        return text.endswith("]") and _is_address(text[1:-1], 6)
    return _is_address(text, 4) if re.fullmatch(r"[0-9.]+", text) else bool(_NAME.fullmatch(text))


def _is_address(text: str, version: int) -> bool:
    try:
        return ip_address(text).version == version
    except ValueError:
        return False


def _listen_hint(text: str) -> Sentence:
    """The remedy for some things that other programs take."""
    if text.startswith(("unix:", "/")) or "/" in text.partition("://")[2].rstrip("/"):
        return say("it listens on TCP ports only; on 127.0.0.1 it is reached from this machine or pod alone")
    if "://" in text:
        rest = text.partition("://")[2].rstrip("/")
        remedy = "leave the scheme out: {rest}" if ":" in rest else "leave the scheme out and add a port: {rest}:4100"
        return say(remedy, rest=rest)
    if text.startswith("*:"):
        return say("write 0.0.0.0{port} for every IPv4 address, or [::]{port} for every address", port=text[1:])
    address, _, port = text.rpartition(":")
    if _is_address(address, 6):
        return say("put an IPv6 address in brackets: [{address}]:{port}", address=address, port=port)
    return say("put an IPv6 address in brackets: [{text}]:4100" if _is_address(text, 6) else "", text=text)


def url(value: Any) -> Any:
    text = _text(value)
    later = later_scheme(text)
    if later is not None:
        raise PydanticCustomError("not_yet", f"{later} is not supported yet by this version of Outrider")
    return _unless(target_url_fault(text), text)


def _unless(fault: Fault | None, text: str) -> str:
    if fault is not None:
        raise fail(*fault)
    return text


def issuer_url(value: Any) -> Any:
    """The URL of a token endpoint."""
    text = _text(value)
    return _unless(issuer_url_fault(text), text)


def app_url(value: Any) -> Any:
    text = _text(value)
    if not text.startswith(("http://", "https://")):
        raise fail("expected the URL of the app, like http://127.0.0.1:3003")
    return url(text)


def token(value: Any) -> Any:
    """A bearer token (RFC 6750 section 2.1), without white space around it: files and variables often end with some."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if not re.fullmatch(r"[!-~]*", text):
        raise fail("a token must be printable ASCII without spaces in it", "openssl rand -hex 32 makes a good one")
    return text


def dns_server(value: str) -> str:
    address, port = value, "53"
    if value.startswith("[") and "]" in value:
        address, _, rest = value[1:].partition("]")
        port = rest.removeprefix(":") or "53"
    elif value.count(":") == 1:
        address, _, port = value.partition(":")
    try:
        ip_address(address)
        if not (port.isdigit() and 0 < int(port) < 65536):
            raise ValueError
    except ValueError:
        message = "expected an address like 10.0.0.2, 10.0.0.2:5353 or [2001:db8::1]:5353, got {got}"
        raise fail(message, got=value) from None
    return value


def limit(value: Any) -> Any:
    """A whole number from 1, or `adaptive`; false is for the switch."""
    if value is None or value is False or value == "adaptive" or (type(value) is int and value >= 1):
        return value
    raise fail("expected a whole number from 1, adaptive or false, got {got}", got=shown(value))


def target(value: Any) -> Any:
    return value if isinstance(value, dict) else {"url": value}


def urls(value: Any) -> Any:
    if isinstance(value, list):
        if not value:
            raise fail("the list of URLs is empty", "give at least one URL")
        return value
    return [value]


def header_name(value: str) -> str:
    if not _TOKEN.fullmatch(value):
        raise fail('"{got}" is not a header name', "letters, digits and dashes, like x-api-key", got=value)
    if value.lower().encode() in _FRAMING:
        raise fail("{got} frames the message or names the target; it cannot be set here", got=value)
    return value


def header_value(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise fail("expected text; put it in quotes")
    text = _text(value)
    if not is_field_value(text):
        raise fail("a header value must be one line of printable ASCII", "percent-encode the rest, as in caf%C3%A9")
    return text


def match(value: Any) -> Any:
    try:
        PathPattern(_text(value))
    except ValueError as error:
        raise fail("{fault}", fault=error) from None
    return value


def method(value: str) -> str:
    """A method, in the case that it has (RFC 9110 §9.1)."""
    if is_other_spelling(value.encode()):
        raise fail(
            "methods are told apart by case: {got} is not {upper}", "write {upper}", got=value, upper=value.upper()
        )
    return value


def browsers(value: Any) -> Any:
    if isinstance(value, dict) or value == "pass":
        return value
    raise fail("expected pass, or a map with hosts and origins, got {got}", got=shown(value))


def passes(value: Any) -> Any:
    if value != "pass":
        raise PydanticCustomError("switch", "expected pass")
    return value


def origin(value: str) -> str:
    """The origin of a page (RFC 6454 §6.2), or * for any."""
    if value != "*" and not _ORIGIN.fullmatch(value):
        raise fail('expected an origin like http://localhost:5173 or "*", got {got}', "leave the path out", got=value)
    return value


def rule(value: Any) -> Any:
    """A pattern of the guard, which is compared with all readings of a path."""
    try:
        comparable(_text(value))
    except ValueError as error:
        raise fail("{fault}", fault=error) from None
    return value


def protected(value: str) -> str:
    """A path of which the guard protects everything below, too."""
    if not value.startswith("/"):
        raise fail(
            'expected a path like /internal, got "{got}"', "it protects the path and everything below", got=value
        )
    try:
        covering(value)
    except ValueError as error:
        raise fail("{fault}", "a path protects everything below it, too: protect: [/internal]", fault=error) from None
    return value


def balance(value: Any) -> Any:
    text = _text(value)
    if text not in BALANCERS and not _HASH.fullmatch(text):
        raise fail("expected {known} or hash:header:NAME, got {got}", known=", ".join(BALANCERS), got=text)
    return text


def after(value: Any) -> Any:
    """When to hedge: a percentile stays text, a duration becomes seconds."""
    text = _text(value)
    if re.fullmatch(r"p\d{1,2}(\.\d)?", text) and float(text[1:]) >= 50:
        return text
    try:
        seconds = parse_duration(text)
        if seconds <= 0:
            raise ValueError
    except ValueError:
        message = "expected a percentile like p95 (p50 to p99.9) or a duration like 50ms, got {got}"
        raise fail(message, got=text) from None
    return seconds


def names(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def service(value: Any) -> Any:
    return {"url": value} if isinstance(value, (str, list)) else value


def rate_limit(value: Any) -> Any:
    return {"rate": value} if isinstance(value, (str, int, float)) and value is not False else value


def store_later(value: Any) -> Any:
    if value not in (None, "memory"):
        raise PydanticCustomError("not_yet", f"{shown(value)} is not supported yet; leave it out for memory")
    return value


def only(supported: tuple[Any, ...], what: str) -> BeforeValidator:
    """A value of the contract that works, or a clear word about one that does not yet."""

    def check(value: Any) -> Any:
        if not any(value is one or (type(value) is type(one) and value == one) for one in supported):
            known = " or ".join(str(v).lower() for v in supported if v is not None)
            raise PydanticCustomError("not_yet", f"{what} {shown(value)} is not supported yet; use {known}")
        return value

    return BeforeValidator(check)


def access(value: Any) -> Any:
    text = _text(value)
    if text not in ("none", "errors", "all") and not re.fullmatch(r"\d+(\.\d+)?%", text):
        raise fail("expected none, errors, all or a share like 1%, got {got}", got=text)
    return text


def key(value: Any) -> Any:
    text = _text(value)
    if text == "caller":
        raise PydanticCustomError("not_yet", "caller is not supported yet; it belongs to the inbound guard")
    if not re.fullmatch(r"header:[!#$%&'*+.^_`|~0-9A-Za-z-]+", text):
        raise fail('expected "header:NAME", got {got}', got=text)
    return text


def inbound_key(value: Any) -> Any:
    text = _text(value)
    if text != "caller" and not re.fullmatch(r"header:[!#$%&'*+.^_`|~0-9A-Za-z-]+", text):
        raise fail('expected caller or "header:NAME", got {got}', got=text)
    return text


def store_path(value: Any) -> Any:
    text = _text(value)
    if text != "redis" and not text.startswith("/"):
        raise fail("expected an absolute path or redis, got {got}", got=text)
    return text


def lookup_path(value: Any) -> Any:
    text = _text(value)
    if not re.fullmatch(r"/[^#\s]*", text) or "{key}" not in text:
        raise fail("expected a path with {{key}} in it, like /internal/executions/{{key}}, got {got}", got=text)
    return text


def redis_url(value: Any) -> Any:
    text = _text(value)
    if not re.fullmatch(r"rediss?://[^/\s]+(/\d+)?(\?\S*)?|unix://\S+", text):
        raise fail("expected a URL like redis://127.0.0.1:6379/0, rediss://... or unix:///run/redis.sock")
    if (fault := wrong_port(text)) is not None:
        raise fail(fault)
    return text


Listen = Annotated[
    tuple[str, int],
    BeforeValidator(listen),
    WithJsonSchema({"type": "string", "pattern": r"^.+:\d{1,5}$", "examples": ["127.0.0.1:4100"]}),
]
Url = Annotated[str, BeforeValidator(url)]
HeaderName = Annotated[str, AfterValidator(header_name)]
HeaderValue = Annotated[str, BeforeValidator(header_value), WithJsonSchema({"type": ["string", "number"]})]


def off(value: Any) -> Any:
    if value is not False:  # 0 equals False in Python, and must not mean it here
        raise PydanticCustomError("switch", "expected false")
    return value


def no_switch(value: Any) -> Any:
    if isinstance(value, bool):
        raise fail("expected a number, got {got}", got=shown(value))
    return value


def whole(value: Any) -> Any:
    if isinstance(value, bool):
        raise fail("expected a whole number, got {got}", got=shown(value))
    return value


def switch(value: Any) -> Any:
    if value is not None and not isinstance(value, bool):
        raise fail("expected true or false, got {got}", got=shown(value))
    return value


def positive(value: float) -> float:
    if value <= 0:
        raise fail("expected a duration above zero", "write false to switch it off, where that is possible")
    return value


Switch = Annotated[Literal[False], BeforeValidator(off)]
Whole = Annotated[int, BeforeValidator(whole)]
Positive = Annotated[Duration, AfterValidator(positive)]
Status = Annotated[Whole, Field(ge=100, le=599)]
