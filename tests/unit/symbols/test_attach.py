from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from inspector.errors import BadFormat, NoSuchType, UsageError
from inspector.symbols import Kernel, attach
from inspector.symbols.locate import locate
from inspector.units import PhysAddr, VirtAddr

if TYPE_CHECKING:
    from tests.unit.symbols.conftest import BtfBuilder, TinyKernel

DIRECT_MAP = 0xFFFF_8880_0000_0000


@pytest.fixture
def kernel(tiny_kernel: type[TinyKernel]) -> TinyKernel:
    return tiny_kernel().build()


def test_locate(kernel: TinyKernel) -> None:
    found = locate(kernel.memory, kernel.cpu)
    assert found.vmcoreinfo.osrelease == "6.1.0-tiny"
    assert (found.image_start, found.image_end) == (kernel.image, kernel.image + 0x40_0000)
    assert found.image_phys == 0x20_0000
    assert found.root == kernel.va_to_pa(kernel.data)  # swapper_pg_dir, not the CR3 of the moment
    assert found.format.name == "x86-64 4-level"


def test_from_user_mode_under_page_table_isolation(kernel: TinyKernel) -> None:
    """The user root maps the IDT and the entry code, but neither VMCOREINFO nor the image's data."""
    assert len(kernel.space.scan(kernel.data, kernel.data + 1)) == 1
    found = locate(kernel.memory, kernel.user_cpu)
    assert found.root == kernel.va_to_pa(kernel.data)


def test_an_odd_root_without_isolation(kernel: TinyKernel) -> None:
    """Without isolation a PGD may lie on an odd page, and its even neighbour is anything."""
    kernel.ram[0x5000:0x6000] = kernel.ram[0x4000:0x5000]
    kernel.ram[0x4000:0x5000] = bytes(range(256)) * 16
    assert locate(kernel.memory, kernel.user_cpu).vmcoreinfo.osrelease == "6.1.0-tiny"


def test_freed_init_memory_is_a_hole_in_the_image(kernel: TinyKernel) -> None:
    """Pages 100 to 149 of the data are not mapped; the pointer to VMCOREINFO lies behind them."""
    pointer = struct.pack("<Q", DIRECT_MAP + 0x10_0000)
    at = kernel.ram.index(pointer)
    kernel.ram[at : at + 8] = bytes(8)
    kernel.put(kernel.data + 200 * 4096 + 8, pointer)
    kernel.map(kernel.ROOT, kernel.data, 0, 3)
    for page in (*range(100), *range(150, 512)):
        kernel.map(kernel.ROOT, kernel.data + page * 4096, 0x40_0000 + page * 4096 | 3, 4)
    assert locate(kernel.memory, kernel.cpu).image_end == kernel.data + 0x20_0000


def fail(kernel: TinyKernel, reason: str, **registers: int) -> None:
    cpu = kernel.cpu
    for name, value in registers.items():
        setattr(cpu, name, value)
    with pytest.raises(BadFormat, match=f"no Linux kernel found: .*{reason}") as caught:
        attach(kernel.memory, cpu)
    assert "\n" not in str(caught.value)


def test_a_guest_in_its_firmware(kernel: TinyKernel) -> None:
    fail(kernel, "paging is off", cr0=0x10)
    fail(kernel, "not in 64-bit mode", efer=0)


def test_no_idt(kernel: TinyKernel) -> None:
    fail(kernel, "the IDT at 0x1000 is not mapped; is the guest still", idt_base=0x1000)
    fail(kernel, "the IDT at 0x1234000000000000 is not mapped", idt_base=0x1234 << 48)


def test_root_outside_ram(kernel: TinyKernel) -> None:
    fail(kernel, "is not mapped", cr3=0x7_0000_0000)


def test_another_system(kernel: TinyKernel) -> None:
    kernel.ram[0x3000:0x3010] = struct.pack("<HHBBHII", 0x1000, 0x10, 0, 0x8E, 0x40, 0, 0)
    fail(kernel, "handler, 0x401000, is not in a kernel image")


def test_a_handler_that_is_not_mapped(kernel: TinyKernel) -> None:
    kernel.map(kernel.ROOT, kernel.image, 0, 3)
    fail(kernel, "is not mapped")


def test_a_kernel_before_vmcoreinfo(kernel: TinyKernel) -> None:
    at = kernel.ram.index(struct.pack("<Q", DIRECT_MAP + 0x10_0000))
    kernel.ram[at : at + 8] = bytes(8)
    fail(kernel, "nothing in the kernel image points to VMCOREINFO; is the guest still")


