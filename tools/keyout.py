"""Bundles of nodes and key files of operators: the only place where the tool handles secrets of others.

The key pair is made here, and only its public half goes to the server. A file is written before the request
is sent, so that no key is registered whose secret got lost; a refusal removes the file again.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import msgspec

from tools.change import agreed, planned
from tools.options import Args, UsageError
from tools.render import show_document
from tools.session import Row, Session
from wire import keys
from wire import messages as m
from wire.errors import ChimeError, Unreachable


def issue(
    session: Session,
    kind: keys.Kind,
    request_type: type[m.Mutation],
    args: Args,
    what: str,
    *,
    ask: bool = False,
    **values: Any,
) -> int:
    """Registers the key of NAME, given or new, and hands over its key file; returns the exit code."""
    public, secret = args["--public-key"], None
    if public is None:
        public, secret = session.connection.new_pair()
    request = session.mutation(request_type, name=args["NAME"], public_key=public, **values)
    file = keys.KeyFile(
        kind=kind,
        name=args["NAME"],
        public_key=public,
        secret_key=secret,
        server_public_key=session.connection.server_public_key,
        endpoint=session.connection.endpoint,
    )
    path = _writable(args["--output"]) if args["--output"] else None
    if session.options.dry_run:
        return _show_plan(session, planned(session, request), what)
    if ask and not agreed(session, request, what):
        return 1
    result = _register(session, request, file, path)
    _show(session, result, file, what, path)
    return 0


def _register(session: Session, request: Any, file: keys.KeyFile, path: Path | None) -> Row:
    """Sends the request when the file is safe on disk."""
    if path is None:
        return dict(session.client.request(request))
    keys.save(path, file)
    try:
        return dict(session.client.request(request))
    except Unreachable:
        session.terminal.say(f"note: {path} is kept: the server may have registered its key")
        raise
    except ChimeError:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def _show_plan(session: Session, result: Row, what: str) -> int:
    plan = result.get("plan") or []
    if session.options.output in ("json", "yaml"):
        show_document(session, {"operation": None, "changed": False, "warnings": [], "plan": plan})
    else:
        session.terminal.write("".join(f"{line}\n" for line in plan or [f"{what}: would be done"]))
    return 0


def _show(session: Session, result: Row, file: keys.KeyFile, what: str, path: Path | None) -> None:
    if session.options.output in ("json", "yaml"):
        document = {name: value for name, value in result.items() if name != "bundle"}
        if path is None:
            document["bundle"] = {k: v for k, v in msgspec.to_builtins(file).items() if v is not None}
        else:
            document["file"] = str(path)
        show_document(session, document)
    elif path is not None:
        session.terminal.write(f"{what}: done, written to {path}\n")
    else:
        session.terminal.write(keys.render(file))
        secret = ": keep them secret" if file.secret_key else ""
        session.terminal.say(f"{what}: done; the lines above are its key file{secret}")


def _writable(name: str) -> Path:
    path = Path(name)
    if os.path.lexists(path):
        raise UsageError(f"--output {name}: it is there already")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UsageError(f"--output {name}: cannot write into {path.parent}")
    return path
