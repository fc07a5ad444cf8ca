"""The help texts of `chime-tool`. They are also its grammar: docopt reads a command line with them.

Rules: one text a command; its first line says what it does; the arguments in capitals on the first usage
line are all required; an option has the same shape (with or without a value) wherever it occurs. `GLOBAL`
is added to every text.
"""

from __future__ import annotations

GLOBAL = """
Global options, anywhere on the line:
  -o FORMAT            table, wide, json or yaml [default: table]
  --watch=SECONDS      show again every SECONDS (--watch alone: 2) until Ctrl-C
  --dry-run            say what would be done, change nothing
  --yes                do not ask
  --no-wait            do not wait for the operation to end
  --wait               wait for it (this is the default)
  --timeout=SECONDS    how long to wait: 10 for an answer, 300 for an operation, 3600 for migrations
  --server=ENDPOINT    instead of the one in the key file, e.g. tcp://10.0.0.1:7440
  --key=FILE           operator key file
  --config=FILE        configuration of this tool (TOML)
  -h, --help           this text
"""

FOOTER = "\nOptions for every command (-o json, --yes, --dry-run, --timeout ...): chime-tool --help\n"

TOP = """Operate a Chime fleet: nodes, VMs, operations, alarms.

Usage: chime-tool COMMAND ... [options]

{commands}

Help: chime-tool node --help, chime-tool vm create --help.
{options}
Files:
  key      --key, $CHIME_KEY, ~/.config/chime/operator.key, /etc/chime/operator.key
  server   --server, $CHIME_SERVER, the configuration file, the key file
  config   --config, ~/.config/chime/tool.toml, /etc/chime/tool.toml (key, server, output, timeout_s)

Exit codes: 0 done, 1 failed, 2 usage, 3 refused by a safety rule, 4 server or node not reachable,
5 still running at the time-out.
"""

NODE_LIST = """List the nodes.

Usage: chime-tool node list [options]
"""

NODE_SHOW = """Show a node: its state and why, its VMs, its last operations.

Usage: chime-tool node show NAME [options]
"""

NODE_ADD = """Add a node, and print the bundle that `agentd join` installs on it.

Usage: chime-tool node add NAME [options]

Options:
  --public-key=KEY  the node's own CURVE public key: its secret then never leaves it
  --address=IP      where to ping the node; else the address it speaks from
  --output=FILE     write the bundle into a new file of mode 0600, instead of printing it
"""

NODE_REKEY = """Give a node a new key. The old one is refused from then on.

Usage: chime-tool node rekey NAME [options]

Options:
  --public-key=KEY  the node's own CURVE public key: its secret then never leaves it
  --output=FILE     write the bundle into a new file of mode 0600, instead of printing it
"""

NODE_ENABLE = """Let a node take and run VMs again.

Usage: chime-tool node enable NAME [options]
"""

NODE_DISABLE = """Give a node no new VMs. Those it has go on and are managed.

Usage: chime-tool node disable NAME [options]
"""

EVIDENCE_OPTIONS = """\
  --evidence=KIND     only `operator`: you attest that the node is powered off, or was
                      drained on the node itself, and that nothing was migrated away
                      with chime-agent that is not seen on its new node
  --comment=TEXT      how you know, for the audit trail
"""

NODE_DRAIN = f"""Stop all VMs of a node, and keep it from starting any.

Usage: chime-tool node drain NAME [options]

Options:
  --graceful=SECONDS  how long a guest may take to power off before it is ended [default: 60]
{EVIDENCE_OPTIONS}
A node that cannot be reached counts as drained only with evidence.
"""

NODE_REBUILD = f"""Start the VMs of a drained node on other nodes.

Usage: chime-tool node rebuild NAME [options]

Options:
{EVIDENCE_OPTIONS}
Refused without evidence that the node runs none of them. VMs with local disks are not rebuilt.
"""

