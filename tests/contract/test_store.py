"""What every store promises: the real one in SQLite and the fake of the simulator pass the same tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chimed.core.state import rows as r
from chimed.core.state.mark import PutBack
from chimed.core.state.tables import Tables
from chimed.database import StoreConflict
from chimed.history import Retention
from chimed.store import Store
from tests.fakes.rows import alarm, answer, change, deletion, event, migration, node, operation, vm
from tests.fakes.store import FakeDisk, FakeStore
from tests.sim.database import copied, put
from wire.messages import MigrationOptions

Reopen = Callable[[], Any]
NOW = 1_000_000.0


class Place:
    """Where a store is kept."""

    def __init__(self, kind: str, directory: Path) -> None:
        self._disk = FakeDisk() if kind == "fake" else None
        self._path, self._held = directory / "chime.db", []  # type: ignore[var-annotated]

    def __call__(self) -> Any:
        """Gives the store; called again, the same one after a restart."""
        self.close()
        if self._disk is not None:
            self._held.append(FakeStore(self._disk))
        else:
            self._held.append(Store.open(self._path) if self._path.exists() else Store.create(self._path))
        return self._held[0]

    def close(self) -> None:
        """Nobody has it open."""
        if self._held:
            self._held.pop().close()

    def copy(self) -> Any:
        """What `cp` makes of the database while nobody has it open."""
        self.close()
        return copied(self._disk, NOW) if self._disk is not None else self._path.read_bytes()

    def forget(self) -> None:
        """Another machine: nothing was here before."""
        self.close()
        if self._disk is not None:
            self._disk = FakeDisk()
        for file in self._path.parent.iterdir():
            file.unlink()

    def put_back(self, content: Any) -> None:
        """The copy takes the database's place; what lies beside it stays."""
        self.close()
        if self._disk is not None:
            put(self._disk, content)
        else:
            self._path.write_bytes(content)


