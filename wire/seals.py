"""Words that can be checked later: seals, which only a server with the same key can make, and vouchers.

A seal shows that the server gave this node a VM in an epoch, or an inventory of a revision: also to a server whose
database is older than that. A voucher shows that the owner of a VM sent its copy to a target. Pure.

Must not live here: what follows from a right or a wrong one.
"""

from __future__ import annotations

import hashlib
import hmac

SIZE = 16
"""Bytes; 32 hexadecimal digits on the wire."""


def key_from(secret_key: str) -> bytes:
    """The key of a server's seals, from its secret CURVE key: it lives as long as that does."""
    return hashlib.blake2b(secret_key.encode(), digest_size=32, person=b"chime-seals").digest()


def of_assignment(key: bytes, uuid: str, epoch: int, node: str) -> str:
    """For the node that owns the VM in this epoch."""
    return _made(key, "vm", uuid, str(epoch), node)


def of_point(key: bytes, node: str, history: str, generation: int, life: str, revision: int) -> str:
    """For the node whose inventory stands there."""
    return _made(key, "point", node, history, str(generation), life, str(revision))


def voucher(seal: str, attempt: str, address: str) -> str:
    """What the owner writes into the copy that it sends: by its assignment's seal, for one attempt and one target."""
    return _made(hashlib.blake2b(seal.encode(), digest_size=32).digest(), "copy", attempt, address)


def fits(shown: str, right: str) -> bool:
    """Whether what was shown is the right one. Takes the same time for each wrong one."""
    return hmac.compare_digest(shown.encode(), right.encode())


def _made(key: bytes, *parts: str) -> str:
    """Each part with its length, so that no two lists of parts read the same."""
    text = "".join(f"{len(part.encode())}:{part}" for part in parts)
    return hashlib.blake2b(text.encode(), key=key, digest_size=SIZE).hexdigest()
