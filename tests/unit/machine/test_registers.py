"""The monitor's texts, as QEMU 7.2 printed them, read by eye."""

from __future__ import annotations

import pytest

from inspector.errors import MachineError
from inspector.machine.registers import parse_ram, parse_registers

LONG_MODE = """
CPU#0
RAX=000000000001ad40 RBX=0000000000000000 RCX=0000000000000000 RDX=4000000000000000
RSI=0000000000000083 RDI=0000000000002efc RBP=ffffffff8541aa40 RSP=ffffffff85403e98
R8 =0000000000000000 R9 =0000000000000007 R10=00000000fffffffb R11=0000000000000001
R12=0000000000000000 R13=0000000000000000 R14=0000000000000000 R15=0000000000014790
RIP=ffffffff844592eb RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1
ES =0000 0000000000000000 00000000 00000000
CS =0010 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]
SS =0018 0000000000000000 ffffffff 00cf9300 DPL=0 DS   [-WA]
DS =0000 0000000000000000 00000000 00000000
FS =0000 0000000000000000 00000000 00000000
GS =0000 ff2a55485f200000 00000000 00000000
LDT=0000 0000000000000000 00000000 00008200 DPL=0 LDT
TR =0040 fffffe0000003000 00004087 00008900 DPL=0 TSS64-avl
GDT=     fffffe0000001000 0000007f
IDT=     fffffe0000000000 00000fff
CR0=80050033 CR2=0000000000584980 CR3=000000000e610000 CR4=00751ef0
DR0=0000000000000000 DR1=0000000000000000 DR2=0000000000000000 DR3=0000000000000000
DR6=00000000ffff0ff0 DR7=0000000000000400
EFER=0000000000000d01
FCW=037f FSW=0000 [ST=0] FTW=00 MXCSR=00001f80
FPR0=0000000000000000 0000 FPR1=0000000000000000 0000
YMM00=0000000000000000 0000000000000000 00000000005e2343 00000000005e2343

CPU#1
RAX=0000000000000001 RBX=0000000000000000 RCX=0000000000000000 RDX=4000000000000000
RSI=0000000000000000 RDI=000000000000411c RBP=00007ffd00000000 RSP=00007ffd8009bed8
R8 =ffffffffffc97e8b R9 =00000000314dd5bd R10=00000000fffffffb R11=0000000000000000
R12=0000000000000001 R13=0000000000000000 R14=0000000000000000 R15=0000000000000000
RIP=0000000000401000 RFL=00000202 [-------] CPL=3 II=0 A20=1 SMM=0 HLT=0
GS =0000 0000000000000000 00000000 00000000
GDT=     fffffe000003c000 0000007f
IDT=     fffffe0000000000 00000fff
CR0=80050033 CR2=00007ffd8009b000 CR3=000000000e612000 CR4=00751ef0
EFER=0000000000000d01
"""

REAL_MODE = """
CPU#0
EAX=00000000 EBX=00000000 ECX=00000000 EDX=00060fb1
ESI=00000000 EDI=00000000 EBP=00000000 ESP=00006f00
EIP=0000fff0 EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0
ES =0000 00000000 0000ffff 00009300
CS =f000 ffff0000 0000ffff 00009b00
SS =0000 00000000 0000ffff 00009300
DS =0000 00000000 0000ffff 00009300
FS =0000 00000000 0000ffff 00009300
GS =0000 00000000 0000ffff 00009300
LDT=0000 00000000 0000ffff 00008200
TR =0000 00000000 0000ffff 00008b00
GDT=     00000000 0000ffff
IDT=     00000000 0000ffff
CR0=60000010 CR2=00000000 CR3=00000000 CR4=00000000
EFER=0000000000000000
"""


def test_every_cpu_in_long_mode() -> None:
    first, second = parse_registers(LONG_MODE)
    assert (first.cpu, first.rip, first.rsp) == (0, 0xFFFFFFFF844592EB, 0xFFFFFFFF85403E98)
    assert (first.cr0, first.cr2, first.cr3, first.cr4) == (0x80050033, 0x584980, 0xE610000, 0x751EF0)
    assert (first.efer, first.rflags, first.cpl, first.halted) == (0xD01, 0x246, 0, True)
    assert (first.gs_base, first.idt_base) == (0xFF2A55485F200000, 0xFFFFFE0000000000)
    assert (second.cpu, second.rip, second.cpl, second.halted) == (1, 0x401000, 3, False)


