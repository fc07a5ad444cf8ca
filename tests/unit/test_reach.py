"""What a VM's definition reaches beyond the VM: each way that libvirt offers, and what is a VM's own."""

from __future__ import annotations

import pytest

from agentd import permitted
from agentd.config import Config
from agentd.hypervisor import InvalidVm
from wire import messages as m
from wire import reach
from wire.reach import Reach
from wire.types import DiskFormat

QEMU = "xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"


def domain(devices: str = "", rest: str = "") -> str:
    return f"<domain type='kvm' {QEMU}><name>v</name>{rest}<devices>{devices}</devices></domain>"


def disk(source: str, attributes: str = "type='file' device='disk'") -> str:
    return domain(f"<disk {attributes}><source {source}/><target dev='vda'/></disk>")


UNSAFE = [
    # emulators
    (domain("<emulator>/tmp/evil</emulator>"), Reach.EMULATOR, "emulator /tmp/evil"),
    (domain("<emulator>/usr/bin/qemu-system-x86_64/../../tmp/x</emulator>"), Reach.EMULATOR, "emulator"),
    (domain("<emulator>/usr/bin/qemu-system-x/evil</emulator>"), Reach.EMULATOR, "evil"),
    (domain("<emulator>qemu-system-x86_64</emulator>"), Reach.EMULATOR, "emulator qemu-system"),
    # what libvirt passes on unread
    (domain(rest="<qemu:commandline><qemu:arg value='-S'/></qemu:commandline>"), Reach.QEMU_ARGUMENTS, "command"),
    (domain(rest="<qemu:override><qemu:device alias='a'/></qemu:override>"), Reach.QEMU_ARGUMENTS, "override"),
    (domain(rest="<qemu:capabilities><qemu:add capability='x'/></qemu:capabilities>"), Reach.QEMU_ARGUMENTS, "capab"),
    (f"<domain><q:commandline {QEMU.replace(':qemu', ':q')}><q:env name='A'/></q:commandline></domain>",
     Reach.QEMU_ARGUMENTS, "commandline of http://libvirt.org/schemas/domain/qemu/1.0 (A)"),
    # files of the system
    (disk("file='/etc/shadow'"), Reach.PATHS, "disk /etc/shadow: a path of the system"),
    (disk("file='//etc/./shadow'"), Reach.PATHS, "a path of the system"),
    (disk("file='/srv/../etc/shadow'"), Reach.PATHS, "a path with .."),
    (disk("file='etc/shadow'"), Reach.PATHS, "not an absolute path"),
    (disk("file='json:{}'"), Reach.PATHS, "not an absolute path"),
    (disk("file='/etc'"), Reach.PATHS, "a path of the system"),
    (disk("file='/boot/vmlinuz'"), Reach.PATHS, "a path of the system"),
    (disk("file='/usr/bin/sudo'"), Reach.PATHS, "a path of the system"),
    (disk("file='/usr/share/x'"), Reach.PATHS, "a path of the system"),
    (disk("file='/var/lib/chime/chime.db'"), Reach.PATHS, "a path of the system"),
    (disk("file='/var/lib/chime-agent/node.key'"), Reach.PATHS, "a path of the system"),
    (disk("file='/home/a/.ssh/id_ed25519'"), Reach.PATHS, "a path of the system"),
    (disk("file='/'"), Reach.PATHS, "a path of the system"),
    (disk("dev='/dev/mem'", "type='block'"), Reach.PATHS, "disk /dev/mem"),
    (disk("dev='/dev/shm/x'", "type='block'"), Reach.PATHS, "disk /dev/shm/x"),
    (disk("dev='/dev'", "type='block'"), Reach.PATHS, "disk /dev"),
    (disk("dev='sda'", "type='block'"), Reach.PATHS, "not an absolute path"),
    (domain("<disk type='file'><source file='/srv/a'/><backingStore type='file'><source file='/etc/shadow'/>"
            "</backingStore></disk>"), Reach.PATHS, "disk /etc/shadow"),
    (disk("file='/usr/share/x.img'", "type='file' device='floppy'"), Reach.PATHS, "/usr/share/x.img"),
    (domain(rest="<os><kernel>/etc/shadow</kernel></os>"), Reach.PATHS, "kernel /etc/shadow"),
    (domain(rest="<os><initrd>shadow</initrd></os>"), Reach.PATHS, "initrd shadow: not an absolute path"),
    (domain(rest="<os><dtb>/proc/kcore</dtb></os>"), Reach.PATHS, "dtb"),
    (domain(rest="<os><loader>/root/x</loader></os>"), Reach.PATHS, "loader"),
    (domain(rest="<os><nvram template='/etc/shadow'>/var/lib/libvirt/n</nvram></os>"), Reach.PATHS, "/etc/shadow"),
    (domain(rest="<os><acpi><table type='slic'>/etc/shadow</table></acpi></os>"), Reach.PATHS, "table /etc/shadow"),
    (domain(rest="<sysinfo type='fwcfg'><entry name='a' file='/etc/shadow'/></sysinfo>"), Reach.PATHS, "sysinfo"),
    (domain("<serial type='file'><source path='/etc/cron.d/x'/></serial>"), Reach.PATHS, "serial /etc/cron.d/x"),
    (domain("<serial type='pipe'><source path='/srv/pipe'/></serial>"), Reach.HOST_NETWORK, "serial of type pipe"),
    (domain("<serial type='file'><source path='/srv/a'/><log file='/etc/x'/></serial>"), Reach.PATHS, "/etc/x"),
    (domain("<serial type='pty'><source path='/dev/pts/3'/><log file='/etc/x'/></serial>"), Reach.PATHS, "/etc/x"),
    (domain("<x:disk xmlns:x='urn:x'><source file='/etc/shadow'/></x:disk>"), Reach.QEMU_ARGUMENTS, "disk of urn:x"),
    (domain("<disk xmlns:x='urn:x'><source x:file='/etc/shadow'/></disk>"), Reach.PATHS, "/etc/shadow"),
    (domain("<memory model='nvdimm'><source><path>/etc/shadow</path></source></memory>"), Reach.PATHS, "/etc/shadow"),
    (domain("<graphics type='egl-headless'><gl rendernode='/dev/dri/renderD128'/></graphics>"), Reach.PATHS, "dri"),
    (domain("<channel type='unix'><source mode='bind' path='/run/docker.sock'/></channel>"), Reach.PATHS, "docker"),
    (domain("<disk type='network'><source protocol='nbd'><host transport='unix' socket='/run/x'/></source></disk>"),
     Reach.PATHS, "/run/x"),
    # devices of the host
    (domain("<hostdev mode='subsystem' type='pci'><source/></hostdev>"), Reach.HOST_DEVICES, "hostdev pci"),
    (domain("<hostdev mode='subsystem' type='usb'/>"), Reach.HOST_DEVICES, "a device of the host"),
    (domain("<shmem name='x'/>"), Reach.HOST_DEVICES, "shmem"),
    (domain("<tpm><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>"), Reach.HOST_DEVICES, "tpm"),
    (domain("<rng model='virtio'><backend model='egd' type='tcp'/></rng>"), Reach.HOST_DEVICES, "rng with a backend"),
    (domain("<rng model='virtio'><backend model='random'>/dev/hwrng</backend></rng>"), Reach.PATHS, "/dev/hwrng"),
    (domain("<input type='evdev'><source dev='/dev/input/e'/></input>"), Reach.HOST_DEVICES, "input of type evdev"),
    (domain("<smartcard mode='host'/>"), Reach.HOST_DEVICES, "smartcard"),
    (disk("dev='/dev/sda'", "type='block' device='lun'"), Reach.HOST_DEVICES, "lun"),
    (disk("pool='p' volume='v'", "type='volume'"), Reach.HOST_DEVICES, "disk of type volume"),
    (disk("type='pci'", "type='nvme'"), Reach.HOST_DEVICES, "disk of type nvme"),
    (disk("dir='/srv'", "type='dir'"), Reach.HOST_DEVICES, "disk of type dir"),
    # folders
    (domain("<filesystem type='mount'><source dir='/srv'/><target dir='x'/></filesystem>"), Reach.HOST_FOLDERS, "/srv"),
    # network
    (domain("<interface type='direct'><source dev='eth0'/></interface>"), Reach.HOST_NETWORK, "direct (direct eth0)"),
    (domain("<interface type='hostdev'/>"), Reach.HOST_NETWORK, "hostdev"),
    (domain("<interface type='ethernet'><script path='/srv/x'/></interface>"), Reach.HOST_NETWORK, "script: /srv/x"),
    (domain("<interface type='bridge'><downscript path='/srv/x'/></interface>"), Reach.HOST_NETWORK, "script"),
    (domain("<interface type='vhostuser'><source path='/srv/s'/></interface>"), Reach.HOST_NETWORK, "vhostuser"),
    (domain("<console type='tcp'><source host='1.2.3.4'/></console>"), Reach.HOST_NETWORK, "console of type tcp"),
    (domain("<redirdev bus='usb' type='tcp'/>"), Reach.HOST_NETWORK, "redirdev"),
    # confinement
    (domain(rest="<seclabel type='none'/>"), Reach.UNCONFINED, "seclabel of type none, model any"),
    (domain(rest="<seclabel type='static' model='dac'><label>+0:+0</label></seclabel>"), Reach.UNCONFINED, "static"),
    (domain(rest="<seclabel type='dynamic' relabel='no'/>"), Reach.UNCONFINED, "dynamic"),
    (domain(rest="<seclabel model='selinux'><baselabel>x</baselabel></seclabel>"), Reach.UNCONFINED, "selinux"),
]  # fmt: skip

