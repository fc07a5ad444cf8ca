"""The parts of a migration that need no libvirtd: XML with a mark, keys, addresses, storage, statistics."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from agentd import host
from agentd.hypervisor import InvalidVm
from agentd.libvirt import domain_xml, qemu_tls
from wire import seals
from wire.messages import Assignment, HostNetwork, VmSpec
from wire.types import Desired

XML = """<domain type='kvm'><name>v</name><metadata>
<chime:vm xmlns:chime='urn:chime:vm:1' epoch='3' revision='7'/><x:y xmlns:x='urn:x'/></metadata><devices>
<disk type='file' device='disk'><source file='/a.qcow2'/><target dev='vda'/></disk>
<disk type='file' device='cdrom'><source file='/iso'/><target dev='sda'/><readonly/></disk>
<disk type='file' device='cdrom'><target dev='sdb'/></disk>
<disk type='block' device='disk'><source dev='/dev/x'/><target dev='vdb'/></disk></devices></domain>"""


def stamp_of(xml: str) -> domain_xml.Stamp | None:
    element = domain_xml.parse(xml).find(f"./metadata/{{{domain_xml.NAMESPACE}}}vm")
    return None if element is None else domain_xml.read_metadata(domain_xml.ET.tostring(element, encoding="unicode"))


def test_mark_names_attempt_and_origin_and_changes_nothing_else() -> None:
    marked = domain_xml.marked(XML, "a&1", "n'1", "10.0.0.2")
    assert stamp_of(marked) == domain_xml.Stamp(3, 7, "a&1", "n'1", address="10.0.0.2")
    taken_over = XML.replace("revision='7'", "revision='7' adopted='yes'")
    copy = stamp_of(domain_xml.marked(taken_over, "a1", "n1", "::1"))
    assert copy == domain_xml.Stamp(3, 7, "a1", "n1", adopted=True, address="::1")
    again = domain_xml.marked(marked, "a2", "n2", "10.0.0.3")
    assert stamp_of(again) == domain_xml.Stamp(3, 7, "a2", "n2", address="10.0.0.3")
    assert "urn:x" in again and again.count("<disk ") == 4


def test_h3_a_copy_bears_a_voucher_for_its_target_and_not_the_seal() -> None:
    sealed = XML.replace("revision='7'", "revision='7' seal='5ea1'")
    marked = domain_xml.marked(sealed, "a1", "n1", "10.0.0.2")
    copy = stamp_of(marked)
    assert copy is not None and copy.seal == "" and "5ea1" not in marked
    assert copy.voucher == seals.voucher("5ea1", "a1", "10.0.0.2")
    assert copy.voucher not in {seals.voucher("5ea1", "a2", "10.0.0.2"), seals.voucher("5ea1", "a1", "10.0.0.3")}


def test_metadata_without_an_epoch_is_not_marked() -> None:
    with pytest.raises(InvalidVm, match="names no epoch"):
        domain_xml.marked(XML.replace("epoch='3'", "epoch='?'"), "a1", "n1", "::1")


def test_domain_without_our_metadata_is_not_marked() -> None:
    with pytest.raises(InvalidVm, match="no metadata of Chime"):
        domain_xml.marked("<domain type='kvm'><metadata/></domain>", "a1", "n1", "::1")


def test_metadata_that_a_definition_writes_has_no_mark() -> None:
    vm = Assignment(
        uuid="00000000-0000-4000-8000-000000000001", name="v", epoch=4, revision=8, desired=Desired.RUNNING,
        start_serial=1, graceful_s=1.0, seal="5ea1", spec=VmSpec(vcpus=1, memory_mib=64),
    )  # fmt: skip
    assert domain_xml.read_metadata(domain_xml.metadata_element(vm)) == domain_xml.Stamp(4, 8, seal="5ea1")


def test_disks_that_could_be_copied() -> None:
    assert domain_xml.file_disks_of(XML) == [domain_xml.FileDisk("/a.qcow2", "vda")]
    assert domain_xml.block_devices_of(XML) == ["/dev/x"]


@pytest.mark.parametrize(
    ("settings", "own", "folder"),
    [
        ("", False, "qemu"),
        ("", True, "libvirt-migrate"),
        ('#default_tls_x509_cert_dir = "/no"\ndefault_tls_x509_cert_dir = "{pki}/all"\n', False, "all"),
        ('default_tls_x509_cert_dir = "{pki}/all"\n', True, "libvirt-migrate"),
        ('migrate_tls_x509_cert_dir = "{pki}/mine"\ndefault_tls_x509_cert_dir = "{pki}/all"\n', True, "mine"),
    ],
)
def test_keys_are_looked_for_where_qemu_takes_them_from(
    tmp_path: Path, settings: str, own: bool, folder: str
) -> None:
    conf, pki = tmp_path / "qemu.conf", tmp_path / "pki"
    conf.write_text(settings.replace("{pki}", str(pki)))
    (pki / "libvirt-migrate" if own else pki).mkdir(parents=True)
    assert qemu_tls.key_folder(conf, pki) == pki / folder
    assert not qemu_tls.has_migration_keys(conf, pki)
    (pki / folder).mkdir(exist_ok=True)
    for name in qemu_tls.NEEDED:
        assert not qemu_tls.has_migration_keys(conf, pki)
        (pki / folder / name).touch()
    assert qemu_tls.has_migration_keys(conf, pki)


def test_no_configuration_means_the_defaults(tmp_path: Path) -> None:
    assert qemu_tls.key_folder(tmp_path / "none", tmp_path) == tmp_path / "qemu"


def test_networks_are_those_by_which_others_may_come() -> None:
    def entry(family: int, address: str, netmask: str | None) -> SimpleNamespace:
        return SimpleNamespace(family=family, address=address, netmask=netmask)

    inet, inet6 = socket.AF_INET, socket.AF_INET6
    addresses = {
        "lo": [entry(inet, "127.0.0.1", "255.0.0.0"), entry(inet6, "::1", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")],
        "mgmt": [entry(inet, "10.1.2.3", "255.255.255.0"), entry(socket.AF_PACKET, "02:00:00:00:00:01", None)],
        "biz": [entry(inet6, "fe80::1%biz", "ffff:ffff:ffff:ffff::"), entry(inet6, "fd00::2", "ffff:ffff::")],
        "tun": [entry(inet, "10.9.9.9", None)],
    }
    assert host.networks(addresses) == (
        HostNetwork(interface="biz", address="fd00::2", prefix=32),
        HostNetwork(interface="mgmt", address="10.1.2.3", prefix=24),
    )
    many = {"e": [entry(inet, f"10.0.{i // 250}.{i % 250 + 1}", "255.255.0.0") for i in range(300)]}
    assert len(host.networks(many)) == 256


class TestLibvirt:
    """What needs libvirt-python, but no libvirtd."""

    @pytest.fixture(autouse=True)
    def libvirt(self) -> None:
        pytest.importorskip("libvirt")

    def test_uris_of_targets(self) -> None:
        from agentd.libvirt.target import is_ip, uri_of

        assert uri_of("qemu+tls://{host}/system", "10.1.2.3") == "qemu+tls://10.1.2.3/system"
        assert uri_of("qemu+ssh://root@{host}:2222/system", "fd00::2") == "qemu+ssh://root@[fd00::2]:2222/system"
        assert is_ip("fd00::2") and is_ip("10.1.2.3") and not is_ip("host")

    def test_disk_is_shared_by_its_file_system_or_because_the_operator_says_so(self, tmp_path: Path) -> None:
        from agentd.libvirt import storage

        (tmp_path / "link").symlink_to(tmp_path / "real")
        assert not storage.is_shared(str(tmp_path / "real" / "d"), ())
        assert storage.is_shared(str(tmp_path / "real" / "d"), (str(tmp_path / "real"),))
        assert storage.is_shared(str(tmp_path / "link" / "d"), (str(tmp_path / "real"),))
        assert not storage.is_shared(str(tmp_path / "reality" / "d"), (str(tmp_path / "real"),))

    def test_progress_in_our_words(self) -> None:
        from agentd.libvirt.migration import progress_of

        mib = 1024 * 1024
        stats = {"data_total": 96 * mib + 1, "data_remaining": 1, "memory_bps": 3 * mib, "disk_bps": 2 * mib}
        more = {"memory_iteration": 4, "downtime": 300, "time_elapsed": 1500}
        told = progress_of({**stats, **more})
        assert (told.total_mib, told.remaining_mib, told.rate_mib_s) == (97, 1, 5)
        assert (told.iteration, told.downtime_ms, told.elapsed_s) == (4, 300, 1.5)
        assert progress_of({}).total_mib == 0
