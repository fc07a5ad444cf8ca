"""agentd: the Chime agent of a compute node.

Usage:
  agentd [--config FILE]
  agentd join BUNDLE [--config FILE] [--force]
  agentd keygen [--config FILE] [--force]
  agentd check-config [--config FILE]
  agentd check-host [--config FILE]
  agentd (-h | --help)
  agentd --version

Without a command the agent runs in the foreground until SIGTERM or SIGINT; VMs go on when it stops.

  join          installs this node's bundle (`chime-tool node add NAME` prints it; - reads standard input)
  keygen        makes the node's key here and prints its public key, for `chime-tool node add NAME --public-key KEY`;
                the bundle that it prints is then joined as usual, and the secret never leaves this node
  check-config  reads the configuration, says what is wrong with it, or what it amounts to
  check-host    runs each fault check of this node once, a site's own too, and says what it sees

Options:
  --config FILE  TOML configuration; every key has a default
  --force        replace what was installed before
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from agentd import __version__, snapshot
from agentd.config import Config, load_config
from wire import curve, keys, toml
from wire.errors import ChimeError
from wire.local import logs, notify, program
from wire.local.usage import say, show
from wire.text import escaped_json


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code: 0 done, 1 failed, 2 usage or configuration."""
    return program.run("agentd", __version__, __doc__ or "", _command, argv, (snapshot.SnapshotError,))


def _command(args: dict[str, Any]) -> int:
    config = load_config(args["--config"])
    if args["join"]:
        return _join(config, args["BUNDLE"], args["--force"])
    if args["keygen"]:
        return _keygen(config, args["--force"])
    if args["check-config"]:
        show(escaped_json(msgspec.json.format(msgspec.json.encode(config)).decode()))
        return 0
    if args["check-host"]:
        return _check_host(config)
    return _run(config)


def _check_host(config: Config) -> int:
    from agentd.checks.once import look  # only now: the other commands do not need psutil

    lines, all_could_look = look(config)
    show("\n".join(lines))
    return 0 if all_could_look else 1


def _run(config: Config) -> int:
    logs.set_up(config.log_level, config.log_format)
    notifier = notify.take_environment(os.environ)
    if not Path(config.key_file).exists():
        text = f"{config.key_file} does not exist: install this node's bundle with agentd join BUNDLE"
        raise ChimeError("invalid", text)
    bundle = keys.load(config.key_file, keys.Kind.NODE)
    if not bundle.endpoint or not bundle.server_public_key:
        raise ChimeError("invalid", f"{config.key_file} does not name the server: agentd join its bundle")
    state = snapshot.of(config, bundle.name)
    state.lock()
    from agentd.daemon import Daemon  # only now: the commands above need neither libvirt nor psutil
    from agentd.libvirt.driver import configured

    Daemon(config, bundle, configured(config), state).run(notifier)
    sys.stderr.flush()
    os._exit(0)  # a libvirt call that hangs must not keep the process; everything is saved already


def _join(config: Config, source: str, force: bool) -> int:
    text = _read_bundle(source)
    source = "standard input" if source == "-" else source
    bundle = keys.parse(text, source)
    if bundle.kind != keys.Kind.NODE:
        raise ChimeError("invalid", f"{source} is not the bundle of a node but of kind {bundle.kind}")
    if not bundle.endpoint or not bundle.server_public_key:
        raise ChimeError("invalid", f"{source} does not name the server")
    if bundle.secret_key is None:
        bundle = msgspec.structs.replace(bundle, secret_key=_own_secret(config, bundle))
    _must_be_new(Path(config.key_file), force)
    Path(config.key_file).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _leave_state(config, bundle)
    keys.save(config.key_file, bundle, overwrite=force)
    _pending(config).unlink(missing_ok=True)
    say(f"this is node {bundle.name} of the server at {bundle.endpoint}; key in {config.key_file}")
    return 0


def _must_be_new(place: Path, force: bool) -> None:
    if not force and os.path.lexists(place):
        raise ChimeError("exists", f"key file {place} is there already, and was left as it is: --force replaces it")


def _leave_state(config: Config, bundle: keys.KeyFile) -> None:
    """Whoever gives the node a key may have given its VMs to others before."""
    try:
        old = keys.load(config.key_file, keys.Kind.NODE)
    except (OSError, ChimeError):
        old = None
    same = old is not None and (old.name, old.server_public_key) == (bundle.name, bundle.server_public_key)
    snapshot.of(config, bundle.name).joined(foreign=not same)


def _read_bundle(source: str) -> str:
    try:
        if source != "-":
            return toml.read_text(source, keys.MAX_FILE_BYTES)
        return toml.decoded(sys.stdin.buffer.read(keys.MAX_FILE_BYTES + 1), keys.MAX_FILE_BYTES)
    except OSError as error:
        raise ChimeError("invalid", f"cannot read bundle {source}: {error.strerror}") from None
    except ValueError as error:
        raise ChimeError("invalid", f"bundle {source} {error}") from None


def _pending(config: Config) -> Path:
    return Path(f"{config.key_file}.new")


def _own_secret(config: Config, bundle: keys.KeyFile) -> str:
    try:
        own = keys.load(_pending(config), keys.Kind.NODE)
    except (OSError, ChimeError) as error:
        raise ChimeError("invalid", f"the bundle holds no secret key, and none was made here: {error}") from None
    if own.public_key != bundle.public_key:
        raise ChimeError("invalid", f"the bundle is for public key {bundle.public_key}, here is {own.public_key}")
    return own.pair().secret


def _keygen(config: Config, force: bool) -> int:
    place = _pending(config)
    _must_be_new(place, force)
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    pair = curve.new_pair()
    made = keys.KeyFile(kind=keys.Kind.NODE, name="new", public_key=pair.public, secret_key=pair.secret)
    keys.save(place, made, overwrite=force)
    show(pair.public)
    say(f"secret key in {place}; next: chime-tool node add NAME --public-key '{pair.public}'")
    return 0


if __name__ == "__main__":
    sys.exit(main())
