"""Memory types: one frame cached at one address and not at another, and what that does to the direct map."""

from __future__ import annotations

import re
import struct
from collections.abc import Generator

from inspector.errors import LabFailed
from inspector.kernel.rmap import cache_modes
from inspector.labs import checks
from inspector.labs.checks import equal, not_present
from inspector.labs.stage import Stage
from inspector.labs.story import EntryShown, Event, Lab, Look, QuoteShown, Seen, Step, Story
from inspector.units import Pfn, PhysAddr, VirtAddr

_WB, _WC, _UC_MINUS = range(3)  # qemu_images/modules/shades/shades.h, enum shade
_REMAP, _LARGE = 1, 1
_TYPES = {0: "UC", 1: "WC", 4: "WT", 5: "WP", 6: "WB", 7: "UC-"}  # SDM volume 3, "IA32_PAT MSR"
_UNCACHED = 1 << 39 | 1 << 41  # KPF_UNCACHED; KPF_ARCH_2 where PG_uncached is gone
_EDU, _EDU_SAYS = (0x1234, 0x11E8), "0x010000ed"  # QEMU docs/specs/edu.rst
_LOG, _QEMU, _DRIVER = "the kernel's log", "QEMU", "the driver"
_MEMINFO, _KPAGEFLAGS = "/proc/meminfo", "/proc/kpageflags"
_PAT_LIST, _AREAS = "/sys/kernel/debug/x86/pat_memtype_list", "/proc/vmallocinfo"
_BUSY = "Device or resource busy"
_TEXT = b"shades"


def story(stage: Stage) -> Story:
    """Take a page with two types, give it a third, ask for another, go back; then a device."""
    page = _Page(stage)
    yield from _two_types(page)
    yield from _uncached(page)
    yield from _asked_again(page)
    yield from _back(page)
    yield from _device(page)


