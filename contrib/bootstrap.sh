#!/bin/bash
# Make this checkout able to run: Debian packages (with "system"; with "bench" also those that only the bench needs) and
# the virtual environment in .venv.
# Usage: contrib/bootstrap.sh [system|bench]. Does nothing when nothing is missing; safe to interrupt and to run again.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { echo "chime: $*" >&2; }
die() { say "$*"; exit 1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else die "root is needed to run: $* (and there is no sudo)"
    fi
}

installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# Of the lists in these files.
missing_packages() {
    local name
    cat "$@" | while read -r name _; do
        case $name in '' | '#'*) continue ;; esac
        installed "$name" || echo "$name"
    done
}

# No service may be started by the installation: neither in a container, where it cannot, nor on a developer's
# machine, where nobody asked for libvirtd. A policy that exists already is kept.
POLICY=/usr/sbin/policy-rc.d
policy_is_ours=
remove_policy() { [ -z "$policy_is_ours" ] || as_root rm -f "$POLICY"; policy_is_ours=; }

install_packages() {
    local missing
    mapfile -t missing < <(missing_packages "$@")
    [ ${#missing[@]} -gt 0 ] || return 0
    command -v apt-get >/dev/null || die "this is not Debian; install by hand: ${missing[*]}"
    say "installing Debian packages: ${missing[*]}"
    trap remove_policy EXIT
    if [ ! -e $POLICY ]; then
        policy_is_ours=yes
        printf '#!/bin/sh\nexit 101\n' | as_root tee $POLICY >/dev/null
        as_root chmod 755 $POLICY
    fi
    apt_get update || say "apt-get update failed; trying with the package lists that are here"
    apt_get install --no-install-recommends "${missing[@]}" || die "apt-get could not install: ${missing[*]}"
    remove_policy
    do_not_boot "${missing[@]}"
}

# A cluster manager that came only to be measured is not started by the machine's next boot either.
do_not_boot() {
    local name
    for name in "$@"; do
        case $name in pacemaker | corosync) as_root systemctl --quiet disable "$name" ;; esac
    done
}

# libvirt's qemu driver looks this user up even where qemu runs as root; Debian makes it only together with the
# services of libvirt-daemon-system, which are not needed here. Same ids as there, so both fit together.
make_libvirt_user() {
    getent passwd libvirt-qemu >/dev/null && return
    say "making the system user libvirt-qemu"
    getent group kvm >/dev/null || as_root groupadd --system kvm
    getent group libvirt-qemu >/dev/null || as_root groupadd --system --gid 64055 libvirt-qemu
    as_root useradd --system -K SYS_UID_MAX=65000 --uid 64055 --gid kvm --groups libvirt-qemu --no-create-home \
        --home-dir /var/lib/libvirt --shell /usr/sbin/nologin libvirt-qemu
}

# Quiet unless it fails; waits for another apt on the machine.
apt_get() {
    local log
    log=$(mktemp)
    if as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 apt-get -qq -y \
        -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0 "$@" </dev/null >"$log" 2>&1; then
        rm -f "$log"
    else
        tail -n 30 "$log" >&2
        rm -f "$log"
        return 1
    fi
}

# The first python3 on PATH that is new enough and can make virtual environments.
find_python() {
    local candidate
    for candidate in $(type -ap python3) /usr/bin/python3; do
        if "$candidate" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    die "no python3 of version 3.11 or newer with venv; run: contrib/bootstrap.sh system"
}

PINNED=contrib/requirements
pip_install() { PYTHONWARNINGS=ignore .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@" </dev/null; }

# The stamp holds what .venv was made from; it is written last, so half a .venv is made again.
make_venv() {
    local python wanted stamp=.venv/chime-stamp
    wanted="$(cat setup.py $PINNED/build.txt $PINNED/dev.txt | sha256sum | cut -d' ' -f1) $PWD"
    [ "$(cat $stamp 2>/dev/null)" != "$wanted" ] || return 0
    python=$(find_python)
    say "making .venv with $python"
    rm -rf .venv
    "$python" -m venv .venv
    say "installing Python packages (libvirt-python is compiled, this takes a while)"
    { pip_install --require-hashes -r $PINNED/build.txt &&
        pip_install --require-hashes --no-build-isolation -r $PINNED/dev.txt &&
        pip_install --no-index --no-deps --no-build-isolation -e .; } || die "pip could not install the Python packages"
    echo "$wanted" >$stamp
}

PACKAGES=contrib/debian-packages.txt
case ${1:-} in
    '') ;;
    system) install_packages $PACKAGES ;;
    bench) install_packages $PACKAGES contrib/debian-packages-bench.txt ;;
    *) die "unknown word $1; expected system, bench or nothing" ;;
esac
[ -z "${1:-}" ] || make_libvirt_user
make_venv
