"""What root does in the service's directory it does with the rights of that directory's owner.

Whoever owns a directory can exchange any file in it between two looks at it. Root's `chimed restore` and `chimed init`
must not be led to other files that way: they can do there what the owner could, and nothing more.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def of_owner(directory: Path) -> Iterator[None]:
    """Within, a process of root has only the rights of `directory`'s owner. For one without threads. Raises OSError."""
    found = directory.stat()
    if os.geteuid() != 0 or found.st_uid == 0:
        yield
        return
    groups, group = os.getgroups(), os.getegid()
    os.setgroups([])
    os.setegid(found.st_gid)
    os.seteuid(found.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)
