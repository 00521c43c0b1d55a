// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * vast: gigabytes of kernel virtual space in a machine that has no such RAM, by ordinary loads and
 * stores. A page is there when it is touched; the oldest one makes room, and is kept compressed.
 *
 * read() and write() of /dev/vast copy from and to the range, and are all that need know of it.
 *
 * How: the kernel takes a fault at an address of its own that nothing is mapped at for a bug, and
 * calls bad_area_nosemaphore(). A kprobe there sends faults in the range to vast_fault() instead,
 * which runs in the context that faulted, may sleep where that may, and returns to the instruction.
 *
 * Right, and fit to be copied:
 * - A page is unmapped and its TLB entries are gone on all CPUs before it is compressed: what is
 *   written later is written to a new frame, after another fault.
 * - What cannot be served goes on to the kernel's own handling, as if we were not there: it oopses,
 *   or finds the exception table.
 *
 * Wrong, and only for a lesson:
 * - A kprobe as a page fault handler, and kallsyms_lookup_name() to find what is not exported. What
 *   a driver should do: map into user space and have a fault handler there (vm_ops->fault), or take
 *   and release pages explicitly around each use, as zram and zsmalloc do. Where the kernel itself
 *   must have such a range, its own fault handler has to learn of it, as it did for KFENCE.
 * - Touching the range with interrupts or page faults disabled is an oops: there is no sleeping.
 * - x86 never frees page tables of vmalloc's range, so that a range touched all over costs 2 MiB of
 *   tables for each GiB of it, also after rmmod, until somebody else's area lies there.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/debugfs.h>
#include <linux/fs.h>
#include <linux/kprobes.h>
#include <linux/lzo.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/percpu.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include <linux/xarray.h>

static unsigned int gib = 16;
module_param(gib, uint, 0444);
MODULE_PARM_DESC(gib, "GiB of kernel virtual space to reserve");

static unsigned int frames = 256;
module_param(frames, uint, 0444);
MODULE_PARM_DESC(frames, "pages of it that are in RAM at a time");

/* A page that is not in RAM. */
struct packed {
	u32 size;
	u8 bytes[];
};

/* A page that is. */
struct present {
	struct page *page;
	unsigned long address;
};

static struct vast {
	struct mutex lock;		/* over all that changes */
	struct vm_struct *area;
	unsigned long start, end;
	struct present *present;	/* a ring: `next` is the oldest once it is full */
	unsigned int used, next;
	struct xarray pages;		/* by page: its place in the ring, or a struct packed */
	void *work, *space;		/* the compressor's */
	unsigned long faults, evicted, packed, packed_bytes;
	struct dentry *counts;
} vast;

static DEFINE_PER_CPU(unsigned long, vast_refused);

static struct vm_struct *(*vast_reserve)(unsigned long size, unsigned long flags);
static struct mm_struct *vast_mm;	/* init_mm */

static int vast_set_pte(pte_t *pte, unsigned long address, void *data)
{
	struct page *page = data;

	set_pte_at(vast_mm, address, pte, page ? mk_pte(page, PAGE_KERNEL) : __pte(0));
	return 0;
}

static void vast_invalidate(void *address)
{
	asm volatile("invlpg (%0)" : : "r" (address) : "memory");
}

static int vast_map(unsigned long address, struct page *page)
{
	return apply_to_page_range(vast_mm, address, PAGE_SIZE, vast_set_pte, page);
}

static void vast_unmap(unsigned long address)
{
	vast_map(address, NULL);
	on_each_cpu(vast_invalidate, (void *)address, 1);
}

static unsigned long vast_index(unsigned long address)
{
	return (address - vast.start) >> PAGE_SHIFT;
}

