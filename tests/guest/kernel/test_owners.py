"""Owners of frames against what the guest says of its tasks, modules and memory."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from inspector import Guest
from inspector.kernel.frames import FrameState
from inspector.kernel.owners import Owner
from inspector.kernel.owners.kernel_memory import stack_size
from inspector.kernel.vmstat import Counters
from inspector.kernel.zones import nodes
from inspector.units import Pfn, printable

pytestmark = pytest.mark.guest

_PAGE = 4096
_PRESENT, _PFN = np.uint64(1 << 63), np.uint64((1 << 55) - 1)
_TRIES = 5
_CACHED = (Owner.PAGE_CACHE, Owner.SHMEM, Owner.HUGETLB)

# What the struct page says by itself may be told more precisely, but never otherwise.
REFINES = {
    FrameState.HOLE: {Owner.NO_PAGE},
    FrameState.FREE: {Owner.FREE},
    FrameState.PER_CPU: {Owner.PER_CPU_FREE},
    FrameState.SLAB: {Owner.SLAB},
    FrameState.PAGE_TABLE: {Owner.PAGE_TABLE},
    FrameState.ANON: {Owner.ANON, Owner.SWAP_CACHE, Owner.HUGETLB},
    FrameState.FILE: {Owner.PAGE_CACHE, Owner.SHMEM, Owner.HUGETLB, Owner.SWAP_CACHE},
}


def test_a_mark_in_struct_page_is_never_overruled(any_guest: Guest) -> None:
    """frames() is checked against /proc/kpageflags elsewhere; owners() must not contradict it."""
    with any_guest.paused():
        rows = any_guest.frames()
        states, owned = rows["state"], rows["owner"]
    for state, allowed in REFINES.items():
        assert set(owned[states == state].tolist()) <= {int(owner) for owner in allowed}, state.name


def test_anonymous_memory_is_its_tasks(any_guest: Guest, start: Any, witness: Any) -> None:
    """Every frame that pagemap gives for a task's own memory is that task's."""
    pid = start(any_guest, "/labs/touch 8M --no-thp")
    (area,) = [vma for vma in any_guest.task(pid).vmas() if vma.size == 8 << 20 and not vma.inode]
    path = f"/proc/{pid}/pagemap@{area.start // _PAGE * 8}+{area.size // _PAGE * 8}"
    witnessed, owners = witness(any_guest, [path], any_guest.owners)
    assert witnessed.same(path)
    entries = np.frombuffer(witnessed.readings[path][0], np.uint64)
    assert len(entries) == 2048
    assert {owners.of(int(entry & _PFN)) for entry in entries if entry & _PRESENT} == {
        (Owner.ANON, f"touch ({pid})")
    }


def test_a_file_s_pages(any_guest: Guest, start: Any, witness: Any) -> None:
    """Every frame that pagemap gives for a mapped file is that file's page at that place."""
    pid = start(any_guest, "/labs/maps")
    areas = [vma for vma in any_guest.task(pid).vmas() if vma.inode and vma.name.startswith("/")]
    paths = [f"/proc/{pid}/pagemap@{vma.start // _PAGE * 8}+{vma.size // _PAGE * 8}" for vma in areas]
    witnessed, owners = witness(any_guest, paths, any_guest.owners)
    files = set()
    for vma, path in zip(areas, paths, strict=True):
        assert witnessed.same(path)
        entries = np.frombuffer(witnessed.readings[path][0], np.uint64)
        for place, entry in enumerate(entries.tolist()):
            if entry >> 63 and entry >> 61 & 1:  # present, and a file's or shared
                pfn = entry & int(_PFN)
                owner, label = owners.of(pfn)
                assert (owner in _CACHED, label) == (True, printable(vma.name)), hex(pfn)
                if owner is not Owner.HUGETLB:
                    assert owners.rows["index"][pfn] == vma.offset // _PAGE + place, hex(pfn)
                files.add(label)
    assert "/labs/maps" in files
    assert len(files) > 1


