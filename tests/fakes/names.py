"""Keys, UUIDs and addresses that follow from names."""

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


@functools.cache
def address_of(name: str) -> str:
    """An IPv4 address."""
    return ".".join(["10", *map(str, uuid.uuid5(uuid.NAMESPACE_DNS, name).bytes[:3])])
