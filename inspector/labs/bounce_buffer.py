"""The bounce buffer: where a device writes that does not reach the memory it is given."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from inspector.kernel.swiotlb import Bounce
from inspector.labs import checks, edu, prepare
from inspector.labs.checks import equal, holds
from inspector.labs.edu import DMESG, REGISTERS, Buffer, Engine
from inspector.labs.stage import Stage
from inspector.labs.story import FrameShown, Lab, Number, NumbersShown, QuoteShown, Seen, Step, Story
from inspector.units import GIB, BusAddr, Pfn, PhysAddr

_REACH = 4 * GIB  # what 32 bits reach
_MASKS = (24, 28, 32)
_PAGE_TEXT, _DEVICE_TEXT = b"from the program", b"from the device."
_SLOTS, _USED = "swiotlb's slots", "/sys/kernel/debug/swiotlb/io_tlb_used"
_RAM = "guest RAM"
_ZONES = "the zones' spans"
_PROBE = "/sys/bus/pci/drivers_autoprobe"


def story(stage: Stage) -> Story:
    """Masks and zones; then a page out of reach, written to in two halves."""
    actor, guest = stage.actor, stage.guest
    engine = Engine(stage)
    yield Step(
        "What the device reaches",
        "A driver says how many address bits its device has. It is loaded three times, with 24, 28 and 32, "
        "and takes a page that the device reaches.",
        ("dma_set_mask_and_coherent(dev, DMA_BIT_MASK(28));",
         "dma_alloc_coherent(dev, 1024, &bus, GFP_KERNEL);"),
        ("The page lies below the mask. That is what the zones DMA and DMA32 are kept for: with more memory "
         "than this, GFP_KERNEL takes from Normal first.",),
    )  # fmt: skip
    reached = [_reached(stage, engine, bits) for bits in _MASKS]
    zones = [each.zone for each in reached]
    yield Seen(
        (
            QuoteShown(
                f"  {'bits':<5} {'reaches':>9}  {'bus address':>12}  zone",
                tuple(
                    f"{each.bits:<5} {1 << each.bits - 20:>5,} MiB  {each.bus:#12x}  {each.zone}"
                    for each in reached
                ),
            ),
        ),
        (
            equal("The masks", _listed(_MASKS), _listed(each.said for each in reached), "dma_mask_bits"),
            equal(
                "Within reach",
                _listed(_MASKS),
                _listed(r.bits for r in reached if r.bus < 1 << r.bits),
                DMESG,
            ),
            equal("The zone for 24 bits", "DMA", zones[0], _ZONES),
            holds(
                "The zones for 28 and 32", "Normal" not in zones, "not Normal", ", ".join(zones[1:]), _ZONES
            ),
        ),
    )

    yield Step(
        "Out of reach",
        "With 32 bits, memory from 4 GiB on is out of reach. The driver takes memory as it comes, and asks "
        "for an address that the device can use for it: it has it mapped.",
        ("kmalloc(1024, GFP_KERNEL);   __get_free_pages(GFP_KERNEL, 0);",
         "pin_user_pages_fast(va, 1, FOLL_WRITE | FOLL_LONGTERM, &page);",
         "bus = dma_map_single(dev, memory, 1024, DMA_BIDIRECTIONAL);"),
        ("Where the memory is out of reach, the bus address is another one: that of a slot of swiotlb, "
         "which notes what it stands for (orig_addr).",),
    )  # fmt: skip
    page = actor.map("page", 1)
    actor.poke(page, _PAGE_TEXT)
    used = _used(stage)
    buffers = [
        engine.take("coherent"),
        engine.take("pages"),
        engine.take("kmalloc"),
        engine.take("pinned", page),
    ]
    pinned = buffers[-1]
    slots = {(int(bounce.start), bounce.origin) for bounce in _bounces(stage)}
    far = [b.kind for b in buffers if b.place >= _REACH]
    noted = [b.kind for b in buffers if (int(b.bus), b.place) in slots]
    yield Seen(
        (
            QuoteShown(
                f"  {'buffer':<9} {'lies at':>12}  {'zone':<7} {'bus address':>12}  whose memory that is",
                tuple(
                    f"{b.kind:<9} {b.place:#12x}  {guest.page(b.pfn).zone or '':<7} {b.bus:#12x}  "
                    f"{stage.frame(Pfn(b.bus >> 12)).owner:.30}"
                    for b in buffers
                ),
            ),
        ),
        (
            holds("The program's page", "pinned" in far, "beyond 4 GiB", f"{pinned.place:#x}", DMESG,
                  "is there free memory beyond 4 GiB?"),
            equal("Slots that note them", ", ".join(far), ", ".join(noted), _SLOTS),
            equal("Slots that are used for it", len(far), _used(stage) - used, _USED),
            equal("Bus addresses beyond 4 GiB", 0, sum(b.bus >= _REACH for b in buffers), DMESG),
        ),
    )  # fmt: skip

    yield Step(
        "The device writes",
        "The device gets a text, and is told to write it to the buffer. Meanwhile the program has written "
        "another one. The driver does not take the buffer back yet: it might have forgotten to.",
        ("/* the device writes; no dma_sync_single_for_cpu() */",),
        ("The device's text is in the slot. In the page there is nothing of it.",),
    )
    actor.poke(page, _DEVICE_TEXT)
    engine.ask((pinned,), edu.SEND)
    actor.poke(page, _PAGE_TEXT)
    engine.ask((pinned,), edu.WRITTEN)
    target, seen = engine.registers()[1], engine.seen(pinned, len(_PAGE_TEXT))
    slot, ours = _both(stage, pinned)
    yield Seen(
        (_bytes(pinned, slot, ours),),
        (
            equal("Where the device wrote", f"{pinned.bus:#x}", f"{target:#x}", REGISTERS),
            equal("In the slot", _DEVICE_TEXT.decode(), slot, _RAM),
            equal("In the page", _PAGE_TEXT.decode(), ours, _RAM),
            equal("What the program reads", _PAGE_TEXT.decode(), _text(seen), "the program"),
        ),
    )

    yield Step(
        "Take it back",
        "The driver says that the CPU is to have the buffer, and swiotlb copies.",
        ("dma_sync_single_for_cpu(dev, bus, 1024, DMA_BIDIRECTIONAL);",),
        ("The device's text is in the page too.",),
    )
    engine.ask((pinned,), edu.SYNC)
    seen = engine.seen(pinned, len(_PAGE_TEXT))
    slot, ours = _both(stage, pinned)
    yield Seen(
        (_bytes(pinned, slot, ours),),
        (
            equal("In the slot", _DEVICE_TEXT.decode(), slot, _RAM),
            equal("In the page", _DEVICE_TEXT.decode(), ours, _RAM),
            equal("What the program reads", _DEVICE_TEXT.decode(), _text(seen), "the program"),
        ),
    )

    yield Step(
        "And to the device",
        "The program writes once more, and the device reads: the driver hands the buffer over first.",
        ("dma_sync_single_for_device(dev, bus, 1024, DMA_BIDIRECTIONAL);",),
        ("The text is copied to the slot, and from there the device has it.",),
    )
    actor.poke(page, _PAGE_TEXT)
    slot_before, _ = _both(stage, pinned)
    engine.ask((pinned,), edu.SEND)
    source = engine.registers()[0]
    slot, ours = _both(stage, pinned)
    yield Seen(
        (_bytes(pinned, slot, ours),),
        (
            equal("In the slot before", _DEVICE_TEXT.decode(), slot_before, _RAM),
            equal("In the slot after", _PAGE_TEXT.decode(), slot, _RAM),
            equal("Where the device read", f"{pinned.bus:#x}", f"{source:#x}", REGISTERS),
        ),
    )

    yield Step(
        "Let go",
        "The program closes the device. The driver unmaps the buffers, and the slots are free.",
        ("dma_unmap_single(dev, bus, 1024, DMA_BIDIRECTIONAL);",),
        ("No slot notes them any more. The program's page is its own again.",),
    )
    frame = stage.frame(pinned.pfn)
    for buffer in buffers:
        actor.close_device(buffer.kind)
    places = {b.place for b in buffers}
    left = sum(bounce.origin in places for bounce in _bounces(stage))
    now = stage.frame(pinned.pfn)
    yield Seen(
        (
            FrameShown("the page's frame", now, frame),
            NumbersShown(_USED, (Number("slots in use", _used(stage), "", used + len(far)),)),
        ),
        (
            equal("Slots that note them", 0, left, _SLOTS),
            equal("Slots in use, as before", used, _used(stage), _USED),
            equal("refcount of the page", 1, now.refcount, checks.FRAME),
        ),
    )


@dataclass(frozen=True, slots=True)
class _Reached:
    """What a mask of so many bits came to: the kernel's word on it, and the page that was taken."""

    bits: int
    said: int
    bus: BusAddr
    zone: str


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def _reached(stage: Stage, engine: Engine, bits: int) -> _Reached:
    stage.load("edu", mask=bits)
    buffer = engine.take("coherent")
    said = stage.guest.run("cat /sys/bus/pci/drivers/edu/*/dma_mask_bits").check().stdout
    zone = stage.guest.page(buffer.pfn).zone or ""
    stage.actor.close_device("coherent")
    if bits != _MASKS[-1]:  # the last stays
        stage.unload("edu")
    return _Reached(bits, int(said), buffer.bus, zone)


