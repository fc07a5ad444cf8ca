"""The server's configuration: every key, its default and its limits; the order that the timings must keep.

A server works with no configuration file at all. Times are in seconds, sizes in MiB.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from chimed.core.state import budgets
from chimed.core.state.turn import Policy
from chimed.history import Retention
from wire import types as w
from wire.errors import ChimeError
from wire.keys import check_endpoint
from wire.local.settings import Interval, LogFormat, LogLevel, Order, load_settings
from wire.verbs import Role

PORT = 7440
WILDCARDS = ("tcp://0.0.0.0:", "tcp://[::]:", "tcp://*:")
Kept = Annotated[int, Meta(ge=100, le=100_000_000)]
Rate = Annotated[float, Meta(ge=0.1, le=1_000_000)]
Some = Annotated[int, Meta(ge=1, le=1_000_000)]


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of chimed. Empty `database`, `key_file` and `public_endpoint` follow from the others."""

    endpoint: str = f"tcp://0.0.0.0:{PORT}"  # where to listen
    public_endpoint: str = ""  # what nodes and operators are told to connect to; default: this host's name
    state_dir: w.Path = "/var/lib/chime"
    database: str = ""  # default: chime.db in state_dir
    key_file: str = ""  # default: server.key in state_dir

    heartbeat_s: Interval = 15.0
    missed_heartbeats: Annotated[int, Meta(ge=2, le=100)] = 3  # one may be lost on the way
    ping_tries: Annotated[int, Meta(ge=1, le=100)] = 3
    ping_timeout_s: Interval = 1.0
    challenge_s: Interval = (
        2.0  # for the host that holds a node's session to answer when another claims its key
    )
    command_timeout_s: Interval = 60.0
    operation_timeout_s: Interval = 300.0

    memory_overcommit: Annotated[float, Meta(gt=0, le=100)] = 1.0
    vcpu_overcommit: Annotated[float, Meta(gt=0, le=1000)] = 4.0
    memory_reserve_mib: Annotated[int, Meta(ge=0, le=67_108_864)] = 512
    vcpu_reserve: Annotated[int, Meta(ge=0, le=1024)] = 0

    migration_network: w.Line = "management"
    migrations_per_node: Annotated[int, Meta(ge=1, le=1000)] = 2  # as source or target
    migrations_per_cluster: Annotated[int, Meta(ge=1, le=100_000)] = 8

    mass_fraction: Annotated[float, Meta(gt=0, le=1)] = 1 / 3
    mass_min: Annotated[int, Meta(ge=1, le=1_000_000)] = 3

    connections_per_node: Some = budgets.NODE.connections
    connections_per_operator: Some = budgets.OPERATOR.connections
    node_messages_per_s: Rate = budgets.NODE.messages_per_s
    node_kib_per_s: Rate = budgets.NODE.bytes_per_s / 1024
    operator_messages_per_s: Rate = budgets.OPERATOR.messages_per_s
    operator_kib_per_s: Rate = budgets.OPERATOR.bytes_per_s / 1024
    budget_burst_s: Annotated[float, Meta(ge=1, le=3600)] = budgets.NODE.burst_s
    node_events_per_s: Rate = 2.0
    node_events_burst: Annotated[int, Meta(ge=500, le=1_000_000)] = 2_000  # an agent keeps 500 for its next report
    node_changes_per_s: Rate = 20.0
    node_changes_burst: Annotated[int, Meta(ge=1_000, le=100_000_000)] = 10_000
    reported_vms: Annotated[int, Meta(ge=100, le=1_000_000)] = 2_000
    reported_mib: Annotated[int, Meta(ge=1, le=1024)] = 4

    events_kept: Kept = 1_000_000
    node_events_kept: Kept = 1_000_000
    operations_kept: Kept = 100_000
    alarms_kept: Kept = 20_000
    answers_kept: Kept = 100_000
    answers_kept_s: Annotated[float, Meta(ge=60, le=31_536_000)] = 86_400.0

    log_level: LogLevel = "info"
    log_format: LogFormat = "auto"

    def __post_init__(self) -> None:
        """Fills in the paths that follow from `state_dir`."""
        for key, name in (("database", "chime.db"), ("key_file", "server.key")):
            if not getattr(self, key):
                msgspec.structs.force_setattr(self, key, f"{self.state_dir}/{name}")

    def policy(self, version: str) -> Policy:
        """The settings of the core."""
        names = set(Policy.__struct_fields__) & set(self.__struct_fields__)
        return Policy(version=version, **{name: getattr(self, name) for name in names})

    def retention(self) -> Retention:
        """How much history the store keeps."""
        return Retention(
            events=self.events_kept,
            node_events=self.node_events_kept,
            operations=self.operations_kept,
            alarms=self.alarms_kept,
            answers=self.answers_kept,
            answers_s=self.answers_kept_s,
        )

    def limits(self) -> dict[Role, budgets.Limits]:
        """What one key may use, by its role."""
        return {
            Role.AGENT: msgspec.structs.replace(
                budgets.NODE,
                messages_per_s=self.node_messages_per_s,
                bytes_per_s=self.node_kib_per_s * 1024,
                burst_s=self.budget_burst_s,
                connections=self.connections_per_node,
            ),
            Role.OPERATOR: msgspec.structs.replace(
                budgets.OPERATOR,
                messages_per_s=self.operator_messages_per_s,
                bytes_per_s=self.operator_kib_per_s * 1024,
                burst_s=self.budget_burst_s,
                connections=self.connections_per_operator,
            ),
        }

    def endpoint_for_peers(self) -> str:
        """What key files name: `public_endpoint`, or `endpoint`; this host's name stands for "all addresses"."""
        if self.public_endpoint or not self.endpoint.startswith(WILDCARDS):
            return self.public_endpoint or self.endpoint
        return f"tcp://{socket.getfqdn()}:{self.endpoint.rpartition(':')[2]}"


ORDERS = (
    Order(
        "ping_tries * ping_timeout_s",
        "<=",
        "heartbeat_s * missed_heartbeats",
        "pinging a silent node must not take longer than it took to miss it",
    ),
    Order(
        "challenge_s",
        "<",
        "heartbeat_s",
        "a key on two hosts must be noticed before the next heartbeat",
    ),
    Order(
        "heartbeat_s",
        "<=",
        "command_timeout_s",
        "an agent may learn of a command only from the answer to its next heartbeat",
    ),
    Order(
        "command_timeout_s",
        "<=",
        "operation_timeout_s",
        "an operation must outlive its commands",
    ),
    Order(
        "operation_timeout_s",
        "<=",
        "answers_kept_s",
        "a request repeated while its operation runs must find its answer",
    ),
)


def load_config(path: Path | str | None) -> Config:
    """The configuration at `path`, or the defaults. Raises `ChimeError` (invalid) with one line."""
    config = load_settings(path, Config, ORDERS)
    source = f"configuration {path}: " if path is not None else ""
    check_endpoint(config.endpoint, source.removesuffix(": ") or "configuration")
    if config.public_endpoint:
        check_endpoint(config.public_endpoint, f"{source}public_endpoint")
        if config.public_endpoint.startswith(WILDCARDS):
            text = f"{source}public_endpoint {config.public_endpoint!r} is no address to connect to"
            raise ChimeError("invalid", text)
    for key in ("database", "key_file"):
        if not getattr(config, key).startswith("/"):
            raise ChimeError(
                "invalid", f"{source}{key} = {getattr(config, key)!r}: expected an absolute path"
            )
    return config
