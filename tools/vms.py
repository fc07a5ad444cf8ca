"""`chime-tool vm ...`."""

from __future__ import annotations

import uuid
from typing import Any

from tools import columns, domain_xml, help, imports, migration, units
from tools.change import change
from tools.options import Args, UsageError, evidence
from tools.render import facts, show_document, show_list, table
from tools.session import Row, Session, body
from tools.units import seconds
from tools.usage import Command
from wire import messages as m

ATTEST = "you attest that {vm} runs nowhere; if this is wrong, it can run twice and its data is lost"

NOT_WITH_XML = ("--kernel", "--initrd", "--cmdline", "--serial-log")
LOCAL_NOTE = (
    "note: the disks of the XML count as local to the node: the VM is not rebuilt when the node is lost; "
    "with --storage shared it is"
)
POLICIES = (("--virt-type", ("auto", "kvm", "qemu")), ("--on-guest-shutdown", ("stop", "restart")))


def list_vms(session: Session, args: Args) -> int:
    """All VMs, or those of a node."""
    rows = list(session.client.items(body(m.VmList, node=args["--node"])))
    show_list(session, rows, columns.VMS, f"no VMs on {args['--node']}" if args["--node"] else "no VMs")
    return 0


def show(session: Session, args: Args) -> int:
    """One VM, its definition and last operations."""
    result = session.client.request(body(m.VmShow, vm=args["VM"]))
    if session.options.output in ("json", "yaml"):
        show_document(session, result)
        return 0
    parts = [facts(session.terminal, _facts(result["vm"], result["spec"]))]
    if result["last_operations"]:
        wide = session.options.output == "wide"
        parts.append(table(session.terminal, result["last_operations"], columns.OPERATIONS, wide))
    session.terminal.draw("\n".join(parts))
    return 0


def _facts(vm: Row, spec: Row) -> list[tuple[str, str]]:
    pairs = [
        ("name", vm["name"]),
        ("uuid", vm["uuid"]),
        ("node", vm["node"] or ""),
        ("desired", vm["desired"]),
        ("observed", vm["observed"]),
        ("detail", vm["detail"]),
        ("epoch", str(vm["epoch"])),
        ("restarts", str(vm["restarts"])),
        ("operation", vm["operation"] or ""),
        ("vCPUs", str(vm["vcpus"])),
        ("memory", units.size(vm["memory_mib"])),
        ("storage", vm["storage"]),
    ]
    for disk in spec.get("disks") or []:
        pairs.append(
            ("disk", f"{disk['path']} ({disk.get('format', 'qcow2')}, {disk.get('storage', 'shared')})")
        )
    for network in spec.get("networks") or []:
        words = (network["kind"], network.get("bridge"), network.get("mac"))
        pairs.append(("network", " ".join(word for word in words if word)))
    boot = spec.get("boot")
    if boot:
        pairs += [(name, boot.get(name) or "") for name in ("kernel", "initrd", "cmdline")]
    if spec.get("xml"):
        pairs.append(("definition", "domain XML"))
    return [
        *pairs,
        ("serial log", spec.get("serial_log") or ""),
        ("on guest shutdown", spec.get("on_guest_shutdown", "stop")),
        ("priority", str(spec.get("priority", 0))),
    ]


def create(session: Session, args: Args) -> int:
    """Defines a VM and starts it."""
    name, vm_uuid = args["NAME"], _canonical(args["--uuid"])
    if args["--xml"]:
        spec, xml_uuid = _xml_spec(session, args)
        if vm_uuid and xml_uuid and vm_uuid != xml_uuid:
            raise UsageError(f"--uuid {vm_uuid}: the XML names another UUID, {xml_uuid}")
        vm_uuid = vm_uuid or xml_uuid
    else:
        spec = _plain_spec(args)
    request = session.mutation(
        m.VmCreate,
        name=name,
        spec=spec,
        uuid=vm_uuid,
        node=args["--node"],
        desired="stopped" if args["--stopped"] else "running",
        allow_unsafe=bool(args["--allow-unsafe"]),
    )
    return change(session, request, f"create VM {name}")


