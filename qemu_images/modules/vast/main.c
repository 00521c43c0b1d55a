// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * vast: gigabytes of address space in a machine that has no such RAM, in the kernel by ordinary
 * loads and stores, in user space by mmap(). A page is there when it is touched; the oldest one
 * makes room, and is kept compressed.
 *
 * Right, and fit to be copied:
 * - user_side.c: a fault handler over a mapping that can be taken back. A driver needs no more.
 * - pages.c: who compresses a page has first taken it from everybody, TLBs included.
 * - store.c: a limit of its own, so that not the OOM killer decides who goes.
 * - One lock, and an order that holds for both sides (range.h).
 *
 * Wrong, and only for a lesson:
 * - kernel_side.c: a kprobe as a page fault handler, and kallsyms_lookup_name() to call what is not
 *   exported. A CPU with IBT traps such calls; the next kernel may have inlined the function.
 * - A load that may fault and sleep looks like one that may not, and no compiler tells who writes
 *   it. Under a spinlock or in an interrupt it is an oops; in a section of RCU it sleeps where
 *   nobody may. What a driver should do: take and release pages explicitly around each use, as
 *   zram does; or have an accessor with an exception table, as BPF has for its arena.
 * - tables.c frees page tables of the kernel's. Nobody else does that, but for huge vmap entries.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cpumask.h>
#include <linux/debugfs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>

#include "range.h"

static unsigned int gib = 16;
module_param(gib, uint, 0444);
MODULE_PARM_DESC(gib, "GiB of kernel virtual space to reserve");

static unsigned int frames = 256;
module_param(frames, uint, 0444);
MODULE_PARM_DESC(frames, "pages of it that are in RAM at a time");

static unsigned int limit = 64;
module_param(limit, uint, 0444);
MODULE_PARM_DESC(limit, "MiB that the others may take, compressed");

struct vast vast;

static struct miscdevice vast_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "vast",
	.fops = &vast_fops,
	.mode = 0600,
};

static struct dentry *vast_counts;

static void vast_show_counts(void)
{
	static const struct { const char *name; unsigned long *value; } counts[] = {
		{ "kernel_faults", &vast.kernel_faults }, { "user_faults", &vast.user_faults },
		{ "evicted", &vast.evicted }, { "packed", &vast.packed },
		{ "packed_bytes", &vast.packed_bytes }, { "packed_room", &vast.packed_room },
		{ "tables", &vast.tables },
	};
	int i;

	vast_counts = debugfs_create_dir(KBUILD_MODNAME, NULL);
	for (i = 0; i < ARRAY_SIZE(counts); i++)
		debugfs_create_ulong(counts[i].name, 0444, vast_counts, counts[i].value);
	debugfs_create_atomic_t("refused", 0444, vast_counts, &vast.refused);
}

/* An instruction may touch four pages: two operands, each across a border. All CPUs must get on. */
static int vast_check(void)
{
	unsigned int least = 4 * num_possible_cpus();

	if (gib && frames >= least)
		return 0;
	pr_err("gib must be 1 or more, frames %u or more\n", least);
	return -EINVAL;
}

static int vast_make(void)
{
	int error = vast_make_store();

	if (!error)
		error = vast_make_pages();
	if (!error)
		error = vast_make_range();
	return error;
}

static void vast_free(void)
{
	vast_free_pages();
	vast_free_store();
	vast_free_range();
}

static int __init vast_init(void)
{
	int error = vast_check();

	if (!error)
		error = vast_look_up();
	if (error)
		return error;
	mutex_init(&vast.lock);
	vast.size = (unsigned long)gib << 30;
	vast.frames = frames;
	vast.limit = (unsigned long)limit << 20;
	error = vast_make();
	if (error)
		goto free;
	error = vast_hook();
	if (error)
		goto free;
	error = misc_register(&vast_device);
	if (error)
		goto unhook;
	vast_show_counts();
	return 0;

unhook:
	vast_unhook();
free:
	vast_free();
	return error;
}

static void __exit vast_exit(void)
{
	debugfs_remove(vast_counts);
	misc_deregister(&vast_device);
	vast_unhook();
	vast_free();
}

module_init(vast_init);
module_exit(vast_exit);

MODULE_DESCRIPTION("Address space beyond RAM, filled when it is touched, kept compressed");
MODULE_LICENSE("Dual MIT/GPL");
