from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inspector.errors import BadFormat, NoSuchField, NoSuchType, SymbolsError
from inspector.symbols import Kind, Member, Type
from inspector.symbols.btf import Btf

if TYPE_CHECKING:
    from tests.unit.symbols.conftest import BtfBuilder

TYPEDEF, CONST, VOLATILE, FWD, UNION, FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT = (
    8,
    10,
    9,
    7,
    5,
    12,
    13,
    14,
    15,
    16,
)
DECL_TAG, TYPE_TAG, ENUM64 = 17, 18, 19


def fill(b: BtfBuilder) -> BtfBuilder:
    """One of each kind; the comments give what C would say."""
    integer = b.integer("int", 4, signed=True)
    char = b.integer("char", 1, signed=True)
    ulong = b.integer("unsigned long", 8)
    b.raw("pid_t", TYPEDEF, integer)
    head = b.struct("list_head", 16, ("next", 7, 0), ("prev", 7, 64))
    node = b.raw("", CONST, head)
    assert b.pointer(node) == 7
    inner = b.struct("", 8, ("lru", ulong, 0), ("mapping", ulong, 0), kind=UNION)
    comm = b.array(char, 16)
    # struct task { int pid; union { ulong lru, mapping; }; char comm[16]; struct list_head tasks[2]; };
    tasks = b.array(head, 2)
    b.struct("task", 64, ("pid", 4, 0), ("", inner, 64), ("comm", comm, 128), ("tasks", tasks, 256))
    # struct flags { unsigned a : 3; unsigned b : 5; unsigned long c : 40; };
    b.struct(
        "flags", 16, ("a", ulong, 3 << 24), ("b", ulong, 5 << 24 | 3), ("c", ulong, 40 << 24 | 64), flag=1
    )
    b.enum("zone_type", ZONE_DMA=0, ZONE_NORMAL=2)
    b.enum("error", signed=True, EPERM_=-1, NONE_=0)
    b.raw("big", ENUM64, 8, struct.pack("<III", b.string("BIG"), 1, 2), vlen=1)
    b.raw("only_declared", FWD, 0)
    b.raw("shared", TYPEDEF, integer)
    b.struct("shared", 4, ("x", integer, 0))
    prototype = b.raw(
        "", FUNC_PROTO, integer, struct.pack("<IIII", b.string("vma"), 7, b.string("flags"), ulong), vlen=2
    )
    b.raw("handle_mm_fault", FUNC, prototype, vlen=1)
    variable = b.raw("runqueues", VAR, head, struct.pack("<I", 1))
    b.raw(".data..percpu", DATASEC, 16, struct.pack("<III", variable, 0, 16), vlen=1)
    b.raw("double", FLOAT, 8)
    tagged = b.raw("user", TYPE_TAG, ulong)
    b.raw("tagged", TYPEDEF, tagged)
    b.raw("bpf_thing", DECL_TAG, head, struct.pack("<i", -1))
    return b


@pytest.fixture
def types(btf: BtfBuilder) -> Btf:
    return Btf(fill(btf).blob())


def test_members(types: Btf) -> None:
    task = types.find("task")
    assert (task.kind, task.size, str(task)) == (Kind.STRUCT, 64, "struct task")
    names = [(member.name, member.bit_offset) for member in types.members(task)]
    assert names == [("pid", 0), ("", 64), ("comm", 128), ("tasks", 256)]
    pid = types.field("task", "pid").type
    assert (pid.kind, pid.size, pid.signed, pid.name) == (Kind.INT, 4, True, "int")


@pytest.mark.parametrize(
    ("path", "offset", "text"),
    [
        ("mapping", 8, "unsigned long"),
        ("comm", 16, "char[16]"),
        ("comm[3]", 19, "char"),
        ("tasks[1].prev", 56, "struct list_head *"),
    ],
)
def test_paths(types: Btf, path: str, offset: int, text: str) -> None:
    found = types.field("task", path)
    assert (found.offset, str(found.type)) == (offset, text)


def test_missing_members(types: Btf) -> None:
    assert types.has("task", "pid")
    assert not types.has("task", "nope")
    assert not types.has("task", "pid.x")
    assert not types.has("task", "pid[0]")
    with pytest.raises(NoSuchField, match="task has no member 'nope'"):
        types.field("task", "nope")
    with pytest.raises(NoSuchField, match="not a member path"):
        types.field("task", "pid->x")


