"""Who may connect, and how often."""

from __future__ import annotations

from zmq.utils import z85

from chimed.admission import Admission
from chimed.core.state.budgets import Limits

RAW = bytes(range(32))
KEY = z85.encode(RAW).decode()
MINE = Limits(10, 1000, 2, 4, handshakes_per_s=1.0, handshakes=3)


def status(admission: Admission, raw: bytes = RAW) -> tuple[bytes, str]:
    (code, _), who = admission.judge(b"chime", b"CURVE", [raw])
    return code, who


def test_only_a_registered_key_gets_in_and_under_its_own_name() -> None:
    admission = Admission(lambda: 0.0)
    assert status(admission) == (b"400", "")
    admission.allow({KEY: MINE})
    assert status(admission) == (b"200", KEY)
    assert status(admission, bytes(32)) == (b"400", "")
    for domain, mechanism, credentials in ((b"", b"CURVE", [RAW]), (b"chime", b"NULL", []), (b"chime", b"CURVE", []),
                                           (b"chime", b"PLAIN", [RAW]), (b"chime", b"CURVE", [RAW, RAW])):  # fmt: skip
        assert admission.judge(domain, mechanism, credentials)[0][0] == b"400"
    admission.allow({})
    assert status(admission) == (b"400", "")


def test_h6_a_key_that_connects_too_often_is_told_later_and_not_that_it_is_unknown() -> None:
    now = [0.0]
    admission = Admission(lambda: now[0])
    admission.allow({KEY: MINE})
    assert [status(admission)[0] for _ in range(4)] == [b"200"] * 3 + [b"300"]
    other = z85.encode(bytes(32)).decode()
    admission.allow({KEY: MINE, other: MINE})
    assert status(admission) == (b"300", ""), "what it has used stays used"
    assert status(admission, bytes(32)) == (b"200", other)
    now[0] = 1.0
    assert [status(admission)[0] for _ in range(2)] == [b"200", b"300"]