def dumped(kernel: TinyKernel, lines: str = "") -> bytes:
    """VMCOREINFO as a crash dump has it, phys_base with it (arch/x86/kernel/vmcore_info_64.c)."""
    phys_base = kernel.va_to_pa(kernel.image) - (kernel.image - 0xFFFF_FFFF_8000_0000)
    at = kernel.ram.index(b"OSRELEASE=")
    text = bytes(kernel.ram[at : at + 4096]).rstrip(b"\0").decode()
    return f"{text}NUMBER(phys_base)={phys_base}\nNUMBER(pgtable_l5_enabled)=0\n{lines}".encode()


@pytest.mark.parametrize("slide", [0, 0x1A00_0000])
def test_a_dump_without_control_registers(tiny_kernel: type[TinyKernel], slide: int) -> None:
    """A kernel's own crash dump has none: where it lies is in VMCOREINFO. Or there is no CPU at all."""
    kernel = tiny_kernel(slide=slide).build()
    lost = kernel.cpu
    lost.cr0 = lost.cr3 = lost.cr4 = lost.efer = lost.idt_base = 0
    for cpus in ([lost, lost], []):
        found = attach(kernel.memory, cpus, vmcoreinfo=dumped(kernel))
        assert found.space.root == kernel.va_to_pa(kernel.data)
        assert found.symbol("_stext") == kernel.image
        assert found.space.format.name == "x86-64 4-level"


def test_vmcoreinfo_that_leads_nowhere(kernel: TinyKernel) -> None:
    text = dumped(kernel).decode()
    for old, new, reason in (
        ("NUMBER(phys_base)", "NUMBER(other)", "phys_base"),
        ("SYMBOL(swapper_pg_dir)", "SYMBOL(other)", "swapper_pg_dir"),
        ("NUMBER(phys_base)=-", "NUMBER(phys_base)=-9", "outside of RAM"),
        ("l5_enabled)=0", "l5_enabled)=1", "is not mapped"),
        ("NUMBER(phys_base)=", "NUMBER(phys_base)=x", "not a number"),
    ):
        assert old in text
        with pytest.raises(BadFormat, match=reason):
            attach(kernel.memory, [], vmcoreinfo=text.replace(old, new).encode())
    with pytest.raises(BadFormat, match="does not begin with OSRELEASE"):
        attach(kernel.memory, [], vmcoreinfo=b"\0" * 100)
    with pytest.raises(BadFormat, match="the guest has no CPU"):
        attach(kernel.memory, [])


def test_the_first_cpu_that_leads_there_will_do(kernel: TinyKernel) -> None:
    lost, good = kernel.cpu, kernel.cpu
    lost.cr0 = 0x10
    assert attach(kernel.memory, [lost, good]).release == "6.1.0-tiny"
    with pytest.raises(BadFormat, match="paging is off"):
        attach(kernel.memory, [lost, lost])
    with pytest.raises(BadFormat, match="no CPU"):
        attach(kernel.memory, [])


def test_profile_by_build_id(tiny_kernel: type[TinyKernel], btf: BtfBuilder, tmp_path: Path) -> None:
    """Cold at first, warm from then on, at any KASLR base; the profile holds what was in the guest."""
    btf.struct("thing", 8, ("x", btf.integer("long", 8, signed=True), 0))
    first = tiny_kernel(slide=0x1A0_0000, btf=btf).build()
    assert attach(first.memory, first.cpu).profile == "cold"
    cold = attach(first.memory, first.cpu, cache=tmp_path)
    assert cold.profile == "cold"
    assert cold.phases.keys() == {"locate", "profile", "kallsyms", "BTF", "save"}
    second = tiny_kernel(slide=0x500_0000, btf=btf).build()
    start = second.va_to_pa(attach(second.memory, second.cpu).symbol("__start_BTF"))
    second.ram[start : start + 24] = bytes(24)  # it must come from the profile
    warm = attach(second.memory, second.cpu, cache=tmp_path)
    assert warm.profile == "warm"
    assert warm.types.sizeof("thing") == 8
    moved = 0x500_0000 - 0x1A0_0000
    assert [(s.name, s.address - moved if s.address > 1 << 63 else s.address) for s in warm.symbols] == [
        (s.name, s.address) for s in cold.symbols
    ]


def test_a_damaged_profile_is_built_anew(kernel: TinyKernel, tmp_path: Path) -> None:
    attach(kernel.memory, kernel.cpu, cache=tmp_path)
    (path,) = tmp_path.rglob("*.profile")
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole[:5000] + b"!" + whole[5001:], whole + b"more"):
        path.write_bytes(damaged)
        assert attach(kernel.memory, kernel.cpu, cache=tmp_path).profile == "cold"
        assert path.read_bytes() == whole