def test_bitfields(types: Btf) -> None:
    assert [(m.bit_offset, m.bit_size) for m in types.members(types.find("flags"))] == [
        (0, 3),
        (3, 5),
        (64, 40),
    ]
    b = types.field("flags", "b")
    assert (b.offset, b.bit_shift, b.bit_size) == (0, 3, 5)
    c = types.field("flags", "c")
    assert (c.offset, c.bit_shift, c.bit_size) == (8, 0, 40)


def test_old_bitfields(btf: BtfBuilder) -> None:
    """Before kind_flag (4.20 and older pahole) the int type of the member has the size, and may shift it."""
    narrow = btf.integer("unsigned int", 4, bits=5, offset=2)
    btf.struct("old", 4, ("x", narrow, 8))
    found = Btf(btf.blob())
    assert found.members(found.find("old")) == (Member("x", found.type(narrow), 10, 5),)


def test_a_signed_char_that_old_pahole_gave_no_sign(btf: BtfBuilder) -> None:
    for name in ("signed char", "unsigned char", "char"):
        btf.integer(name, 1)
    found = Btf(btf.blob())
    assert found.find("signed char").signed
    assert not found.find("unsigned char").signed
    assert not found.find("char").signed  # the kernel has it unsigned since 3bc753c06dd0 (6.2)


def test_enums(types: Btf) -> None:
    assert types.enum("zone_type") == {"ZONE_DMA": 0, "ZONE_NORMAL": 2}
    assert types.enum("error") == {"EPERM_": -1, "NONE_": 0}
    assert types.enum("big") == {"BIG": 1 | 2 << 32}
    assert types.constant("ZONE_NORMAL") == 2
    assert types.constant("EPERM_") == -1
    assert types.constant("BIG") == 1 | 2 << 32
    for name in ("NOPE", "pid", "task", ""):  # of these, pid and task are strings of other things
        with pytest.raises(NoSuchType):
            types.constant(name)


def test_typedefs_and_qualifiers_come_off(types: Btf) -> None:
    assert types.find("pid_t").name == "int"
    assert types.find("tagged").name == "unsigned long"
    assert types.find("double").kind is Kind.FLOAT


def test_a_struct_goes_before_a_typedef(types: Btf) -> None:
    assert types.find("shared").kind is Kind.STRUCT
    assert types.find("struct shared") == types.find("shared")
    with pytest.raises(NoSuchType):
        types.find("union shared")


def test_names_are_whole(types: Btf) -> None:
    for name in ("", "ask", "tas", "only_declared", "handle_mm_fault", "nope", "task\0pid"):
        with pytest.raises(NoSuchType):
            types.find(name)


def test_a_name_that_ends_another(btf: BtfBuilder) -> None:
    """Some linkers let a string be the tail of a longer one."""
    integer = btf.integer("int", 4)
    btf.struct("big_page", 4, ("x", integer, 0))
    btf.types = btf.types[:-24] + struct.pack("<I", btf.string("big_page") + 4) + btf.types[-20:]
    assert Btf(btf.blob()).find("page").size == 4


def test_functions_and_variables(types: Btf) -> None:
    found = types.function("handle_mm_fault")
    assert [(name, str(type_)) for name, type_ in found.parameters] == [
        ("vma", "struct list_head *"),
        ("flags", "unsigned long"),
    ]
    assert str(found.returns) == "int"
    assert str(types.variable("runqueues")) == "struct list_head"
    for ask in (types.function, types.variable):
        with pytest.raises(NoSuchType):
            ask("task")


def test_a_declaration_finds_its_body(btf: BtfBuilder) -> None:
    forward = btf.raw("later", FWD, 0)
    btf.struct("user", 8, ("p", btf.pointer(forward), 0))
    btf.struct("later", 4, ("x", btf.integer("int", 4), 0))
    types = Btf(btf.blob())
    target = types.field("user", "p").type.target
    assert target is not None
    assert [member.name for member in types.members(target)] == ["x"]


