"""The hypervisor that is libvirt: everything that talks to it, or reads what it and qemu left behind."""
