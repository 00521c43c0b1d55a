/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/* What user space says to /dev/shades. */
#ifndef SHADES_H
#define SHADES_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* A memory type, as the PAT names it (SDM volume 3, chapter "Memory Cache Control"). */
enum shade {
	SHADE_WB,	/* write-back: cached, as RAM is */
	SHADE_WC,	/* write-combining: not cached, writes gathered */
	SHADE_UC_MINUS,	/* uncached, unless an MTRR says write-combining */
	SHADES
};

/* How the user's mapping is made. */
enum shades_way {
	SHADES_INSERT,	/* vm_insert_page(): takes the VMA's type as it is */
	SHADES_REMAP,	/* remap_pfn_range(): takes the page's own where the two disagree */
	SHADES_WAYS
};

struct shades_wish {
	__u32 direct;	/* in the kernel's direct map, by set_memory_*() */
	__u32 alias;	/* in a second mapping of the kernel's, by vmap() */
	__u32 user;	/* in the mapping that mmap() makes, which must be one page */
	__u32 way;	/* of that */
	__u32 large;	/* take a page that a large entry of the direct map covers */
};

struct shades_window {
	__u64 place;	/* a physical address, of a page */
	__u32 shade;	/* not SHADE_WB: no device is cached */
	__u32 reserved;
};

/* Take a page for this open file, once. Errors: EINVAL, EBUSY, ENOMEM. */
#define SHADES_TAKE _IOW('S', 1, struct shades_wish)

/* Change the page's type (enum shade) in the direct map. Errors: EINVAL, ENXIO; EBUSY: not WB. */
#define SHADES_PAINT _IOW('S', 2, __u32)

/* Map a page of a device, once. Errors: EINVAL, ENOMEM; EBUSY: it is RAM, or another driver's. */
#define SHADES_IOREMAP _IOW('S', 3, struct shades_window)

#endif