def test_segments_and_tables() -> None:
    segments = parse_registers(LONG_MODE)[0].segments
    assert set(segments) == {"es", "cs", "ss", "ds", "fs", "gs", "ldt", "tr", "gdt", "idt"}
    assert segments["cs"] == (0x10, 0, 0xFFFFFFFF, 0xAF9B00)
    assert segments["tr"] == (0x40, 0xFFFFFE0000003000, 0x4087, 0x8900)
    assert segments["gs"].base == 0xFF2A55485F200000
    assert segments["gdt"] == (0, 0xFFFFFE0000001000, 0x7F, 0)
    assert parse_registers(REAL_MODE)[0].segments["cs"] == (0xF000, 0xFFFF0000, 0xFFFF, 0x9B00)


def test_the_sixteen_general_registers() -> None:
    general = parse_registers(LONG_MODE)[0].general
    assert set(general) == {
        *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"),
        *(f"r{n}" for n in range(8, 16)),
    }
    assert (general["rax"], general["r8"], general["r15"]) == (0x1AD40, 0, 0x14790)


def test_real_mode_prints_other_names_and_fewer_digits() -> None:
    (cpu,) = parse_registers(REAL_MODE)
    assert (cpu.rip, cpu.rsp, cpu.cr0, cpu.efer) == (0xFFF0, 0x6F00, 0x60000010, 0)
    assert cpu.general["rdx"] == 0x60FB1


def test_text_without_a_cpu_is_refused() -> None:
    with pytest.raises(MachineError, match="names no CPU"):
        parse_registers("unknown command: 'info registers'")


MTREE_8G = """
FlatView #1
 AS "mch", root: bus master container
 Root memory region: (none)
  No rendered FlatView

FlatView #2
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 AS "ich9-ahci", root: bus master container
 Root memory region: system
  0000000000000000-00000000000c2fff (prio 0, ram): ram
  00000000000c3000-00000000000e7fff (prio 0, rom): ram @00000000000c3000
  00000000000e8000-00000000000effff (prio 0, ram): ram @00000000000e8000
  00000000000f0000-00000000000fffff (prio 0, rom): ram @00000000000f0000
  0000000000100000-000000007fffffff (prio 0, ram): ram @0000000000100000
  00000000b0000000-00000000bfffffff (prio 0, i/o): pcie-mmcfg-mmio
  00000000fea00000-00000000feafffff (prio 1, i/o): edu-mmio
  00000000fec00000-00000000fec00fff (prio 0, i/o): ioapic
  00000000fffc0000-00000000ffffffff (prio 0, rom): pc.bios
  0000000100000000-000000027fffffff (prio 0, ram): ram @0000000080000000

FlatView #3
 AS "cpu-smm-0", root: memory
 Root memory region: memory
  0000000000000000-00000000000fffff (prio 0, ram): ram
"""

MTREE_VGA = """
FlatView #0
 AS "memory", root: system
 Root memory region: system
  0000000000000000-000000000009ffff (prio 0, ram): ram
  00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem
  00000000000c0000-00000000000dffff (prio 1, rom): pc.rom
  0000000000100000-000000001fffffff (prio 0, ram): ram @0000000000100000
  00000000fd000000-00000000fdffffff (prio 1, ram): vga.vram
"""


def test_ram_above_the_pci_hole_lies_elsewhere_in_the_file() -> None:
    assert parse_ram(MTREE_8G) == [
        (0, 0x8000_0000, 0),
        (0x1_0000_0000, 0x1_8000_0000, 0x8000_0000),
    ]


def test_what_other_memory_covers_is_not_ram() -> None:
    assert parse_ram(MTREE_VGA) == [(0, 0xA0000, 0), (0x100000, 0x1FF00000, 0x100000)]


@pytest.mark.parametrize(
    "text", ["", 'FlatView #0\n AS "I/O", root: io\n', MTREE_VGA.replace(": ram", ": pc")]
)
def test_a_map_without_ram_is_refused(text: str) -> None:
    with pytest.raises(MachineError):
        parse_ram(text)