SAFE = [
    domain("<emulator>/usr/bin/qemu-system-x86_64</emulator><emulator/>"),
    domain("<emulator>/usr/libexec/qemu-kvm</emulator>"),
    *(disk(f"file='{path}'") for path in ("/srv/a.qcow2", "/var/lib/libvirt/images/a", "/tmp/a", "/home/a/vm", "/vm")),
    *(
        disk(f"dev='/dev/{name}'", "type='block'")
        for name in (
            "sda", "nvme0n1", "mapper/vg-lv", "vg0/lv", "data/lv", "disk/by-id/x", "zvol/p/v", "drbd0", "rbd/p/i",
            "dm-3", "drbd/by-res/r/0", "vdb", "md0", "loop3",
        )
    ),
    disk("file='/usr/share/virtio-win/virtio-win.iso'", "type='file' device='cdrom'"),
    disk("protocol='nfs' name='/etc/x'", "type='network'"),
    domain("<disk type='file' device='cdrom'><target dev='sda'/></disk>"),
    domain(rest="<os><type>hvm</type><kernel>/boot/vmlinuz</kernel><initrd>/tmp/i</initrd><cmdline>/etc/x</cmdline>"
           "<loader>/usr/share/OVMF/a.fd</loader><nvram>/var/lib/libvirt/qemu/nvram/v</nvram><boot dev='hd'/></os>"),
    domain(rest="<metadata><a file='/etc/shadow'>/etc</a></metadata><title>/etc/x</title>"),
    domain("<serial type='pty'><source path='/dev/pts/3'/></serial><console type='pty' tty='/dev/pts/3'/>"),
    domain("<serial type='file'><source path='/tmp/log' append='on'/></serial>"),
    domain("<channel type='unix'><source mode='bind' path='/run/libvirt/qemu/channel/1/a'/></channel>"),
    domain("<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"),
    domain("<channel type='spicevmc'/><redirdev bus='usb' type='spicevmc'/><smartcard mode='passthrough'/>"),
    domain("<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>"),
    domain("<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"),
    domain("<interface type='bridge'><source bridge='br0'/><target dev='vnet0'/><rom file='/usr/share/qemu/a.rom'/>"
           "<backend tap='/dev/net/tun' vhost='/dev/vhost-net'/></interface><interface type='network'/>"),
    domain("<input type='tablet' bus='usb'/><video/><memballoon model='virtio'/><graphics type='vnc'/>"),
    domain(rest="<seclabel type='dynamic' model='apparmor' relabel='yes'><label>x</label></seclabel>"),
]  # fmt: skip


