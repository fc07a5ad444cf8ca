"""What every message and every part of one has in common."""

from __future__ import annotations

from msgspec import Struct


class Base(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """Common settings of every part of a message. (`kw_only` is not inherited; mypy wants `frozen`
    repeated. Messages hold no circles, so the garbage collector need not look at them.)"""
