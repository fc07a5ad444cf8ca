"""CURVE keys by libzmq: a new pair, and the public key that belongs to a secret one."""

from __future__ import annotations

from typing import NamedTuple

import zmq

from wire.errors import ChimeError


class KeyPair(NamedTuple):
    """A CURVE key pair, both in Z85 (40 characters). The public key is the identity of a server, node or
    operator."""

    public: str
    secret: str

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public!r}, secret=...)"


def new_pair() -> KeyPair:
    """A new random key pair."""
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())


def public_of(secret: str) -> str:
    """The public key of `secret`. Raises `ChimeError` (invalid) when that is not a key; the text does not
    show it."""
    try:
        return zmq.curve_public(secret.encode()).decode()
    except (zmq.ZMQError, ValueError):
        raise ChimeError("invalid", "the secret key is not a CURVE key (40 characters of Z85)") from None
