"""What the MMU sees: paging formats as tables, one walker, one scanner, virtual reads. Knows no Linux."""

from __future__ import annotations

from inspector.arch.format import EntryFlag, EntryKind, Level, PagingFormat, Shape
from inspector.arch.scanner import LEAF, MAPPING, TABLE, Right, scan, survey, translate
from inspector.arch.space import AddressSpace
from inspector.arch.still import StillSpace
from inspector.arch.stretches import Pieces, Stretches
from inspector.arch.walker import FaultKind, Walk, WalkFault, WalkStep, walk
from inspector.arch.x86_64 import X86_64_4LEVEL, X86_64_5LEVEL, paging_of, x86_64

__all__ = [
    "LEAF",
    "MAPPING",
    "TABLE",
    "X86_64_4LEVEL",
    "X86_64_5LEVEL",
    "AddressSpace",
    "EntryFlag",
    "EntryKind",
    "FaultKind",
    "Level",
    "PagingFormat",
    "Pieces",
    "Right",
    "Shape",
    "StillSpace",
    "Stretches",
    "Walk",
    "WalkFault",
    "WalkStep",
    "paging_of",
    "scan",
    "survey",
    "translate",
    "walk",
    "x86_64",
]
