/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/* What user space says to /dev/lender. */
#ifndef LENDER_H
#define LENDER_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* How a loan's pages come into the address space of who maps it. */
enum lender_way {
	LENDER_PFN,	/* at a fault, vmf_insert_pfn(): VM_PFNMAP */
	LENDER_REMAP,	/* at mmap(), remap_pfn_range(): VM_PFNMAP */
	LENDER_PAGE,	/* at mmap(), vm_insert_page(): VM_MIXEDMAP */
	LENDER_PAGES,	/* at mmap(), vm_map_pages(): VM_MIXEDMAP */
	LENDER_FAULT,	/* at a fault, vmf->page: no flag at all */
	LENDER_WAYS
};

#define LENDER_ACCOUNT	0x1	/* __GFP_ACCOUNT: charge the memory cgroup of who takes */
#define LENDER_MOVABLE	0x2	/* GFP_HIGHUSER_MOVABLE instead of GFP_KERNEL */
#define LENDER_FORGET	0x4	/* never free them: a leak, for who wants to find one */
#define LENDER_DONTCOPY	0x8	/* VM_DONTCOPY: no child has the mapping */
#define LENDER_FLAGS	0xf

struct lender_wish {
	__u32 way;
	__u32 flags;
	__u32 count;	/* pages */
};

/* Take pages for this open file, once. Errors: EINVAL, EBUSY (has taken already), ENOMEM. */
#define LENDER_TAKE _IOW('L', 1, struct lender_wish)

#endif