@pytest.fixture(params=["sqlite", "fake"])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Gives a store; called again, the same one after a restart."""
    place = Place(request.param, tmp_path)
    yield place
    place.close()


def rows(store: Any) -> list[r.Row]:
    return list(store.load())


def test_a_new_store_holds_generation_one_and_nothing_else(reopen: Reopen) -> None:
    assert rows(reopen()) == [r.Meta()]


def test_every_kind_of_row_comes_back_unchanged(reopen: Reopen) -> None:
    saved: list[r.Row] = [
        r.Meta(generation=7, waiting_for=("n1",), next_operation=9),
        node("n1", reasons=("storage-full",), vcpus=8),
        vm("web é\U0001f600", "n1"),
        r.Release(node="n1", uuid="u", epoch=3, revision=2, name="old"),
        r.Command(id="c", node="n1", uuid="u", epoch=1, kind="reboot", force=True, revision=1, timeout_s=0.5,
                  operation="op-1"),
        migration("web", "op-1"),
        operation(1, moving=r.Moving(source="n1", to="n2", network="eth0", options=MigrationOptions(timeout_s=5.0))),
        alarm(1),
        r.Operator(name="me", public_key="k", created=1.25),
        answer("k1", NOW),
    ]  # fmt: skip
    reopen().commit([change(row) for row in saved], [])
    assert rows(reopen()) == saved


def test_a_row_is_replaced_as_a_whole_and_deleted(reopen: Reopen) -> None:
    store = reopen()
    store.commit([change(node("n1", vcpus=8)), change(node("n2"))])
    store.commit(
        [change(node("n1", address="10.0.0.1")), deletion(node("n2")), deletion(node("never-there"))]
    )
    assert rows(reopen()) == [r.Meta(), node("n1", address="10.0.0.1")]


def test_a_name_passes_from_a_deleted_vm_to_a_new_one_in_one_turn(reopen: Reopen) -> None:
    store = reopen()
    old, new = vm("web", "n1"), vm("web", "n1", uuid="00000000-0000-0000-0000-000000000001")
    store.commit([change(old), change(node("n1"))])
    store.commit([change(new), deletion(old)])
    assert rows(reopen())[2:] == [new]


@pytest.mark.parametrize(
    "contradiction",
    [
        [change(vm("web", "n1", uuid="00000000-0000-0000-0000-000000000001"))],
        [change(vm("other", "n-unknown"))],
        [deletion(node("n1"))],
        [change(node("n3", public_key="key-of-n1"))],
        [change(migration("web", "op-1")), change(migration("db", "op-1"))],
    ],
    ids=["name twice", "unknown node", "node with VMs removed", "key twice", "attempt twice"],
)
def test_rows_that_contradict_each_other_change_nothing(reopen: Reopen, contradiction: Any) -> None:
    store = reopen()
    store.commit([change(node("n1")), change(vm("web", "n1"))])
    before = rows(store)
    with pytest.raises(StoreConflict):
        store.commit([change(node("n2")), *contradiction], [event("n2")])
    assert rows(store) == before
    assert store.events() == []
    store.commit([change(node("n2"))])
    assert len(rows(reopen())) == len(before) + 1


def test_events_are_numbered_filtered_and_oldest_first(reopen: Reopen) -> None:
    store = reopen()
    store.commit([], [event(f"n{i % 2}", text=str(i)) for i in range(10)])
    assert [e.text for e in store.events(None, 0, 3)] == ["7", "8", "9"]
    assert [e.text for e in store.events("n1", 0, 2)] == ["7", "9"]
    last = store.events(None, 0, 1)[0]
    assert store.events(None, last.id, 10) == []
    store.commit([], [event("n5", text="new")])
    assert [e.text for e in store.events(None, last.id, 10)] == ["new"]
    assert store.events("nobody") == []


def test_a_repeated_report_of_an_event_is_recorded_once(reopen: Reopen) -> None:
    reopen().commit(
        [], [event("v", "a", "s1"), event("v", "a", "s1"), event("v", "b", "s2"), event("v", "c")]
    )
    store = reopen()
    store.commit([], [event("v", "a", "s1"), event("v", "c"), event("v", "d", "s1", actor="n2")])
    assert [e.text for e in store.events("v")] == ["a", "b", "c", "c", "d"]


def test_prune_keeps_what_is_true_now_and_the_newest_of_the_rest(reopen: Reopen) -> None:
    store = reopen()
    ended = [operation(i, ended=float(i)) for i in range(1, 6)]
    cleared = [alarm(i, cleared=float(i)) for i in range(1, 4)]
    answers = [answer(key, NOW) for key in ("k0", "k1", "k2", "k3")]
    kept = [node("n1", last_operation="op-1"), operation(6), alarm(9)]
    store.commit([change(row) for row in (*kept, *ended, *cleared, *answers)])
    store.commit([], [event("n1", text=str(i)) for i in range(10)])
    keep = Retention(events=4, operations=2, alarms=1, answers=2, answers_s=100.0)
    gone = store.prune(NOW, keep)
    assert {c.key for c in gone} == {("op-2",), ("op-3",), (1,), (2,), ("op", "k0"), ("op", "k1")}
    assert all(c.row is None for c in gone)
    store = reopen()
    left = {row for row in rows(store) if not isinstance(row, r.Meta)}
    assert left == {*kept, ended[0], ended[3], ended[4], cleared[2], *answers[2:]}
    assert [e.text for e in store.events()] == ["6", "7", "8", "9"]
    assert store.prune(NOW, keep) == []


def test_h11_a_clock_that_was_years_ahead_drops_nothing_that_came_later(reopen: Reopen) -> None:
    """What was made in that minute bears the future: it is neither the newest for ever, nor is all else too old."""
    store = reopen()
    years, keep = NOW + 3e8, Retention(operations=2, alarms=2, answers=2)
    wrong = [operation(1, ended=years), alarm(1, cleared=years), answer("wrong", years)]
    right = [
        row
        for i in (2, 3)
        for row in (operation(i, ended=NOW + i), alarm(i, cleared=NOW + i), answer(f"k{i}", NOW + i))
    ]
    store.commit([change(row) for row in wrong])
    store.commit([change(row) for row in right])
    assert {c.key for c in store.prune(7.0, keep)} == {("op-1",), (1,), ("op", "wrong")}
    assert {row for row in rows(store) if not isinstance(row, r.Meta)} == set(right)


def test_h11_answers_go_when_the_server_has_counted_their_time(reopen: Reopen) -> None:
    store, keep = reopen(), Retention(answers_s=100.0)

    def pruned(now: float) -> set[str]:
        return {change.key[1] for change in store.prune(now, keep)}

    store.commit([change(answer("a", NOW + 3e8)), change(answer("b", 0.0))])
    assert pruned(10.0) == set()
    store.commit([change(answer("c", NOW))])
    assert pruned(60.0) == pruned(60.5) == pruned(109.0) == set()
    assert pruned(110.0) == {"a", "b"} and pruned(120.0) == set()
    assert pruned(160.0) == {"c"}
    store.commit([change(answer("d", NOW))])  # nothing was left: its row may have the number of one that is gone
    assert pruned(161.0) == pruned(259.0) == set()
    store = reopen()
    assert pruned(5.0) == pruned(104.0) == set()  # the monotonic clock of another life
    assert pruned(106.0) == {"d"}


def test_h6_lines_of_nodes_never_push_out_the_others(reopen: Reopen) -> None:
    store = reopen()
    for number in range(50):
        store.commit([], [event("n1", text=f"own {number}")] if number < 5 else [])
        store.commit([], [event("n1", f"told {number}.{i}", f"s{number}.{i}", of_node=True) for i in range(10)])
        store.prune(NOW, Retention(events=5, node_events=20))
    store = reopen()
    assert [e.text for e in store.events() if e.text.startswith("own")] == [f"own {i}" for i in range(5)]
    assert [e.text for e in store.events() if e.text.startswith("told")] == [
        f"told {number}.{i}" for number in (48, 49) for i in range(10)
    ]
    store.prune(NOW, Retention(events=2, node_events=0))
    assert [e.text for e in store.events()] == ["own 3", "own 4"]


def test_the_tables_of_the_core_come_back(reopen: Reopen) -> None:
    tables = Tables()
    tables.nodes.put(node("n1"))
    tables.vms.put(vm("web", "n1"))
    tables.meta = r.Meta(next_operation=5)
    tables.append(event("n1"))
    store = reopen()
    store.commit(*tables.changes())
    assert store.writable()
    again = Tables()
    again.load(reopen().load())
    assert (list(again.nodes), list(again.vms)) == (list(tables.nodes), list(tables.vms))
    assert again.meta == tables.meta


def test_a_database_that_was_not_put_back_is_the_newest(reopen: Place) -> None:
    assert reopen().put_back is None
    store = reopen()
    store.commit([change(node("n1"))])
    store.commit([], [event("n1")])
    store.commit([])
    assert reopen().put_back is None


def test_a_copy_that_is_put_back_is_told_from_the_newest_until_a_recovery(reopen: Place) -> None:
    reopen().commit([change(r.Meta(history="one")), change(node("n1"))])
    old = reopen.copy()
    store = reopen()
    store.commit([change(node("n2"))])
    store.commit([], [event("n2")])
    reopen.put_back(old)
    told = PutBack(1, "it was put back: 3 changes were saved in its place, and it has 1 of them")
    assert reopen().put_back == told
    reopen().commit([change(node("n3"))])
    assert reopen().put_back == PutBack(1, told.text.replace("it has 1", "it has 2"))
    reopen().commit([change(r.Meta(generation=2, history="two"))])
    assert reopen().put_back is None
    reopen.put_back(old)
    told = PutBack(2, "it was put back: one of generation 2 was in its place, and it is of generation 1")
    assert reopen().put_back == told


def test_a_database_of_another_history_is_told_from_the_newest(reopen: Place) -> None:
    store = reopen()
    store.commit([change(r.Meta(generation=2, history="one"))])
    old = reopen.copy()
    store = reopen()
    store.commit([change(r.Meta(generation=3, history="two"))])
    reopen.put_back(old)
    assert reopen().put_back.generation == 3


def test_a_copy_from_before_the_last_start_is_told_although_nothing_was_saved_since(reopen: Place) -> None:
    reopen().commit([change(node("n1"))])
    old = reopen.copy()
    assert reopen().put_back is None
    reopen.put_back(old)
    told = PutBack(1, "it was put back: the file is not the one that was open here last")
    assert reopen().put_back == told
    assert reopen().put_back == told


def test_the_newest_that_is_put_back_after_a_wrong_one_is_right(reopen: Place) -> None:
    """However far the wrong one has come meanwhile."""
    store = reopen()
    store.commit([change(r.Meta(history="one"))])
    wrong = reopen.copy()
    store = reopen()
    store.commit([change(node("n1"))])
    right = reopen.copy()
    reopen.put_back(wrong)
    for number in range(4):
        store = reopen()
        assert store.put_back is not None
        store.commit([change(node(f"w{number}"))])
    reopen.put_back(right)
    store = reopen()
    assert store.put_back is None
    store.commit([change(node("n2"))])
    assert reopen().put_back is None
    assert rows(reopen()) == [r.Meta(history="one"), node("n1"), node("n2")]


def test_a_wrong_one_becomes_the_newest_by_a_recovery_alone(reopen: Place) -> None:
    reopen().commit([change(r.Meta(history="one"))])
    wrong = reopen.copy()
    reopen().commit([change(node("n1"))])
    right = reopen.copy()
    reopen.put_back(wrong)
    reopen().commit([change(r.Meta(generation=2, history="two"))])
    assert reopen().put_back is None
    reopen().commit([change(node("n2"))])
    assert reopen().put_back is None
    reopen.put_back(right)
    assert reopen().put_back.generation == 2


def test_one_of_a_higher_generation_that_was_not_here_is_told_until_its_own_recovery(reopen: Place) -> None:
    reopen().commit([change(r.Meta(generation=5, history="five"))])
    other = reopen.copy()
    reopen.forget()
    reopen().commit([change(r.Meta(generation=3, history="three"))])
    reopen.put_back(other)
    for _ in range(2):
        assert reopen().put_back.generation == 5
        reopen().commit([change(node("n1"))])
    reopen().commit([change(r.Meta(generation=6, history="six"))])
    assert reopen().put_back is None
