"""The database's tables, as numbered migrations: `NNNN_name`, applied in order, each in one transaction,
never edited.

Each table holds its key in real columns and the whole row as JSON in `row`; what a person with `sqlite3`
wants to see are virtual columns computed from that JSON, so they can be constrained and indexed and can never
disagree with it. A field that a row type gains needs no migration (it has a default); a new table, constraint
or index does. All tables are STRICT. What the rows mean is not known here.
"""

from __future__ import annotations

from sqlite_utils import Database, Migrations

APPLICATION_ID = 0x4368696D
"""Marks the file as Chime's (`PRAGMA application_id`, the letters "Chim")."""

migrations = Migrations("chime")


def _table(name: str, key: str, columns: dict[str, str], constraints: str = "") -> str:
    """DDL of a table of rows; `columns` maps the name of a virtual column to its type and constraints."""
    parts = [key] if key else []
    parts.append("row TEXT NOT NULL CHECK (json_valid(row))")
    for column, kind in columns.items():
        type_, _, rest = kind.partition(" ")
        parts.append(f"{column} {type_} AS (json_extract(row, '$.{column}')) VIRTUAL {rest}".rstrip())
    if constraints:
        parts.append(constraints)
    return f"CREATE TABLE {name} (" + ", ".join(parts) + ") STRICT"


_TABLES = (
    _table("meta", "one INTEGER PRIMARY KEY CHECK (one = 1)", {"generation": "INTEGER NOT NULL"}),
    _table(
        "nodes",
        "name TEXT PRIMARY KEY NOT NULL",
        {
            "public_key": "TEXT NOT NULL UNIQUE",
            "admin_state": "TEXT",
            "health": "TEXT",
            "evidence": "TEXT",
            "revision": "INTEGER",
            "address": "TEXT",
            "lock": "TEXT",
        },
    ),
    _table(
        "vms",
        "uuid TEXT PRIMARY KEY NOT NULL",
        {
            "name": "TEXT NOT NULL UNIQUE",
            "node": "TEXT NOT NULL REFERENCES nodes (name) DEFERRABLE INITIALLY DEFERRED",
            "epoch": "INTEGER NOT NULL CHECK (epoch >= 0)",
            "desired": "TEXT NOT NULL",
            "revision": "INTEGER",
            "operation": "TEXT",
        },
    ),
    _table(
        "releases",
        "node TEXT NOT NULL, uuid TEXT NOT NULL",
        {"epoch": "INTEGER NOT NULL", "revision": "INTEGER", "name": "TEXT"},
        "PRIMARY KEY (node, uuid)",
    ),
    _table(
        "commands",
        "id TEXT PRIMARY KEY NOT NULL",
        {"node": "TEXT NOT NULL", "uuid": "TEXT", "kind": "TEXT", "epoch": "INTEGER", "operation": "TEXT"},
    ),
    _table(
        "operations",
        "id TEXT PRIMARY KEY NOT NULL",
        {
            "number": "INTEGER NOT NULL UNIQUE",
            "kind": "TEXT",
            "subject": "TEXT",
            "label": "TEXT",
            "state": "TEXT NOT NULL",
            "actor": "TEXT",
            "outcome": "TEXT",
            "created": "REAL",
            "ended": "REAL",
        },
    ),
    _table(
        "alarms",
        "id INTEGER PRIMARY KEY NOT NULL",
        {
            "code": "TEXT",
            "subject": "TEXT",
            "severity": "TEXT",
            "raised": "REAL",
            "cleared": "REAL",
            "acked_by": "TEXT",
        },
    ),
    _table(
        "operators",
        "name TEXT PRIMARY KEY NOT NULL",
        {"public_key": "TEXT NOT NULL UNIQUE", "created": "REAL"},
    ),
    _table(
        "answers",
        "operator TEXT NOT NULL, key TEXT NOT NULL",
        {"created": "REAL NOT NULL"},
        "PRIMARY KEY (operator, key)",
    ),
    """CREATE TABLE events (id INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, actor TEXT NOT NULL,
    action TEXT NOT NULL, subject TEXT NOT NULL, text TEXT NOT NULL, operation TEXT,
    source_id TEXT NOT NULL DEFAULT '') STRICT""",
    "CREATE TABLE probe (one INTEGER PRIMARY KEY CHECK (one = 1), filler BLOB NOT NULL) STRICT",
)

_INDEXES = (
    "CREATE INDEX vms_by_node ON vms (node)",
    "CREATE INDEX operations_ended ON operations (ended) WHERE ended IS NOT NULL",
    "CREATE INDEX alarms_cleared ON alarms (cleared) WHERE cleared IS NOT NULL",
    "CREATE INDEX answers_created ON answers (created)",
    "CREATE INDEX events_by_subject ON events (subject, id)",
    # A report that is repeated names the same event again: it is recorded once.
    "CREATE UNIQUE INDEX events_once ON events (subject, actor, source_id) WHERE source_id <> ''",
)


@migrations(name="0001_initial")
def initial(db: Database) -> None:
    """All tables of version 1."""
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    for statement in _TABLES + _INDEXES:
        db.execute(statement)
    db.execute("""INSERT INTO meta (one, row) VALUES (1, '{"generation": 1}')""")


@migrations(name="0002_migrations")
def live_migrations(db: Database) -> None:
    """Migrations of VMs that are under way."""
    columns = dict.fromkeys(("source", "target", "operation"), "TEXT NOT NULL")
    columns |= {"attempt": "TEXT NOT NULL UNIQUE", "epoch": "INTEGER NOT NULL"}
    db.execute(_table("migrations", "uuid TEXT PRIMARY KEY NOT NULL", columns))


@migrations(name="0003_event_rings")
def event_rings(db: Database) -> None:
    """Lines that nodes bring about are kept apart from those of operators and the server, and old operations are found
    without reading every VM."""
    db.execute("ALTER TABLE events ADD COLUMN of_node INTEGER NOT NULL DEFAULT 0")
    db.execute("UPDATE events SET of_node = 1 WHERE actor LIKE 'agentd@%'")
    db.execute("CREATE INDEX events_of_nodes ON events (of_node)")
    for table in ("nodes", "vms"):
        db.execute(f"CREATE INDEX {table}_last_operation ON {table} (json_extract(row, '$.last_operation'))")


@migrations(name="0004_turns")
def turns(db: Database) -> None:
    """Commits are counted."""
    db.execute("CREATE TABLE turns (one INTEGER PRIMARY KEY CHECK (one = 1), turn INTEGER NOT NULL) STRICT")
    db.execute("INSERT INTO turns VALUES (1, 0)")
