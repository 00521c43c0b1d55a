"""Kernels and guest images: the manifest, fetching, building, caching."""

from inspector.images.cache import cache_dir
from inspector.images.checkpatch import fetch_checkpatch
from inspector.images.guest_image import guest_image
from inspector.images.headers import fetch_headers
from inspector.images.kernels import (
    KernelFiles,
    KernelStatus,
    cached_kernel,
    fetch_debug_vmlinux,
    fetch_kernel,
    kernels,
    own_kernel,
)
from inspector.images.manifest import default_kernel
from inspector.images.modules import build_module, module_names, parameters

__all__ = [
    "KernelFiles",
    "KernelStatus",
    "build_module",
    "cache_dir",
    "cached_kernel",
    "default_kernel",
    "fetch_checkpatch",
    "fetch_debug_vmlinux",
    "fetch_headers",
    "fetch_kernel",
    "guest_image",
    "kernels",
    "module_names",
    "own_kernel",
    "parameters",
]