def _plain_spec(args: Args) -> dict[str, Any]:
    spec = {
        "vcpus": units.whole("--vcpus", args["--vcpus"]),
        "memory_mib": units.mib("--memory", args["--memory"]),
        "disks": [units.disk(text) for text in args["--disk"]],
        "networks": [units.network(text) for text in args["--network"]],
        "serial_log": args["--serial-log"],
    }
    if args["--kernel"]:
        boot = {"kernel": args["--kernel"], "initrd": args["--initrd"], "cmdline": args["--cmdline"] or ""}
        spec["boot"] = boot
    elif args["--initrd"] or args["--cmdline"]:
        raise UsageError("--initrd and --cmdline go with --kernel")
    return spec | _policy(args)


def _xml_spec(session: Session, args: Args) -> tuple[dict[str, Any], str | None]:
    for option in NOT_WITH_XML:
        if args[option]:
            raise UsageError(f"{option} does not go with --xml: put it into the XML")
    storage = args["--storage"] or "local"
    if storage not in ("local", "shared"):
        raise UsageError(f"--storage {storage!r}: shared or local")
    domain = domain_xml.read(args["--xml"], storage)
    if domain.disks and not args["--storage"]:
        session.terminal.say(LOCAL_NOTE)
    if domain.name and domain.name != args["NAME"]:
        session.terminal.say(f"note: the VM is named {args['NAME']}, not {domain.name} as in the XML")
    spec = {"vcpus": domain.vcpus, "memory_mib": domain.memory_mib, "disks": domain.disks, "xml": domain.xml}
    return spec | _policy(args), domain.uuid


def _policy(args: Args) -> dict[str, Any]:
    for option, allowed in POLICIES:
        if args[option] not in allowed:
            raise UsageError(f"{option} {args[option]!r}: allowed are {', '.join(allowed)}")
    return {
        "virt_type": args["--virt-type"],
        "on_guest_shutdown": args["--on-guest-shutdown"],
        "priority": units.whole("--priority", args["--priority"]),
    }


def _canonical(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        canonical = str(uuid.UUID(text))
    except ValueError:
        canonical = ""
    if canonical != text.lower():
        raise UsageError(f"--uuid {text!r}: not a UUID such as 6f1c7f9e-52a4-4c0e-9a53-0d8c7a1e2b3c")
    return canonical


def start(session: Session, args: Args) -> int:
    """Starts a VM."""
    request = session.mutation(m.VmStart, vm=args["VM"], **evidence(args))
    attest = ATTEST.format(vm=args["VM"]) if args["--evidence"] else ""
    return change(session, request, f"start VM {args['VM']}", ask=bool(attest), attest=attest)


def stop(session: Session, args: Args) -> int:
    """Stops a VM."""
    graceful_s = seconds("--graceful", args["--graceful"])
    request = session.mutation(m.VmStop, vm=args["VM"], graceful_s=graceful_s, force=args["--force"])
    return change(session, request, f"stop VM {args['VM']}", ask=True)


def reboot(session: Session, args: Args) -> int:
    """Reboots a VM."""
    request = session.mutation(m.VmReboot, vm=args["VM"], force=args["--force"])
    return change(session, request, f"reboot VM {args['VM']}", ask=True)


def migrate(session: Session, args: Args) -> int:
    """Moves a VM to another node."""
    request = session.mutation(m.VmMigrate, vm=args["VM"], **migration.fields(args))
    return change(session, request, f"migrate VM {args['VM']}", ask=True)


def delete(session: Session, args: Args) -> int:
    """Deletes a VM, but not its disks."""
    return change(session, session.mutation(m.VmDelete, vm=args["VM"]), f"delete VM {args['VM']}", ask=True)


COMMANDS = {
    "list": Command(list_vms, help.VM_LIST, watch=True),
    "show": Command(show, help.VM_SHOW, watch=True),
    "create": Command(create, help.VM_CREATE),
    "import": Command(imports.import_vms, help.VM_IMPORT),
    "release": Command(imports.release, help.VM_RELEASE),
    "start": Command(start, help.VM_START),
    "stop": Command(stop, help.VM_STOP),
    "reboot": Command(reboot, help.VM_REBOOT),
    "migrate": Command(migrate, help.VM_MIGRATE),
    "delete": Command(delete, help.VM_DELETE),
}
