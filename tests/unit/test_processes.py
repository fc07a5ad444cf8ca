"""Which processes count as a qemu of a VM, on a `/proc` made of files."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest

from agentd.core.facts import Process
from agentd.hypervisor import HypervisorError
from agentd.libvirt import processes
from agentd.libvirt.processes import Processes, vm_uuid

UUID = "11111111-2222-4333-8444-555555555555"


@pytest.mark.parametrize(
    ("argv", "found"),
    [
        (["/usr/bin/qemu-system-x86_64", "-name", "guest=a", "-uuid", UUID], True),
        (["/usr/libexec/qemu-kvm", "-uuid", UUID.upper()], True),
        (["kvm", "--uuid", UUID], True),
        (["/opt/hv/vmm", "-machine", "pc", "-uuid", UUID], True),
        (["/opt/hv/vmm", "-name", "guest=a,debug-threads=on", "-uuid", UUID], True),
        (["timeout", "9", "qemu-system-x86_64", "-M", "pc", "-uuid", UUID], True),
        (["mkfs.ext4", "-uuid", UUID], False),
        (["qemu-img", "create", "x"], False),
        (["qemu-system-x86_64", "-uuid", "not-a-uuid"], False),
        (["qemu-system-x86_64", "-uuid"], False),
        (["qemu-system-x86_64", "-name", UUID], False),
        ([""], False),
    ],
)
def test_argv(argv: list[str], found: bool) -> None:
    assert vm_uuid(argv) == (UUID if found else None)


def _stat(state: str, threads: int = 1, start: int = 77) -> str:
    return f"1 (a) b) {state} " + " ".join("0" * 16) + f" {threads} 0 {start} 0\n"


def _process(proc: Path, pid: str, argv: list[str], stat: str) -> Path:
    folder = proc / pid
    folder.mkdir(parents=True)
    (folder / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in argv))
    (folder / "stat").write_text(stat)
    return folder


QEMU = ["/usr/bin/qemu-system-x86_64", "-uuid", UUID]


@pytest.mark.parametrize("state", "SRTDt")
def test_every_state_that_may_still_run_counts(tmp_path: Path, state: str) -> None:
    _process(tmp_path, "7", QEMU, _stat(state))
    assert Processes(tmp_path).scan() == (Process(UUID, 7, state),)


@pytest.mark.parametrize("state", "ZX")
def test_ended_process_does_not_count(tmp_path: Path, state: str) -> None:
    _process(tmp_path, "7", QEMU, _stat(state))
    assert Processes(tmp_path).scan() == ()


def test_killed_process_with_a_thread_in_disk_sleep_counts(tmp_path: Path) -> None:
    leader = _process(tmp_path, "7", [], _stat("Z", threads=2))
    _process(leader / "task", "7", [], _stat("Z", threads=2))
    _process(leader / "task", "9", QEMU, _stat("D", threads=2))
    assert Processes(tmp_path).scan() == (Process(UUID, 7, "D"),)


def test_process_whose_leader_ends_while_it_is_read_counts_for_its_last_thread(tmp_path: Path) -> None:
    leader = _process(tmp_path, "7", QEMU, _stat("Z", threads=2))  # its arguments were read just before
    _process(leader / "task", "7", [], _stat("Z", threads=2))
    _process(leader / "task", "9", QEMU, _stat("D", threads=2))
    assert Processes(tmp_path).scan() == (Process(UUID, 7, "D"),)


def test_zombie_kernel_thread_other_and_vanished_process_do_not_count(tmp_path: Path) -> None:
    _process(tmp_path, "2", [], _stat("S"))
    _process(tmp_path, "3", [], _stat("Z"))
    _process(tmp_path, "4", ["sleep", "9"], _stat("S"))
    (_process(tmp_path, "5", QEMU, "") / "stat").unlink()
    (tmp_path / "6").mkdir()
    (tmp_path / "self").mkdir()
    assert Processes(tmp_path).scan() == ()


def test_unreadable_process_does_not_end_the_scan(tmp_path: Path) -> None:
    (tmp_path / "5" / "cmdline").mkdir(parents=True)  # reading it is an OSError
    (tmp_path / "5" / "stat").mkdir()
    _process(tmp_path, "7", QEMU, _stat("S"))
    assert Processes(tmp_path).scan() == (Process(UUID, 7, "S"),)


def test_arguments_that_are_no_text_are_read(tmp_path: Path) -> None:
    folder = _process(tmp_path, "7", QEMU, _stat("S"))
    with (folder / "cmdline").open("ab") as file:
        file.write(b"-append\0\xff\xfe\0")
    assert Processes(tmp_path).scan() == (Process(UUID, 7, "S"),)


def _killed(folder: Path, stat: str) -> None:
    """The kernel frees its memory first: its arguments are gone from then on."""
    (folder / "cmdline").write_bytes(b"")
    (folder / "stat").write_text(stat)


def test_killed_process_that_waits_for_its_last_writes_counts_though_its_arguments_are_gone(tmp_path: Path) -> None:
    seen = Processes(tmp_path)
    folder = _process(tmp_path, "7", QEMU, _stat("S"))
    assert seen.scan() == (Process(UUID, 7, "S"),)
    _killed(folder, _stat("D"))
    assert seen.scan() == seen.scan() == (Process(UUID, 7, "D"),)
    _killed(folder, _stat("Z", threads=2))
    thread = _process(folder / "task", "9", [], _stat("D", threads=2))
    assert seen.scan() == (Process(UUID, 7, "D"),)
    _killed(thread, _stat("Z"))
    assert seen.scan() == ()


def test_process_that_nobody_knew_is_seen_by_the_thread_that_still_has_its_arguments(tmp_path: Path) -> None:
    leader = _process(tmp_path, "7", [], _stat("R", threads=3))
    _process(leader / "task", "7", [], _stat("R", threads=3))
    _process(leader / "task", "8", [], _stat("R", threads=3))
    _process(leader / "task", "9", QEMU, _stat("D", threads=3))
    assert Processes(tmp_path).scan() == (Process(UUID, 7, "D"),)


def test_arguments_that_were_read_before_its_leader_ended_say_whose_it_is(tmp_path: Path) -> None:
    leader = _process(tmp_path, "7", QEMU, _stat("Z", threads=2))
    _process(leader / "task", "7", [], _stat("Z", threads=2))
    _process(leader / "task", "9", [], _stat("D", threads=2))
    assert Processes(tmp_path).scan() == (Process(UUID, 7, "D"),)


def test_who_looks_at_the_same_time_forgets_nothing_that_another_has_found(tmp_path: Path) -> None:
    class Interrupted(Processes):
        """Another thread finds a new process, while this one has passed its place."""

        def _look_at(self, entry: str) -> Any:
            found = super()._look_at(entry)
            if not (tmp_path / "8").exists():
                _process(tmp_path, "8", QEMU, _stat("S"))
                self.scan()
            return found

    _process(tmp_path, "7", QEMU, _stat("S"))
    seen = Interrupted(tmp_path)
    assert seen.scan() == (Process(UUID, 7, "S"),)
    assert set(seen.last_seen()) == {Process(UUID, 7, "S"), Process(UUID, 8, "S")}


def test_threads_that_cannot_be_looked_at_are_not_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _process(tmp_path, "7", QEMU, _stat("S"))
    seen, listdir = Processes(tmp_path), os.listdir
    before = seen.scan()
    _killed(folder, _stat("Z", threads=2))

    def no_more(path: Any) -> list[str]:
        if str(path).endswith("task"):
            raise OSError(errno.EMFILE, "no more")
        return listdir(path)

    monkeypatch.setattr(processes.os, "listdir", no_more)
    with pytest.raises(HypervisorError, match="cannot look at the processes: no more"):
        seen.scan()
    assert seen.last_seen() == before


def test_process_with_the_number_of_one_that_is_gone_is_another(tmp_path: Path) -> None:
    seen = Processes(tmp_path)
    folder = _process(tmp_path, "7", QEMU, _stat("S"))
    assert seen.scan()
    _killed(folder, _stat("D", start=78))
    assert seen.scan() == ()
    _killed(folder, _stat("D"))
    assert seen.scan() == (), "what was gone is forgotten"


def test_no_proc_at_all_is_no_empty_host(tmp_path: Path) -> None:
    with pytest.raises(HypervisorError, match="cannot look at the processes: No such file"):
        Processes(tmp_path / "none").scan()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_who_lacks_the_means_to_look_has_not_seen_an_empty_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    _process(tmp_path, "7", QEMU, _stat("S"))

    def no_more(*_args: Any, **_options: Any) -> io.FileIO:
        raise OSError(number, "no more")

    seen = Processes(tmp_path)
    before = seen.scan()
    monkeypatch.setattr(processes, "open", no_more, raising=False)
    with pytest.raises(HypervisorError, match="cannot look at the processes: no more"):
        seen.scan()
    assert seen.last_seen() == before == (Process(UUID, 7, "S"),)
