"""Which file each page cache is of, for many at once (include/linux/fs.h, include/linux/dcache.h)."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from inspector.errors import CorruptGuest
from inspector.kernel.bulk import columns
from inspector.kernel.paths import mount_path
from inspector.kernel.recall import recall
from inspector.symbols import Kernel
from inspector.units import VirtAddr, printable

_MAX_DENTRIES = 1 << 22
_MAX_NAME = 256  # NAME_MAX and a NUL
_MINOR_BITS = 20  # MINORBITS
_S_IFMT, _S_IFBLK = 0xF000, 0x6000
_FIELDS = ("d_parent", "d_name.name", "d_name.len", "d_hash.pprev")


def file_names(kernel: Kernel, spaces: NDArray[np.uint64]) -> list[str]:
    """The name of the file that each struct address_space belongs to, ` (deleted)` included.

    A path where its file system is mounted, `block device 254:0`, or what else is known of the inode. Text of
    the guest's, printable. Raises CorruptGuest where one is not mapped or dentries run in a loop.
    """
    return list(recall(kernel, _file_names, tuple(spaces.tolist())))


def _file_names(kernel: Kernel, mappings: tuple[int, ...]) -> list[str]:
    spaces = np.array(mappings, np.uint64)
    (inodes,) = columns(kernel, "address_space", spaces, "host")
    known = inodes[inodes != 0]
    first, superblocks, numbers, modes, devices = columns(
        kernel, "inode", known, "i_dentry.first", "i_sb", "i_ino", "i_mode", "i_rdev"
    )
    alias = "d_u.d_alias" if kernel.types.has("dentry", "d_u.d_alias") else "d_alias"
    dentries = np.where(first != 0, first - np.uint64(kernel.types.offsetof("dentry", alias)), 0)
    tree = _Dentries(kernel, dentries[dentries != 0])
    mounts = {int(block): _Mount(kernel, VirtAddr(int(block))) for block in np.unique(superblocks)}
    found: dict[int, str] = {0: ""}
    each = zip(
        *(column.tolist() for column in (known, dentries, superblocks, numbers, modes, devices)), strict=True
    )
    for inode, dentry, superblock, number, mode, device in each:
        mount = mounts[superblock]
        if dentry:
            found[inode] = tree.path(dentry, mount)
        elif mode & _S_IFMT == _S_IFBLK:
            major, minor = device >> _MINOR_BITS, device & (1 << _MINOR_BITS) - 1
            found[inode] = f"block device {major}:{minor}"
        else:
            found[inode] = f"{mount.type}, inode {number}"
    return [printable(found[inode]) for inode in inodes.tolist()]


class _Mount:
    """A mounted file system: what to put before a path in it."""

    def __init__(self, kernel: Kernel, address: VirtAddr) -> None:
        self._kernel = kernel
        self._view = kernel.view("super_block", address)
        self.root = self._view.ptr("s_root")

    @cached_property
    def type(self) -> str:
        """The file system's type."""
        kind = self._view.deref("s_type")
        return self._kernel.space.cstring(kind.ptr("name")) if kind and kind.ptr("name") else "no type"

    @cached_property
    def prefix(self) -> str:
        """The path of its root, without the last slash; `type:` where it is not mounted."""
        path = mount_path(self._kernel, self._view)
        return f"{self.type}:" if path is None else path.rstrip("/")


class _Dentries:
    """Dentries and all above them."""

    def __init__(self, kernel: Kernel, dentries: NDArray[np.uint64]) -> None:
        parts: list[tuple[NDArray[np.uint64], ...]] = []
        seen = new = np.unique(dentries)
        while new.size:
            if seen.size > _MAX_DENTRIES:
                raise CorruptGuest(f"files have over {_MAX_DENTRIES} directories above them")
            parts.append((new, *columns(kernel, "dentry", new, *_FIELDS)))
            new = np.setdiff1d(parts[-1][1], seen)
            seen = np.union1d(seen, new)
        if not parts:
            parts.append((np.empty(0, np.uint64),) * (len(_FIELDS) + 1))
        at, parent, name, length, hashed = (np.concatenate(column) for column in zip(*parts, strict=True))
        raw, _ = kernel.space.gather(name, np.dtype(np.uint8), _MAX_NAME)
        names = (
            row.tobytes()[:size].decode(errors="replace")
            for row, size in zip(raw, length.tolist(), strict=True)
        )
        self._names = dict(zip(at.tolist(), names, strict=True))
        self._parents = dict(zip(at.tolist(), parent.tolist(), strict=True))
        self._hashed = dict(zip(at.tolist(), (hashed != 0).tolist(), strict=True))

    def path(self, dentry: int, mount: _Mount) -> str:
        """The path of a dentry. Raises CorruptGuest."""
        parts: list[str] = []
        at = dentry
        while at != mount.root:
            parts.append(self._names[at])
            above = self._parents[at]
            if above == at:  # unlinked by birth: memfd, shared anonymous memory, SysV
                return f"/{'/'.join(reversed(parts))} (deleted)"
            if len(parts) > len(self._parents):
                raise CorruptGuest(f"the path of the dentry at {dentry:#x} does not end")
            at = above
        return f"{mount.prefix}/{'/'.join(reversed(parts))}" + ("" if self._hashed[dentry] else " (deleted)")
