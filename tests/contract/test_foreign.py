"""Surveys, taking over and giving back, on the fake and on real qemu: only the metadata changes, and no process."""

from __future__ import annotations

import re
from typing import Any

import pytest

from agentd.hypervisor import InvalidVm
from tests.contract.harness import Harness, RealHarness, new_vm
from tests.contract.test_hypervisor import started
from wire import messages as m
from wire.types import Desired, Observed


def foreign(host: Harness, name: str = "theirs", running: bool = True) -> str:
    uuid = new_vm().uuid
    host.person_define(uuid, f"{name}-{uuid[:8]}")
    if running:
        host.person_start(uuid)
    return uuid


def told(host: Harness, uuid: str) -> m.ForeignVm:
    (vm,), more = host.driver.survey("", uuid)
    assert not more
    return vm


def order(host: Harness, uuid: str, **changes: Any) -> m.Assignment:
    vm = told(host, uuid)
    spec = m.VmSpec(vcpus=1, memory_mib=32, xml=vm.xml)
    desired = Desired.STOPPED if vm.observed == Observed.STOPPED else Desired.RUNNING
    values = {"name": vm.name, "uuid": uuid, "epoch": 7, "revision": 3, "desired": desired, "adopt": True, "spec": spec}
    return m.Assignment(**{"start_serial": 1, "graceful_s": 0.0, **values, **changes})


def pids(host: Harness, uuid: str) -> list[int]:
    return [process.pid for process in host.driver.inspect(uuid).processes]


def without_mark(xml: str) -> str:
    """The XML as it would be if Chime had never written into it."""
    xml = re.sub(r"\s*<chime:vm [^>]*/>", "", xml)
    return re.sub(r"\s*<metadata>\s*</metadata>|\s*<metadata/>", "", xml)


def epoch(host: Harness, uuid: str) -> int | None:
    domain = host.driver.inspect(uuid).domain
    assert domain is not None
    return domain.epoch


def test_a_survey_tells_what_is_not_ours(host: Harness) -> None:
    ours, theirs, off = started(host), foreign(host), foreign(host, "off", running=False)
    host.set_autostart(off)
    vms, more = host.driver.survey("", None)
    found = {vm.uuid: vm for vm in vms}
    assert not more and ours not in found and found[theirs].xml is None
    assert (found[theirs].observed, found[off].observed) == (Observed.RUNNING, Observed.STOPPED)
    assert (found[theirs].autostart, found[off].autostart, found[off].problem) == (False, True, "")
    assert told(host, theirs).xml == host.xml(theirs, False)
    names = [vm.name for vm in vms]
    assert names == sorted(names)
    assert [vm.name for vm in host.driver.survey(names[0], None)[0]] == names[1:]
    assert host.driver.survey("", ours) == ((), False)
    assert host.driver.survey("", new_vm().uuid) == ((), False)


def test_a_running_vm_is_taken_over_and_given_back_as_it_is(host: Harness) -> None:
    uuid = foreign(host)
    host.set_autostart(uuid)
    process = pids(host, uuid)
    before = [host.xml(uuid, live) for live in (True, False)]
    host.driver.adopt(order(host, uuid))
    seen = host.driver.inspect(uuid).domain
    assert seen is not None and (seen.epoch, seen.revision, seen.adopted, seen.persistent) == (7, 3, True, True)
    assert [without_mark(host.xml(uuid, live)) for live in (True, False)] == before
    assert pids(host, uuid) == process and not host.autostart(uuid)
    if isinstance(host, RealHarness):
        assert all("<chime:vm" in host.xml(uuid, live) for live in (True, False))
    host.driver.give_back(uuid, 6)
    assert epoch(host, uuid) == 7, "a release of a lower epoch"
    for _ in range(2):
        host.driver.give_back(uuid, 7)
        assert epoch(host, uuid) is None and pids(host, uuid) == process
        assert [without_mark(host.xml(uuid, live)) for live in (True, False)] == before
    assert all("chime" not in host.xml(uuid, live) for live in (True, False))


def test_taking_over_may_be_repeated_and_raises_the_epoch(host: Harness) -> None:
    uuid = foreign(host)
    vm = order(host, uuid)
    host.driver.adopt(vm)
    host.driver.adopt(vm)
    host.driver.adopt(m.Assignment(**{**{f: getattr(vm, f) for f in vm.__struct_fields__}, "epoch": 9}))
    assert epoch(host, uuid) == 9


def test_a_vm_that_is_off_is_taken_over_off_and_defined_later(host: Harness) -> None:
    uuid = foreign(host, running=False)
    vm = order(host, uuid)
    host.driver.adopt(vm)
    assert epoch(host, uuid) == 7 and not pids(host, uuid)
    host.driver.define(vm)
    seen = host.driver.inspect(uuid).domain
    assert seen is not None and (seen.epoch, seen.adopted) == (7, False)
    assert "<on_crash>destroy</on_crash>" in host.xml(uuid, False)


def test_what_is_not_as_it_was_asked_for_is_not_touched(host: Harness) -> None:
    uuid = foreign(host)
    vm = order(host, uuid)
    changed = m.VmSpec(vcpus=1, memory_mib=32, xml="<domain/>\n")
    for changes, says in (({"spec": changed}, "was changed"), ({"name": "other"}, "is named theirs")):
        with pytest.raises(InvalidVm, match=says):
            host.driver.adopt(order(host, uuid, **changes))
    host.person_destroy(uuid)
    with pytest.raises(InvalidVm, match="does not run any more"):
        host.driver.adopt(vm)
    with pytest.raises(InvalidVm, match="defined on this node"):
        host.driver.adopt(m.Assignment(**{**{f: getattr(vm, f) for f in vm.__struct_fields__}, "uuid": new_vm().uuid}))
    assert epoch(host, uuid) is None


def test_a_transient_vm_is_not_taken_over(host: Harness) -> None:
    uuid = foreign(host)
    host.person_undefine(uuid)
    assert "transient" in told(host, uuid).problem
    with pytest.raises(InvalidVm, match="transient"):
        host.driver.adopt(order(host, uuid))
    assert pids(host, uuid)


def test_giving_back_what_is_not_there_is_done_already(host: Harness) -> None:
    host.driver.give_back(new_vm().uuid, 7)
    uuid = foreign(host, running=False)
    host.driver.give_back(uuid, 7)
    assert epoch(host, uuid) is None
