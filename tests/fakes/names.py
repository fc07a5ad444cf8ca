"""Keys and UUIDs that follow from names."""

from __future__ import annotations

import functools
import uuid


@functools.cache
def key_of(name: str) -> str:
    """A public key."""
    return (name.replace("_", "-") + "x" * 40)[:40]


@functools.cache
def uuid_of(name: str) -> str:
    """A UUID."""
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, name))