def test_modules_add_to_the_base(btf: BtfBuilder, btf_builder: type[BtfBuilder]) -> None:
    fill(btf)
    base = Btf(btf.blob())
    blobs = []
    for extra in ("first", "second"):
        module = btf_builder(btf)
        own = module.struct(f"{extra}_device", 24, ("tasks", 5, 0), ("pid", 4, 128))
        module.struct(f"{extra}_holder", 8, ("device", module.pointer(own), 0))
        blobs.append(module.blob())
    first, second = (Btf(blob, base, serial=i + 1) for i, blob in enumerate(blobs))
    assert first.field("first_device", "tasks.prev").offset == 8
    assert first.field("first_holder", "device").type.target == first.find("first_device")
    assert first.find("task") == base.find("task")
    assert first.constant("ZONE_NORMAL") == 2
    assert first.find("first_device").id != second.find("second_device").id
    assert Btf.serial_of(second.find("second_device").id) == 2
    assert Btf.serial_of(second.find("task").id) == 0
    with pytest.raises(NoSuchType):
        first.find("second_device")


def test_a_longer_header_and_unknown_kinds_with_a_layout(btf: BtfBuilder) -> None:
    """7.1: struct btf_layout gives the size of each kind, known or not."""
    btf.integer("int", 4, signed=True)
    btf.raw("new", 25, 0, bytes(4 + 3 * 8), vlen=3)
    btf.struct("after", 4, ("x", 1, 0))
    with pytest.raises(BadFormat, match="type 2 is of the unknown kind 25"):
        Btf(btf.blob())
    btf.layout = bytes(4) * 25 + struct.pack("<BBH", 4, 8, 0)
    btf.header_extra = bytes(8)
    types = Btf(btf.blob())
    assert types.sizeof("after") == 4
    with pytest.raises(BadFormat, match="unknown kind"):
        types.type(2)


def test_more_members_than_16_bits_count(btf: BtfBuilder) -> None:
    """Since 7.1 vlen has 24 bits."""
    integer = btf.integer("int", 4)
    count = 0x1_0001
    tail = b"".join(struct.pack("<III", 0, integer, 32 * i) for i in range(count))
    btf.raw("huge", 4, 4 * count, tail, vlen=count)
    types = Btf(btf.blob())
    assert len(types.members(types.find("huge"))) == count


@pytest.mark.parametrize("kinds", [(TYPEDEF,), (CONST, VOLATILE, TYPEDEF), (2,), (TYPEDEF, 2)])
def test_types_that_lead_to_themselves(btf: BtfBuilder, kinds: tuple[int, ...]) -> None:
    for i, kind in enumerate(kinds):
        btf.raw("loop" if not i else "", kind, (i + 1) % len(kinds) + 1)
    with pytest.raises(BadFormat, match="for ever"):
        Btf(btf.blob()).type(1)


def test_the_index_is_taken_back(types: Btf) -> None:
    again = Btf(types.data, starts=types.starts)
    assert again.offsetof("task", "comm") == 16
    with pytest.raises(BadFormat):
        Btf(types.data, starts=types.starts + 4)


@pytest.mark.parametrize("size", [0, 1, 23, 24, 40, 100])
def test_cut_short(btf: BtfBuilder, size: int) -> None:
    with pytest.raises(BadFormat):
        Btf(fill(btf).blob()[:size])


def ask_everything(types: Btf) -> None:
    """Every question about every type; what is corrupt must raise, and nothing may go on for ever."""
    for id_ in range(1, len(types) + 1):
        try:
            found: Type = types.type(id_)
            str(found)
            for member in types.members(found):
                str(member.type)
            types.enumerators(found)
        except SymbolsError:
            continue
    for name in ("task", "flags", "zone_type", "shared", "only_declared"):
        try:
            types.has(name, "comm[2]")
            types.constant(name)
        except SymbolsError:
            continue


@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=20))
def test_corruption_is_an_answer_or_bad_format(
    btf_builder: type[BtfBuilder], changes: list[tuple[int, int]]
) -> None:
    data = bytearray(fill(btf_builder()).blob())
    for at, value in changes:
        data[at % len(data)] = value
    try:
        types = Btf(bytes(data))
    except BadFormat:
        return
    ask_everything(types)


@given(st.binary(max_size=400))
def test_noise_behind_a_good_header(noise: bytes) -> None:
    size = len(noise) // 8 * 4
    header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, size, size, len(noise) - size)
    try:
        types = Btf(header + noise)
    except BadFormat:
        return
    ask_everything(types)