@pytest.mark.parametrize(("xml", "kind", "words"), UNSAFE, ids=[f"{k}-{n}" for n, (_, k, _) in enumerate(UNSAFE)])
def test_h5_what_reaches_beyond_a_vm_is_named(xml: str, kind: Reach, words: str) -> None:
    found = reach.of_xml(xml)
    assert any(finding.reach == kind and words in finding.text for finding in found), found


@pytest.mark.parametrize("xml", SAFE)
def test_h5_what_is_a_vms_own_is_not(xml: str) -> None:
    assert reach.of_xml(xml) == ()


def test_h5_the_reported_domain() -> None:
    """As it was taken: a foreign emulator, qemu:commandline, /etc/shadow as a disk."""
    xml = domain(
        "<emulator>/tmp/e</emulator><disk type='file'><source file='/etc/shadow'/></disk>",
        "<qemu:commandline><qemu:arg value='-S'/></qemu:commandline>",
    )
    assert reach.words(reach.of_xml(xml)) == (
        "commandline of http://libvirt.org/schemas/domain/qemu/1.0 (-S); emulator /tmp/e; "
        "disk /etc/shadow: a path of the system"
    )


@pytest.mark.parametrize(
    ("xml", "words"),
    [
        ("<domain", "malformed"),
        ("<network/>", "its root is <network>"),
        ("<!DOCTYPE domain [<!ENTITY a 'b'>]><domain>&a;</domain>", "document type"),
        ("<domain>" + "<a>" * 70 + "</a>" * 70 + "</domain>", "deeper than 64"),
        ("<domain>\ud800</domain>", "refused: 'utf-8'"),
    ],
)
def test_h5_xml_that_cannot_be_judged_is_refused(xml: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        reach.of_xml(xml)


def test_h5_the_words_are_bounded_and_one_line() -> None:
    many = domain("".join(f"<disk><source file='/etc/{n}'/></disk>" * 2 for n in range(50)))
    found = reach.of_xml(many)
    assert len(found) == 21 and found[-1].text == "and 30 more"
    (long,) = reach.of_xml(disk(f"file='/etc/{'a' * 5000}&#x202e;&#10;'"))
    assert len(long.text) <= 200 and "\n" not in long.text


def test_h5_a_definition_without_xml_is_judged_too() -> None:
    spec = m.VmSpec(
        vcpus=1, memory_mib=64, disks=(m.Disk(path="/etc/a", format=DiskFormat.RAW), m.Disk(path="/srv/b")),
        boot=m.Boot(kernel="/boot/k", initrd="/etc/i"), serial_log="/root/log",
    )  # fmt: skip
    assert [finding.text.split(":")[0] for finding in reach.of_spec(spec)] == [
        "disk /etc/a", "initrd /etc/i", "serial log /root/log",
    ]  # fmt: skip
    assert reach.of_spec(m.VmSpec(vcpus=1, memory_mib=64, boot=m.Boot(kernel="/srv/k"))) == ()
    whole = m.VmSpec(vcpus=1, memory_mib=64, xml=disk("file='/srv/a'"), disks=(m.Disk(path="/etc/cron.d/x"),))
    assert reach.words(reach.of_spec(whole)) == "disk /etc/cron.d/x: a path of the system"


# --- the node's own settings ------------------------------------------------------------------------------------------


def test_h5_a_node_allows_what_its_settings_say() -> None:
    config = Config(emulators=("/opt/*/qemu",), vm_paths=("/etc/vms",), vm_allow=(Reach.QEMU_ARGUMENTS,))
    limits = permitted.limits_of(config)
    allowed = domain(
        "<emulator>/opt/x/qemu</emulator><disk><source file='/etc/vms/a'/></disk>",
        "<qemu:commandline><qemu:arg value='-S'/></qemu:commandline>",
    )
    assert reach.of_xml(allowed, limits) == () and len(reach.of_xml(allowed)) == 3
    assert reach.of_xml(domain("<emulator>/usr/bin/qemu-system-x86_64</emulator>"), limits)
    assert reach.of_xml(domain("<hostdev type='pci'/>"), limits)


def test_h5_a_nodes_own_state_is_no_vms() -> None:
    limits = permitted.limits_of(Config(state_dir="/srv/agent", forbidden_paths=("/etc",)))
    assert reach.of_xml(disk("file='/srv/agent/node.key'"), limits)
    assert reach.of_xml(disk("file='/srv/agents/disk'"), limits) == ()
    assert reach.of_xml(disk("file='/root/disk'"), limits) == ()


def test_h5_a_node_says_what_it_does_not_allow_and_where_that_is_set() -> None:
    xml = domain("<emulator>/tmp/e</emulator><hostdev type='pci'/><disk><source file='/etc/shadow'/></disk>")
    with pytest.raises(InvalidVm) as caught:
        permitted.check(xml, reach.DEFAULT)
    assert str(caught.value) == (
        "this node does not allow it: emulator /tmp/e; hostdev pci: a device of the host (pci); "
        "disk /etc/shadow: a path of the system (emulators, vm_allow, vm_paths in agentd.toml)"
    )
    spec = m.VmSpec(vcpus=1, memory_mib=64, disks=(m.Disk(path="/etc/cron.d/x"),))
    with pytest.raises(InvalidVm, match="disk /etc/cron"):
        permitted.check(domain(), reach.DEFAULT, spec)
    permitted.check(domain(), reach.DEFAULT, m.VmSpec(vcpus=1, memory_mib=64))
    with pytest.raises(InvalidVm, match="malformed"):
        permitted.check("<domain", reach.DEFAULT)


def test_h5_links_are_followed_on_the_node(tmp_path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "link").symlink_to("/etc")
    (tmp_path / "good").symlink_to(tmp_path / "disk")
    xml = disk(f"file='{tmp_path}/link/shadow'")
    assert reach.of_xml(xml) == ()
    with pytest.raises(InvalidVm, match="it leads to /etc/shadow, a path of the system"):
        permitted.check(xml, reach.DEFAULT)
    permitted.check(disk(f"file='{tmp_path}/good'"), reach.DEFAULT)
