/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/* What the parts of vast share. */
#ifndef RANGE_H
#define RANGE_H

#include <linux/atomic.h>
#include <linux/fs.h>
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/path.h>
#include <linux/xarray.h>

/* A page that is not in RAM. */
struct packed {
	u32 size;
	u8 bytes[];
};

/* A page that is. */
struct present {
	struct page *page;
	unsigned long address;	/* 0 while it is nobody's */
};

struct vast {
	/*
	 * Over all below but what is set once, at init. Taken under mmap_lock by a fault of user
	 * space, and under whatever a kernel fault finds; under it come i_mmap_rwsem, mmap_lock of
	 * init_mm, page table locks and the allocator's, and no mmap_lock of a task.
	 */
	struct mutex lock;

	struct vm_struct *area;
	unsigned long start, size;
	unsigned int frames;		/* places in the ring */
	unsigned long limit;		/* of packed_room */

	struct present *present;	/* a ring: `next` is the oldest once it is full */
	unsigned int next;
	struct xarray pages;		/* by page: its place in the ring, or a struct packed */
	void *work, *space;		/* the compressor's */

	/* Whatever inode it is opened by, all user space maps the mapping of the first. */
	struct path first;
	struct address_space *mapping;
	unsigned int opened;

	unsigned long kernel_faults, user_faults;	/* that were served */
	unsigned long evicted;
	unsigned long packed;		/* pages */
	unsigned long packed_bytes;	/* what they take compressed */
	unsigned long packed_room;	/* and with what kmalloc() adds */
	unsigned long tables;		/* of the PTE level, under the range */
	atomic_t refused;
};

extern struct vast vast;

/* Rather refuse a fault than have the OOM killer find who must go. */
#define VAST_GFP (GFP_KERNEL | __GFP_NORETRY | __GFP_NOWARN)

/* What no module may call by name: see kernel_side.c. */
extern struct vm_struct *(*vast_reserve)(unsigned long size, unsigned long flags);
extern void (*vast_flush)(unsigned long start, unsigned long end);
extern void (*vast_flush_cpu)(void);
extern struct mm_struct *vast_mm;

static inline unsigned long vast_index(unsigned long address)
{
	return (address - vast.start) >> PAGE_SHIFT;
}

/* kernel_side.c */
int vast_look_up(void);
int vast_hook(void);
void vast_unhook(void);

/* user_side.c */
extern const struct file_operations vast_fops;

/* pages.c: under the lock but for the last two */
struct page *vast_bring(unsigned long address);
int vast_make_pages(void);
void vast_free_pages(void);

/* store.c: under the lock */
int vast_pack(unsigned long index, struct page *page, const struct packed *coming);
int vast_unpack(struct page *page, const struct packed *packed);
void vast_drop(struct packed *packed);
int vast_make_store(void);
void vast_free_store(void);

/* tables.c: under the lock but for the last two */
int vast_map(unsigned long address, struct page *page);
void vast_unmap(unsigned long address);
int vast_make_range(void);
void vast_free_range(void);

#endif
