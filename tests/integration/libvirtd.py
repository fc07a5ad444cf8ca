"""A libvirtd of a test host's own: private folders, so that the machine's libvirt is not involved."""

from __future__ import annotations

import uuid as uuids

from tests.hosts import Host

PRIVATE = ("/run", "/var/lib/libvirt", "/var/cache/libvirt", "/var/log/libvirt", "/etc/libvirt")
QEMU_CONF = """
stdio_handler = "file"
user = "root"
group = "root"
security_driver = "none"
namespaces = []
cgroup_controllers = [ ]
dynamic_ownership = 0
remember_owner = 0
"""


def start_libvirtd(host: Host, listen: bool = False) -> None:
    """A libvirtd in the host. `listen`: without keys or passwords on TCP, as only a test may."""
    for folder in PRIVATE:
        host.run(["sh", "-c", f"mkdir -p {folder} && mount -t tmpfs -o mode=755 tmpfs {folder}"])
    conf = host.etc / "libvirtd.conf"
    words = f'auth_unix_rw = "none"\nunix_sock_group = "root"\nhost_uuid = "{uuids.uuid4()}"\n'
    conf.write_text(words + 'listen_tls = 0\nlisten_tcp = 1\nauth_tcp = "none"\n' * listen)
    qemu_conf = host.etc / "qemu.conf"
    qemu_conf.write_text(QEMU_CONF)
    host.run(["cp", str(qemu_conf), "/etc/libvirt/qemu.conf"])
    options = ["--listen"] if listen else []
    host.service("libvirtd", ["/usr/sbin/libvirtd", *options, "--config", str(conf)]).start()
