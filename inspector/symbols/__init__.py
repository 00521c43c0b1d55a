"""Names and types of a running kernel, from guest memory alone or from a vmlinux; typed views over both."""

from __future__ import annotations

from inspector.symbols.attach import attach
from inspector.symbols.kernel import Kernel
from inspector.symbols.table import Symbol, SymbolTable
from inspector.symbols.types import Field, Kind, Member, Type, TypeTable
from inspector.symbols.view import StructView
from inspector.symbols.vmcoreinfo import Vmcoreinfo

__all__ = [
    "Field",
    "Kernel",
    "Kind",
    "Member",
    "StructView",
    "Symbol",
    "SymbolTable",
    "Type",
    "TypeTable",
    "Vmcoreinfo",
    "attach",
]
