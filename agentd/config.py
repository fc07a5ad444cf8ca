"""The agent's configuration: every key, its default and its limits; the order that the timings must keep.

The server is named by the node's bundle (`key_file`), and the server tells the heartbeat interval. Times are
in seconds.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from wire import types as w
from wire.errors import ChimeError
from wire.local.settings import Interval, LogFormat, LogLevel, Order, Percent, load_settings
from wire.reach import EMULATORS, FORBIDDEN, Reach

InterfaceName = Annotated[str, Meta(pattern=r"^[^\s/]{0,15}\Z", description="interface name")]
LIBVIRT_PREFIXES = ("qemu:///system", "qemu:///session", "qemu:///embed?root=/", "test:///")


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of agentd. An empty `key_file` follows from `state_dir`."""

    key_file: str = ""  # the node's bundle; default: node.key in state_dir
    state_dir: w.Path = "/var/lib/chime-agent"
    socket: w.Path = "/run/chime-agent.sock"  # for chime-agent
    libvirt_uri: str = "qemu:///system"
    virt_type: w.VirtType = w.VirtType.AUTO
    migration_uri: str = "qemu+tls://{host}/system"  # of the libvirt of another node
    shared_paths: Annotated[tuple[w.Path, ...], Meta(max_length=64)] = ()
    emulators: Annotated[tuple[w.Path, ...], Meta(max_length=64)] = EMULATORS
    forbidden_paths: Annotated[tuple[w.Path, ...], Meta(max_length=64)] = FORBIDDEN
    vm_paths: Annotated[tuple[w.Path, ...], Meta(max_length=64)] = ()
    vm_allow: tuple[Reach, ...] = ()

    audit_s: Interval = 60.0
    call_timeout_s: Interval = 30.0  # for one libvirt call; then libvirt counts as unreachable
    workers: Annotated[int, Meta(ge=1, le=64)] = 4

    restart_backoff_s: Interval = 1.0
    restart_backoff_max_s: Interval = 60.0
    restart_budget: Annotated[int, Meta(ge=1, le=1000)] = 5
    restart_window_s: Interval = 600.0
    settle_s: Interval = 5.0

    storage_paths: tuple[w.Path, ...] = ()  # of VM disks: watched for room and written to
    storage_min_free_percent: Percent = 5.0
    storage_slow_s: Interval = 5.0
    storage_check_s: Interval = 30.0
    memory_min_free_percent: Percent = 2.0
    business_interface: InterfaceName = ""
    business_targets: Annotated[tuple[w.Address, ...], Meta(max_length=16)] = ()
    business_check_s: Interval = 30.0
    links: Annotated[dict[str, Annotated[int, Meta(ge=0)]], Meta(max_length=64)] = {}  # least speed in Mb/s
    network_error_percent: Percent = 0.1
    network_drop_percent: Percent = 1.0
    checks_dir: w.Path = "/etc/chime/checks.d"
    script_interval_s: Interval = 60.0
    script_timeout_s: Interval = 10.0
    checks_off: tuple[str, ...] = ()
    severities: dict[w.Name, w.Severity] = {}  # by fault code, instead of the check's own

    log_level: LogLevel = "info"
    log_format: LogFormat = "auto"

    def __post_init__(self) -> None:
        """Fills in the path that follows from `state_dir`."""
        if not self.key_file:
            msgspec.structs.force_setattr(self, "key_file", f"{self.state_dir}/node.key")


ORDERS = (
    Order(
        "restart_backoff_s",
        "<=",
        "restart_backoff_max_s",
        "the pause between restarts grows from the one to the other",
    ),
    Order(
        "restart_backoff_max_s",
        "<",
        "restart_window_s",
        "restarts that are further apart than the window would never use up the budget",
    ),
    Order(
        "call_timeout_s",
        "<",
        "audit_s",
        "a hanging libvirt call must be given up before the next audit",
    ),
    Order(
        "settle_s",
        "<=",
        "audit_s",
        "the audit looks at VMs that have settled",
    ),
    Order(
        "script_timeout_s",
        "<=",
        "script_interval_s",
        "a script must have ended before it is run again",
    ),
)


def load_config(path: Path | str | None) -> Config:
    """The configuration at `path`, or the defaults. Raises `ChimeError` (invalid) with one line."""
    config = load_settings(path, Config, ORDERS)
    source = f"configuration {path}: " if path is not None else ""
    if not config.key_file.startswith("/"):
        raise ChimeError("invalid", f"{source}key_file = {config.key_file!r}: expected an absolute path")
    for target in config.business_targets:
        _must_be_address(target, source)
    if config.business_targets and not config.business_interface:
        raise ChimeError("invalid", f"{source}business_targets needs a business_interface to ping them over")
    if not config.libvirt_uri.startswith(LIBVIRT_PREFIXES):
        text = (
            f"{source}libvirt_uri = {config.libvirt_uri!r}: expected qemu:///system or qemu:///embed?root=DIR"
        )
        raise ChimeError("invalid", text)
    _must_lead_to_a_host(config.migration_uri, source)
    return config


def _must_lead_to_a_host(uri: str, source: str) -> None:
    if not uri.startswith("qemu+") or uri.count("{host}") != 1:
        text = f"{source}migration_uri = {uri!r}: expected qemu+tls://{{host}}/system, qemu+ssh or qemu+tcp"
        raise ChimeError("invalid", text)


def _must_be_address(target: str, source: str) -> None:
    try:
        ipaddress.ip_address(target)
    except ValueError:
        text = f"{source}business_targets has {target!r}: expected IPv4 or IPv6 addresses"
        raise ChimeError("invalid", text) from None
