"""What labs need of the guest, and how it is put back: text for its shell, in the lab's own folder."""

from __future__ import annotations

_THP = "/sys/kernel/mm/transparent_hugepage/enabled"


def thp(value: str) -> tuple[str, str]:
    """Transparent huge pages `always`, `madvise` or `never`, and back to what was."""
    return setting(_THP, value, r"sed 's/.*\[\(.*\)\].*/\1/'")


def setting(path: str, value: str, read: str = "cat") -> tuple[str, str]:
    """Write a value to a file of /proc or /sys, and back to what was."""
    return f"{read} {path} >before && echo {value} >{path}", f"[ -s before ] && cat before >{path}"


_ADD = "d=$(cat /sys/class/zram-control/hot_add) && echo 64M >/sys/block/zram$d/disksize && echo $d >zram"
_REMOVE = "d=$(cat zram) && echo $d >/sys/class/zram-control/hot_remove"

SWAP = (
    f"{_ADD} && mkswap /dev/zram$d && swapon /dev/zram$d",
    f"d=$(cat zram) && swapoff /dev/zram$d; {_REMOVE}",
)
"""Compressed memory to swap to."""

DISK = (f"{_ADD} && ln -s /dev/zram$d disk", _REMOVE)
"""A block device by the name of `disk`: reading it has to wait for it."""
