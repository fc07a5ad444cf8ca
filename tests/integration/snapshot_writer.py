"""Saves snapshots until it is killed: `python -m tests.integration.snapshot_writer DIRECTORY SEED [torn]`.

For each line on its standard input, the revision saved last, a child is born that goes on from there, tells each
revision when it is saved, and dies: by a fault of strace, or, with `torn`, in the middle of a write: its file has then
reached a random size (SIGXFSZ).
"""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
from pathlib import Path

from agentd.core.durable import Durable, Tombstone
from agentd.snapshot import Snapshot


def content(revision: int, rng: random.Random) -> Durable:
    """What can be told apart from every other content, in all of its length."""
    stones = {f"{revision}-{number}": Tombstone(epoch=revision) for number in range(rng.choice((0, 1, 30, 1000)))}
    return Durable(node="n1", revision=revision, tombstones=stones)


def save(snapshot: Snapshot, revision: int, rng: random.Random) -> None:
    """On and on."""
    while True:
        revision += 1
        snapshot.save(content(revision, rng))
        os.write(1, b"%d\n" % revision)


def main(directory: Path, seed: str, torn: bool) -> None:
    snapshot = Snapshot(directory, "n1")
    for number, line in enumerate(sys.stdin):
        pid = os.fork()
        if pid == 0:
            rng = random.Random(f"{seed} {number}")
            if torn:
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                resource.setrlimit(resource.RLIMIT_FSIZE, (rng.randint(1, 30_000),) * 2)
            save(snapshot, int(line), rng)
        os.waitpid(pid, 0)
        os.write(1, b"dead\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], "torn" in sys.argv[3:])
