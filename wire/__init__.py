"""Chime's wire protocol: message types, codec, session rules, keys and a client.

Everything that two Chime processes must agree on lives here, and nothing of the server, the agent or the
tool. The prose is `docs/protocol.md`; the schema is `messages/`; examples are in `vectors/`.
Only `local/` is no protocol: what processes share without having to agree on it."""

PROTOCOL_VERSION = 1
"""The newest protocol version that this code speaks."""
