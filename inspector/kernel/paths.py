"""Names of files, as /proc shows them (fs/d_path.c)."""

from __future__ import annotations

from collections.abc import Iterator

from inspector.errors import CorruptGuest
from inspector.kernel import lists
from inspector.symbols import Kernel, StructView
from inspector.units import VirtAddr

_MAX_PARTS = 4096  # of a path: PATH_MAX bytes hold no more
_MAX_NAME = 4096
_MAX_MOUNTS = 1 << 16


def file_path(file: StructView) -> str:
    """The path of a struct file as d_path() gives it, ` (deleted)` included; untrusted text.

    Raises CorruptGuest where the dentries or mounts loop.
    """
    dentry, mount = file.deref("f_path.dentry"), file.deref("f_path.mnt")
    if dentry is None or mount is None:
        return ""
    pseudo = _pseudo_name(dentry)
    if pseudo is not None:
        return pseudo
    return _walk_up(dentry, mount) + (" (deleted)" if _unlinked(dentry) else "")


def mount_path(kernel: Kernel, superblock: StructView) -> str | None:
    """Where a file system's root is mounted, the first of several places; None where it is nowhere.

    Raises CorruptGuest as file_path() does.
    """
    root = superblock.deref("s_root")
    for mount in _mounts(kernel, superblock):
        inside = mount.deref("mnt.mnt_root")
        if root is not None and inside is not None and inside.address == root.address:
            return _walk_up(root, mount.at("mnt"))
    return None


def _mounts(kernel: Kernel, superblock: StructView) -> Iterator[StructView]:
    if not kernel.types.has("mount", "mnt_next_for_sb"):
        yield from lists.entries(kernel, superblock.addr("s_mounts"), "mount", "mnt_instance", _MAX_MOUNTS)
        return
    # Between 6.12 and 7.2 the list became a chain of pointers.
    mount = superblock.deref("s_mounts")
    for _ in range(_MAX_MOUNTS):
        if mount is None:
            return
        yield mount
        mount = mount.deref("mnt_next_for_sb")
    raise CorruptGuest(f"the mounts of the superblock at {superblock.address:#x} do not end")


def _name(dentry: StructView) -> str:
    length = min(dentry.int("d_name.len"), _MAX_NAME)
    return dentry.kernel.space.read(dentry.ptr("d_name.name"), length).decode(errors="replace")


def _walk_up(dentry: StructView, vfsmount: StructView) -> str:
    kernel = dentry.kernel
    mount_offset = kernel.types.offsetof("mount", "mnt")
    mount = kernel.view("mount", VirtAddr(vfsmount.address - mount_offset))
    parts: list[str] = []
    for _ in range(_MAX_PARTS):
        if dentry.address == mount.ptr("mnt.mnt_root"):
            parent = mount.deref("mnt_parent")
            point = mount.deref("mnt_mountpoint")
            if parent is None or point is None or parent.address == mount.address:
                return "/" + "/".join(reversed(parts))
            mount, dentry = parent, point
            continue
        above = dentry.deref("d_parent")
        if above is None or above.address == dentry.address:  # a root that is not its mount's: detached
            return "/" + "/".join(reversed(parts))
        parts.append(_name(dentry))
        dentry = above
    raise CorruptGuest(f"the path of the dentry at {dentry.address:#x} does not end")


def _unlinked(dentry: StructView) -> bool:
    return dentry.ptr("d_hash.pprev") == 0 and dentry.ptr("d_parent") != dentry.address


def _pseudo_name(dentry: StructView) -> str | None:
    """Names that a filesystem makes up (dentry_operations.d_dname); None where the dentry has a path."""
    operations = dentry.deref("d_op")
    if operations is None or not operations.ptr("d_dname"):
        return None
    found = dentry.kernel.symbols.lookup(operations.ptr("d_dname"))
    inode = dentry.deref("d_inode")
    number = inode.int("i_ino") if inode else 0
    match found[0].name if found else "":
        case "simple_dname":  # unlinked by birth: memfd, shared anonymous memory, SysV
            return f"/{_name(dentry)} (deleted)"
        case "pipefs_dname":
            return f"pipe:[{number}]"
        case "sockfs_dname":
            return f"socket:[{number}]"
        case "anon_inodefs_dname":
            return f"anon_inode:{_name(dentry)}"
        case "dmabuffs_dname":
            return f"/dmabuf:{_name(dentry)}"
        case _:
            return _name(dentry)
