"""Allocated objects, one by one, as drgn finds them on the same stopped guest."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from inspector import Guest
from inspector.kernel.slab_objects import allocated_count, objects
from inspector.kernel.slabs import slabs

# drgn looks at all of memory again for each cache.
CACHES = [
    "dentry",
    "task_struct",
    "vm_area_struct",
    "kmalloc-8",
    "kmalloc-1k",
    "kernfs_node_cache",
    "skbuff_head_cache",
]


@pytest.mark.parametrize("name", CACHES)
def test_allocated_objects_are_drgns(guest: Guest, program: Any, name: str) -> None:
    slab = importlib.import_module("drgn.helpers.linux.slab")
    theirs = slab.slab_cache_for_each_allocated_object(slab.find_slab_cache(program, name), "struct page")
    expected = sorted(item.value_() for item in theirs)
    caches = slabs(guest.kernel)
    index = [cache.name for cache in caches].index(name)
    found = objects(guest.kernel, caches[index])
    assert found[found["allocated"]]["address"].tolist() == expected
    assert allocated_count(guest.kernel)[index] == len(expected)
