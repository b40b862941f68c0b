"""The guard of a configuration, compiled: proofs, rules, and the limits that protect the app."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from outrider.config.keys import verifying_key
from outrider.config.schema import Accept, Config, Inbound
from outrider.config.schema import Idempotency as IdempotencySettings
from outrider.controlplane.idempotency.app import AppLookup
from outrider.controlplane.idempotency.sqlite import SqliteStore
from outrider.dataplane.policies.guard.guard import CallerName, CertificateProof, Guard, KeyProof, Proof, Rule
from outrider.dataplane.policies.guard.tokens import TokenProof
from outrider.dataplane.policies.idempotency import Idempotency
from outrider.model.patterns import comparable

if TYPE_CHECKING:
    from outrider.controlplane.idempotency.redis import RedisStore


# Bytes that a caller who has proven nothing may send, where the configuration says nothing about bodies.
_UNPROVEN_BODY = 10 * 1024 * 1024


def max_bodies(config: Config) -> tuple[int, int]:
    """Bytes that the body of an inbound call may have: of any, and of one whose caller has not proven itself."""
    inbound = config.inbound
    asked = inbound.body_bytes if inbound is not None and inbound.body_bytes is not None else config.limits.body_bytes
    if asked is None:
        return sys.maxsize, _UNPROVEN_BODY
    return no_larger_than(asked), no_larger_than(asked)


def no_larger_than(asked: int | None) -> int:
    """A limit in bytes; without one (`false`, or left out), a number that nothing reaches."""
    return sys.maxsize if asked is None or asked is False else asked


@dataclass(slots=True)
class Guarded:
    """What the inbound pipeline is made of. `keys` and `tokens` are the proofs by their place under `accept`."""

    guard: Guard
    noted: set[bytes] = field(default_factory=set)
    keys: dict[int, KeyProof] = field(default_factory=dict)
    key_sets: list[tuple[str, str, TokenProof]] = field(default_factory=list)  # source, algorithm
    tokens: dict[int, TokenProof] = field(default_factory=dict)


def compile_guard(config: Config, inbound: Inbound) -> Guarded:
    """The guard, with everything it reads noted."""
    noted = {b"x-service-name"}
    keys: dict[int, KeyProof] = {}
    tokens: dict[int, TokenProof] = {}
    key_sets: list[tuple[str, str, TokenProof]] = []
    proofs: list[Proof] = []
    for index, accept in enumerate(inbound.accept):
        name = f"inbound.accept[{index}]"
        noted.update(name.lower().encode() for name in accept.require)
        if accept.header is not None:
            caller = CallerName(accept.caller)
            noted |= {accept.header.lower().encode(), *caller.headers}
            proof = KeyProof(accept.header, accept.values, caller, accept.require, accept.forward, name)
            keys[index] = proof
            proofs.append(proof)
        elif accept.jwt is not None:
            proofs.append(tokens.setdefault(index, _tokens(config, accept, f"{name}.jwt")))
            if accept.jwt.jwks is not None:
                key_sets.append((accept.jwt.jwks, accept.jwt.alg, tokens[index]))
        elif accept.certificate is not None:
            proofs.append(CertificateProof(accept.certificate, f"{name}.certificate"))
    rules = None if inbound.allow is None else [Rule(rule.caller, rule.match) for rule in inbound.allow]
    several = len(proofs) > 1 or any(len(accept.values) > 1 for accept in inbound.accept)
    _, max_unproven_body = max_bodies(config)
    guard = Guard(
        proofs,
        protect=inbound.protect,
        rules=rules,
        identity=inbound.identity,
        several_keys=several,
        max_unproven_body=max_unproven_body,
    )
    return Guarded(guard, noted, keys, key_sets, tokens)


@dataclass(slots=True)
class Remembered:
    """What remembers keyed calls: the policy and its store."""

    policy: Idempotency
    store: SqliteStore | RedisStore

    async def close(self) -> None:
        """Write down what is known, and leave."""
        await self.policy.settle()
        await self.store.close()


def compile_idempotency(config: Config, inbound: Inbound, guard: Guard) -> Remembered | None:
    """What remembers keyed calls; None where that is not asked for."""
    settings = inbound.idempotency
    if not settings:
        return None
    store = _store(config, settings)
    lookup = (
        AppLookup(inbound.app, settings.ask, settings.max_answer, inbound.identity)
        if settings.after_crash == "ask" and settings.ask
        else None
    )
    exempt = [comparable(match) for match in settings.exempt]
    policy = Idempotency(
        store,
        max_answer=settings.max_answer,
        strict=settings.on_error == "refuse",
        repeat=settings.after_crash == "repeat",
        lookup=lookup,
        exempt=exempt,
        service=config.service,
        proven_only=bool(inbound.accept),
        identity=inbound.identity,
        proofs=guard.forwarded_proofs,
        account=guard.account,
    )
    return Remembered(policy, store)


def _store(config: Config, settings: IdempotencySettings) -> SqliteStore | RedisStore:
    if settings.store != "redis":
        return SqliteStore(settings.store, settings.ttl, settings.max_entries, settings.max_bytes)
    from outrider.controlplane.idempotency.redis import RedisStore  # needs a library that not everybody has

    assert config.redis is not None  # config/inbound.py has seen to that
    return RedisStore(config.redis.url, config.service, settings.ttl, config.redis.timeout)


def _tokens(config: Config, accept: Accept, name: str) -> TokenProof:
    jwt = accept.jwt
    assert jwt is not None
    import jwt as _pyjwt  # noqa: F401 # for the side effect: it takes 90 ms, which the first token is not to wait for

    keys = [(None, verifying_key(jwt.alg, jwt.key))] if jwt.key is not None else []
    return TokenProof(
        jwt.alg,
        keys,
        audience=jwt.audience.replace("{service}", config.service),
        issuers=jwt.issuer,
        leeway=jwt.leeway,
        require=accept.require,
        forward=accept.forward,
        name=name,
    )
