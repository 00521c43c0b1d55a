/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/* What user space says to /dev/edu. */
#ifndef EDU_H
#define EDU_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* Where a buffer's memory comes from. */
enum edu_kind {
	EDU_PAGES,	/* __get_free_pages(), dma_map_single() */
	EDU_KMALLOC,	/* kmalloc(), dma_map_single() */
	EDU_COHERENT,	/* dma_alloc_coherent() */
	EDU_PINNED,	/* the caller's page, pin_user_pages(FOLL_LONGTERM), dma_map_page() */
	EDU_STALE,	/* the caller's page, looked up once and not held: wrong */
	EDU_KINDS
};

/*
 * The most bytes that a buffer has. The device has 4096 of its own, but QEMU 7.2 aborts where a
 * transfer reaches their end (edu_check_range(), hw/misc/edu.c).
 */
#define EDU_SIZE	2048

struct edu_wish {
	__u32 kind;
	__u32 size;	/* bytes */
	__u64 address;	/* of the caller's memory, in one page; else 0 */
};

/* Take a buffer for this open file, once. Errors: EINVAL, EBUSY, ENOMEM, EFAULT, EIO (no reach). */
#define EDU_TAKE	_IOW('E', 1, struct edu_wish)
/* Copy the whole buffer to the device's memory, or back. Errors: ENXIO (no buffer), ETIMEDOUT. */
#define EDU_SEND	_IO('E', 2)
#define EDU_RECEIVE	_IO('E', 3)
/*
 * EDU_RECEIVE in two: the device writes; the buffer is taken back (dma_sync_single_for_cpu()),
 * which a driver may forget. Errors: as above.
 */
#define EDU_WRITTEN	_IO('E', 5)
#define EDU_SYNC	_IO('E', 6)
/*
 * There and back, so many times as the argument says or until a signal: QEMU's device takes 0.1 s
 * each way. Errors: EFAULT, EINTR, ENXIO, ETIMEDOUT.
 */
#define EDU_REPEAT	_IOW('E', 4, __u32)

/* read() and write() are the driver's own buffer, by the CPU. */

#endif
