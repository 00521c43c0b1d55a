"""What a test has asked of guest memory: its report shows the last walk and the last frames."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from inspector.arch import AddressSpace, Walk
from inspector.errors import InspectorError
from inspector.guest import Guest
from inspector.kernel.pages import Owned, Page
from inspector.testing import drawing
from inspector.units import Pfn

_FRAMES = 4


class Asked:
    """The walk and the frames that were asked for last."""

    def __init__(self) -> None:
        self.walk: Walk | None = None
        self.pages: OrderedDict[Pfn, tuple[Guest, Page]] = OrderedDict()

    def sections(self) -> Iterator[tuple[str, str]]:
        """Titles and texts for a report; a frame as it was, and who maps it now."""
        if self.walk:
            yield "the last walk", drawing.walk_text(self.walk)
        if self.pages:
            yield "the frames asked about", "\n".join(map(_drawn, *zip(*self.pages.values(), strict=True)))

    def _saw(self, guest: Guest, page: Page) -> None:
        self.pages.pop(page.pfn, None)
        self.pages[page.pfn] = guest, page
        while len(self.pages) > _FRAMES:
            self.pages.popitem(last=False)

    def _walked(self, walk: Walk) -> None:
        self.walk = walk

    @contextmanager
    def listening(self, guest: Guest) -> Iterator[None]:
        """Hear what the guest is asked inside."""
        AddressSpace.on_walk = self._walked
        _overhear(guest, self._saw)
        try:
            yield
        finally:
            AddressSpace.on_walk = None
            vars(guest).pop("page", None)


def _overhear(guest: Guest, hear: Callable[[Guest, Page], None]) -> None:
    ask = guest.page

    def page(pfn: Pfn, owners: Owned | None = None) -> Page:
        found = ask(pfn, owners)
        hear(guest, found)
        return found

    vars(guest)["page"] = page


def _drawn(guest: Guest, page: Page) -> str:
    try:
        return f"{drawing.page_text(page)}\n  now {drawing.aliases_text(guest.mapped_by(page.pfn))}"
    except InspectorError as error:
        return f"{drawing.page_text(page)}\n  now it cannot be read: {error}"