class _Page:
    """The driver's page, and its entries: the program's, vmap()'s and the direct map's."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.guest, self.actor = stage, stage.guest, stage.actor
        stage.load("shades")
        (found,) = stage.log(r"IA32_PAT is (\w{16})")
        self.pat = bytes.fromhex(found[1])[::-1]
        self.place, self.user = PhysAddr(0), VirtAddr(0)
        self.direct = self.vmap = VirtAddr(0)
        self.large = 0  # bytes of the kernel's map that large entries have, about the page

    def take(self) -> None:
        """Ask the driver for it, map it, and find it in the kernel's map."""
        self.actor.open("shades", "/dev/shades")
        self.actor.ioctl("shades", _request(1, 20), struct.pack("=5I", _WB, _WC, _WB, _REMAP, _LARGE))
        self.user = self.actor.map("page", 1, "shared", "device=shades")
        self.actor.poke(self.user, _TEXT)
        self.place = PhysAddr(int(self.stage.log(r"page at (0x\w+)")[-1][1], 16))
        aliases = [alias for alias in self.guest.mapped_by(self.pfn) if alias.task is None]
        self.large = sum(alias.size for alias in aliases if alias.size > self.stage.page_size)
        for alias in aliases:
            if alias.region == "vmalloc":
                self.vmap = alias.va
            elif alias.region == "direct map":
                self.direct = VirtAddr(alias.va + self.place % alias.size)

    @property
    def pfn(self) -> Pfn:
        """Its frame."""
        return Pfn(self.place // self.stage.page_size)

    def paint(self, shade: int) -> str:
        """Have the driver change its type in the direct map; why it cannot, or nothing."""
        return self.ask(2, struct.pack("=I", shade))

    def ask(self, number: int, data: bytes) -> str:
        """What the driver says: nothing, or an error."""
        try:
            self.actor.ioctl("shades", _request(number, len(data)), data)
        except LabFailed as error:
            return str(error).rpartition(": ")[2]
        return ""

    def look(self, who: str, va: VirtAddr) -> Look:
        """A kernel address."""
        return Look(who, self.guest.walk(va), "nothing is there", None)

    def looks(self) -> tuple[Look, Look, Look]:
        """All three."""
        return (
            self.stage.look(self.user),
            self.look("vmap()", self.vmap),
            self.look("direct map", self.direct),
        )

    def types(self, *looks: Look) -> str:
        """What the entries say."""
        return ", ".join(self._type(look.walk.memory_type) for look in looks)

    def _type(self, index: int | None) -> str:
        return "none" if index is None else _TYPES.get(self.pat[index], "reserved")

    def table(self, *looks: Look) -> QuoteShown:
        """The same, bit by bit."""
        lines = [f"{'':<12}{'entry':<18}{'':<5}PAT PCD PWT  number  type"]
        for look in looks:
            index = look.walk.memory_type or 0
            bits = f"{index >> 2:>3}{index >> 1 & 1:>4}{index & 1:>4}"
            lines.append(
                f"{look.who:<12}{look.entry:016x}  {look.level:<5}{bits}{index:>8}  {self._type(index)}"
            )
        return QuoteShown(f"by IA32_PAT, which is {self.pat[::-1].hex()}:", tuple(lines))

    def by_qemu(self, *looks: Look) -> str:
        """PCD and PWT of kernel entries, as QEMU's own walk shows them (`info tlb`)."""
        said = self.guest.machine.hmp("info tlb")
        words = []
        for look in looks:
            start = look.walk.va & -(look.walk.page_size or 1)
            found = re.search(rf"^{start:016x}: [0-9a-f]+ (\S+)", said, re.MULTILINE)
            words.append(f"{int('C' in found[1])} {int('T' in found[1])}" if found else "not there")
        return ", ".join(words)

    def meminfo(self) -> int:
        """DirectMap4k, in kB."""
        return int(self.guest.run(f"sed -n 's/DirectMap4k: *//p' {_MEMINFO}").check().stdout.split()[0])

    def marked(self) -> str:
        """What the kernel has noted for the frame."""
        read = f"dd if={_KPAGEFLAGS} bs=8 skip={self.pfn} count=1 2>/dev/null"
        flags = int.from_bytes(self.guest.run(read).check().stdout_bytes, "little")
        return "uncached" if flags & _UNCACHED else "cached"


def _request(number: int, size: int) -> int:
    """_IOW('S', number, ...) of a struct of so many bytes (include/uapi/asm-generic/ioctl.h)."""
    return 1 << 30 | size << 16 | ord("S") << 8 | number


def _two_types(page: _Page) -> Generator[Event, str | None]:
    yield Step(
        "Two types for one frame",
        "A driver has a page of RAM, which is in the direct map as all RAM is. It maps it for the program, "
        "write-back (WB), and once more for itself, write-combining (WC).",
        ("vmap(&page, 1, VM_MAP, pgprot_writecombine(PAGE_KERNEL));",),
        ("PAT, PCD, PWT of an entry are a number: that byte of IA32_PAT is the type.",
         "Nothing keeps the three from differing. All lead to the same bytes."),
    )  # fmt: skip
    page.take()
    looks = page.looks()
    frames = {f"{look.walk.phys or 0:#x}" for look in looks}
    yield Seen(
        (page.table(*looks),),
        (
            equal("Types", "WB, WC, WB", page.types(*looks), checks.TABLES),
            equal("The numbers 0 to 7 are", " ".join(cache_modes(page.guest.kernel)),
                  " ".join(_TYPES.get(byte, "reserved") for byte in page.pat), "Linux's own table"),
            equal("PCD and PWT of the kernel's two", "0 1, 0 0", page.by_qemu(*looks[1:]), _QEMU),
            equal("They all lead to", f"{page.place:#x}", ", ".join(sorted(frames)), _DRIVER),
            equal("What the kernel reads at vmap()'s", _TEXT.decode(),
                  page.guest.read_virt(page.vmap, len(_TEXT)).decode("ascii", "replace"), "the program"),
        ),
    )  # fmt: skip


def _uncached(page: _Page) -> Generator[Event, str | None]:
    yield Step(
        "set_memory_uc()",
        "The right way is to tell the kernel. It notes the type for the frame, and changes the direct map. "
        "There one entry maps 2 MiB: it must be split into 512, for one that is to differ.",
        ("set_memory_uc((unsigned long)page_address(page), 1);",),
        ("The entry has PCD, and is a PTE. The page after it is WB, in a PTE too.",
         "The other two entries stay as they were: nobody looks for them."),
    )  # fmt: skip
    before, size = page.look("direct map", page.direct), page.meminfo()
    page.paint(_UC_MINUS)
    user, vmap, now = page.looks()
    beside = page.look("the next", VirtAddr(page.direct + page.stage.page_size))
    yield Seen(
        (EntryShown(now, before), page.table(user, vmap, now, beside)),
        (
            equal("The walk ends at", "PMD, now PTE", f"{before.level}, now {now.level}", checks.TABLES),
            equal("Types", "WB, WC, UC-, WB", page.types(user, vmap, now, beside), checks.TABLES),
            equal("PCD and PWT of direct map and next", "1 0, 0 0", page.by_qemu(now, beside), _QEMU),
            equal("DirectMap4k has grown by", f"{page.large // 1024} kB", f"{page.meminfo() - size} kB",
                  _MEMINFO),
            equal("The frame is noted as", "uncached", page.marked(), _KPAGEFLAGS),
        ),
    )  # fmt: skip


def _asked_again(page: _Page) -> Generator[Event, str | None]:
    yield Step(
        "Asked for another type",
        "A frame shall have one type. set_memory_wc() refuses what is noted already; remap_pfn_range() takes "
        "what is noted, whatever it was asked for. vmap() and vm_insert_page() do not look.",
        ("set_memory_wc((unsigned long)page_address(page), 1);",
         "remap_pfn_range(vma, start, pfn, PAGE_SIZE, vma->vm_page_prot);"),
        ("The first fails. The second asks for WB; what the entry says is UC-.",),
    )  # fmt: skip
    refused = page.paint(_WC)
    again = page.actor.map("again", 1, "shared", "device=shades")
    page.actor.read(again)
    new, old = page.stage.look(again), page.stage.look(page.user)
    told = page.stage.log(r"x86/PAT: (actor:\d+ map .* req (\S+) for .* got (\S+))")
    quote = QuoteShown("the kernel's log:", tuple(found[1] for found in told))
    yield Seen(
        (EntryShown(new), EntryShown(old), quote),
        (
            equal("set_memory_wc()", _BUSY, refused, _DRIVER),
            equal("Types of the new mapping and of the old", "UC-, WB", page.types(new, old), checks.TABLES),
            equal("Asked for, and got", "write-back, uncached-minus",
                  ", ".join(f"{found[2]}, {found[3]}" for found in told), _LOG),
        ),
    )  # fmt: skip
    page.actor.unmap(again, 1)


def _back(page: _Page) -> Generator[Event, str | None]:
    yield Step(
        "Back to write-back",
        "Before it frees the page the driver must take back what it did: who gets it next counts on that. "
        "Is the direct map then as it was?",
        ("set_memory_wb((unsigned long)page_address(page), 1);", "__free_page(page);"),
        ("The type is. The large entry is not: from now on 2 MiB take 512 in the TLB.",),
    )  # fmt: skip
    before, size = page.look("direct map", page.direct), page.meminfo()
    page.paint(_WB)
    now, noted = page.look("direct map", page.direct), page.marked()
    page.actor.unmap(page.user, 1)
    page.actor.close_device("shades")
    freed = page.guest.mapped_by(page.pfn)
    yield Seen(
        (EntryShown(now, before),),
        (
            equal("The direct map's entry", "PTE, WB", f"{now.level}, {page.types(now)}", checks.TABLES),
            equal("PCD and PWT of it", "0 0", page.by_qemu(now), _QEMU),
            equal("DirectMap4k has changed by", "0 kB", f"{page.meminfo() - size} kB", _MEMINFO),
            equal("The frame is noted as", "cached", noted, _KPAGEFLAGS),
            equal("Types that are left of it", "WB", ", ".join(sorted({alias.cache_mode for alias in freed})),
                  "all page tables"),
        ),
    )  # fmt: skip


def _device(page: _Page) -> Generator[Event, str | None]:
    yield Step(
        "A device",
        "ioremap() makes a mapping of its own, uncached: a device's register is no memory. A driver asks for "
        "the range first. Here it asks for the RAM of before, then for the registers of a PCI device.",
        ("request_mem_region(place, PAGE_SIZE, name);", "ioremap(place, PAGE_SIZE);"),
        ("RAM is refused. A device is mapped in the vmalloc region, UC-.",
         "The direct map has no entry for it: no second type to differ."),
    )  # fmt: skip
    guest, actor = page.guest, page.actor
    place = next((d.bars[0].start for d in guest.pci_devices() if (d.vendor, d.device) == _EDU), None)
    if place is None:
        raise LabFailed("this guest has no edu device")
    actor.open("shades", "/dev/shades")
    ram, device = (page.ask(3, struct.pack("=QII", where, _UC_MINUS, 0)) for where in (page.place, place))
    areas = [area.start for area in guest.vmalloc_areas() if area.phys == place]
    if not areas:
        raise LabFailed(f"the driver could not map {place:#x}: {device}")
    mapped = page.look("ioremap()", areas[0])
    absent = page.look("direct map", VirtAddr(page.direct - page.place + place))
    files = guest.run(f"cat {_PAT_LIST} {_AREAS}").check().stdout
    noted = re.findall(rf"\[mem 0x0*{place:x}-\w+\] (\S+)", files)
    callers = re.findall(rf"(\w+)\+.* phys=0x0*{place:x} ioremap", files)
    said = [found[1] for found in page.stage.log(rf"device at 0x0*{place:x} says (0x\w+)")]
    yield Seen(
        (EntryShown(mapped), page.table(mapped), EntryShown(absent)),
        (
            equal("The range of RAM", _BUSY, ram, _DRIVER),
            equal("The device, through its mapping", _EDU_SAYS, ", ".join(said), _DRIVER,
                  "does it answer? Its memory decoding may be off"),
            equal("Noted as", "uncached-minus", ", ".join(noted), _PAT_LIST),
            equal("PCD and PWT", "1 0", page.by_qemu(mapped), _QEMU),
            equal("Mapped by", "shades_ioctl", ", ".join(callers), _AREAS),
            not_present(absent),
        ),
    )  # fmt: skip


# A PCI device answers where its memory decoding is on: that is what enabling it does.
_EACH = "for d in /sys/bus/pci/devices/*; do"
_FIND = f"{_EACH} [ $(cat $d/vendor)$(cat $d/device) = 0x12340x11e8 ] && break; done"
LAB = Lab(
    name="cached-uncached",
    question="Can one page be cached at one address and uncached at another?",
    answer="Yes: each entry has a type. The kernel keeps one a frame, where it is told: set_memory_uc().",
    story=story,
    prepare=f"{_FIND}; echo 1 >$d/enable",
    undo=f"{_FIND}; echo 0 >$d/enable",
)
