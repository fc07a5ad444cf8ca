"""chimed: the Chime server.

Usage:
  chimed [--config FILE]
  chimed init [--config FILE] [--operator NAME] [--operator-key FILE]
  chimed check-config [--config FILE]
  chimed backup DESTINATION [--config FILE] [--overwrite]
  chimed restore BACKUP [--config FILE] [--yes]
  chimed (-h | --help)
  chimed --version

Without a command the server runs in the foreground until SIGTERM or SIGINT.

  init          makes the server's key, the database and the first operator's key file
  check-config  reads the configuration, says what is wrong with it, or what it amounts to
  backup        copies the database to a new file, also while the server runs
  restore       replaces the database by a backup (the server must be stopped; the present one is kept beside it)

Options:
  --config FILE        TOML configuration; every key has a default
  --operator NAME      name of the first operator [default: admin]
  --operator-key FILE  where to put the first operator's key (default: operator.key in state_dir)
  --overwrite          replace an existing backup file
  --yes                do not ask
"""

from __future__ import annotations

import gc
import os
import re
import secrets
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import structlog

from chimed import __version__, backup
from chimed.config import Config, load_config
from chimed.core.rules import recovery
from chimed.core.server import ServerCore
from chimed.core.state import rows as r
from chimed.daemon import Daemon, make_core
from chimed.database import StoreError
from chimed.icmp import Pinger
from chimed.store import Store
from chimed.transport import Router, TransportError
from wire import curve, keys
from wire.errors import ChimeError
from wire.local import logs, notify, program
from wire.local.usage import say, show
from wire.text import counted, escaped_json
from wire.types import IN_WORDS, NAME_PATTERN


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 done, 1 failed, 2 usage or configuration."""
    return program.run("chimed", __version__, __doc__ or "", _command, argv, (StoreError, TransportError))


def _command(args: dict[str, Any]) -> int:
    config = load_config(args["--config"])
    if args["init"]:
        return _init(config, args["--operator"], args["--operator-key"])
    if args["check-config"]:
        show(escaped_json(msgspec.json.format(msgspec.json.encode(config)).decode()))
        return 0
    if args["backup"]:
        backup.back_up(config.database, args["DESTINATION"], overwrite=args["--overwrite"])
        say(f"database copied to {args['DESTINATION']}")
        return 0
    if args["restore"]:
        return _restore(config, args["BACKUP"], args["--yes"])
    return _run(config)


def _run(config: Config) -> int:
    logs.set_up(config.log_level, config.log_format)
    log = structlog.get_logger()
    notifier = notify.take_environment(os.environ)
    server_keys = keys.load(config.key_file, keys.Kind.SERVER)
    with Store.open(config.database) as store:
        core = make_core(store, config.policy(__version__), server_keys.pair().secret)
        gc.freeze()  # what was loaded stays: a collection that walked 20,000 rows would stop the loop for it
        router = Router(server_keys.pair())
        pinger = Pinger()
        try:
            router.self_test()
            daemon = Daemon(core, store, router, pinger, config.retention(), limits=config.limits())
            daemon.allow_keys()
            endpoint = router.bind(config.endpoint)
            nodes, vms = len(core.tables.nodes), len(core.tables.vms)
            log.info(f"chimed {__version__} listens at {endpoint}: {counted(nodes, 'node')}, {counted(vms, 'VM')}")
            for caution in cautions(core, pinger):
                log.warning(caution)
            daemon.run(notifier)
        finally:
            router.close()
            pinger.close()
    return 0


def cautions(core: ServerCore, pinger: Pinger) -> list[str]:
    """What a person should know of this server from its start."""
    holding = recovery.why_holding(core.ctx)
    cannot = f"{pinger.reason}: a silent node will be shown as agent-lost, never as unreachable"
    return [text for text, is_so in ((holding, holding), (cannot, not pinger.available)) if is_so]


def _init(config: Config, operator: str, operator_key: str | None) -> int:
    if not re.search(NAME_PATTERN, operator):
        raise ChimeError("invalid", f"--operator {operator!r}: expected text {IN_WORDS[NAME_PATTERN]}")
    place = Path(operator_key or f"{config.state_dir}/operator.key")
    if Path(config.database).exists():
        raise ChimeError("exists", f"{config.database} exists already: this server was initialised before")
    if place.exists():
        raise ChimeError("exists", f"{place} exists already: choose another place with --operator-key")
    Path(config.state_dir).mkdir(parents=True, exist_ok=True, mode=0o700)
    if not Path(config.key_file).exists():
        pair = curve.new_pair()
        server = keys.KeyFile(kind=keys.Kind.SERVER, name="chimed", public_key=pair.public, secret_key=pair.secret)
        keys.save(config.key_file, server)
    # root makes a database anew with the key of before, which is the service's by then
    server = keys.load(config.key_file, keys.Kind.SERVER, owner=Path(config.state_dir).stat().st_uid)
    person = curve.new_pair()
    row = r.Operator(name=operator, public_key=person.public, created=time.time())
    bundle = keys.KeyFile(
        kind=keys.Kind.OPERATOR,
        name=operator,
        public_key=person.public,
        secret_key=person.secret,
        server_public_key=server.public_key,
        endpoint=config.endpoint_for_peers(),
    )
    keys.check(bundle, "the first operator's key")
    keys.save(place, bundle)
    try:
        with Store.create(config.database) as store:
            noted = store.noted
            meta = r.Meta(generation=noted.generation + 1, history=secrets.token_hex(8))
            store.commit([r.Change("meta", (), meta), r.Change("operators", (operator,), row)], [])
    except StoreError:
        place.unlink()
        raise
    say(f"server key:   {config.key_file} (public key {server.public_key})")
    say(f"database:     {config.database}")
    if noted.generation:
        say(f"a database of generation {noted.generation} was here before: this one begins in {meta.generation}")
    say(f"operator key: {place} (for {operator}; copy it to ~/.config/chime/operator.key)")
    return 0


def _restore(config: Config, source: str, yes: bool) -> int:
    backup.check(source)
    say(f"replaces {config.database} by {source}; the present database is kept beside it")
    say("everything that was changed since the backup is forgotten by the server")
    if not yes:
        if not sys.stdin.isatty():
            raise ChimeError("invalid", "not a terminal: give --yes to go on; nothing was changed")
        print("continue? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            say("nothing was changed")
            return 1
    generation = backup.restore(source, config.database)
    say(f"restored; generation {generation}. Until all nodes have reported, nothing is started, stopped or moved.")
    say("Add again the nodes that were added since the backup (chime-tool node add); see chime-tool recovery show.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
