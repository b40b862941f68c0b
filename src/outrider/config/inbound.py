"""What only shows across the keys of `inbound`: proofs that prove nothing, rules that never match."""

from __future__ import annotations

from typing import Final

from outrider.config.checks import SHORTEST_SECRET
from outrider.config.keys import KeyTextError, verifying_key
from outrider.config.schema import Accept, Config, Idempotency, Inbound
from outrider.config.source import Document, KeyPath
from outrider.config.urls import wrong_port
from outrider.config.wording import say
from outrider.model.messages import is_field_value
from outrider.model.patterns import covering, is_named
from outrider.model.variables import VARIABLE

_ACCEPT: Final[KeyPath] = ("inbound", "accept")
_PROTECT: Final[KeyPath] = ("inbound", "protect")


def check_inbound(config: Config, document: Document) -> None:
    """Complain about the guard, at the lines responsible."""
    inbound = config.inbound
    if inbound is None:
        return
    for index, accept in enumerate(inbound.accept):
        _check_accept(inbound, accept, document, ("inbound", "accept", index))
    if inbound.protect and not inbound.accept:
        place = ("inbound", "protect") if ("inbound", "protect") in document.marks else ("inbound",)
        message = "nothing is accepted as proof, so every caller is refused"
        hint = "say what proves a caller under inbound.accept, or protect: []"
        document.complain(place, message, hint, warn=True, follows=[_ACCEPT, _PROTECT])
    _check_rules(inbound, document)
    _check_names(inbound, document)
    if inbound.idempotency:
        _check_idempotency(config, inbound.idempotency, document, ("inbound", "idempotency"))


def _check_idempotency(config: Config, settings: Idempotency, document: Document, at: KeyPath) -> None:
    if settings.store == "redis" and config.redis is None:
        hint = "redis: { url: redis://127.0.0.1:6379/0 }"
        document.complain((*at, "store"), "nothing says where redis is", hint, follows=[("redis",)])
    if settings.after_crash == "ask" and settings.ask is None and (*at, "ask") not in document.marks:
        hint = "ask: /internal/executions/{key}"
        document.complain((*at, "after_crash"), "nothing says what to ask the app", hint)
    if settings.ask is not None and settings.after_crash != "ask":
        document.complain(
            (*at, "ask"), "the app is not asked", "after_crash: ask", warn=True, follows=[(*at, "after_crash")]
        )


def _check_accept(inbound: Inbound, accept: Accept, document: Document, at: KeyPath) -> None:
    kinds = [kind for kind in ("header", "jwt", "certificate") if (*at, kind) in document.marks]
    if len(kinds) != 1:
        document.complain(at, "expected exactly one of header, jwt and certificate", "one proof per entry")
        return
    if accept.header is not None:
        _check_keys(accept, document, at)
    elif accept.values:
        message, hint = f"values belong to a header, not to {kinds[0]}", "leave values out"
        document.complain((*at, "values"), message, hint, follows=[(*at, "header")])
    if accept.certificate is not None and (inbound.tls is None or inbound.tls.client_ca is None):
        follows: list[KeyPath] = [("inbound", "tls")]
        message = "no caller is asked for a certificate"
        document.complain((*at, "certificate"), message, "set inbound.tls.client_ca", follows=follows)
    if accept.jwt is not None:
        _check_jwt(accept, document, (*at, "jwt"))
    for name in VARIABLE.findall(accept.caller):
        if not name.startswith("header:"):
            document.complain((*at, "caller"), f"nothing provides {{{name}}} here", "use {header:NAME}")


def _check_keys(accept: Accept, document: Document, at: KeyPath) -> None:
    if not any(accept.values):
        place = (*at, "values") if accept.values else at
        message, hint = "no key is set, so this proves no caller", "values: [...]"
        document.complain(place, message, hint, warn=True, follows=[(*at, "values")])
    for index, value in enumerate(accept.values):
        place = (*at, "values", index) if (*at, "values", index) in document.marks else (*at, "values")
        if value != value.strip() or not is_field_value(value):
            document.complain(place, "a key must be one line of printable ASCII without spaces around it")
        elif value and len(value) < SHORTEST_SECRET:
            hint = "openssl rand -hex 32 makes a good one"
            document.complain(
                place, f"the key has only {len(value)} characters; {SHORTEST_SECRET} are safe", hint, warn=True
            )


