"""Which processes count as a qemu of a VM, on a `/proc` made of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentd import processes
from agentd.core.facts import Process

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
    assert processes.vm_uuid(argv) == (UUID if found else None)


def _stat(state: str, threads: int = 1) -> str:
    return f"1 (a) b) {state} " + " ".join("0" * 16) + f" {threads} 0 0\n"


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
    assert processes.scan(tmp_path) == (Process(UUID, 7, state),)


@pytest.mark.parametrize("state", "ZX")
def test_ended_process_does_not_count(tmp_path: Path, state: str) -> None:
    _process(tmp_path, "7", QEMU, _stat(state))
    assert processes.scan(tmp_path) == ()


def test_killed_process_with_a_thread_in_disk_sleep_counts(tmp_path: Path) -> None:
    leader = _process(tmp_path, "7", [], _stat("Z", threads=2))
    _process(leader / "task", "7", [], _stat("Z", threads=2))
    _process(leader / "task", "9", QEMU, _stat("D", threads=2))
    assert processes.scan(tmp_path) == (Process(UUID, 7, "D"),)


def test_process_whose_leader_ends_while_it_is_read_counts_for_its_last_thread(tmp_path: Path) -> None:
    leader = _process(tmp_path, "7", QEMU, _stat("Z", threads=2))  # its arguments were read just before
    _process(leader / "task", "7", [], _stat("Z", threads=2))
    _process(leader / "task", "9", QEMU, _stat("D", threads=2))
    assert processes.scan(tmp_path) == (Process(UUID, 7, "D"),)


def test_zombie_kernel_thread_other_and_vanished_process_do_not_count(tmp_path: Path) -> None:
    _process(tmp_path, "2", [], _stat("S"))
    _process(tmp_path, "3", [], _stat("Z"))
    _process(tmp_path, "4", ["sleep", "9"], _stat("S"))
    (_process(tmp_path, "5", QEMU, "") / "stat").unlink()
    (tmp_path / "6").mkdir()
    (tmp_path / "self").mkdir()
    assert processes.scan(tmp_path) == ()


def test_unreadable_process_does_not_end_the_scan(tmp_path: Path) -> None:
    (tmp_path / "5" / "cmdline").mkdir(parents=True)  # reading it is an OSError
    (tmp_path / "5" / "stat").mkdir()
    _process(tmp_path, "7", QEMU, _stat("S"))
    assert processes.scan(tmp_path) == (Process(UUID, 7, "S"),)


def test_arguments_that_are_no_text_are_read(tmp_path: Path) -> None:
    folder = _process(tmp_path, "7", QEMU, _stat("S"))
    with (folder / "cmdline").open("ab") as file:
        file.write(b"-append\0\xff\xfe\0")
    assert processes.of_vm(UUID, tmp_path) == (Process(UUID, 7, "S"),)
    assert processes.of_vm(UUID.replace("1", "2"), tmp_path) == ()


def test_no_proc_at_all(tmp_path: Path) -> None:
    assert processes.scan(tmp_path / "none") == ()
