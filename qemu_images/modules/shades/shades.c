// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * shades: one page of RAM at three virtual addresses, each with a memory type of its own.
 *
 * An open of /dev/shades has a page: in the direct map, in a vmap() of the kernel's, and in who
 * maps the file. SHADES_TAKE says which of them are cached, SHADES_PAINT changes the direct map.
 * SHADES_IOREMAP maps a page of a device.
 *
 * Right, and fit to be copied:
 * - set_memory_uc() and set_memory_wc() flush caches and TLBs of all CPUs and note the type of the
 *   frame, so that remap_pfn_range() can hold to it.
 * - The direct map is write-back again before the page is freed: who gets it next counts on that.
 * - request_mem_region() before ioremap(): RAM and what other drivers have is refused, with no more
 *   ado. ioremap() alone refuses RAM with a WARN, and knows nothing of other drivers.
 *
 * Wrong, each for a lesson:
 * - One frame with two types at a time, which Intel does not support (SDM volume 3, "Programming
 *   the PAT"): what a cache holds may be stale, or later overwrite what went past it. vmap() and
 *   vm_insert_page() do not look; remap_pfn_range() does, and takes the frame's own type.
 * - A single page is changed. Each may split a large page of the direct map; a driver that has many
 *   changes them at once, by set_pages_array_wc().
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/fs.h>
#include <linux/io.h>
#include <linux/ioport.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/set_memory.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>

#include <asm/msr.h>
#include <asm/pgtable_types.h>

#include "shades.h"

#define SHADES_TRIES 64

/* What an open file has, until its release. */
struct shaded {
	struct mutex lock;	/* against two that take at once */
	struct shades_wish wish;
	struct page *page;
	void *alias;
	resource_size_t place;
	void __iomem *window;
};

static int shades_open(struct inode *inode, struct file *file)
{
	struct shaded *shaded = kzalloc(sizeof(*shaded), GFP_KERNEL);

	if (!shaded)
		return -ENOMEM;
	mutex_init(&shaded->lock);
	file->private_data = shaded;
	return 0;
}

/* The page's address in the direct map. */
static unsigned long shades_direct(struct shaded *shaded)
{
	return (unsigned long)page_address(shaded->page);
}

static void shades_give_back(struct shaded *shaded)
{
	if (!shaded->page)
		return;
	vunmap(shaded->alias);
	/* A page that cannot be made write-back again is lost: nobody may have it as it is. */
	if (shaded->wish.direct == SHADE_WB || !set_memory_wb(shades_direct(shaded), 1))
		__free_page(shaded->page);
	shaded->page = NULL;
	shaded->alias = NULL;
}

static int shades_release(struct inode *inode, struct file *file)
{
	struct shaded *shaded = file->private_data;

	shades_give_back(shaded);
	if (shaded->window) {
		iounmap(shaded->window);
		release_mem_region(shaded->place, PAGE_SIZE);
	}
	kfree(shaded);
	return 0;
}

static pgprot_t shades_protection(enum shade shade, pgprot_t protection)
{
	if (shade == SHADE_WC)
		return pgprot_writecombine(protection);
	return shade == SHADE_UC_MINUS ? pgprot_noncached(protection) : protection;
}

static int shades_set_memory(unsigned long address, enum shade shade)
{
	if (shade == SHADE_WC)
		return set_memory_wc(address, 1);
	return shade == SHADE_UC_MINUS ? set_memory_uc(address, 1) : set_memory_wb(address, 1);
}

/*
 * A page that a large entry of the direct map covers. Blocks as large as that are taken until one
 * is not split yet; the direct map is not put together again.
 */
static struct page *shades_large(void)
{
	unsigned int order = get_order(PMD_SIZE), level = PG_LEVEL_4K, n = 0;
	struct page *tried[SHADES_TRIES], *page;

	do {
		page = alloc_pages(GFP_KERNEL | __GFP_ZERO | __GFP_NORETRY | __GFP_NOWARN, order);
		if (!page)
			break;
		tried[n++] = page;
		lookup_address((unsigned long)page_address(page), &level);
	} while (level == PG_LEVEL_4K && n < SHADES_TRIES);
	if (level == PG_LEVEL_4K)
		page = NULL;
	else
		n--;
	while (n)
		__free_pages(tried[--n], order);
	if (!page)
		return NULL;
	split_page(page, order);
	for (n = 1; n < 1 << order; n++)
		__free_page(page + n);
	return page;
}

static int shades_take(struct shaded *shaded, const struct shades_wish *wish)
{
	phys_addr_t place;
	int error = 0;

	if (shaded->page)
		return -EBUSY;
	shaded->page = wish->large ? shades_large() : alloc_page(GFP_KERNEL | __GFP_ZERO);
	if (!shaded->page)
		return -ENOMEM;
	shaded->wish = *wish;
	if (wish->direct != SHADE_WB)
		error = shades_set_memory(shades_direct(shaded), wish->direct);
	if (!error) {
		shaded->alias = vmap(&shaded->page, 1, VM_MAP,
				     shades_protection(wish->alias, PAGE_KERNEL));
		if (!shaded->alias)
			error = -ENOMEM;
	}
	if (error) {
		shades_give_back(shaded);
		return error;
	}
	place = page_to_phys(shaded->page);
	pr_info("page at %pap\n", &place);
	return 0;
}

static int shades_paint(struct shaded *shaded, u32 shade)
{
	int error;

	if (!shaded->page)
		return -ENXIO;
	error = shades_set_memory(shades_direct(shaded), shade);
	if (!error)
		shaded->wish.direct = shade;
	return error;
}

static int shades_ioremap(struct shaded *shaded, const struct shades_window *window)
{
	resource_size_t place = window->place;

	if (shaded->window)
		return -EBUSY;
	if (!request_mem_region(place, PAGE_SIZE, KBUILD_MODNAME)) {
		pr_info("%pa is taken\n", &place);
		return -EBUSY;
	}
	shaded->window = window->shade == SHADE_WC ? ioremap_wc(place, PAGE_SIZE) :
						     ioremap(place, PAGE_SIZE);
	if (!shaded->window) {
		release_mem_region(place, PAGE_SIZE);
		return -ENOMEM;
	}
	shaded->place = place;
	pr_info("device at %pa says %#010x\n", &place, ioread32(shaded->window));
	return 0;
}

static bool shades_wise(const struct shades_wish *wish)
{
	return wish->direct < SHADES && wish->alias < SHADES && wish->user < SHADES &&
	       wish->way < SHADES_WAYS && wish->large <= 1;
}

static long shades_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	struct shaded *shaded = file->private_data;
	union {
		struct shades_wish wish;
		struct shades_window window;
		u32 shade;
	} asked;
	int error = -EINVAL;

	if (command != SHADES_TAKE && command != SHADES_PAINT && command != SHADES_IOREMAP)
		return -ENOTTY;
	if (copy_from_user(&asked, (void __user *)argument, _IOC_SIZE(command)))
		return -EFAULT;
	mutex_lock(&shaded->lock);
	if (command == SHADES_TAKE && shades_wise(&asked.wish))
		error = shades_take(shaded, &asked.wish);
	else if (command == SHADES_PAINT && asked.shade < SHADES)
		error = shades_paint(shaded, asked.shade);
	else if (command == SHADES_IOREMAP && asked.window.shade > SHADE_WB &&
		 asked.window.shade < SHADES && PAGE_ALIGNED(asked.window.place))
		error = shades_ioremap(shaded, &asked.window);
	mutex_unlock(&shaded->lock);
	return error;
}

