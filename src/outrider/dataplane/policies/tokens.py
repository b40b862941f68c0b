"""A bearer token as proof of who calls: a signed JWT (RFC 7519), checked as RFC 8725 advises.

The algorithm is the configuration's, never the token's; a key is made for one algorithm and used with no other; expiry
and audience are required. What has been checked is remembered for a short time, because signatures are dear and a
caller sends the same token many times. PyJWT does the cryptography.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from time import monotonic, time
from typing import TYPE_CHECKING, Any, Final

from outrider.model.messages import is_field_value

if TYPE_CHECKING:
    from outrider.dataplane.call import Call

ALGORITHMS: Final = ("HS256", "RS256", "ES256", "EdDSA")
_SCHEME: Final = b"bearer "
_LARGEST: Final = 8192  # bytes of a token
_MOST_REMEMBERED: Final = 4096
# Seconds that a checked token is taken for good: no longer than its own expiry.
_REMEMBER: Final = 30.0

# The keys by `kid`; None is the one for tokens without.
Keys = Mapping[str | None, Any]


class TokenProof:
    """Tokens in `Authorization: Bearer`, signed with `alg` by one of `keys`. The caller is `iss`."""

    __slots__ = (
        "_alg",
        "_audience",
        "_clock",
        "_issuers",
        "_keys",
        "_leeway",
        "_remembered",
        "headers",
        "key",
        "name",
        "require",
        "unknown_key",
    )

    def __init__(
        self,
        alg: str,
        keys: Keys,
        *,
        audience: str,
        issuers: Sequence[str] = (),
        leeway: float = 30.0,
        require: Sequence[str] = (),
        forward: bool = False,
        name: str = "",
        clock: Callable[[], float] = time,
    ) -> None:
        """`issuers`: nobody else's are taken; empty: anybody's who has the key. `leeway` (seconds) is for clocks that
        differ."""
        self.name = self.key = name
        self._alg = alg
        self._keys = keys
        self._audience = audience
        self._issuers = frozenset(issuers)
        self._leeway = leeway
        self._clock = clock
        self._remembered: OrderedDict[bytes, tuple[str, float, float]] = OrderedDict()
        self.require = tuple(name.lower().encode() for name in require)
        self.headers = frozenset() if forward else frozenset((b"authorization",))
        self.unknown_key: Callable[[], None] = _nobody  # hears of a `kid` that is not among the keys

    def replace(self, keys: Keys) -> None:
        """Take these keys from now on."""
        self._keys = keys
        self._remembered.clear()

    def prove(self, call: Call) -> tuple[str, str]:
        given = [value for lower, _, value in call.fields if lower == b"authorization"]
        if not given or given[0][: len(_SCHEME)].lower() != _SCHEME:
            return "", "no_token"
        if len(given) > 1:
            return "", "token_twice"
        token = given[0][len(_SCHEME) :].strip(b" ")
        if len(token) > _LARGEST:
            return "", "token_too_large"
        known = self._remembered.get(token)
        if known is not None and self._clock() < known[1] and monotonic() < known[2]:
            return known[0], ""
        return self._check(token)

    def _check(self, token: bytes) -> tuple[str, str]:
        import jwt  # of an extra, and only where tokens are configured

        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") != self._alg:
                return "", "token_algorithm"
            key = self._keys.get(header.get("kid"))
            if key is None and self._keys.keys() == {None}:
                key = self._keys[None]  # there is only one, whatever it is called
            if key is None:
                self.unknown_key()
                return "", "token_unknown_key"
            claims = jwt.decode(
                token,
                key,
                algorithms=[self._alg],
                audience=self._audience,
                leeway=self._leeway,
                options={"require": ["exp", "aud", "iss"]},
            )
            expires = float(claims["exp"])
        except jwt.ExpiredSignatureError:
            return "", "token_expired"
        except jwt.ImmatureSignatureError:
            return "", "token_from_the_future"
        except jwt.InvalidAudienceError:
            return "", "token_audience"
        except jwt.InvalidSignatureError:
            return "", "token_signature"
        except jwt.MissingRequiredClaimError:
            return "", "token_incomplete"
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError, OverflowError):
            return "", "token_malformed"
        issuer = claims["iss"]
        if (
            not isinstance(issuer, str)
            or not issuer
            or not is_field_value(issuer)
            or (self._issuers and issuer not in self._issuers)
        ):
            return "", "token_issuer"
        self._remember(token, issuer, expires)
        return issuer, ""

    def _remember(self, token: bytes, issuer: str, expires: float) -> None:
        self._remembered[token] = (issuer, expires + self._leeway, monotonic() + _REMEMBER)
        if len(self._remembered) > _MOST_REMEMBERED:
            self._remembered.popitem(last=False)


def _nobody() -> None:
    pass
