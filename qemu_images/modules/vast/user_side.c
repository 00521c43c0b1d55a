// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * The range as a file: mmap() with a fault handler, read() and write() by the kernel's own loads.
 *
 * vmf_insert_pfn() and not vm_insert_page(): a bare PFN takes no reference, and get_user_pages()
 * finds nothing to pin. So there is nobody who could still have a page that is evicted, be it for a
 * transfer of a device. The price: no O_DIRECT, no ptrace, no RSS.
 */
#include <linux/pagemap.h>
#include <linux/uaccess.h>

#include "range.h"
#include "vast.h"

#ifndef HAVE_VM_FLAGS_SET	/* until commit bc292ab00f6c (6.3) */
static inline void vm_flags_set(struct vm_area_struct *vma, vm_flags_t flags)
{
	vma->vm_flags |= flags;
}
#endif

#ifndef HAVE_IS_COW_MAPPING	/* until commit 97a7e4733b9b (5.12) for others than mm/ */
static inline bool is_cow_mapping(vm_flags_t flags)
{
	return (flags & (VM_SHARED | VM_MAYWRITE)) == VM_MAYWRITE;
}
#endif

#ifndef HAVE_FAULT_IN_READABLE	/* until commit bb523b406c84 (5.16) */
#define fault_in_readable fault_in_pages_readable
#define fault_in_writeable fault_in_pages_writeable
#endif

/* Under mmap_lock or the VMA's. The entry is in place before our lock is let go: see eviction. */
static vm_fault_t vast_user_fault(struct vm_fault *vmf)
{
	vm_fault_t result = VM_FAULT_SIGBUS;
	struct page *page;

	if (vmf->pgoff >= vast.size >> PAGE_SHIFT)
		return VM_FAULT_SIGBUS;
	mutex_lock(&vast.lock);
	page = vast_bring(vast.start + (vmf->pgoff << PAGE_SHIFT));
	if (!IS_ERR(page))
		result = vmf_insert_pfn(vmf->vma, vmf->address, page_to_pfn(page));
	if (result == VM_FAULT_NOPAGE)
		vast.user_faults++;
	else
		atomic_inc(&vast.refused);
	mutex_unlock(&vast.lock);
	return result;
}

static const struct vm_operations_struct vast_vm_ops = {
	.fault = vast_user_fault,
};

static int vast_mmap(struct file *file, struct vm_area_struct *vma)
{
	unsigned long pages = vast.size >> PAGE_SHIFT;

	if (is_cow_mapping(vma->vm_flags))	/* a copy of what, once it is evicted? */
		return -EINVAL;
	if (vma->vm_pgoff >= pages || vma_pages(vma) > pages - vma->vm_pgoff)
		return -ENXIO;
	vm_flags_set(vma, VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP);
	vma->vm_ops = &vast_vm_ops;
	return 0;
}

/*
 * The instructions that copy to and from user space have exception tables, whichever of the two
 * addresses it is that faults: a fault that is refused just ends the copy. Where it got nowhere,
 * and the caller's buffer is sound, the range is to blame.
 */
static ssize_t vast_read(struct file *file, char __user *to, size_t count, loff_t *at)
{
	ssize_t done = simple_read_from_buffer(to, count, at, (void *)vast.start, vast.size);

	return done == -EFAULT && !fault_in_writeable(to, 1) ? -EIO : done;
}

/*
 * Not copy_from_user(), nor simple_write_to_buffer(), which calls it: it clears what it could not
 * copy, by a memset() that has no exception table.
 */
static ssize_t vast_write(struct file *file, const char __user *from, size_t count, loff_t *at)
{
	size_t left;

	if (*at < 0)
		return -EINVAL;
	if (*at >= vast.size)
		return -ENOSPC;
	count = min_t(size_t, count, vast.size - *at);
	if (!access_ok(from, count))
		return -EFAULT;
	left = __copy_from_user_inatomic((void *)vast.start + *at, from, count);
	if (count && left == count)
		return fault_in_readable(from, 1) ? -EFAULT : -EIO;
	*at += count - left;
	return count - left;
}

static loff_t vast_seek(struct file *file, loff_t offset, int whence)
{
	return fixed_size_llseek(file, offset, whence, vast.size);
}

static long vast_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	void __user *user = (void __user *)argument;
	struct vast_peek peek;

	if (command != VAST_PEEK)
		return -ENOTTY;
	if (copy_from_user(&peek, user, sizeof(peek)))
		return -EFAULT;
	if (peek.offset > vast.size - sizeof(peek.value))
		return -EINVAL;
	if (copy_from_kernel_nofault(&peek.value, (void *)(vast.start + peek.offset),
				     sizeof(peek.value)))
		return -EFAULT;
	return copy_to_user(user, &peek, sizeof(peek)) ? -EFAULT : 0;
}

/* A device may have nodes on several file systems. Eviction looks in one mapping, the first's. */
static int vast_open(struct inode *inode, struct file *file)
{
	mutex_lock(&vast.lock);
	if (!vast.opened++) {
		vast.first = file->f_path;
		path_get(&vast.first);
		vast.mapping = inode->i_mapping;
	}
	file->f_mapping = vast.mapping;
	mutex_unlock(&vast.lock);
	return 0;
}

/* After the last munmap(): a VMA holds its file. */
static int vast_release(struct inode *inode, struct file *file)
{
	struct path first = { };

	mutex_lock(&vast.lock);
	if (!--vast.opened) {
		vast.mapping = NULL;
		swap(first, vast.first);
	}
	mutex_unlock(&vast.lock);
	path_put(&first);
	return 0;
}

const struct file_operations vast_fops = {
	.owner = THIS_MODULE,
	.open = vast_open,
	.release = vast_release,
	.mmap = vast_mmap,
	.read = vast_read,
	.write = vast_write,
	.llseek = vast_seek,
	.unlocked_ioctl = vast_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
};