/* Compress a page that is unmapped already, and note where it is. */
static int vast_pack(struct present *old)
{
	struct packed *packed;
	size_t size = 0;
	void *error;

	if (lzo1x_1_compress(page_address(old->page), PAGE_SIZE, vast.space, &size, vast.work) !=
	    LZO_E_OK)
		return -EIO;
	packed = kmalloc(struct_size(packed, bytes, size), GFP_KERNEL);
	if (!packed)
		return -ENOMEM;
	packed->size = size;
	memcpy(packed->bytes, vast.space, size);
	error = xa_store(&vast.pages, vast_index(old->address), packed, GFP_KERNEL);
	if (xa_is_err(error)) {
		kfree(packed);
		return xa_err(error);
	}
	vast.packed++;
	vast.packed_bytes += size;
	vast.evicted++;
	return 0;
}

/* A frame in the ring's next place that nobody has. */
static int vast_make_room(struct present *place)
{
	int error;

	if (!place->page) {
		place->page = alloc_page(GFP_KERNEL);
		return place->page ? 0 : -ENOMEM;
	}
	if (!place->address)		/* left over from a failure */
		return 0;
	vast_unmap(place->address);
	error = vast_pack(place);
	if (error)
		vast_map(place->address, place->page);
	else
		place->address = 0;
	return error;
}

static int vast_fill(struct page *page, const struct packed *packed)
{
	void *target = page_address(page);
	size_t size = PAGE_SIZE;

	if (!packed) {
		clear_page(target);
		return 0;
	}
	if (lzo1x_decompress_safe(packed->bytes, packed->size, target, &size) != LZO_E_OK)
		return -EIO;
	return 0;
}

/* Have a page in RAM. */
static int vast_bring(unsigned long address)
{
	struct present *place = vast.present + vast.next;
	void *entry = xa_load(&vast.pages, vast_index(address)), *old;
	int error;

	if (xa_is_value(entry))		/* another CPU was faster */
		return 0;
	error = vast_make_room(place);
	if (!error)
		error = vast_fill(place->page, entry);
	if (!error)
		error = vast_map(address, place->page);
	if (error)
		return error;
	old = xa_store(&vast.pages, vast_index(address), xa_mk_value(vast.next), GFP_KERNEL);
	if (xa_is_err(old)) {
		vast_unmap(address);
		return xa_err(old);
	}
	place->address = address;
	if (entry) {
		vast.packed--;
		vast.packed_bytes -= ((struct packed *)entry)->size;
		kfree(entry);
	}
	vast.next = (vast.next + 1) % frames;
	vast.faults++;
	return 0;
}

/* In the place of bad_area_nosemaphore(), with its arguments and in its context. */
static void vast_fault(struct pt_regs *regs, unsigned long error_code, unsigned long address)
{
	int error = -EFAULT;

	if (regs->flags & X86_EFLAGS_IF) {
		local_irq_enable();
		if (!faulthandler_disabled()) {
			mutex_lock(&vast.lock);
			error = vast_bring(address & PAGE_MASK);
			mutex_unlock(&vast.lock);
		}
		local_irq_disable();
	}
	if (error)
		this_cpu_write(vast_refused, address);
}

static int vast_on_bad_area(struct kprobe *probe, struct pt_regs *regs)
{
	struct pt_regs *faulted = (struct pt_regs *)regs->di;
	unsigned long address = regs->dx;

	if (user_mode(faulted) || address < vast.start || address >= vast.end)
		return 0;
	if (this_cpu_read(vast_refused) == address) {
		this_cpu_write(vast_refused, 0);
		return 0;
	}
	regs->ip = (unsigned long)vast_fault;
	return 1;
}

/* Its presence is what makes an ftrace-based kprobe take the new ip. */
static void vast_after_bad_area(struct kprobe *probe, struct pt_regs *regs, unsigned long flags)
{
}

static struct kprobe vast_probe = {
	.symbol_name = "bad_area_nosemaphore",
	.pre_handler = vast_on_bad_area,
	.post_handler = vast_after_bad_area,
};

static ssize_t vast_read(struct file *file, char __user *to, size_t count, loff_t *at)
{
	return simple_read_from_buffer(to, count, at, (void *)vast.start, vast.end - vast.start);
}

