"""The client that `docs/protocol.md` shows runs as it stands there, without Chime's own code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.tools.make_protocol_tables import DOCUMENT
from tests.tools.stand_in import StandIn
from wire import keys as k
from wire import messages as m
from wire.codec import Message
from wire.curve import new_pair


def test_the_example_client(tmp_path: Path) -> None:
    found = re.search(r"<!-- example: client -->\n```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert found
    script = tmp_path / "client.py"
    script.write_text(found[1])
    assert "wire" not in found[1]
    operator = new_pair()

    def answer(message: Message) -> m.Base:
        if message.type == "node.list":
            return m.Ok(result={"items": [{"name": "n1", "health": "normal"}], "next": ""})
        assert isinstance(message.body, m.NodeDrain)
        if message.body.name != "n1":
            return m.ErrorBody(code="not-found", message=f"no node {message.body.name}", retriable=False)
        return m.Ok(result={"operation": {"id": "op1"}, "changed": True, "warnings": [], "plan": []})

    with StandIn([operator.public]) as server:
        server.answer = answer
        file = tmp_path / "operator.key"
        secret = {"public_key": operator.public, "secret_key": operator.secret}
        public = {"server_public_key": server.keys.public, "endpoint": server.endpoint}
        k.save(file, k.KeyFile(kind=k.Kind.OPERATOR, name="alice", **secret, **public))
        good, bad = (
            subprocess.run(
                [sys.executable, "-I", script, file, node],
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
            )
            for node in ("n1", "n9")
        )
    assert (good.returncode, good.stdout) == (0, "n1 normal\noperation op1\n"), good.stderr
    assert (bad.returncode, bad.stderr) == (1, "not-found: no node n9\n")
