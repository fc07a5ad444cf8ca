"""Key files: one TOML file holds the key pair of a server, node or operator and where its server is.

The bundle that `chime-tool node add` prints and `agentd join` reads is such a file, of kind `chime-node`.
Rules: a file that holds a secret is readable by its owner only, at every instant; a file is replaced as a
whole and never unless asked; one that others can read, or that belongs to somebody else, is refused; no error
shows a secret."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from enum import StrEnum
from pathlib import Path

import msgspec

from wire import files, toml
from wire import types as w
from wire.curve import KeyPair, public_of
from wire.errors import ChimeError

MAX_FILE_BYTES = 16_384
ENDPOINT_PATTERN = r"^tcp://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})\Z"


class Kind(StrEnum):
    """Whose keys a file holds."""

    SERVER = "chime-server"
    NODE = "chime-node"
    OPERATOR = "chime-operator"


class KeyFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a key file says. Without `secret_key` the secret stayed where it was made: on the node or with the
    operator. `server_public_key` and `endpoint` (`tcp://host:port`) are absent in a server's file."""

    kind: Kind
    name: w.Name
    public_key: w.PublicKey
    secret_key: w.PublicKey | None = None
    server_public_key: w.PublicKey | None = None
    endpoint: str | None = None

    def __repr__(self) -> str:
        return f"KeyFile({self.kind} {self.name!r}, public_key={self.public_key!r})"

    def pair(self) -> KeyPair:
        """The key pair. Raises `ChimeError` (invalid) when the file holds no secret key."""
        if self.secret_key is None:
            raise ChimeError(
                "invalid", f"the keys of {self.name!r} hold no secret_key: it stayed where it was made"
            )
        return KeyPair(self.public_key, self.secret_key)


def parse(text: str, source: str = "key file") -> KeyFile:
    """The key file in `text`. Raises `ChimeError` (invalid) that names `source` and what is wrong."""
    try:
        raw = toml.parse(text)
    except ValueError as error:
        raise ChimeError("invalid", f"{source} {error}") from None
    try:
        keys = msgspec.convert(raw, KeyFile)
    except msgspec.ValidationError as error:
        field = re.search(r"`\$\.(\w+)`", str(error)) or re.search(r"field `(\w+)`", str(error))
        what = f" ({field[1][:64]})" if field else ""
        text = "a value is missing, unknown or of the wrong form"
        raise ChimeError("invalid", f"{source} is not a Chime key file: {text}{what}") from None
    check(keys, source)
    return keys


def check(keys: KeyFile, source: str = "key file") -> None:
    """Raises `ChimeError` (invalid) when the keys do not fit together, or the endpoint is none."""
    if keys.secret_key == keys.public_key:
        raise ChimeError("invalid", f"{source}: public_key and secret_key are the same")
    if keys.secret_key is not None and public_of(keys.secret_key) != keys.public_key:
        raise ChimeError("invalid", f"{source}: public_key is not that of secret_key (are they swapped?)")
    if keys.server_public_key == keys.public_key:
        raise ChimeError("invalid", f"{source}: server_public_key is the key of {keys.name!r} itself")
    if keys.endpoint is not None:
        check_endpoint(keys.endpoint, source)


def check_endpoint(endpoint: str, source: str = "server address") -> None:
    """Raises `ChimeError` (invalid) when `endpoint` is not `tcp://host:port` (IPv6 in brackets)."""
    found = re.search(ENDPOINT_PATTERN, endpoint)
    if not found or not 0 < int(found[2]) < 65_536:
        raise ChimeError("invalid", f"{source}: endpoint {endpoint!r} is not of the form tcp://host:port")


def render(keys: KeyFile) -> str:
    """The text of the key file: what `parse` reads."""
    check(keys)
    values = msgspec.to_builtins(keys)
    return "".join(f'{name} = "{value}"\n' for name, value in values.items() if value is not None)


def load(path: str | os.PathLike[str], kind: Kind | None = None, owner: int | None = None) -> KeyFile:
    """Reads a key file. Raises `ChimeError` (invalid) when it is not there, not private, not valid, or not of
    `kind`. `owner`: a user whose file it may be, beside the caller's and root's."""
    try:
        text = _read_private(Path(path), owner)
    except OSError as error:
        raise ChimeError("invalid", f"cannot read key file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ChimeError("invalid", f"key file {path} is not text") from None
    keys = parse(text, f"key file {path}")
    if kind is not None and keys.kind != kind:
        raise ChimeError("invalid", f"key file {path} is of kind {keys.kind}, needed is {kind}")
    return keys


def save(path: str | os.PathLike[str], keys: KeyFile, *, overwrite: bool = False) -> None:
    """Writes a key file (0600), durably and as a whole. Raises `ChimeError`: exists, invalid."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        _write_private(temporary, render(keys).encode())
        try:
            if overwrite:
                os.replace(temporary, target)
            else:
                os.link(temporary, target)  # unlike a rename it fails when the target is there
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
        _sync_directory(target.parent)
    except FileExistsError:
        raise ChimeError("exists", f"key file {path} is there already: move it away first") from None
    except OSError as error:
        raise ChimeError("invalid", f"cannot write key file {path}: {error.strerror}") from None


def _read_private(path: Path, owner: int | None) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not hang us
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ChimeError("invalid", f"key file {path} is not a regular file")
        if status.st_uid not in (0, os.geteuid(), owner):
            raise ChimeError(
                "invalid", f"key file {path} belongs to user {status.st_uid}, not to you or root"
            )
        if status.st_mode & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            raise ChimeError(
                "invalid", f"key file {path} can be read by others (mode {mode:04o}): chmod 600 it"
            )
        if status.st_size > MAX_FILE_BYTES:
            raise ChimeError("invalid", f"key file {path} is larger than {MAX_FILE_BYTES} bytes")
        return file.read(MAX_FILE_BYTES).decode()


def _write_private(path: Path, content: bytes) -> None:
    descriptor = files.make_own(path)
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
