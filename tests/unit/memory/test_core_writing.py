"""What is written as a memory image opens as it was, others read it, and of half an image nothing is left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from inspector.errors import SetupError, UsageError
from inspector.memory import MappedRam, RamBlock
from inspector.memory.core import Machine, SavedCpu, new_file, open_image, write_elf, write_kdump
from inspector.units import PhysAddr

PAGE = 4096
INFO = b"OSRELEASE=6.1.0-test\nPAGESIZE=4096\n"

CPU = SavedCpu(
    general={"rax": 1, "rip": 0xFFFF_FFFF_8100_0000, "rsp": 0x1000, "rflags": 2, "r15": 15},
    segments={
        "cs": (0x10, 0, 0xFFFFFFFF, 0xA09B00),
        "gs": (0, 0xFFFF888000000000, 0, 0),
        "idt": (0, 0x5000, 0xFFF, 0),
    },
    control=(0x80050033, 0, 0x7FFF, 0x2000, 0x6F0),
)


def machine(fd: int | None, ram: MappedRam) -> Machine:
    return Machine(
        memory=ram,
        ram_fd=fd,
        cpus=(CPU, CPU),
        vmcoreinfo=INFO,
        page_offset=0xFFFF888000000000,
        phys_base=-0x1000000,
        utsname=bytes(390),
    )


class Counter:
    """A Progress that keeps what it was told."""

    done = 0.0

    def update(self, done: float, total: float | None = None) -> None:
        assert done >= self.done
        self.done = done


def save(path: Path, content: Machine, format_: str, overwrite: bool = False) -> Counter:
    progress = Counter()
    with new_file(path, overwrite) as fd:
        if format_ == "elf":
            write_elf(fd, content, progress)
        else:
            write_kdump(fd, content, 1, progress)
    return progress


@pytest.fixture
def ram() -> Iterator[tuple[int, MappedRam, bytes]]:
    """A memfd with holes: 3 MiB, of which some pages hold something, in two blocks with a gap between."""
    fd = os.memfd_create("test")
    os.ftruncate(fd, 3 << 20)
    rng = np.random.default_rng(1)
    for page in (0, 3, 4, 255, 256, 300, 511, 512, 767):
        os.pwrite(fd, rng.integers(0, 256 if page % 2 else 2, PAGE, np.uint8).tobytes(), page * PAGE)
    content = os.pread(fd, 3 << 20, 0)
    blocks = (RamBlock(PhysAddr(0), 2 << 20, 0), RamBlock(PhysAddr(1 << 32), 1 << 20, 2 << 20))
    mapped = MappedRam.from_fd(fd, blocks)
    yield fd, mapped, content
    mapped.close()
    os.close(fd)


@pytest.mark.parametrize("format_", ["elf", "kdump"])
@pytest.mark.parametrize("holes", [True, False])
def test_what_is_saved_opens_as_it_was(
    tmp_path: Path, ram: tuple[int, MappedRam, bytes], format_: str, holes: bool
) -> None:
    fd, mapped, content = ram
    path = tmp_path / "image"
    progress = save(path, machine(fd if holes else None, mapped), format_)
    image = open_image(path)
    found = MappedRam.from_fd(image.fd, image.blocks)
    assert [(block.start, block.size) for block in image.blocks] == [(0, 2 << 20), (1 << 32, 1 << 20)]
    assert found.read(PhysAddr(0), 2 << 20) + found.read(PhysAddr(1 << 32), 1 << 20) == content
    assert image.vmcoreinfo == INFO
    assert [dict(cpu.general)["rip"] for cpu in image.cpus] == [0xFFFF_FFFF_8100_0000] * 2
    assert image.cpus[0].control == CPU.control
    assert {name: image.cpus[0].segments[name] for name in CPU.segments} == CPU.segments
    assert progress.done == 3 << 20
    found.close()
    image.close()


def test_an_elf_image_takes_disk_for_what_is_not_zero(
    tmp_path: Path, ram: tuple[int, MappedRam, bytes]
) -> None:
    fd, mapped, _ = ram
    save(tmp_path / "image", machine(fd, mapped), "elf")
    status = (tmp_path / "image").stat()
    assert status.st_size > 3 << 20
    assert status.st_blocks * 512 < 1 << 20
    assert status.st_mode & 0o777 == 0o600


def test_readelf_reads_what_is_saved(tmp_path: Path, ram: tuple[int, MappedRam, bytes]) -> None:
    """By pyelftools: segments, notes, and the registers where gdb looks for them."""
    from elftools.elf.elffile import ELFFile
    from elftools.elf.segments import NoteSegment

    fd, mapped, content = ram
    save(tmp_path / "image", machine(fd, mapped), "elf")
    with (tmp_path / "image").open("rb") as file:
        found = ELFFile(file)
        segments = list(found.iter_segments())
        assert [s["p_type"] for s in segments] == ["PT_NOTE", "PT_LOAD", "PT_LOAD"]
        assert [(s["p_vaddr"], s["p_paddr"]) for s in segments[1:]] == [
            (0xFFFF888000000000, 0),
            (0xFFFF888100000000, 1 << 32),
        ]
        assert segments[1].data() + segments[2].data() == content
        (first,) = [segment for segment in segments if isinstance(segment, NoteSegment)]
        notes = [(n["n_name"], n["n_descsz"]) for n in first.iter_notes()]
        assert notes == [("CORE", 336)] * 2 + [("QEMU", 432)] * 2 + [("VMCOREINFO", len(INFO))]


@pytest.mark.parametrize("format_", ["elf", "kdump"])
@pytest.mark.parametrize("end", [KeyboardInterrupt, ValueError])
def test_whatever_ends_it_nothing_is_left(
    tmp_path: Path, ram: tuple[int, MappedRam, bytes], format_: str, end: type[BaseException]
) -> None:
    fd, mapped, _ = ram

    class Stops(Counter):
        def update(self, done: float, total: float | None = None) -> None:
            raise end

    def write(overwrite: bool) -> None:
        with new_file(tmp_path / "image", overwrite) as out:
            if format_ == "elf":
                write_elf(out, machine(fd, mapped), Stops())
            else:
                write_kdump(out, machine(fd, mapped), 1, Stops())

    with pytest.raises(end):
        write(False)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "image").write_bytes(b"before")
    with pytest.raises(end):
        write(True)
    assert (tmp_path / "image").read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_is_there_is_overwritten_only_when_told(
    tmp_path: Path, ram: tuple[int, MappedRam, bytes]
) -> None:
    fd, mapped, _ = ram
    path = tmp_path / "image"
    path.write_bytes(b"mine")
    with pytest.raises(UsageError, match="is there already"):
        save(path, machine(fd, mapped), "elf")
    assert path.read_bytes() == b"mine"
    save(path, machine(fd, mapped), "elf", overwrite=True)
    assert path.read_bytes()[:4] == b"\x7fELF"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="no room for the image"), new_file(tmp_path / "image", False):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []
