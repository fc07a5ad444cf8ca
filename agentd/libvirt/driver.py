"""The real hypervisor: libvirt, by `qemu:///system`, any other URI, or a private `qemu:///embed?root=DIR`.

Rules:
- Calls come from several threads and may block; no lock is held during a libvirt call, so one that hangs
  hurts only its own thread.
- Every failure leaves here as `HypervisorError` with one line. What could not be asked is an error, never
  "not there".
- libvirt must never start a VM by itself: autostart of our domains is switched off wherever it is seen.
- A domain without our metadata is only looked at, until the core asks to define it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

from agentd import permitted
from agentd.config import Config
from agentd.core.facts import Domain, HostScan, Lifecycle, Process, VmFacts
from agentd.hypervisor import HypervisorError, InvalidVm
from agentd.libvirt import disks, domain_xml, foreign, target_check
from agentd.libvirt import domains as libvirt_domains
from agentd.libvirt import migration as libvirt_migration
from agentd.libvirt.connection import Link, libvirt, one_line, own_connection
from agentd.libvirt.processes import Processes
from agentd.libvirt.target import Settings
from agentd.libvirt.target_check import Findings
from wire import reach
from wire.messages import Assignment, ForeignVm, MigrationOrder, MigrationProgress
from wire.types import VirtType

log = logging.getLogger(__name__)

UNDEFINE_FLAGS = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM  # it may be on shared storage and serve the next owner
)
REFUSED_XML = (
    libvirt.VIR_ERR_XML_ERROR,
    libvirt.VIR_ERR_XML_DETAIL,
    libvirt.VIR_ERR_XML_INVALID_SCHEMA,
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
    libvirt.VIR_ERR_INVALID_ARG,
)


class LibvirtDriver:
    """`agentd.hypervisor.Hypervisor` on libvirt. `virt_type`: what VMs get that leave it open (`auto`: kvm
    where the node offers it). `migration`: how others are reached. `limits`: what VMs may reach on this node. libvirt
    allows one embedded root for a process."""

    def __init__(
        self,
        uri: str = "qemu:///system",
        virt_type: VirtType = VirtType.AUTO,
        migration: Settings = Settings(),  # noqa: B008 - it is immutable
        limits: reach.Limits = reach.DEFAULT,
    ) -> None:
        self._uri = uri
        self._limits = limits
        self._migration = migration
        self._virt_type = virt_type
        self._processes = Processes()
        self._kvm: bool | None = None
        self._link: Link | None = None
        self._swap = threading.Lock()

    def connect(self, on_lifecycle: Callable[[Lifecycle], None], on_lost: Callable[[str], None]) -> None:
        """Connects, or connects again, and registers for events. See `Hypervisor`."""
        self.close()  # libvirt refuses to register twice on one connection
        with _explained(f"connect to {self._uri}"):
            link = Link(self._uri, on_lifecycle, on_lost)
        with self._swap:
            late, self._link = self._link, link
        if late is not None:  # of a connect that hung and was given up
            late.close()

    def close(self) -> None:
        """Closes the connection; VMs go on."""
        with self._swap:
            old, self._link = self._link, None
        if old is not None:
            old.close()

    def version(self) -> str:
        """Versions of qemu and libvirt."""
        with _explained("read the version"):
            conn = self._connection()
            qemu, library = conn.getVersion(), conn.getLibVersion()
        return f"QEMU {_dotted(qemu)}, libvirt {_dotted(library)}"

    def has_kvm(self) -> bool:
        """Whether libvirt offers KVM here."""
        if self._kvm is None:
            with _explained("read the capabilities"):  # those of the best accelerator that there is
                capabilities = self._connection().getDomainCapabilities(None, None, None, None, 0)
            self._kvm = "<domain>kvm</domain>" in capabilities
        return self._kvm

    def scan(self) -> HostScan:
        """All domains and all real qemu processes."""
        domains, problem = self._domains()
        alive, blind = self._alive()
        if problem or blind:
            return HostScan(libvirt_ok=False, processes=alive, error=problem or blind)
        return HostScan(libvirt_ok=True, domains=domains, processes=alive)

    def _domains(self) -> tuple[tuple[Domain, ...], str]:
        try:
            with _explained("list the domains"):
                return libvirt_domains.all_domains(self._connection()), ""
        except HypervisorError as error:
            return (), str(error)

    def _alive(self) -> tuple[tuple[Process, ...], str]:
        try:
            return self._processes.scan(), ""
        except HypervisorError as error:
            return self._processes.last_seen(), str(error)

    def inspect(self, uuid: str) -> VmFacts:
        """One domain and its real processes."""
        domain, problem = None, ""
        try:
            with _explained(f"look at {uuid}"):
                handle = self._find(uuid)
                if handle is not None:
                    domain = libvirt_domains.domain_of(handle, bool(handle.isPersistent()), alone=True)
        except HypervisorError as error:
            problem = str(error)
        alive, blind = self._alive()  # after libvirt: a qemu that was started in between is seen here
        if problem or blind:
            log.debug("%s", problem or blind)
        mine = tuple(process for process in alive if process.uuid == uuid)
        return VmFacts(uuid=uuid, libvirt_ok=not (problem or blind), domain=domain, processes=mine)

    def define(self, vm: Assignment) -> None:
        """Makes or updates the definition, and missing disks of a new VM."""
        with _explained(f"define {vm.name}"):
            defined = self._find(vm.uuid)
            xml = domain_xml.build(vm, self._default_type(vm))
            permitted.check(xml, self._limits, vm.spec)
            disks.create_missing(vm.spec.disks, may_create=defined is None and vm.create_disks)
            _check_files(xml)
            domain = self._define_xml(xml)
            libvirt_domains.never_autostart(domain)
            if domain.isActive():
                _stamp_running(domain, vm)

    def survey(self, after: str, uuid: str | None) -> tuple[tuple[ForeignVm, ...], bool]:
        """Domains that are not ours; one of them with its XML."""
        with _explained("look at the domains"):
            if uuid is None:
                return foreign.page(self._connection().listAllDomains(0), after)
            handle = self._find(uuid)
            if handle is None or libvirt_domains.read_stamp(handle) is not None:
                return (), False
            return (foreign.tell(handle, with_xml=True),), False

    def adopt(self, vm: Assignment) -> None:
        """Puts our metadata on a domain that somebody else made."""
        with _explained(f"take over {vm.name}"):
            handle = self._find(vm.uuid)
            if handle is None:
                raise InvalidVm(f"no domain {vm.uuid} is defined on this node any more")
            if libvirt_domains.read_stamp(handle) is None:
                foreign.check(handle, vm)
                permitted.check(handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE), self._limits, vm.spec)
            foreign.stamp(handle, vm)
            libvirt_domains.never_autostart(handle)

    def give_back(self, uuid: str, epoch: int) -> None:
        """Takes our metadata off."""
        with _explained(f"give back {uuid}"):
            handle = self._find(uuid)
            if handle is not None:
                foreign.strip(handle, epoch)

    def start(self, uuid: str) -> None:
        """Starts a defined domain; its disks are looked at first."""
        with _explained(f"start {uuid}"):
            domain = self._found(uuid)
            if domain.isActive():
                raise HypervisorError(f"cannot start {uuid}: it is running already")
            xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
            permitted.check(xml, self._limits)
            _check_files(xml)
            domain.create()

    def shutdown(self, uuid: str) -> None:
        """Asks the guest to power off."""
        with _explained(f"shut down {uuid}"):
            self._found(uuid).shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)

    def destroy(self, uuid: str) -> None:
        """SIGTERM, then SIGKILL. A process in disk sleep survives both: HypervisorError after a while."""
        with _explained(f"end {uuid}"):
            domain = self._find(uuid)
            if domain is None or not domain.isActive():
                return
            try:
                domain.destroy()
            except libvirt.libvirtError:
                if self._is_active(uuid):
                    raise

    def undefine(self, uuid: str) -> None:
        """Removes the definition, never a disk."""
        with _explained(f"undefine {uuid}"):
            domain = self._find(uuid)
            if domain is None:
                return
            if domain.isActive():
                raise HypervisorError(f"cannot undefine {uuid}: it is running")
            try:
                domain.undefineFlags(UNDEFINE_FLAGS)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                    raise

    def reboot(self, uuid: str, force: bool) -> None:
        """Asks the guest to reboot, or resets it."""
        with _explained(f"reboot {uuid}"):
            domain = self._found(uuid)
            if force:
                domain.reset(0)
            else:
                domain.reboot(libvirt.VIR_DOMAIN_REBOOT_ACPI_POWER_BTN)

    def resume(self, uuid: str) -> None:
        """Lets a paused VM run."""
        with _explained(f"resume {uuid}"):
            libvirt_domains.resume(self._found(uuid))

    def migrate(
        self,
        uuid: str,
        order: MigrationOrder,
        attempt: str,
        origin: str,
        on_progress: Callable[[MigrationProgress], None],
    ) -> None:
        """Migrates a running VM to another libvirtd. See `Hypervisor`."""
        with _explained(f"migrate {uuid}"):
            if not self._is_active(uuid):
                raise HypervisorError(f"cannot migrate {uuid}: it does not run on this node")
            marks = attempt, origin, order.address
            with own_connection(self._uri) as conn:
                domain = conn.lookupByUUIDString(uuid)
                libvirt_migration.migrate(
                    domain, self._migration, order, marks, lambda: self._find(uuid), on_progress
                )

    def settle(self, uuid: str) -> None:
        """Waits for the end of a migration."""
        with _explained(f"wait for the migration of {uuid}"):
            libvirt_migration.settle(lambda: self._find(uuid))

    def abort_migration(self, uuid: str) -> None:
        """Asks libvirt to give up."""
        with _explained(f"cancel the migration of {uuid}"):
            domain = self._find(uuid)
            if domain is not None and domain.isActive() and libvirt_domains.is_migrating(domain):
                try:
                    domain.abortJob()
                except libvirt.libvirtError:
                    if libvirt_domains.is_migrating(domain):
                        raise

    def hand_over(self, uuid: str, attempt: str, address: str) -> None:
        """Lets the copy on the target run."""
        libvirt_migration.hand_over(self._migration, uuid, attempt, address)

    def check_target(self, address: str, interface: str, uuids: list[str], local_disks: bool = False) -> Findings:
        """What stands against migrating these VMs to `address` over `interface`. Changes nothing."""
        with _explained("look at the VMs"):
            here = target_check.Here(
                self._connection().getCapabilities(), [target_check.needs(self._found(uuid)) for uuid in uuids]
            )
        return target_check.check(here, self._migration, address, interface, local_disks)

    def _connection(self) -> Any:
        link = self._link
        if link is None:
            raise HypervisorError(f"not connected to {self._uri}")
        return link.conn

    def _find(self, uuid: str) -> Any | None:
        try:
            return self._connection().lookupByUUIDString(uuid)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise

    def _found(self, uuid: str) -> Any:
        domain = self._find(uuid)
        if domain is None:
            raise HypervisorError(f"no domain {uuid} is defined on this node")
        return domain

    def _is_active(self, uuid: str) -> bool:
        domain = self._find(uuid)
        return domain is not None and bool(domain.isActive())

    def _define_xml(self, xml: str) -> Any:
        try:
            return self._connection().defineXML(xml)
        except libvirt.libvirtError as error:
            if error.get_error_code() in REFUSED_XML:
                raise InvalidVm(f"libvirt refuses the definition: {one_line(error)}") from None
            raise

    def _default_type(self, vm: Assignment) -> VirtType:
        if self._virt_type != VirtType.AUTO or vm.spec.virt_type != VirtType.AUTO or vm.spec.xml is not None:
            return self._virt_type
        return VirtType.KVM if self.has_kvm() else VirtType.QEMU


def configured(config: Config) -> LibvirtDriver:
    """The driver of a node with this configuration."""
    settings = Settings(config.migration_uri, config.shared_paths)
    return LibvirtDriver(config.libvirt_uri, config.virt_type, settings, permitted.limits_of(config))


# --- small parts ------------------------------------------------------------------------------------------


def _stamp_running(domain: Any, vm: Assignment) -> None:
    element = domain_xml.metadata_element(vm)
    kind, live = libvirt.VIR_DOMAIN_METADATA_ELEMENT, libvirt.VIR_DOMAIN_AFFECT_LIVE
    try:
        domain.setMetadata(kind, element, "chime", domain_xml.NAMESPACE, live)
    except libvirt.libvirtError:
        if domain.isActive():  # else it ended meanwhile, and the definition says all
            raise


def _check_files(xml: str) -> None:
    disks.check_disks(domain_xml.disks_of(xml))
    disks.check_boot_files(domain_xml.boot_files_of(xml))


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turns every libvirt error into one clear line."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise HypervisorError(f"cannot {what}: {one_line(error)}") from None


def _dotted(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