def _check_jwt(accept: Accept, document: Document, at: KeyPath) -> None:
    jwt = accept.jwt
    assert jwt is not None
    if (jwt.key is None) == (jwt.jwks is None):
        hint = "key: ${file:/run/secrets/issuer.pem}, or jwks: https://login.example.com/keys"
        document.complain(at, "expected exactly one of key and jwks", hint, follows=[(*at, "key"), (*at, "jwks")])
        return
    if jwt.key is None:
        if (fault := wrong_port(jwt.jwks or "")) is not None:
            document.complain((*at, "jwks"), fault)
        return
    try:
        verifying_key(jwt.alg, jwt.key)
    except KeyTextError as error:
        document.complain((*at, "key"), str(error), error.hint)


def _check_names(inbound: Inbound, document: Document) -> None:
    """Warn of keys with which a caller takes any name that rules are about, or that an allowance is for."""
    _check_allowances(inbound, document)
    for index, accept in enumerate(inbound.accept):
        if accept.header is None or not VARIABLE.search(accept.caller):
            continue
        fixed = VARIABLE.split(accept.caller)[0]
        for rule in inbound.allow or ():
            wanted = rule.caller.removesuffix("*")
            possible = wanted.startswith(fixed) or (wanted != rule.caller and fixed.startswith(wanted))
            if rule.caller != "*" and possible:
                message = (
                    f"with this key a caller takes any name it likes, so also that of {rule.caller} in inbound.allow"
                )
                hint = "caller: NAME, and a key of its own for each caller; or jwt, or certificate"
                document.complain(("inbound", "accept", index), message, hint, warn=True)
                break


def _check_allowances(inbound: Inbound, document: Document) -> None:
    if inbound.rate_limit is None or inbound.rate_limit.key != "caller":
        return
    if any(accept.header is not None and VARIABLE.search(accept.caller) for accept in inbound.accept):
        message = "a caller that takes any name it likes has an allowance for each of them"
        hint = "under inbound.accept, caller: NAME, and a key of its own for each caller; or jwt, or certificate"
        document.complain(("inbound", "rate_limit", "key"), message, hint, warn=True, follows=[_ACCEPT])


def _check_rules(inbound: Inbound, document: Document) -> None:
    """Rules that can never decide anything."""
    seen: set[tuple[str, str]] = set()
    protected = [covering(path) for path in inbound.protect]
    headers = [accept for accept in inbound.accept if accept.header is not None]
    named = {name for one in inbound.accept if one.jwt for name in one.jwt.issuer}
    open_ended = bool(headers) or any(one.jwt and not one.jwt.issuer for one in inbound.accept)
    open_ended = open_ended or any(one.certificate is not None for one in inbound.accept)
    for index, rule in enumerate(inbound.allow or ()):
        at: KeyPath = ("inbound", "allow", index)
        path = rule.match.partition(" ")[2].strip().lower()
        sample = path.replace("/**", "/x").replace("**", "x").replace("*", "x").encode()
        if not any(pattern.matches(b"GET", sample) for pattern in protected):
            message = f"never asked: nothing like {path} is protected"
            document.complain(
                (*at, "match"), message, "see inbound.protect", warn=True, follows=[_PROTECT, (*at, "match")]
            )
        if (rule.caller, rule.match) in seen:
            message = "never reached: the same rule stands before it"
            document.complain(at, message, "remove one of them", warn=True, follows=[at])
        elif not open_ended and not any(is_named(rule.caller, name) for name in named):
            message = say("never matches: no proof under inbound.accept makes a caller {caller}", caller=rule.caller)
            hint = "name an issuer of a token, or give the caller a key"
            document.complain((*at, "caller"), message, hint, warn=True, follows=[_ACCEPT, at])
        seen.add((rule.caller, rule.match))
