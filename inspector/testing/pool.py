"""The guests of a test run: booted once for each kind that tests want, and put back between tests."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import suppress
from typing import Any

import inspector
from inspector.errors import InspectorError
from inspector.guest import Guest
from inspector.testing.spec import GuestSpec

_SHARED = 3  # guests alive at once: each may take as much memory as it has


class Pool:
    """Guests by what they are. `boot_options` are what the user said for all."""

    def __init__(self, boot_options: dict[str, Any]) -> None:
        self._options = boot_options
        self._shared: OrderedDict[GuestSpec, Guest] = OrderedDict()
        self._used: set[GuestSpec] = set()

    def boot(self, spec: GuestSpec) -> Guest:
        """A guest of its own, with its files and modules in it. Raises as inspector.boot()."""
        guest = inspector.boot(spec.kernel, **spec.boot_options, **self._options)
        try:
            for place, path in spec.files:
                guest.put(path, place)
            for module, parameters in spec.modules:
                guest.load_module(module, **dict(parameters))
        except BaseException:
            guest.close()
            raise
        return guest

    def shared(self, spec: GuestSpec) -> Guest:
        """The guest that all tests of this kind have, as it was when the first one had it."""
        guest = self._shared.get(spec)
        if guest and spec in self._used:
            try:
                guest.restore()
            except InspectorError:  # whatever the last test did to it: another is booted
                self.drop(guest)
                guest = None
        if guest is None:
            while len(self._shared) >= _SHARED:
                self.drop(next(iter(self._shared.values())))
            guest = self._shared[spec] = self.boot(spec)
            if spec.modules or spec.files:
                guest.mark()
        self._used.add(spec)
        self._shared.move_to_end(spec)
        return guest

    def give_away(self, guest: Guest) -> None:
        """The guest is somebody else's to close from now on."""
        for spec in [spec for spec, found in self._shared.items() if found is guest]:
            del self._shared[spec]
            self._used.discard(spec)

    def drop(self, guest: Guest) -> None:
        """End a guest."""
        self.give_away(guest)
        with suppress(InspectorError):
            guest.close()

    def close(self) -> None:
        """End all."""
        for guest in list(self._shared.values()):
            self.drop(guest)
