/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/* What user space says to /dev/vast. */
#ifndef VAST_H
#define VAST_H

#include <linux/ioctl.h>
#include <linux/types.h>

struct vast_peek {
	__u64 offset;	/* in the range */
	__u64 value;	/* what eight bytes there hold */
};

/*
 * A load by the kernel where it must not sleep: it sees only what is in RAM.
 * Errors: EFAULT (the page is not in RAM), EINVAL (outside the range).
 */
#define VAST_PEEK _IOWR('V', 1, struct vast_peek)

#endif
