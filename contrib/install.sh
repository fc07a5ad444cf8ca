#!/bin/bash
# Put Chime on this machine, or take it off again: what `make install` and `make uninstall` run. Run as root.
#   PREFIX   where it lives                          /opt/chime
#   PARTS    any of: server agent tool; what is there already stays   what is there, or "server agent"
#   DESTDIR  directory that becomes / of the target  (this machine)
#   PYTHON   interpreter of the target, 3.11 or newer: one that every user can run   /usr/bin/python3
#   PURGE=1  uninstall: state and configuration too
# The new version is built beside the old one and takes its place at once: an installation that fails changes nothing.
# Running it again is the upgrade. No service is started or restarted here.
set -euo pipefail
cd "$(dirname "$0")/.."
umask 022

PREFIX=${PREFIX:-/opt/chime}
PARTS=${PARTS:-}
DESTDIR=${DESTDIR:-}
DESTDIR=${DESTDIR%/}
PYTHON=${PYTHON:-/usr/bin/python3}
PURGE=${PURGE:-}

LIB=/usr/local/lib
BIN=/usr/local/bin
MARK=share/chime-installed  # a directory without it was not made here, and is not removed
UNITS=(chimed.service chime-agentd.service)
STATE=(/etc/chime /var/lib/chime /var/lib/chime-agent)

say() { echo "chime: $*"; }
die() { echo "chime: $*" >&2; exit 1; }
has() { [[ " $PARTS " == *" $1 "* ]]; }
live() { [ -z "$DESTDIR" ] && [ -d /run/systemd/system ]; }

check_arguments() {
    local part
    [[ $PREFIX =~ ^/[A-Za-z0-9._/-]+$ && $PREFIX != *..* && $PREFIX != */ ]] ||
        die "PREFIX=$PREFIX: expected an absolute path of letters, digits and . _ - without .. or a / at the end"
    [[ $DESTDIR =~ ^(/[^\|\&\\]*)?$ && $DESTDIR != *$'\n'* ]] || die "DESTDIR=$DESTDIR: expected an absolute path without | & \\"
    for part in $PARTS; do
        [[ $part =~ ^(server|agent|tool)$ ]] || die "PARTS: unknown part $part: expected any of server, agent, tool"
    done
    [ -n "$DESTDIR" ] || [ "$(id -u)" = 0 ] || die "root is needed to install on this machine"
    [ ! -e "$DESTDIR$PREFIX" ] || [ -e "$DESTDIR$PREFIX/$MARK" ] ||
        die "$DESTDIR$PREFIX was not made by make install: move it away first"
}

# The parts that are there already are kept up with: they share the libraries.
all_parts() {
    local before
    before=$(cat "$DESTDIR$PREFIX/$MARK" 2>/dev/null || true)
    [ -n "$PARTS$before" ] || PARTS="server agent"
    PARTS=$(printf '%s\n' $PARTS $before | sort -u | xargs)
}

check_tools() {
    "$PYTHON" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        die "$PYTHON is not Python 3.11 or newer with venv; on Debian: apt install python3-venv"
    has agent || return 0
    if ! command -v gcc >/dev/null || ! pkg-config --exists libvirt 2>/dev/null; then
        die "the agent needs libvirt's headers to be built; on Debian: apt install gcc pkg-config python3-dev libvirt-dev"
    fi
}

# In a place of its own, made to believe that it stands at $PREFIX: also what DESTDIR needs.
build() {
    local new=$1 source=$2
    mkdir -p "$source" "$(dirname "$new")"
    rm -rf "$new"
    cp -a setup.py pyproject.toml README.md LICENSE chimed agentd wire tools "$source"  # pip leaves its build where the source is
    find "$source" -name __pycache__ -prune -exec rm -rf {} +
    "$PYTHON" -m venv "$new"
    put_packages "$new/bin/python" "$source" || die "pip could not install Chime; nothing was changed"
    grep -rlIF "$new" "$new/bin" "$new/pyvenv.cfg" | xargs -r sed -i "s|$new|$PREFIX|g"
    "$new/bin/python" -m compileall -q -f -s "$new" -p "$PREFIX" "$new/lib" || true  # a package may hold a file for a newer Python
    mkdir -p "$new/share/doc"
    cp -R docs "$new/share/doc/chime"
    cp README.md CHANGELOG.md LICENSE "$new/share/doc/chime/"
    echo "$PARTS" >"$new/$MARK"
    chmod -R a+rX "$new"  # whatever the checkout's modes: chimed runs as a user of its own
}

# What others made in the versions that are pinned, each file with its hash, then Chime itself; nothing is looked for
# beyond that, also not to build a wheel with. (Called in a condition: set -e does not hold here.)
put_packages() {
    local python=$1 source=$2 pinned=contrib/requirements part=base
    local pip=("$python" -m pip install --quiet --disable-pip-version-check --no-compile)
    ! has agent || part=agent
    "${pip[@]}" --require-hashes -r $pinned/build.txt </dev/null &&
        "${pip[@]}" --require-hashes --no-build-isolation -r $pinned/$part.txt </dev/null &&
        "${pip[@]}" --no-index --no-deps --no-build-isolation "$source" </dev/null &&
        "$python" -m pip check >/dev/null
}