MIGRATION_OPTIONS = """\
  --to=NODE                    the target; else the server chooses
  --network=NET                management, business, an interface, a subnet (10.2.0.0/24) or an
                               address of the target; else what the server is configured for
  --bandwidth=MIB              at most this many MiB a second for a VM; 0: no limit [default: 0]
  --no-auto-converge           do not slow a guest down that changes memory faster than it is copied
  --tls=MODE                   auto, on or off: whether qemu encrypts what is copied [default: auto]
  --migration-timeout=SECONDS  how long one VM may take [default: 600]
  --on-timeout=WHAT            then cancel (the VM stays) or force (it is paused till it is copied)
                               [default: cancel]
  --with-local-disks           copy disks that are local to the node too; else such a VM stays
"""

NODE_EVACUATE = f"""Migrate all VMs of a node to other nodes, those of high priority first.

Usage: chime-tool node evacuate NAME [options]

Options:
{MIGRATION_OPTIONS}
A VM that cannot be migrated stays where it is, and goes on. Ctrl-C leaves the evacuation running.
"""

NODE_REMOVE = """Forget a node. It must own no VMs.

Usage: chime-tool node remove NAME [options]
"""

VM_LIST = """List the VMs.

Usage: chime-tool vm list [options]

Options:
  --node=NODE  only those of this node
"""

VM_SHOW = """Show a VM (a name or a UUID): its state, definition and last operations.

Usage: chime-tool vm show VM [options]
"""

VM_CREATE = """Create a VM and start it.

Usage: chime-tool vm create NAME --vcpus=N --memory=SIZE [--disk=SPEC]... [--network=SPEC]... [options]
       chime-tool vm create NAME --xml=FILE [--storage=KIND] [options]

Options:
  --vcpus=N                  virtual processors
  --memory=SIZE              512M, 2G or a number of MiB
  --disk=SPEC                PATH[,format=qcow2|raw][,storage=shared|local][,size=10G]; may be repeated;
                             defaults: qcow2, shared; with size the image is created when it is missing
  --network=SPEC             bridge=br0[,mac=52:54:00:12:34:56] or user; may be repeated
  --kernel=PATH              boot this kernel directly
  --initrd=PATH              with this initial ramdisk
  --cmdline=TEXT             and this command line
  --serial-log=PATH          write the serial console to this file on the node
  --virt-type=KIND           auto, kvm or qemu [default: auto]
  --on-guest-shutdown=WHAT   when the guest powers itself off: stop or restart [default: stop]
  --xml=FILE                 a whole libvirt domain; vCPUs, memory and disks are taken from it
  --storage=KIND             where the disks of the XML live: shared (every node sees them) or local (default)
  --allow-unsafe             though it reaches beyond itself: devices or files of the host, arguments for qemu
  --node=NODE                place it there; else the server chooses
  --priority=N               0 to 1000: VMs with a higher one are evacuated first [default: 0]
  --uuid=UUID                else the XML's own, else a new one
  --stopped                  do not start it
"""

VM_IMPORT = """Take VMs that are on a node already into management, as they are.

Usage: chime-tool vm import NODE [NAME]... [options]

Options:
  --all           all of the node that Chime does not manage
  --storage=KIND  where their disks live: shared (every node sees them) or local (default)
  --allow-unsafe  also those that reach beyond themselves: a foreign emulator, arguments for qemu, files of
                  the system, devices of the host. Other nodes would run them likewise.

Nothing of a VM is touched but libvirt's metadata of it, and its autostart; it runs on. --dry-run shows what
the node has, what would be refused, and what a VM reaches beyond itself. A node refuses what its agentd.toml
does not allow. The first time that Chime starts it, it gets Chime's power actions.
"""

VM_RELEASE = """Give a VM back: it stays on its node as it is, also running, and Chime forgets it.

Usage: chime-tool vm release VM [options]

From then on nobody starts it again: libvirt's autostart stays off.
"""

