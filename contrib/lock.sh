#!/bin/bash
# Renew the pinned versions and hashes of what Chime is installed with: contrib/requirements/*.txt. What `make lock` runs.
#   base.txt    server and tool        agent.txt   all parts
#   dev.txt     the tests too          build.txt   what wheels are built with where there is none
# From setup.py, by pip-tools in a virtual environment of its own that is removed again, with the oldest Python that is
# supported. pip's own settings say where from; none of them gets into the files.
#   PYTHON    /usr/bin/python3        KEEP=1    keep the present versions where they still fit: hashes and additions only
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-/usr/bin/python3}
OUT=contrib/requirements
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "chime: $PYTHON is not Python 3.11" >&2; exit 1; }
"$PYTHON" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pip-tools
mkdir "$work/source"
cp setup.py pyproject.toml README.md "$work/source"  # setuptools leaves its notes where the source is

compile() {
    local out=$1
    shift
    [ -z "${KEEP:-}" ] || [ ! -e "$OUT/$out" ] || cp "$OUT/$out" "$work/$out"
    "$work/venv/bin/pip-compile" --quiet --generate-hashes --allow-unsafe --strip-extras --no-annotate --no-header \
        --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-emit-options \
        --output-file "$work/$out" "$@" >/dev/null
}

# The largest first: the others have the same versions.
echo 'setuptools>=65' >"$work/build.in"
compile build.txt "$work/build.in"
compile dev.txt --extra dev "$work/source/setup.py"
compile agent.txt --extra agent --constraint "$work/dev.txt" "$work/source/setup.py"
compile base.txt --constraint "$work/dev.txt" "$work/source/setup.py"
for name in build dev agent base; do
    { echo "# Made by make lock from setup.py: do not edit."; sed "/^#/d;/^$/d" "$work/$name.txt"; } >"$OUT/$name.txt"
    chmod 644 "$OUT/$name.txt"
    echo "chime: $OUT/$name.txt: $(grep -c == "$OUT/$name.txt") distributions" >&2
done
