// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * shades: one page of RAM at three virtual addresses, each with a memory type of its own.
 *
 * An open of /dev/shades has a page: in the direct map, in a vmap() of the kernel's, and in who
 * maps the file. SHADES_TAKE says which of them are cached.
 *
 * Right, and fit to be copied:
 * - set_memory_uc() and set_memory_wc() flush caches and TLBs of all CPUs and note the type of the
 *   frame, so that remap_pfn_range() can hold to it.
 * - The direct map is write-back again before the page is freed: who gets it next counts on that.
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
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/set_memory.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>

#include "shades.h"

/* What an open file has. It stays as it is from SHADES_TAKE until the file's release. */
struct shaded {
	struct mutex lock;	/* against two that take at once */
	struct shades_wish wish;
	struct page *page;
	void *alias;
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
	kfree(shaded);
	return 0;
}

static pgprot_t shades_protection(enum shade shade, pgprot_t protection)
{
	if (shade == SHADE_WC)
		return pgprot_writecombine(protection);
	return shade == SHADE_UC_MINUS ? pgprot_noncached(protection) : protection;
}

static int shades_take(struct shaded *shaded, const struct shades_wish *wish)
{
	phys_addr_t place;
	int error = 0;

	if (shaded->page)
		return -EBUSY;
	shaded->page = alloc_page(GFP_KERNEL | __GFP_ZERO);
	if (!shaded->page)
		return -ENOMEM;
	shaded->wish = *wish;
	if (wish->direct == SHADE_WC)
		error = set_memory_wc(shades_direct(shaded), 1);
	else if (wish->direct == SHADE_UC_MINUS)
		error = set_memory_uc(shades_direct(shaded), 1);
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

static long shades_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	struct shaded *shaded = file->private_data;
	struct shades_wish wish;
	int error;

	if (command != SHADES_TAKE)
		return -ENOTTY;
	if (copy_from_user(&wish, (void __user *)argument, sizeof(wish)))
		return -EFAULT;
	if (wish.direct >= SHADES || wish.alias >= SHADES || wish.user >= SHADES)
		return -EINVAL;
	if (wish.way >= SHADES_WAYS)
		return -EINVAL;
	mutex_lock(&shaded->lock);
	error = shades_take(shaded, &wish);
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

module_misc_device(shades_device);

MODULE_DESCRIPTION("One page at three addresses, each with a memory type of its own");
MODULE_LICENSE("Dual MIT/GPL");
