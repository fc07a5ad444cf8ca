"""`python -m tests.hosts down [DIRECTORY]` ends kept clusters, `sweep` those whose owner is dead."""

import sys
from pathlib import Path

from tests.hosts.cluster import down, kept_clusters, sweep


def main(argv: list[str]) -> int:
    """Return the exit code."""
    if argv[:1] == ["sweep"]:
        sweep()
    elif argv[:1] == ["down"]:
        for directory in [Path(word) for word in argv[1:]] or kept_clusters():
            down(directory)
            print(f"ended the cluster in {directory}")
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
