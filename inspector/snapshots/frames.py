"""What changed hands among the frames alone: who had each, and who has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inspector.kernel.owners import Owner
from inspector.snapshots.records import Balance, Handover, Holder


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """Who has each frame at one moment: columns by PFN, an Owner and a number of `labels`."""

    owner: NDArray[np.uint8]
    detail: NDArray[np.uint32]
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class FrameDiff:
    """The frames that have another holder.

    `pfns` (u8, sorted) are those frames; `was` and `now` (u4) say whose, as indices into `holders`.
    `balances` are the holders that gained or lost frames, the largest growth first.
    """

    holders: tuple[Holder, ...]
    pfns: NDArray[np.uint64]
    was: NDArray[np.uint32]
    now: NDArray[np.uint32]
    balances: tuple[Balance, ...]

    @property
    def net(self) -> int:
        """Frames more in use than before."""
        return sum(balance.net for balance in self.balances if balance.holder.used)

    def balance(self, owner: Owner, label: str | None = None) -> Balance:
        """What a holder gained and lost; without a label, all of a class, frames within the class aside."""
        if label is not None:
            holder = Holder(owner, label)
            found = next((each for each in self.balances if each.holder == holder), None)
            return found or Balance(holder, 0, 0, 0, 0)
        of_class = np.array([holder.owner == owner for holder in self.holders], np.bool_)
        was, now = of_class[self.was], of_class[self.now]
        mine = [each for each in self.balances if each.holder.owner == owner]
        return Balance(
            Holder(owner),
            before=sum(each.before for each in mine),
            after=sum(each.after for each in mine),
            gained=int(np.count_nonzero(now & ~was)),
            lost=int(np.count_nonzero(was & ~now)),
        )

    def handovers(self) -> list[Handover]:
        """The frames that changed hands by who had them and who has them, most first."""
        keys = self.was.astype(np.uint64) * np.uint64(len(self.holders)) + self.now
        order = np.argsort(keys, kind="stable")
        edges = np.flatnonzero(np.diff(keys[order])) + 1
        found = [
            Handover(
                self.holders[int(self.was[part[0]])], self.holders[int(self.now[part[0]])], self.pfns[part]
            )
            for part in np.split(order, edges)
            if len(part)
        ]
        return sorted(found, key=lambda each: -len(each.pfns))

    def gained(self, holder: Holder) -> NDArray[np.uint64]:
        """The PFNs that a holder has and had not."""
        return self._pfns(self.now, holder)

    def lost(self, holder: Holder) -> NDArray[np.uint64]:
        """The PFNs that a holder had and has no more."""
        return self._pfns(self.was, holder)

    def freed(self, holder: Holder) -> NDArray[np.uint64]:
        """The PFNs that a holder had and that nobody uses now."""
        idle = np.array([not each.used for each in self.holders], np.bool_)
        return np.intersect1d(self.lost(holder), self.pfns[idle[self.now]])

    def _pfns(self, side: NDArray[np.uint32], holder: Holder) -> NDArray[np.uint64]:
        if holder not in self.holders:
            return np.empty(0, np.uint64)
        found: NDArray[np.uint64] = self.pfns[side == self.holders.index(holder)]
        return found


def compare(before: Held, after: Held, renamed: Mapping[str, str] | None = None) -> FrameDiff:
    """What changed; `renamed` gives labels of before that stand for the same as another one after."""
    numbers: dict[Holder, int] = {}
    was, now = _numbered(before, numbers, renamed or {}), _numbered(after, numbers, {})
    none = numbers.setdefault(Holder(Owner.NO_PAGE), len(numbers))
    end = max(len(was), len(now))
    was, now = (np.pad(side, (0, end - len(side)), constant_values=none) for side in (was, now))
    pfns = np.flatnonzero(was != now)
    holders = tuple(numbers)
    balances = _balances(holders, was, now, pfns)
    return FrameDiff(holders, pfns.astype(np.uint64), was[pfns], now[pfns], balances)


def _numbered(held: Held, numbers: dict[Holder, int], renamed: Mapping[str, str]) -> NDArray[np.uint32]:
    """The number of each frame's holder; holders that have none yet are given theirs."""
    width = len(held.labels)
    keys = held.owner.astype(np.int64) * width + held.detail
    table = np.zeros(len(Owner) * width, np.uint32)
    for key in np.flatnonzero(np.bincount(keys, minlength=len(table))).tolist():
        owner, detail = divmod(key, width)
        label = _relabelled(held.labels[detail], renamed)
        table[key] = numbers.setdefault(Holder(Owner(owner), label), len(numbers))
    found: NDArray[np.uint32] = table[keys]
    return found


def _relabelled(label: str, renamed: Mapping[str, str]) -> str:
    """A label by the task's new name: it may have more before it, as `PTE table, sh (7)`."""
    found = next((old for old in renamed if label.endswith(old)), None)
    rest = label.removesuffix(found) if found else ""
    return rest + renamed[found] if found and (not rest or rest.endswith(" ")) else label


def _balances(
    holders: tuple[Holder, ...], was: NDArray[np.uint32], now: NDArray[np.uint32], pfns: NDArray[np.int64]
) -> tuple[Balance, ...]:
    sides = (was, now, now[pfns], was[pfns])
    columns = (np.bincount(side, minlength=len(holders)).tolist() for side in sides)
    found = [
        Balance(holder, *counts)
        for holder, *counts in zip(holders, *columns, strict=True)
        if counts[2] or counts[3]
    ]
    return tuple(sorted(found, key=lambda each: (-each.net, -each.gained, str(each.holder))))
