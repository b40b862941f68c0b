"""Keys that sign and verify tokens: whether a text is one for an algorithm, and if not, what it is instead.

RFC 7518 demands RSA keys of at least 2048 bits (§3.3), secrets of at least 32 bytes for HS256 (§3.2) and the curve
P-256 for ES256 (§3.4); EdDSA is used with Ed25519 here (RFC 8037).
"""

from __future__ import annotations

import re
from typing import Any, Final

from outrider.config.checks import SHORTEST_SECRET

_SHORTEST_RSA: Final = 2048
_LONGEST_RSA: Final = 16384
_LARGEST_PEM: Final = 64 * 1024
_BLOCK: Final = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----(.*?)-----END \1-----", re.DOTALL)
_KINDS: Final = {"RS256": "RSA", "ES256": "EC", "EdDSA": "Ed25519"}


class KeyTextError(ValueError):
    """A text is not a key for an algorithm; the message says why without showing it, `hint` what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def verifying_key(alg: str, text: str) -> Any:
    """The key that verifies with this algorithm, as PyJWT takes it: the bytes of a secret, or the public key of a PEM.
    Raises KeyTextError."""
    if alg == "HS256":
        return _secret(text)
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    label = _pem(alg, text, "public")
    if label == "CERTIFICATE":
        raise KeyTextError(
            "this is a certificate, not a public key", "openssl x509 -pubkey -noout -in cert.pem takes the key out"
        )
    if "PRIVATE KEY" in label:
        raise KeyTextError(
            "this is a private key; only the public one belongs here",
            "openssl pkey -in key.pem -pubout takes the public key out",
        )
    try:
        key = load_pem_public_key(text.strip().encode())
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise KeyTextError("this is not a public key in PEM", "-----BEGIN PUBLIC KEY-----") from None
    return fit(alg, key)


def signing_key(alg: str, text: str) -> Any:
    """The key that signs with this algorithm, as PyJWT takes it. Raises KeyTextError."""
    if alg == "HS256":
        return _secret(text)
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    label = _pem(alg, text, "private")
    if label == "CERTIFICATE" or "PUBLIC KEY" in label:
        what = "a certificate" if label == "CERTIFICATE" else "a public key"
        raise KeyTextError(f"this is {what}; {alg} signs with a private key", "-----BEGIN PRIVATE KEY-----")
    if "ENCRYPTED" in text:
        raise KeyTextError("this private key has a passphrase", "openssl pkey -in key.pem takes it off")
    try:
        key = load_pem_private_key(text.strip().encode(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise KeyTextError("this is not a private key in PEM without a passphrase") from None
    fit(alg, key)
    return key


def fit(alg: str, key: Any) -> Any:
    """The key itself, if the algorithm may be used with it. Raises KeyTextError."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, (rsa.RSAPublicKey, rsa.RSAPrivateKey)):
        kind = "RSA"
    elif isinstance(key, (ec.EllipticCurvePublicKey, ec.EllipticCurvePrivateKey)):
        kind = "EC"
    else:
        kind = "Ed25519" if isinstance(key, (ed25519.Ed25519PublicKey, ed25519.Ed25519PrivateKey)) else "another kind"
    if kind != _KINDS[alg]:
        raise KeyTextError(f"{alg} needs a key of the kind {_KINDS[alg]}, and this is one of {kind}")
    if isinstance(key, (rsa.RSAPublicKey, rsa.RSAPrivateKey)):
        bits = key.key_size
        if bits < _SHORTEST_RSA:
            raise KeyTextError(
                f"the RSA key has only {bits} bits; {alg} needs {_SHORTEST_RSA} (RFC 7518 section 3.3)",
                "openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:3072",
            )
        if bits > _LONGEST_RSA:
            raise KeyTextError(f"the RSA key has {bits} bits; more than {_LONGEST_RSA} take too long")
    elif isinstance(key, (ec.EllipticCurvePublicKey, ec.EllipticCurvePrivateKey)) and key.curve.name != "secp256r1":
        raise KeyTextError(
            f"{alg} needs a key on the curve P-256 (RFC 7518 section 3.4), not on {key.curve.name}",
            "openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256",
        )
    return key


def _secret(text: str) -> bytes:
    if "-----BEGIN" in text:
        raise KeyTextError("HS256 takes a shared secret, not a PEM key", "alg: RS256 or ES256?")
    if len(text) < SHORTEST_SECRET:
        raise KeyTextError(
            f"the secret has only {len(text)} characters; HS256 needs {SHORTEST_SECRET} (RFC 7518 section 3.2)",
            "openssl rand -hex 32 makes a good one",
        )
    return text.encode()


def _pem(alg: str, text: str, half: str) -> str:
    """The label of the one block of a PEM text."""
    remedy = f"${{file:/path/to/{half}.pem}}"
    if "-----BEGIN" not in text:
        raise KeyTextError(f"{alg} takes a {half} key in PEM", remedy)
    if len(text) > _LARGEST_PEM:
        raise KeyTextError(f"the PEM is larger than {_LARGEST_PEM} bytes")
    blocks = _BLOCK.findall(text)
    if not blocks:
        if "\\n" in text and "\n" not in text.strip():
            raise KeyTextError(r"the line ends of this PEM are written as \n", "keep it in a file: " + remedy)
        raise KeyTextError("this PEM has no end: the line -----END ...----- is missing", remedy)
    if "\\n" in blocks[0][1]:
        raise KeyTextError(r"the line ends of this PEM are written as \n", "keep it in a file: " + remedy)
    labels = [label for label, _ in blocks if label != "EC PARAMETERS"]  # as `openssl ecparam -genkey` writes them
    if len(labels) != 1:
        raise KeyTextError(f"expected one key in PEM, got {len(labels)} blocks", remedy)
    return str(labels[0])