static ssize_t vast_write(struct file *file, const char __user *from, size_t count, loff_t *at)
{
	return simple_write_to_buffer((void *)vast.start, vast.end - vast.start, at, from, count);
}

static loff_t vast_seek(struct file *file, loff_t offset, int whence)
{
	return fixed_size_llseek(file, offset, whence, vast.end - vast.start);
}

static const struct file_operations vast_fops = {
	.owner = THIS_MODULE,
	.read = vast_read,
	.write = vast_write,
	.llseek = vast_seek,
};

static struct miscdevice vast_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "vast",
	.fops = &vast_fops,
	.mode = 0600,
};

/* What is not exported, by the one function that is not exported and can be probed. */
static int vast_look_up(void)
{
	struct kprobe probe = { .symbol_name = "kallsyms_lookup_name" };
	unsigned long (*look_up)(const char *name);
	int error = register_kprobe(&probe);

	if (error)
		return error;
	look_up = (void *)probe.addr;
	unregister_kprobe(&probe);
	vast_reserve = (void *)look_up("get_vm_area");
	vast_mm = (void *)look_up("init_mm");
	return vast_reserve && vast_mm ? 0 : -ENOENT;
}

static void vast_free(void)
{
	unsigned long index;
	unsigned int i;
	void *entry;

	if (vast.area)
		free_vm_area(vast.area);
	for (i = 0; vast.present && i < frames; i++)
		if (vast.present[i].page)
			__free_page(vast.present[i].page);
	xa_for_each(&vast.pages, index, entry)
		if (!xa_is_value(entry))
			kfree(entry);
	xa_destroy(&vast.pages);
	kvfree(vast.present);
	kvfree(vast.work);
	kvfree(vast.space);
}

static int vast_make(void)
{
	unsigned long size = (unsigned long)gib << 30;

	if (!gib || !frames)
		return -EINVAL;
	vast.work = kvmalloc(LZO1X_1_MEM_COMPRESS, GFP_KERNEL);
	vast.space = kvmalloc(lzo1x_worst_compress(PAGE_SIZE), GFP_KERNEL);
	vast.present = kvcalloc(frames, sizeof(*vast.present), GFP_KERNEL);
	if (!vast.work || !vast.space || !vast.present)
		return -ENOMEM;
	vast.area = vast_reserve(size, VM_MAP);
	if (!vast.area)
		return -ENOMEM;
	vast.start = (unsigned long)vast.area->addr;
	vast.end = vast.start + size;
	return 0;
}

static int __init vast_init(void)
{
	int error;

	mutex_init(&vast.lock);
	xa_init(&vast.pages);
	error = vast_look_up();
	if (error)
		return error;
	error = vast_make();
	if (error)
		goto free;
	error = register_kprobe(&vast_probe);
	if (error)
		goto free;
	error = misc_register(&vast_device);
	if (error)
		goto unregister;
	vast.counts = debugfs_create_dir(KBUILD_MODNAME, NULL);
	debugfs_create_ulong("faults", 0444, vast.counts, &vast.faults);
	debugfs_create_ulong("evicted", 0444, vast.counts, &vast.evicted);
	debugfs_create_ulong("packed", 0444, vast.counts, &vast.packed);
	debugfs_create_ulong("packed_bytes", 0444, vast.counts, &vast.packed_bytes);
	return 0;

unregister:
	unregister_kprobe(&vast_probe);
free:
	vast_free();
	return error;
}

static void __exit vast_exit(void)
{
	debugfs_remove(vast.counts);
	misc_deregister(&vast_device);
	unregister_kprobe(&vast_probe);
	vast_free();
}

module_init(vast_init);
module_exit(vast_exit);

MODULE_DESCRIPTION("Kernel virtual space beyond RAM, filled when it is touched, kept compressed");
MODULE_LICENSE("Dual MIT/GPL");
