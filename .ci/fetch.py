"""Fetch what tests need before they start, behind a bar and not silently inside a test.

usage: fetch.py [--debug] [KERNEL...]   (all of `kmi kernels` by default; --debug: vmlinux with DWARF, 850 MB)

What cannot be fetched is left to the tests: they skip, or fail under CI, and say why.
"""

from __future__ import annotations

import sys

from inspector import images
from inspector.cli.progress import reporter
from inspector.errors import SetupError
from inspector.images.manifest import manifest

names = [name for name in sys.argv[1:] if name != "--debug"] or list(manifest().kernels)
shown = reporter()
for name in names:
    try:
        kernel = images.fetch_kernel(name, shown)
        images.guest_image(kernel, shown)
        if name in manifest().built_for:
            images.fetch_headers(kernel, shown)
        if name == images.default_kernel():
            images.fetch_checkpatch(kernel, shown)
        if "--debug" in sys.argv:
            images.fetch_debug_vmlinux(kernel, shown)
    except SetupError as error:
        print(f"{name}: {error}", file=sys.stderr)