static int shades_map(struct shaded *shaded, struct vm_area_struct *vma)
{
	if (!shaded->page || vma->vm_pgoff || vma_pages(vma) != 1)
		return -ENXIO;
	vma->vm_private_data = shaded;
	vma->vm_page_prot = shades_protection(shaded->wish.user, vma->vm_page_prot);
	if (shaded->wish.way == SHADES_INSERT)
		return vm_insert_page(vma, vma->vm_start, shaded->page);
	return remap_pfn_range(vma, vma->vm_start, page_to_pfn(shaded->page), PAGE_SIZE,
			       vma->vm_page_prot);
}

static int shades_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct shaded *shaded = file->private_data;
	int error;

	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	mutex_lock(&shaded->lock);
	error = shades_map(shaded, vma);
	mutex_unlock(&shaded->lock);
	return error;
}

static const struct file_operations shades_fops = {
	.owner = THIS_MODULE,
	.open = shades_open,
	.release = shades_release,
	.unlocked_ioctl = shades_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.mmap = shades_mmap,
};

static struct miscdevice shades_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "shades",
	.fops = &shades_fops,
	.mode = 0600,
};

static int __init shades_init(void)
{
	u32 low, high;

	/* A byte for each index: what type it stands for (SDM volume 3, "IA32_PAT MSR"). */
	rdmsr(MSR_IA32_CR_PAT, low, high);
	pr_info("IA32_PAT is %08x%08x\n", high, low);
	return misc_register(&shades_device);
}
module_init(shades_init);

static void __exit shades_exit(void)
{
	misc_deregister(&shades_device);
}
module_exit(shades_exit);

MODULE_DESCRIPTION("One page at three addresses, each with a memory type of its own");
MODULE_LICENSE("Dual MIT/GPL");
