from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from elftools.elf.elffile import ELFFile

from inspector.errors import BadFormat, NoSuchType, UsageError
from inspector.symbols import Kind, SymbolTable, TypeTable, attach
from inspector.symbols.btf import Btf
from inspector.symbols.dwarf import Dwarf
from inspector.symbols.elf import Vmlinux

if TYPE_CHECKING:
    from tests.unit.symbols.conftest import BtfBuilder, TinyKernel

TYPES = r"""
struct list_head { struct list_head *next, *prev; };
struct opaque;
typedef struct { int counter; } atomic_t;
enum zone_type { ZONE_DMA, ZONE_NORMAL = 2, ZONE_LAST };
enum error { FAILED = -1, FINE = 0 };
struct big_page { char unused; };
struct page {
    unsigned long flags;
    union {
        struct { struct list_head lru; void *mapping; };
        struct { unsigned char order; const volatile atomic_t *pincount; };
    };
    atomic_t _refcount;
    unsigned int inuse : 16, objects : 15, frozen : 1;
    signed char nice : 4;
    long double far;
    enum zone_type zone;
    short table[3][5];
    struct opaque *opaque;
    int (*call)(int);
    _Bool on;
    struct page *neighbour;
    char name[];
};
"""

CODE = (
    TYPES
    + r"""
struct task { struct page *page; };
typedef unsigned long ab;
ab short_name;
int shared = 1;
static int local = 2;
const int constant = 3;
int nothing;
static void show(void) { local++; }
__attribute__((weak)) void weak(void) {}
void _stext(void) { show(); weak(); }
struct big_page big;
struct page a_page; struct task a_task; enum error an_error;
"""
)
OTHER = "struct page { int decoy; } *decoys; struct opaque { int inside; } opaque;"
BUILD_ID = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module", params=["-gdwarf-4", "-gdwarf-5"])
def vmlinux(
    request: pytest.FixtureRequest, gcc: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Two compile units linked as a kernel is, with DWARF."""
    other = tmp_path_factory.mktemp("other") / "other.c"
    other.write_text(OTHER)
    return gcc(
        CODE,
        str(other),
        request.param,
        "-O0",
        "-nostdlib",
        "-static",
        "-Wl,-e,_stext",
        f"-Wl,--build-id=0x{BUILD_ID}",
        "-Wl,-Ttext-segment=0xffffffff81000000",
        "-mcmodel=kernel",
        "-fno-pie",
        "-no-pie",
    )


@pytest.fixture(scope="module")
def types(vmlinux: Path) -> TypeTable:
    found = Vmlinux(vmlinux).types()
    assert isinstance(found, Dwarf)
    return found


def test_symbols_as_nm_prints_them(vmlinux: Path) -> None:
    if not shutil.which("nm"):
        pytest.skip("nm is missing")
    arrays = Vmlinux(vmlinux).symbols()
    assert arrays is not None
    listed = subprocess.run(["nm", vmlinux], capture_output=True, text=True, check=True).stdout
    expected = {(name, int(address, 16), kind) for address, kind, name in map(str.split, listed.splitlines())}
    assert {(s.name, s.address, s.kind) for s in SymbolTable(arrays)} == expected
    assert SymbolTable(arrays, 0x100).address("_stext") == SymbolTable(arrays).address("_stext") + 0x100


def test_build_id(vmlinux: Path) -> None:
    file = Vmlinux(vmlinux)
    assert file.build_id == BUILD_ID
    file.check_build_id(BUILD_ID)
    file.check_build_id(None)
    with pytest.raises(UsageError, match=f"build id {BUILD_ID}, the guest's is {'f' * 40}"):
        file.check_build_id("f" * 40)


PATHS = {
    "page": "flags lru lru.prev mapping order pincount _refcount.counter far zone table table[1] table[2][4] "
    "opaque call on neighbour name",
    "list_head": "prev",
    "task": "page",
    "big_page": "unused",
}


def test_offsets_and_sizes_as_the_compiler_has_them(types: TypeTable, gcc: Callable[..., Path]) -> None:
    rows = [(name, path) for name, paths in PATHS.items() for path in paths.split()]
    lines = "".join(
        f'printf("%zu %zu\\n", offsetof(struct {n}, {p}), sizeof(((struct {n} *)0)->{p}));'
        if p != "name"
        else f'printf("%zu 0\\n", offsetof(struct {n}, {p}));'
        for n, p in rows
    )
    program = gcc(
        "#include <stdio.h>\n#include <stddef.h>\n" + TYPES + "struct task { struct page *page; };"
        f"int main(void) {{ {lines} return 0; }}"
    )
    printed = subprocess.run([program], capture_output=True, text=True, check=True).stdout.splitlines()
    ours = [f"{(f := types.field(n, p)).offset} {f.type.size}" for n, p in rows]
    assert dict(zip(rows, ours, strict=True)) == dict(zip(rows, printed, strict=True))


def test_bitfields_as_the_compiler_has_them(types: TypeTable, gcc: Callable[..., Path]) -> None:
    """Set all bits of one bitfield in zeroed memory, and see which bits of the struct are set."""
    names = ["inuse", "objects", "frozen", "nice"]
    lines = "".join(f"memset(&p, 0, sizeof p); p.{n} = -1; fwrite(&p, sizeof p, 1, stdout);" for n in names)
    program = gcc(
        f"#include <stdio.h>\n#include <string.h>\n{TYPES}"
        f"struct page p; int main(void) {{ {lines} return 0; }}"
    )
    printed = subprocess.run([program], capture_output=True, check=True).stdout
    size = types.sizeof("page")
    for i, name in enumerate(names):
        found = types.field("page", name)
        mask = (1 << found.bit_size) - 1 << found.bit_shift + 8 * found.offset
        assert mask == int.from_bytes(printed[i * size : (i + 1) * size], "little"), name
    assert types.field("page", "nice").type.signed


def test_kinds(types: TypeTable) -> None:
    def text(path: str) -> str:
        return str(types.field("page", path).type)

    assert text("pincount") == "struct {...} *"
    assert text("table") == "short int[5][3]"
    assert text("zone") == "enum zone_type"
    assert text("mapping") == "void *"
    assert text("neighbour") == "struct page *"
    assert types.field("page", "far").type.kind is Kind.FLOAT
    assert types.field("page", "on").type.kind is Kind.INT
    assert types.find("atomic_t").kind is Kind.STRUCT
    assert types.find("ab").name == "long unsigned int"
    assert types.find("long unsigned int").size == ctypes.sizeof(ctypes.c_long)


def test_enums(types: TypeTable) -> None:
    assert types.enum("zone_type") == {"ZONE_DMA": 0, "ZONE_NORMAL": 2, "ZONE_LAST": 3}
    assert types.enum("error") == {"FAILED": -1, "FINE": 0}
    assert types.constant("ZONE_LAST") == 3
    assert types.constant("FAILED") == -1
    assert not types.enumerators(types.find("page"))


def test_a_declaration_finds_its_body_in_another_unit(types: TypeTable) -> None:
    target = types.field("page", "opaque").type.target
    assert target is not None
    assert [member.name for member in types.members(target)] == ["inside"]


@pytest.mark.parametrize("name", ["absent", "shared", "lru", "age", "", "_stext", "ZONE_DMA"])
def test_names_that_are_no_types(types: TypeTable, name: str) -> None:
    with pytest.raises(NoSuchType):
        types.find(name)
    with pytest.raises(NoSuchType):
        types.constant(name) if name != "ZONE_DMA" else types.constant("ZONE")


def test_btf_is_taken_before_dwarf(vmlinux: Path, btf: BtfBuilder, tmp_path: Path) -> None:
    if not shutil.which("objcopy"):
        pytest.skip("objcopy is missing")
    btf.struct("only_in_btf", 12)
    (tmp_path / "btf").write_bytes(btf.blob())
    both = tmp_path / "both"
    subprocess.run(["objcopy", "--add-section", f".BTF={tmp_path / 'btf'}", vmlinux, both], check=True)
    found = Vmlinux(both).types()
    assert isinstance(found, Btf)
    assert found.sizeof("only_in_btf") == 12


def test_a_stripped_file_has_neither(vmlinux: Path, tmp_path: Path) -> None:
    if not shutil.which("strip"):
        pytest.skip("strip is missing")
    bare = tmp_path / "bare"
    subprocess.run(["strip", "-o", bare, vmlinux], check=True)
    assert Vmlinux(bare).symbols() is None
    assert Vmlinux(bare).types() is None


def test_damaged_dwarf(vmlinux: Path) -> None:
    """Whatever the bytes of .debug_info are, the answer is a type or an error of ours."""
    with vmlinux.open("rb") as file:
        section = ELFFile(file).get_section_by_name(".debug_info")
        assert section is not None
        start, size = section["sh_offset"], section["sh_size"]
    data = bytearray(vmlinux.read_bytes())
    for at in range(0, size, 7):
        damaged = bytearray(data)
        damaged[start + at] ^= 0xFF
        path = vmlinux.with_name("damaged")
        path.write_bytes(damaged)
        try:
            found = Vmlinux(path).types()
            assert found is not None
            for name in ("page", "zone_type", "ab"):
                if found.has(name):
                    found.members(found.find(name))
        except (BadFormat, NoSuchType):
            continue


def test_attach_with_a_vmlinux(vmlinux: Path, tiny_kernel: type[TinyKernel]) -> None:
    link = SymbolTable(Vmlinux(vmlinux).symbols() or pytest.fail("no symbols")).address("_stext")
    kernel = tiny_kernel(build_id=BUILD_ID)
    kernel.slide += kernel.image - kernel.slide - link  # where this file's _stext, slid, is the image's start
    attached = attach(kernel.build().memory, kernel.cpu, vmlinux=vmlinux)
    assert attached.profile == "vmlinux"
    assert attached.symbol("_stext") == kernel.image
    assert attached.types.offsetof("list_head", "prev") == 8


def test_attach_with_the_vmlinux_of_another_build(vmlinux: Path, tiny_kernel: type[TinyKernel]) -> None:
    kernel = tiny_kernel().build()
    with pytest.raises(UsageError, match="is not the running kernel's vmlinux"):
        attach(kernel.memory, kernel.cpu, vmlinux=vmlinux)


def test_not_a_kernel(gcc: Callable[..., Path]) -> None:
    with pytest.raises(BadFormat, match="no symbol _stext"):
        Vmlinux(gcc("int main(void) { return 0; }")).symbols()
