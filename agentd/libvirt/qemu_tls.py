"""Whether this node's qemu has keys to encrypt a migration: what libvirt's qemu.conf says, or its defaults."""

from __future__ import annotations

import re
from pathlib import Path

CONF = Path("/etc/libvirt/qemu.conf")
PKI = Path("/etc/pki")
NEEDED = ("ca-cert.pem", "client-cert.pem", "client-key.pem")
SETTING = re.compile(r'^\s*(migrate|default)_tls_x509_cert_dir\s*=\s*"([^"]*)"', re.MULTILINE)


def has_migration_keys(conf: Path = CONF, pki: Path = PKI) -> bool:
    """Whether the folder that qemu takes its keys from for a migration holds those of a client."""
    return all((key_folder(conf, pki) / name).is_file() for name in NEEDED)


def key_folder(conf: Path = CONF, pki: Path = PKI) -> Path:
    """The folder: as set, or libvirt's own for migrations where it exists, or that of all of qemu's keys."""
    try:
        settings = dict(SETTING.findall(conf.read_text(encoding="utf-8", errors="replace")))
    except OSError:
        settings = {}
    if "migrate" in settings:
        return Path(settings["migrate"])
    own = pki / "libvirt-migrate"
    if own.is_dir():
        return own
    return Path(settings.get("default", str(pki / "qemu")))
