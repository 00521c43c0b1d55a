"""What tasks' page tables show: anonymous memory by task, and kernel memory that a driver lets them see."""

from __future__ import annotations

import numpy as np

from inspector.kernel.bulk import spread
from inspector.kernel.owners.canvas import Canvas
from inspector.kernel.owners.model import Owner
from inspector.kernel.owners.survey import Survey


def paint(canvas: Canvas, survey: Survey) -> None:
    """Give them the name of a task that maps them."""
    rows = survey.user_leaves
    sizes = rows["size"].astype(np.int64) // canvas.page_size
    pfns = spread(rows["pa"] // np.uint64(canvas.page_size), sizes)
    names = canvas.labelled(survey.threads.spaces)
    details = np.repeat(names[rows["root"]], sizes) if len(rows) else np.empty(0, np.uint32)
    canvas.paint(pfns, Owner.ANON, details, (Owner.ANON,))
    canvas.paint(pfns, Owner.DRIVER, details, (Owner.UNMARKED, Owner.VMALLOC))