def _bounces(stage: Stage) -> tuple[Bounce, ...]:
    swiotlb = stage.guest.swiotlb()
    return swiotlb.bounces if swiotlb else ()


def _both(stage: Stage, buffer: Buffer) -> tuple[str, str]:
    """What RAM holds where the device works, and where the buffer lies."""
    places = PhysAddr(buffer.bus), buffer.place
    slot, ours = (_text(stage.guest.read_phys(place, len(_PAGE_TEXT))) for place in places)
    return slot, ours


def _bytes(buffer: Buffer, slot: str, ours: str) -> QuoteShown:
    lines = f"slot  {buffer.bus:#12x}  {slot}", f"page  {buffer.place:#12x}  {ours}"
    return QuoteShown("in RAM:", lines)


def _text(data: bytes) -> str:
    return data.decode("ascii", "replace")


def _used(stage: Stage) -> int:
    return int(stage.guest.run(f"cat {_USED}").check().stdout)


_ON, _AS_BEFORE = prepare.setting(_PROBE, "1")
LAB = Lab(
    name="bounce-buffer",
    question="Where does a device write that does not reach my buffer?",
    answer=(
        "It writes into a slot of swiotlb, which it reaches. The kernel copies when the buffer changes "
        "hands: at map, sync and unmap."
    ),
    story=story,
    prepare=_ON,
    undo=_AS_BEFORE,
    memory="3G",
)
