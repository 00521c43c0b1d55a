"""Who owns each frame: a class for every PFN and for most the very object, from all that the kernel keeps."""

from __future__ import annotations

from inspector.kernel.memmap import MemMap
from inspector.kernel.owners import boot, files, kernel_memory, tables, users, variables
from inspector.kernel.owners.canvas import Canvas
from inspector.kernel.owners.model import FRAME, Owner, Owners
from inspector.kernel.owners.survey import Survey
from inspector.symbols import Kernel

__all__ = ["FRAME", "Owner", "Owners", "owners"]


def owners(kernel: Kernel) -> Owners:
    """The owner of every frame, painted over what the struct pages say: what comes later knows better.

    Raises CorruptGuest.
    """
    survey = Survey.of(kernel)
    canvas = Canvas(survey.kernel, MemMap(survey.kernel))
    boot.paint(canvas)
    kernel_memory.paint(canvas)
    tables.paint(canvas, survey)
    kernel_memory.paint_stacks(canvas)
    users.paint(canvas, survey)
    files.paint(canvas)
    variables.paint(canvas)
    boot.paint_zero_pages(canvas)
    return canvas.finished()
