"""Kernels and guest images: the manifest, fetching, building, caching."""

from inspector.images.cache import cache_dir
from inspector.images.guest_image import guest_image
from inspector.images.kernels import (
    KernelFiles,
    KernelStatus,
    fetch_debug_vmlinux,
    fetch_kernel,
    kernels,
    own_kernel,
)
from inspector.images.manifest import default_kernel

__all__ = [
    "KernelFiles",
    "KernelStatus",
    "cache_dir",
    "default_kernel",
    "fetch_debug_vmlinux",
    "fetch_kernel",
    "guest_image",
    "kernels",
    "own_kernel",
]