def test_bounce_buffers(any_guest: Guest) -> None:
    """What the kernel said at boot that it took for swiotlb."""
    said = re.findall(r"software IO TLB: mapped \[mem (0x\w+)-(0x\w+)\]", any_guest.run("dmesg").stdout)
    assert said, "a guest with memory above 4 GiB has them"
    first, end = (int(address, 16) // _PAGE for address in said[0])
    owners = any_guest.owners()
    assert {owners.of(Pfn(pfn)) for pfn in range(first, end)} == {(Owner.RESERVED, "swiotlb")}
    assert owners.by_label(Owner.RESERVED)["swiotlb"] == end - first


def test_kernel_stacks(any_guest: Guest) -> None:
    """Each thread has one, whole; all together are what the kernel counts, its CPUs' shares added."""
    kernel = any_guest.kernel
    for _ in range(_TRIES):
        with any_guest.paused():
            stacks = any_guest.owners().by_label(Owner.KERNEL_STACK)
            counters = Counters(kernel)
            counted = sum(counters.node(node, exact=True)["nr_kernel_stack"] for node in nodes(kernel))
        if sum(stacks.values()) * 4 == counted:  # a task that is on its way out has one, but is on no list
            assert set(stacks.values()) == {stack_size(kernel) // _PAGE}
            return
    pytest.fail(f"the kernel counts {counted} kB; ours: {sum(stacks.values()) * 4} kB")


def test_modules(any_guest: Guest) -> None:
    """The pages of each module that /proc/modules lists, by its size."""
    listed = {
        line.split()[0]: int(line.split()[1])
        for line in any_guest.run("cat /proc/modules").stdout.splitlines()
    }
    found = any_guest.owners().by_label(Owner.MODULE)
    assert listed
    assert found.keys() == listed.keys()
    for name, size in listed.items():
        assert size <= found[name] * _PAGE < size + 16 * _PAGE, name  # each part takes whole pages


def counts(label: str) -> bool:
    """Whether mm->pgtables_bytes counts tables of that level: PUD, PMD and PTE alone."""
    return not label.startswith(("PGD", "P4D"))


def test_page_tables_of_tasks(any_guest: Guest, witness: Any) -> None:
    """A task's tables below its root are what /proc/PID/status counts as VmPTE."""
    for _ in range(_TRIES):
        users = {task.pid: task.name for task in any_guest.tasks() if task.mm}
        paths = {pid: f"/proc/{pid}/status" for pid in users}
        witnessed, owners = witness(any_guest, list(paths.values()), any_guest.owners)
        tables = owners.by_label(Owner.PAGE_TABLE)
        wrong = {}
        for pid, path in paths.items():
            stated = [int(re.findall(r"VmPTE:\s+(\d+) kB", r.decode())[0]) for r in witnessed.readings[path]]
            ours = sum(n for label, n in tables.items() if label.endswith(f"({pid})") and counts(label))
            if stated[0] == stated[1] != ours * 4:
                wrong[pid] = (stated, ours * 4)
        if not wrong:
            return
    pytest.fail(f"(/proc, ours) in kB: {wrong}")


def test_the_remainder_is_small(boot_guest: Any) -> None:
    """Frames in use that nothing tells the owner of: under 5% on the default guest, freshly booted."""
    with boot_guest("debian-6.1", "512M", 1) as guest:
        owners = guest.owners()
    counts = owners.counts()
    in_use = sum(counts.values()) - counts[Owner.FREE] - counts[Owner.PER_CPU_FREE] - counts[Owner.NO_PAGE]
    nameless = owners.by_label(Owner.RESERVED).get("", 0)
    assert counts[Owner.UNMARKED] + nameless < 0.05 * in_use
    assert counts[Owner.ZERO_PAGE] == 1
    assert counts[Owner.MEMMAP] == (512 << 20) // _PAGE * 64 // _PAGE


def hash_tables(log: str) -> dict[str, int]:
    """Pages that alloc_large_system_hash() says it took from the direct map (mm/mm_init.c)."""
    size = r"\((?:order:? \d+, )?(\d+) bytes(?:, linear| on 1 NUMA nodes, .*linear)\)"
    said = re.findall(r"(\w[\w -]*?) hash table entries: \d+ " + size, log)
    return {name: -(-int(taken) // _PAGE) for name, taken in said}


HASHES = {
    "Dentry cache": ("dentry_hashtable",),
    "Inode-cache": ("inode_hashtable",),
    "Mount-cache": ("mount_hashtable",),
    "Mountpoint-cache": ("mountpoint_hashtable",),
    "futex": ("futex hash",),
    "posixtimers": ("posix timers",),
    "IP idents": ("ip_idents", "ip_tstamps"),
    "tcp_listen_portaddr_hash": ("tcp_hashinfo.lhash2",),
    "TCP established": ("tcp_hashinfo.ehash",),
    "TCP bind": ("tcp_hashinfo.bhash", "tcp_hashinfo.bhash2"),
    "MPTCP token": ("token_hash",),
    "UDP": ("udp_table.hash", "udp_table.hash2", "udp_table.hash4"),
    "UDP-Lite": ("udplite_table.hash", "udplite_table.hash2"),
}


def test_hash_tables(any_guest: Guest) -> None:
    """Each is as large as the kernel said at boot."""
    said = hash_tables(any_guest.run("dmesg").stdout)
    owners = any_guest.owners()
    found = owners.by_label(Owner.MARKED) | owners.by_label(Owner.RESERVED)
    ours = {name: sum(found.get(label, 0) for label in labels) for name, labels in HASHES.items()}
    known = said.keys() & HASHES.keys()
    assert {"Dentry cache", "Inode-cache", "futex", "TCP established", "UDP"} <= known
    wrong = {
        name: (ours[name], said[name])
        for name in known
        # Boot memory need not begin with a page: it may then touch one more, which is its neighbour's too.
        if not said[name] <= ours[name] <= said[name] + (name in ("Dentry cache", "Inode-cache"))
    }
    assert not wrong, f"(ours, dmesg's) in pages: {wrong}"


def test_trace_buffers(any_guest: Guest) -> None:
    """As many pages for each CPU as were asked for, and the reader's (kernel/trace/ring_buffer.c)."""
    size = 1000  # KiB
    header = 16  # of a page: its time and how much is in it
    knob = "/sys/kernel/tracing/buffer_size_kb"
    any_guest.run(f"mkdir -p /tmp/t; [ -e {knob} ] || mount -t tracefs none /sys/kernel/tracing").check()
    before = any_guest.run(f"cut -d' ' -f1 {knob}").stdout.strip()
    any_guest.run(f"echo {size} > {knob}").check()
    try:
        found = any_guest.owners().by_label(Owner.MARKED)
    finally:
        any_guest.run(f"echo {before} > {knob}").check()
    pages = -(-size * 1024 // (_PAGE - header)) + 1
    cpus = any_guest.kernel.online_cpus()
    assert {cpu: found.get(f"trace buffer, CPU {cpu}") for cpu in cpus} == dict.fromkeys(cpus, pages)