def test_a_profile_of_another_kernel(tiny_kernel: type[TinyKernel], tmp_path: Path) -> None:
    """The file is whole, but with it _stext would not be where VMCOREINFO has it."""
    other = tiny_kernel(build_id="aa" * 20).build()
    attach(other.memory, other.cpu, cache=tmp_path)
    (path,) = tmp_path.rglob("*.profile")
    path.rename(path.with_name("bb" * 20 + ".profile"))
    kernel = tiny_kernel(build_id="bb" * 20).build()
    at = kernel.ram.index(b"KERNELOFFSET=1a00000")
    kernel.ram[at : at + 20] = b"KERNELOFFSET=1800000"
    assert attach(kernel.memory, kernel.cpu, cache=tmp_path).profile == "cold"


def test_a_cache_that_cannot_be_written(kernel: TinyKernel, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert attach(kernel.memory, kernel.cpu, cache=tmp_path / "file").profile == "cold"
    assert attach(kernel.memory, kernel.cpu, cache=Path("/dev/full")).profile == "cold"


def test_no_build_id_no_profile(tiny_kernel: type[TinyKernel], tmp_path: Path) -> None:
    kernel = tiny_kernel(build_id="../../../escape").build()
    attach(kernel.memory, kernel.cpu, cache=tmp_path / "cache")
    assert list(tmp_path.rglob("*")) == []


def test_a_kernel_without_btf(kernel: TinyKernel) -> None:
    at = kernel.ram.index(b"R__start_BTF")  # no part of it is among the merged tokens
    kernel.ram[at + 5] = ord("X")
    with pytest.raises(BadFormat, match=r"carries no BTF.*give its vmlinux"):
        attach(kernel.memory, kernel.cpu)


def test_not_a_vmlinux(kernel: TinyKernel, tmp_path: Path) -> None:
    (tmp_path / "bzImage").write_bytes(b"MZ" + bytes(100))
    with pytest.raises(UsageError, match="is not an ELF file"):
        attach(kernel.memory, kernel.cpu, vmlinux=tmp_path / "bzImage")
    with pytest.raises(UsageError, match="cannot open"):
        attach(kernel.memory, kernel.cpu, vmlinux=tmp_path / "absent")


def smp(make: type[TinyKernel], btf: BtfBuilder) -> Kernel:
    """CPUs 0, 1 and 5 possible, 0 and 5 online; their per-CPU areas in the direct map."""
    word = btf.integer("unsigned long", 8)
    btf.struct("cpumask", 16, ("bits", btf.array(word, 2), 0))
    kernel = make(btf=btf)
    areas = [DIRECT_MAP + 0x11_0000 * (cpu + 1) for cpu in range(6)]
    places = {
        "__cpu_possible_mask": struct.pack("<QQ", 0b100011, 0),
        "__cpu_online_mask": struct.pack("<QQ", 0b100001, 0),
        "__per_cpu_offset": struct.pack("<6Q", *areas),
        "page_offset_base": struct.pack("<Q", DIRECT_MAP),
    }
    kernel.symbols = [(name, "D", kernel.place(data)) for name, data in places.items()]
    return attach(kernel.build().memory, kernel.cpu)


def test_cpus(tiny_kernel: type[TinyKernel], btf: BtfBuilder) -> None:
    kernel = smp(tiny_kernel, btf)
    assert kernel.possible_cpus == (0, 1, 5)
    assert kernel.online_cpus() == (0, 5)
    assert kernel.per_cpu("current_task", 5) == DIRECT_MAP + 0x11_0000 * 6 + 0x1_8F40
    with pytest.raises(UsageError, match="no CPU 2; this guest has 0, 1, 5"):
        kernel.per_cpu("current_task", 2)


def test_per_cpu_addresses_wrap(tiny_kernel: type[TinyKernel], btf: BtfBuilder) -> None:
    """From 6.15 the symbol is an address and __per_cpu_offset the distance to the copy, modulo 2^64."""
    kernel = smp(tiny_kernel, btf)
    base = VirtAddr(0xFFFF_FFFF_8300_0000)
    offset = DIRECT_MAP + 0x11_0000
    assert kernel.per_cpu_address(base, 0) == (base + offset) % (1 << 64)


def test_one_cpu(kernel: TinyKernel) -> None:
    """CONFIG_SMP=n has neither the masks nor the offsets."""
    alone = attach(kernel.memory, kernel.cpu)
    assert alone.possible_cpus == alone.online_cpus() == (0,)
    assert alone.per_cpu("current_task", 0) == 0x1_8F40


def test_where_memory_is_mapped(tiny_kernel: type[TinyKernel], btf: BtfBuilder) -> None:
    kernel = smp(tiny_kernel, btf)
    assert kernel.page_offset == DIRECT_MAP
    assert kernel.vmemmap_base == 0xFFFF_EA00_0000_0000  # no such symbol: the documented place
    assert kernel.vmalloc_base == 0xFFFF_C900_0000_0000
    assert kernel.phys_to_virt(PhysAddr(0x1234)) == DIRECT_MAP + 0x1234
    assert kernel.virt_to_phys(VirtAddr(DIRECT_MAP + 0x1234)) == 0x1234
    assert kernel.virt_to_phys(kernel.symbol("_stext")) == 0x20_0000
    assert kernel.word("page_offset_base") == DIRECT_MAP


def test_types_of_modules(
    tiny_kernel: type[TinyKernel], btf: BtfBuilder, btf_builder: type[BtfBuilder]
) -> None:
    u32 = btf.integer("unsigned int", 4)
    head = btf.struct("list_head", 16, ("next", btf.pointer(0), 0), ("prev", 2, 64))
    declared = btf.raw("loop_device", 7, 0)
    btf.struct("holder", 8, ("device", btf.pointer(declared), 0))
    btf.struct("btf", 16, ("data", 2, 0), ("data_size", u32, 64), ("id", u32, 96))
    btf.struct("btf_module", 24, ("list", head, 0), ("btf", 2, 128))
    module = btf_builder(btf)
    module.struct("loop_device", 4, ("lo_number", u32, 0))
    kernel = tiny_kernel(btf=btf)
    blob = module.blob()
    head_at = kernel.place(bytes(16))
    described = kernel.place(struct.pack("<QII", kernel.place(blob), len(blob), 1))
    broken = kernel.place(struct.pack("<QII", 0x1000, 100, 2))
    nodes = [kernel.place(bytes(24)), kernel.place(bytes(24))]
    for node, succeeding, about in ((nodes[0], nodes[1], broken), (nodes[1], head_at, described)):
        kernel.put(node, struct.pack("<QQQ", succeeding, 0, about))
    kernel.symbols = [("btf_modules", "d", head_at)]
    kernel.put(head_at, struct.pack("<QQ", head_at, head_at))
    types = attach(kernel.build().memory, kernel.cpu).types
    with pytest.raises(NoSuchType):
        types.find("loop_device")
    kernel.put(head_at, struct.pack("<QQ", nodes[0], nodes[1]))  # the modules are loaded
    found = types.find("loop_device")
    assert [(member.name, member.type.size) for member in types.members(found)] == [("lo_number", 4)]
    assert types.offsetof("loop_device", "lo_number") == 0
    target = types.field("holder", "device").type.target
    assert target is not None
    assert types.members(target) == types.members(found)
    kernel.put(nodes[1], struct.pack("<Q", nodes[0]))  # a list that never ends
    assert not types.has("absent")


def test_types_of_a_module_where_another_was(
    tiny_kernel: type[TinyKernel], btf: BtfBuilder, btf_builder: type[BtfBuilder]
) -> None:
    """The kernel takes the same memory for the next module's BTF: its number tells them apart."""
    u32 = btf.integer("unsigned int", 4)
    head = btf.struct("list_head", 16, ("next", btf.pointer(0), 0), ("prev", 2, 64))
    btf.struct("btf", 16, ("data", 2, 0), ("data_size", u32, 64), ("id", u32, 96))
    btf.struct("btf_module", 24, ("list", head, 0), ("btf", 2, 128))
    kernel = tiny_kernel(btf=btf)
    head_at, node, described = kernel.place(bytes(16)), kernel.place(bytes(24)), kernel.place(bytes(16))
    blobs = {}
    for name in ("loan", "edu"):
        module = btf_builder(btf)
        module.struct(name, 4, ("number", u32, 0))
        blobs[name] = module.blob()
    places = {name: kernel.place(blob) for name, blob in blobs.items()}
    kernel.put(head_at, struct.pack("<QQ", node, node))
    kernel.put(node, struct.pack("<QQQ", head_at, head_at, described))
    kernel.symbols = [("btf_modules", "d", head_at)]
    kernel.put(described, struct.pack("<QII", places["loan"], len(blobs["loan"]), 5))
    types = attach(kernel.build().memory, kernel.cpu).types
    assert (types.has("loan"), types.has("edu")) == (True, False)
    kernel.put(described, struct.pack("<QII", places["edu"], len(blobs["edu"]), 6))
    assert (types.has("loan"), types.has("edu")) == (False, True)


def test_memory_given_out_is_released(kernel: TinyKernel) -> None:
    """Names and types outlive the guest: nothing of them is a view of its RAM."""
    attached = attach(kernel.memory, kernel.cpu)
    kernel.ram[:] = bytes(len(kernel.ram))
    assert attached.symbols.has("swapper_pg_dir")
    attached.memory.close()  # type: ignore[attr-defined]
    assert len(attached.symbols) == 6
