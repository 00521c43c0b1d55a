// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * lender: a driver that lends pages to user space, in each way that drivers have.
 *
 * An open of /dev/lender is a loan: LENDER_TAKE takes pages with alloc_page(), mmap() shows them.
 * Which way they are mapped decides who counts them: only a mapping that knows of a struct page
 * takes a reference to it, raises its mapcount and the RSS of the process; a mapping of a bare PFN
 * does none of that.
 *
 * Right, and fit to be copied:
 * - A loan belongs to the open file. Each VMA holds a reference to its file, so release() comes
 *   after the last munmap(), and a bare PFN never outlives its page.
 * - Pages come zeroed: whatever the kernel kept in them before is not for user space.
 * - mmap() checks offset and length, and takes shared mappings only: what would a private one's
 *   copy be of?
 * - fork() copies the entries of VM_PFNMAP and VM_MIXEDMAP, and so lends to the child too; one who
 *   does not want that says VM_DONTCOPY.
 * - User memory is read before the mutex is taken: that may fault and so take mmap_lock, which
 *   mmap() holds when it takes the mutex.
 *
 * Wrong, each for a lesson:
 * - Without LENDER_ACCOUNT the pages are charged to nobody: a memory cgroup's limit does not hold
 *   its tasks back. What is allocated on behalf of user space wants __GFP_ACCOUNT.
 * - LENDER_MOVABLE takes pages from pageblocks that are meant to be emptied, and cannot keep that
 *   promise: they are on no LRU list and have no movable_operations, so nothing migrates them.
 * - LENDER_FORGET does not free them, and nobody else knows where they are.
 * - The log tells physical addresses, which a real driver keeps to itself.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/atomic.h>
#include <linux/fs.h>
#include <linux/io.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "lender.h"

#ifndef HAVE_VM_FLAGS_SET	/* until commit bc292ab00f6c (6.3) */
static inline void vm_flags_set(struct vm_area_struct *vma, vm_flags_t flags)
{
	vma->vm_flags |= flags;
}
#endif

static unsigned int most = 512;
module_param(most, uint, 0444);
MODULE_PARM_DESC(most, "pages that one loan may take");

/* What an open file has taken. It stays as it is from LENDER_TAKE until the file's release. */
struct loan {
	struct mutex lock;	/* against two that take at once */
	u32 number;		/* in the log */
	enum lender_way way;
	u32 flags;
	u32 count;
	struct page **pages;
};

static atomic_t loans = ATOMIC_INIT(0);

static int lender_open(struct inode *inode, struct file *file)
{
	struct loan *loan = kzalloc(sizeof(*loan), GFP_KERNEL);

	if (!loan)
		return -ENOMEM;
	mutex_init(&loan->lock);
	loan->number = atomic_inc_return(&loans);
	file->private_data = loan;
	return 0;
}

static void lender_give_back(struct loan *loan)
{
	u32 i;

	for (i = 0; i < loan->count; i++)
		__free_page(loan->pages[i]);
	kvfree(loan->pages);
	loan->pages = NULL;
	loan->count = 0;
}

static int lender_release(struct inode *inode, struct file *file)
{
	struct loan *loan = file->private_data;

	if (loan->flags & LENDER_FORGET) {
		pr_info("loan %u forgets %u pages\n", loan->number, loan->count);
		loan->count = 0;
	}
	lender_give_back(loan);
	kfree(loan);
	return 0;
}

static int lender_take(struct loan *loan, const struct lender_wish *wish)
{
	gfp_t gfp = wish->flags & LENDER_MOVABLE ? GFP_HIGHUSER_MOVABLE : GFP_KERNEL;

	gfp |= __GFP_ZERO;
	if (wish->flags & LENDER_ACCOUNT)
		gfp |= __GFP_ACCOUNT;
	if (loan->pages)
		return -EBUSY;
	loan->pages = kvcalloc(wish->count, sizeof(*loan->pages), GFP_KERNEL);
	if (!loan->pages)
		return -ENOMEM;
	while (loan->count < wish->count) {
		struct page *page = alloc_page(gfp);
		phys_addr_t address;

		if (!page) {
			lender_give_back(loan);
			return -ENOMEM;
		}
		address = page_to_phys(page);
		pr_info("loan %u page %u at %pap\n", loan->number, loan->count, &address);
		loan->pages[loan->count++] = page;
	}
	loan->way = wish->way;
	loan->flags = wish->flags;
	return 0;
}

