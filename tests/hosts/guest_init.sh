#!/bin/busybox sh
# PID 1 of the test guest: prints a counter on the serial line, powers off when the ACPI button is pressed.
# Kernel command line: chime.name=NAME chime.interval=SECONDS chime.poweroff_after=SECONDS chime.reboot_after=SECONDS
bb=/bin/busybox
$bb mount -t proc proc /proc
$bb mount -t sysfs sysfs /sys
$bb mount -t devtmpfs dev /dev 2>/dev/null
exec </dev/ttyS0 >/dev/ttyS0 2>&1

name=guest interval=1 poweroff_after= reboot_after=
read -r cmdline </proc/cmdline
for word in $cmdline; do
    case $word in
        chime.name=*) name=${word#*=} ;;
        chime.interval=*) interval=${word#*=} ;;
        chime.poweroff_after=*) poweroff_after=${word#*=} ;;
        chime.reboot_after=*) reboot_after=${word#*=} ;;
    esac
done
read -r run </proc/sys/kernel/random/boot_id
run=${run%%-*}

# The power button is an input device; any event from it means "shut down".
watch_button() {
    $bb insmod /lib/button.ko
    $bb insmod /lib/evdev.ko
    for event in /sys/class/input/event*; do
        read -r kind <"$event/device/name"
        [ "$kind" = "Power Button" ] || continue
        $bb head -c 24 "/dev/input/${event##*/}" >/dev/null
        echo "chime-guest $name stopping"
        $bb poweroff -f
    done
}

watch_button &
[ -z "$poweroff_after" ] || { $bb sleep "$poweroff_after"; echo "chime-guest $name stopping"; $bb poweroff -f; } &
[ -z "$reboot_after" ] || { $bb sleep "$reboot_after"; echo "chime-guest $name rebooting"; $bb reboot -f; } &

n=0
while :; do
    n=$((n + 1))
    echo "chime-guest $name counter $n run $run"
    $bb sleep "$interval"
done
