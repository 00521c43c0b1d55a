// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Which pages of the range are in RAM: a ring, in which the oldest makes room for the next.
 *
 * A page in the ring is mapped in the kernel, and in user space where that has touched it. Before
 * it is compressed it is taken from both, and from all TLBs: what is written later is written after
 * another fault, which waits for the lock, to a new frame.
 */
#include <linux/slab.h>

#include "range.h"

static void vast_take_away(unsigned long address)
{
	vast_unmap(address);
	if (vast.mapping)
		unmap_mapping_range(vast.mapping, address - vast.start, PAGE_SIZE, 0);
}

/* A frame in the ring's next place that nobody has. */
static int vast_make_room(struct present *place, const struct packed *coming)
{
	int error;

	if (!place->page) {
		place->page = alloc_page(VAST_GFP);
		return place->page ? 0 : -ENOMEM;
	}
	if (!place->address)	/* left over from a failure */
		return 0;
	vast_take_away(place->address);
	error = vast_pack(vast_index(place->address), place->page, coming);
	if (error) {
		vast_map(place->address, place->page);	/* else, the next fault does it */
		return error;
	}
	place->address = 0;
	vast.evicted++;
	return 0;
}

/* Have a page in RAM and mapped in the kernel, while the lock is held at least; or an ERR_PTR(). */
struct page *vast_bring(unsigned long address)
{
	struct present *place = vast.present + vast.next;
	void *entry = xa_load(&vast.pages, vast_index(address)), *old;
	int error;

	if (xa_is_value(entry)) {	/* another CPU was faster, or the other side has it */
		place = vast.present + xa_to_value(entry);
		error = vast_map(address, place->page);
		return error ? ERR_PTR(error) : place->page;
	}
	error = vast_make_room(place, entry);
	if (!error)
		error = vast_unpack(place->page, entry);
	if (!error)
		error = vast_map(address, place->page);
	if (error)
		return ERR_PTR(error);
	old = xa_store(&vast.pages, vast_index(address), xa_mk_value(vast.next), VAST_GFP);
	if (xa_is_err(old)) {
		vast_unmap(address);
		return ERR_PTR(xa_err(old));
	}
	place->address = address;
	vast_drop(entry);
	vast.next = (vast.next + 1) % vast.frames;
	return place->page;
}

int vast_make_pages(void)
{
	vast.present = kvcalloc(vast.frames, sizeof(*vast.present), GFP_KERNEL);
	return vast.present ? 0 : -ENOMEM;
}

/* With the page tables of the range: nobody touches it any more. */
void vast_free_pages(void)
{
	unsigned int i;

	mutex_lock(&vast.lock);
	for (i = 0; vast.present && i < vast.frames; i++) {
		if (vast.present[i].address)
			vast_take_away(vast.present[i].address);
		if (vast.present[i].page)
			__free_page(vast.present[i].page);
	}
	mutex_unlock(&vast.lock);
	kvfree(vast.present);
}