VM_MIGRATE = f"""Move a VM to another node: live if it runs.

Usage: chime-tool vm migrate VM [options]

Options:
{MIGRATION_OPTIONS}
A migration that fails leaves the VM where it is. Ctrl-C leaves the migration running.
"""

VM_START = """Start a VM. This also clears `failed`.

Usage: chime-tool vm start VM [options]

Options:
  --evidence=KIND  only `operator`: you attest that a VM that was migrated by hand runs nowhere
  --comment=TEXT   how you know, for the audit trail
"""

VM_STOP = """Stop a VM: ask the guest to power off, end it after a time-out.

Usage: chime-tool vm stop VM [options]

Options:
  --graceful=SECONDS  how long the guest may take [default: 60]
  --force             end it at once
"""

VM_REBOOT = """Reboot a VM.

Usage: chime-tool vm reboot VM [options]

Options:
  --force  reset it at once, without asking the guest
"""

VM_DELETE = """Stop a VM, remove its definition and forget it. Its disks stay.

Usage: chime-tool vm delete VM [options]
"""

OP_LIST = """List the operations, the newest last.

Usage: chime-tool op list [options]

Options:
  --active  only those that are running
"""

OP_SHOW = """Show an operation and its steps.

Usage: chime-tool op show ID [options]
"""

OP_WAIT = """Wait for an operation to end. The exit code is that of the operation.

Usage: chime-tool op wait ID [options]
"""

OP_CANCEL = """Cancel an operation, and wait until it has ended. Steps that are done stay done.

Usage: chime-tool op cancel ID [options]
"""

EVENT_LIST = """List what happened, the newest last. With --watch, follow it.

Usage: chime-tool event list [options]

Options:
  --subject=NAME  only of this node or VM
  --limit=N       at most this many [default: 100]
"""

ALARM_LIST = """List the alarms: conditions that are true now.

Usage: chime-tool alarm list [options]

Options:
  --all  cleared ones too
"""

ALARM_ACK = """Acknowledge an alarm: somebody is on it.

Usage: chime-tool alarm ack ID [options]

Options:
  --comment=TEXT  why, or what is being done
"""

OPERATOR_LIST = """List the operators: whose keys may use this tool.

Usage: chime-tool operator list [options]
"""

OPERATOR_ADD = """Add an operator, and print the operator's key file.

Usage: chime-tool operator add NAME [options]

Options:
  --public-key=KEY  the operator's own CURVE public key: the secret then never leaves its owner
  --output=FILE     write the key file into a new file of mode 0600, instead of printing it
"""

OPERATOR_REMOVE = """Remove an operator. The key is refused from then on, also in a live session.

Usage: chime-tool operator remove NAME [options]
"""

EXPLAIN_NODE = """Explain why a node is as it is, and what to do.

Usage: chime-tool explain node NAME [options]
"""

EXPLAIN_VM = """Explain why a VM is as it is, and what to do.

Usage: chime-tool explain vm NAME [options]
"""

STATUS = """Show the state of the server and the fleet.

Usage: chime-tool status [options]
"""

RECOVERY_SHOW = """Show who is waited for, and what is held, after a restore or by a database that is behind.

Usage: chime-tool recovery show [options]
"""

RECOVERY_CONFIRM = """Give your word for what the server waits for after a restore. It says first what that means.

Usage: chime-tool recovery confirm --comment=TEXT [options]

Options:
  --comment=TEXT  how you know, for the audit trail

What it does depends on the state that `chime-tool recovery show` names; --dry-run shows it.
  behind      begin the recovery though not all nodes are heard: no other chimed gives orders with this key
  recovering  end it though nodes have not reported: they run no VM that the database gives to another node
  held        stop, delete, start and drain what the restored database says, all of it. For one of them
              instead: vm start, vm stop, vm delete, node enable, node disable, node drain
"""