static long lender_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	struct loan *loan = file->private_data;
	struct lender_wish wish;
	int error;

	if (command != LENDER_TAKE)
		return -ENOTTY;
	if (copy_from_user(&wish, (void __user *)argument, sizeof(wish)))
		return -EFAULT;
	if (wish.way >= LENDER_WAYS || wish.flags & ~LENDER_FLAGS)
		return -EINVAL;
	if (!wish.count || wish.count > most)
		return -EINVAL;
	mutex_lock(&loan->lock);
	error = lender_take(loan, &wish);
	mutex_unlock(&loan->lock);
	return error;
}

static vm_fault_t lender_fault(struct vm_fault *vmf)
{
	struct loan *loan = vmf->vma->vm_private_data;
	struct page *page;

	if (vmf->pgoff >= loan->count)	/* mremap() may have made the VMA longer than mmap() did */
		return VM_FAULT_SIGBUS;
	page = loan->pages[vmf->pgoff];
	if (loan->way == LENDER_PFN)
		return vmf_insert_pfn(vmf->vma, vmf->address, page_to_pfn(page));
	get_page(page);	/* for the PTE that our caller makes; munmap() puts it */
	vmf->page = page;
	return 0;
}

static const struct vm_operations_struct lender_vm_ops = {
	.fault = lender_fault,
};

/* One page of a loan, at mmap(). */
static int lender_map(struct loan *loan, struct vm_area_struct *vma, unsigned long address,
		      struct page *page)
{
	if (loan->way == LENDER_PAGE)
		return vm_insert_page(vma, address, page);
	return remap_pfn_range(vma, address, page_to_pfn(page), PAGE_SIZE, vma->vm_page_prot);
}

static int lender_map_all(struct loan *loan, struct vm_area_struct *vma)
{
	struct page **page = loan->pages + vma->vm_pgoff;
	unsigned long address;
	int error = 0;

	if (vma->vm_pgoff >= loan->count || vma_pages(vma) > loan->count - vma->vm_pgoff)
		return -ENXIO;
	switch (loan->way) {
	case LENDER_PFN:
		vm_flags_set(vma, VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP);
		fallthrough;
	case LENDER_FAULT:
		vma->vm_private_data = loan;
		vma->vm_ops = &lender_vm_ops;
		return 0;
	case LENDER_PAGES:
		return vm_map_pages(vma, loan->pages, loan->count);
	default:
		for (address = vma->vm_start; address < vma->vm_end && !error; address += PAGE_SIZE)
			error = lender_map(loan, vma, address, *page++);
		return error;
	}
}

static int lender_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct loan *loan = file->private_data;
	int error;

	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	mutex_lock(&loan->lock);
	if (loan->flags & LENDER_DONTCOPY)
		vm_flags_set(vma, VM_DONTCOPY);
	error = lender_map_all(loan, vma);
	mutex_unlock(&loan->lock);
	return error;
}

static const struct file_operations lender_fops = {
	.owner = THIS_MODULE,	/* no rmmod while a file is open or mapped */
	.open = lender_open,
	.release = lender_release,
	.unlocked_ioctl = lender_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.mmap = lender_mmap,
};

static struct miscdevice lender_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "lender",
	.fops = &lender_fops,
	.mode = 0600,
};

module_misc_device(lender_device);

MODULE_DESCRIPTION("Lends pages to user space, in each way that drivers have");
MODULE_LICENSE("Dual MIT/GPL");
