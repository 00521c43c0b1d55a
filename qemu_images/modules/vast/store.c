// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Where pages are that are not in RAM: compressed by the kernel's own LZO, an object each.
 *
 * Of a page of zeros nothing is kept. What does not shrink is kept as it is. There is a limit, and
 * no allocation here shall start the OOM killer: what cannot be kept is refused to who faulted.
 * kmalloc() rounds sizes up; who wants each byte takes zsmalloc, as zram does.
 */
#include <linux/highmem.h>
#include <linux/lzo.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "range.h"

static struct packed *vast_compress(struct page *page)
{
	const void *bytes = vast.space;
	struct packed *packed;
	size_t size = 0;

	if (lzo1x_1_compress(page_address(page), PAGE_SIZE, vast.space, &size, vast.work) !=
	    LZO_E_OK)
		return ERR_PTR(-EIO);
	if (size >= PAGE_SIZE) {
		bytes = page_address(page);
		size = PAGE_SIZE;
	}
	packed = kmalloc(struct_size(packed, bytes, size), VAST_GFP);
	if (!packed)
		return ERR_PTR(-ENOMEM);
	packed->size = size;
	memcpy(packed->bytes, bytes, size);
	return packed;
}

/*
 * Keep what a page holds, that nobody can write to any more, and note where. What is in the place
 * of `coming` goes as soon as this is done: in a full store pages can still be exchanged.
 */
int vast_pack(unsigned long index, struct page *page, const struct packed *coming)
{
	unsigned long room = vast.limit + (coming ? ksize(coming) : 0);
	struct packed *packed;
	void *old;

	if (!memchr_inv(page_address(page), 0, PAGE_SIZE)) {
		xa_erase(&vast.pages, index);
		return 0;
	}
	packed = vast_compress(page);
	if (IS_ERR(packed))
		return PTR_ERR(packed);
	if (vast.packed_room + ksize(packed) > room)
		old = XA_ERROR(-ENOSPC);
	else
		old = xa_store(&vast.pages, index, packed, VAST_GFP);
	if (xa_is_err(old)) {
		kfree(packed);
		return xa_err(old);
	}
	vast.packed++;
	vast.packed_bytes += packed->size;
	vast.packed_room += ksize(packed);
	return 0;
}

/* Fill a page: with zeros where nothing was kept. */
int vast_unpack(struct page *page, const struct packed *packed)
{
	void *target = page_address(page);
	size_t size = PAGE_SIZE;

	if (!packed)
		clear_page(target);
	else if (packed->size == PAGE_SIZE)
		memcpy(target, packed->bytes, PAGE_SIZE);
	else if (lzo1x_decompress_safe(packed->bytes, packed->size, target, &size) != LZO_E_OK ||
		 size != PAGE_SIZE)
		return -EIO;
	return 0;
}

void vast_drop(struct packed *packed)
{
	if (!packed)
		return;
	vast.packed--;
	vast.packed_bytes -= packed->size;
	vast.packed_room -= ksize(packed);
	kfree(packed);
}

int vast_make_store(void)
{
	xa_init(&vast.pages);
	vast.work = kvmalloc(LZO1X_1_MEM_COMPRESS, GFP_KERNEL);
	vast.space = kvmalloc(lzo1x_worst_compress(PAGE_SIZE), GFP_KERNEL);
	return vast.work && vast.space ? 0 : -ENOMEM;
}

void vast_free_store(void)
{
	unsigned long index;
	void *entry;

	xa_for_each(&vast.pages, index, entry)
		if (!xa_is_value(entry))
			kfree(entry);
	xa_destroy(&vast.pages);
	kvfree(vast.work);
	kvfree(vast.space);
}
