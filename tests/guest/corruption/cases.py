"""Corrupted memory, case by case: a recorded guest, a few words changed, one reader; then the words restored.

`python -m tests.guest.corruption.cases RECORDING --first 17` runs case 17 again. A recording is a folder:
`ram`, and in `machine.json` where RAM lies and the registers that lead to the kernel.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import mmap
import random
import resource
import signal
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from inspector.errors import InspectorError
from inspector.memory import RamBlock
from inspector.units import PhysAddr, VirtAddr
from tests.guest.corruption.readers import READERS, SHARES
from tests.guest.corruption.recording import Recording, Watched

HANG = 10  # seconds of one case: the slowest reader takes half of one
ROOM = 3 << 30  # bytes of address space beyond what the recording and the libraries take


class Hang(BaseException):
    """A case took longer than HANG; no `except` of the code under test stops it."""


def _garbage(recording: Recording, rng: random.Random, address: int, old: int) -> int:
    """Another 64-bit word for the one at a physical address."""
    page_offset = recording.kernel.page_offset
    end = max(int(block.end) for block in recording.blocks)
    match rng.randrange(12):
        case 0 | 1:
            return old ^ 1 << rng.randrange(64)
        case 2:
            return rng.getrandbits(64)
        case 3:
            return rng.getrandbits(rng.randrange(1, 64))
        case 4:
            return rng.choice((0, 1, 2, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 63, (1 << 64) - 1))
        case 5:
            return (old + rng.choice((-1, 1, -8, 8, 4096, -4096, old))) % (1 << 64)
        case 6:
            return page_offset + (address & ~7)  # a pointer to itself
        case 7:
            return page_offset + rng.randrange(end) // 8 * 8
        case 8:
            return (1 << 64) - rng.randrange(1, 8192)
        case 9:
            return address & ~0xFFF | old & 0xFFF  # a table that leads to itself
        case 10:
            return rng.randrange(end) & ~0xFFF | old & 0xFFF | rng.choice((0, 0x80))
        case _:
            return rng.choice(recording.pointers or [old])


def _corruptions(recording: Recording, name: str, rng: random.Random) -> list[tuple[int, bytes]]:
    """What to write where in the buffer: at places that the reader looks at."""
    sites = recording.places(name)
    tables = [site for site in sites if site[:1] == ("page table",)]
    others = [site for site in sites if site[:1] != ("page table",)]
    found: list[tuple[int, bytes]] = []
    for _ in range(rng.choice((1, 1, 1, 2, 4)) if name != "BTF" else rng.choice((1, 8, 40))):
        site = rng.choice(tables if tables and rng.random() < 0.25 else others)
        address, size = rng.choice(sites[site])
        at = recording.offset(address + rng.randrange(max(size, 1)) // 8 * 8)
        at = min(at, len(recording.buffer) - 64)
        if name != "BTF" and rng.random() < 0.1:
            length = rng.randrange(1, 64)
            fill = rng.choice((rng.randbytes(length), b"\xff" * length, bytes(length)))
            found.append((at, fill))
        else:
            if name == "attach" and rng.random() < 0.1:  # a digit of VMCOREINFO's
                text = recording.kernel.vmcoreinfo.text
                digit = rng.choice([place for place, letter in enumerate(text) if letter.isdigit()])
                phys = recording.kernel.virt_to_phys(VirtAddr(recording.kernel.word("vmcoreinfo_data")))
                found.append(
                    (recording.offset(phys + digit), rng.choice(b"-019fx=\0\n").to_bytes(1, "little"))
                )
                continue
            width = size if size in (1, 2, 4) else 8
            old = int.from_bytes(recording.buffer[at : at + width], "little")
            if name == "BTF" and rng.random() < 0.9:  # what reads as another type, offset or size
                other = recording.offset(rng.choice(sites[rng.choice(others)])[0])
                near = (
                    recording.buffer[other : other + 4],
                    (old ^ 1 << rng.randrange(14)).to_bytes(width, "little"),
                )
                found.append((at, rng.choice(near)))
                continue
            found.append((at, _garbage(recording, rng, address, old).to_bytes(8, "little")[:width]))
    return found


@contextmanager
def _written(buffer: mmap.mmap, changes: list[tuple[int, bytes]]) -> Iterator[None]:
    before = [(at, buffer[at : at + len(data)]) for at, data in changes]
    try:
        for at, data in changes:
            buffer[at : at + len(data)] = data
        yield
    finally:
        for at, data in reversed(before):
            buffer[at : at + len(data)] = data


def _truncated(blocks: tuple[RamBlock, ...], rng: random.Random) -> tuple[RamBlock, ...]:
    """Some of the RAM is not there: what is above a place, or a hole."""
    block = rng.choice(blocks)
    first = int(block.start) + rng.randrange(block.size) // 8 * 8
    end = int(block.end) if rng.random() < 0.5 else min(first + (1 << rng.randrange(3, 28)), int(block.end))
    found: list[RamBlock] = []
    for each in blocks:
        low, high = int(each.start), int(each.end)
        for a, b in ((low, min(high, first)), (max(low, end), high)) if each == block else ((low, high),):
            if a < b:
                found.append(RamBlock(PhysAddr(a), b - a, each.offset + a - low))
    return tuple(found)


def _alarm(number: int, frame: FrameType | None) -> NoReturn:
    raise Hang(f"over {HANG} s")


def run(recording: Recording, number: int, name: str = "") -> tuple[str, str, dict[str, Any] | None]:
    """One case: the reader's name, how it ended, and what to say where it ended as it must not."""
    rng = random.Random(number)
    name = name or rng.choices(list(SHARES), [share for share, _ in SHARES.values()])[0]
    truncate = rng.random() < 0.06
    changes = [] if truncate else _corruptions(recording, name, rng)
    blocks = _truncated(recording.blocks, rng) if truncate else recording.blocks
    memory = recording.memory if not truncate else Watched(recording.buffer, blocks)
    started = time.monotonic()
    faulthandler.dump_traceback_later(3 * HANG, exit=True)  # for a loop in C, which no signal ends
    signal.setitimer(signal.ITIMER_REAL, HANG)
    try:
        with _written(recording.buffer, changes):
            kernel = recording.fresh(memory, own_types=truncate or rng.random() < 0.1)
            READERS[name](recording, kernel, rng)
    except InspectorError as error:
        str(error)
        return name, type(error).__name__, None
    except (Exception, Hang) as error:
        signal.setitimer(signal.ITIMER_REAL, 0)
        return (
            name,
            "failure",
            {
                "case": number,
                "reader": name,
                "error": f"{type(error).__name__}: {error}"[:300],
                "at": _where(error),
                "changes": [(hex(at), data.hex()) for at, data in changes],
                "blocks": [(int(each.start), each.size) for each in blocks] if truncate else "all",
                "seconds": round(time.monotonic() - started, 2),
                "trace": traceback.format_exc()[-3000:],
            },
        )
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
    return name, "answer", None


def _where(error: BaseException) -> str:
    stack = [each for each in traceback.extract_tb(error.__traceback__) if "/inspector/" in each.filename]
    last = stack[-1] if stack else None
    return f"{last.filename.rpartition('/inspector/')[2]}:{last.lineno} {last.line}" if last else ""


def main() -> int:
    """Run cases; prints a line of JSON for each failure and one for all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recording", type=Path)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--reader", choices=READERS, default="", help="this one for all cases")
    chosen = parser.parse_args()
    warnings.simplefilter("error")
    signal.signal(signal.SIGALRM, _alarm)
    recording = Recording(chosen.recording, READERS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, taken + ROOM))
    ended: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for number in range(chosen.first, chosen.first + chosen.count * chosen.step, chosen.step):
        print(json.dumps({"begins": number}), flush=True)  # where the process dies, this was the case
        started = time.monotonic()
        name, how, failure = run(recording, number, chosen.reader)
        ended[f"{name}: {how}"] += 1
        seconds[name] += int(1000 * (time.monotonic() - started))
        if failure:
            print(json.dumps(failure), flush=True)
    print(json.dumps({"ended": dict(ended), "milliseconds": dict(seconds)}), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