# On one line after the other the machine has the old version, the new one, or (for a moment) none.
take_place() {
    local new=$1 old=$DESTDIR$PREFIX.old
    rm -rf "$old"
    [ ! -e "$DESTDIR$PREFIX" ] || mv "$DESTDIR$PREFIX" "$old"
    mv "$new" "$DESTDIR$PREFIX"
    rm -rf "$old"
}

# Files of one part; also how `uninstall` knows what to remove.
commands_of() {
    case $1 in
        server) echo chimed chime-tool ;;
        agent) echo agentd chime-agent chime-tool ;;
        tool) echo chime-tool ;;
    esac
}
put() { install -D -m 644 /dev/stdin "$DESTDIR$2" < <(sed "s|/opt/chime/|$PREFIX/|g" "contrib/systemd/$1"); }

put_part() {
    local name
    mkdir -p "$DESTDIR$BIN"
    for name in $(commands_of "$1"); do ln -sfn "$PREFIX/bin/$name" "$DESTDIR$BIN/$name"; done
    case $1 in
        server)
            put chimed.service $LIB/systemd/system/chimed.service
            put chime-server.sysusers.conf $LIB/sysusers.d/chime-server.conf
            put chime-server.tmpfiles.conf $LIB/tmpfiles.d/chime-server.conf
            put_config chimed.toml ;;
        agent)
            put chime-agentd.service $LIB/systemd/system/chime-agentd.service
            put chime-agent.tmpfiles.conf $LIB/tmpfiles.d/chime-agent.conf
            put_config agentd.toml ;;
    esac
}

put_config() {
    local target=$DESTDIR/etc/chime/$1
    if [ -e "$target" ]; then say "kept $target"; else install -D -m 644 "contrib/examples/$1" "$target"; fi
}

do_install() {
    local new=$DESTDIR$PREFIX.new part
    check_arguments
    all_parts
    check_tools
    work=$(mktemp -d)
    trap 'rm -rf "$work" "$DESTDIR$PREFIX.new"' EXIT
    build "$new" "$work/source"
    take_place "$new"
    for part in $PARTS; do put_part "$part"; done
    if [ -z "$DESTDIR" ]; then
        ! has server || systemd-sysusers chime-server.conf
        ! has server || systemd-tmpfiles --create chime-server.conf
        ! has agent || systemd-tmpfiles --create chime-agent.conf
    fi
    if live; then systemctl daemon-reload; fi
    say "installed $PARTS in $DESTDIR$PREFIX"
    next_steps
}

next_steps() {
    [ -z "$DESTDIR" ] || say "on the target, once: systemd-sysusers && systemd-tmpfiles --create && systemctl daemon-reload"
    if has server; then
        say "server, the first time: set public_endpoint in /etc/chime/chimed.toml; then"
        say "    chimed init --config /etc/chime/chimed.toml && systemctl enable --now chimed"
    fi
    if has agent; then
        say "node, the first time: agentd join BUNDLE --config /etc/chime/agentd.toml (from: chime-tool node add NAME); then"
        say "    systemctl enable --now chime-agentd"
    fi
    say "after an upgrade: systemctl try-restart ${UNITS[*]} (VMs go on); docs: $PREFIX/share/doc/chime/install.md"
}

do_uninstall() {
    local name path
    check_arguments
    if live; then systemctl stop "${UNITS[@]}" 2>/dev/null || true; fi
    for name in "${UNITS[@]}"; do  # what `systemctl enable` made; it works without a running systemd
        rm -f "$DESTDIR/etc/systemd/system/multi-user.target.wants/$name"
    done
    for name in $(commands_of server) $(commands_of agent); do
        path=$DESTDIR$BIN/$name
        if [ "$(readlink "$path")" = "$PREFIX/bin/$name" ]; then rm -f "$path"; fi
    done
    rm -f "${UNITS[@]/#/$DESTDIR$LIB/systemd/system/}" "$DESTDIR$LIB"/sysusers.d/chime-server.conf \
        "$DESTDIR$LIB"/tmpfiles.d/chime-{server,agent}.conf
    for path in systemd/system systemd sysusers.d tmpfiles.d; do
        rmdir "$DESTDIR$LIB/$path" 2>/dev/null || true  # only when it is empty
    done
    rm -rf "$DESTDIR$PREFIX" "$DESTDIR$PREFIX.old" "$DESTDIR$PREFIX.new"
    if live; then systemctl daemon-reload; fi
    say "removed the programs; VMs go on, and nobody guards them now"
    remove_state
}

remove_state() {
    local path left=()
    for path in "${STATE[@]}"; do
        [ ! -e "$DESTDIR$path" ] || left+=("$DESTDIR$path")
    done
    if [ -n "$PURGE" ]; then
        rm -rf "${left[@]}"
        if [ -z "$DESTDIR" ] && getent passwd chime >/dev/null; then userdel chime; fi
        say "removed state, keys and configuration: ${left[*]:-none}"
    elif [ ${#left[@]} -gt 0 ]; then
        say "left, with keys and the database: ${left[*]} and the user chime (PURGE=1 removes them)"
    fi
}

case ${1:-} in
    install) do_install ;;
    uninstall) do_uninstall ;;
    *) die "usage: contrib/install.sh install|uninstall" ;;
esac
