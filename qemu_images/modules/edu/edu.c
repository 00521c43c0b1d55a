// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * edu: a driver for QEMU's device of that name, which copies bytes between RAM and itself by DMA.
 * Source: QEMU docs/specs/edu.rst, hw/misc/edu.c.
 *
 * An open of /dev/edu has a buffer of the kind that it asks for; EDU_SEND and EDU_RECEIVE move the
 * bytes. The log tells where each lies, in RAM and as the device sees it; for who reads memory by
 * BTF, the PCI device's driver data is a struct edu with the list of them.
 *
 * Right, and fit to be copied:
 * - The device's mask is told to the DMA API before anything is mapped, and every mapping is asked
 *   whether it worked. An address that the device cannot reach is bounced, or refused; it is never
 *   cut to what fits.
 * - A streaming mapping is handed to the device and taken back (dma_sync_single_for_*), for caches
 *   that do not snoop and for bounce buffers, whose bytes are copied then and at no other time.
 * - User memory that a device will write is pinned with FOLL_LONGTERM: that moves the page out of
 *   where it would be in the way, keeps it there, and tells everyone who would migrate it. The page
 *   is dirty when it is unpinned: the CPU has not written it, so its PTE does not know. (Who lets
 *   users pin more than a page charges it to RLIMIT_MEMLOCK, by account_locked_vm().)
 * - A device that does not answer in time is an error, not a task that waits for ever; its buffer
 *   is then leaked rather than freed under a transfer that may still come.
 *
 * Wrong, for a lesson:
 * - EDU_STALE looks the caller's page up and lets go of it. The address is right until the page is
 *   migrated, swapped or freed, and then the device writes into what is somebody else's. mlock()
 *   does not help: it keeps a page in RAM, not in its place.
 * - The log tells physical addresses, which a real driver keeps to itself.
 */
#include <linux/atomic.h>
#include <linux/completion.h>
#include <linux/dma-mapping.h>
#include <linux/fs.h>
#include <linux/interrupt.h>
#include <linux/io-64-nonatomic-lo-hi.h>
#include <linux/list.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "edu.h"

#define EDU_BAR			0
#define EDU_IRQ_STATUS		0x24
#define EDU_IRQ_ACKNOWLEDGE	0x64
#define EDU_DMA_SOURCE		0x80
#define EDU_DMA_TARGET		0x88
#define EDU_DMA_COUNT		0x90
#define EDU_DMA_COMMAND		0x98
#define EDU_DMA_START		0x1
#define EDU_DMA_TO_RAM		0x2
#define EDU_DMA_IRQ		0x4
#define EDU_MEMORY		0x40000	/* as the device's engine sees it */

#define EDU_PATIENCE		(10 * HZ)

static unsigned int mask = 28;
module_param(mask, uint, 0444);
MODULE_PARM_DESC(mask, "address bits that the device is said to have");

struct edu {
	struct pci_dev *pci;
	void __iomem *registers;
	struct miscdevice misc;
	struct mutex listed;	/* guards `buffers` */
	struct list_head buffers;	/* struct edu_buffer, by `node`: those that were taken */
	struct mutex engine;	/* one transfer at a time; guards what follows */
	struct edu_buffer *busy;	/* whose transfer is under way */
	bool to_ram;		/* and which way it goes */
	u64 transfers;		/* that have ended */
	struct completion done;
	bool stuck;		/* a transfer has not ended: nothing that was mapped may be freed */
};

/* What an open file has. */
struct edu_buffer {
	struct list_head node;
	struct edu *edu;
	struct mutex lock;	/* against two that take, or use, at once */
	u32 number;		/* in the log */
	enum edu_kind kind;
	u32 size;		/* 0 until EDU_TAKE */
	pid_t owner;		/* the process that took it */
	void *memory;		/* the driver's own; NULL for a page of the user's */
	struct page *page;	/* while it is pinned */
	phys_addr_t place;	/* where it lay when it was taken; 0 for a coherent one */
	dma_addr_t bus;		/* what the device is told */
};

static const char *const edu_kinds[] = { "pages", "kmalloc", "coherent", "pinned", "stale" };
static atomic_t buffers = ATOMIC_INIT(0);

static irqreturn_t edu_interrupt(int irq, void *data)
{
	struct edu *edu = data;
	u32 status = readl(edu->registers + EDU_IRQ_STATUS);

	if (!status)
		return IRQ_NONE;
	writel(status, edu->registers + EDU_IRQ_ACKNOWLEDGE);
	complete(&edu->done);
	return IRQ_HANDLED;
}

static int edu_transfer(struct edu_buffer *buffer, bool to_ram)
{
	struct edu *edu = buffer->edu;
	u64 command = EDU_DMA_START | EDU_DMA_IRQ | (to_ram ? EDU_DMA_TO_RAM : 0);
	int error = 0;

	mutex_lock(&edu->engine);
	if (edu->stuck) {
		mutex_unlock(&edu->engine);
		return -EIO;
	}
	reinit_completion(&edu->done);
	edu->busy = buffer;
	edu->to_ram = to_ram;
	writeq(to_ram ? EDU_MEMORY : buffer->bus, edu->registers + EDU_DMA_SOURCE);
	writeq(to_ram ? buffer->bus : EDU_MEMORY, edu->registers + EDU_DMA_TARGET);
	writeq(buffer->size, edu->registers + EDU_DMA_COUNT);
	writeq(command, edu->registers + EDU_DMA_COMMAND);
	if (wait_for_completion_timeout(&edu->done, EDU_PATIENCE)) {
		edu->transfers++;
	} else {
		edu->stuck = true;
		error = -ETIMEDOUT;
	}
	edu->busy = NULL;
	mutex_unlock(&edu->engine);
	return error;
}

static int edu_open(struct inode *inode, struct file *file)
{
	struct edu *edu = container_of(file->private_data, struct edu, misc);
	struct edu_buffer *buffer = kzalloc(sizeof(*buffer), GFP_KERNEL);

	if (!buffer)
		return -ENOMEM;
	buffer->edu = edu;
	mutex_init(&buffer->lock);
	buffer->number = atomic_inc_return(&buffers);
	file->private_data = buffer;
	return 0;
}

/* Let go of memory that is no longer mapped for the device. */
static void edu_free(struct edu_buffer *buffer)
{
	if (buffer->kind == EDU_PAGES)
		free_pages((unsigned long)buffer->memory, get_order(buffer->size));
	else if (buffer->kind == EDU_KMALLOC)
		kfree(buffer->memory);
	else if (buffer->page)
		unpin_user_pages_dirty_lock(&buffer->page, 1, true);
}

static int edu_release(struct inode *inode, struct file *file)
{
	struct edu_buffer *buffer = file->private_data;
	struct edu *edu = buffer->edu;
	struct device *device = &edu->pci->dev;

	if (buffer->size) {
		mutex_lock(&edu->listed);
		list_del(&buffer->node);
		mutex_unlock(&edu->listed);
	}
	if (buffer->size && !edu->stuck) {
		if (buffer->kind == EDU_COHERENT)
			dma_free_coherent(device, buffer->size, buffer->memory, buffer->bus);
		else if (buffer->kind != EDU_STALE)
			dma_unmap_single(device, buffer->bus, buffer->size, DMA_BIDIRECTIONAL);
		edu_free(buffer);
	}
	kfree(buffer);
	return 0;
}

/* Memory of the driver's own, mapped for the device. */
static int edu_take_own(struct edu_buffer *buffer, u32 size)
{
	struct device *device = &buffer->edu->pci->dev;

	if (buffer->kind == EDU_COHERENT) {
		buffer->memory = dma_alloc_coherent(device, size, &buffer->bus, GFP_KERNEL);
		return buffer->memory ? 0 : -ENOMEM;
	}
	if (buffer->kind == EDU_KMALLOC)
		buffer->memory = kzalloc(size, GFP_KERNEL);
	else
		buffer->memory = (void *)__get_free_pages(GFP_KERNEL | __GFP_ZERO, get_order(size));
	if (!buffer->memory)
		return -ENOMEM;
	buffer->place = virt_to_phys(buffer->memory);
	buffer->bus = dma_map_single(device, buffer->memory, size, DMA_BIDIRECTIONAL);
	return dma_mapping_error(device, buffer->bus) ? -EIO : 0;
}

/* A page of the caller's, mapped for the device. */
static int edu_take_users(struct edu_buffer *buffer, const struct edu_wish *wish)
{
	struct device *device = &buffer->edu->pci->dev;
	unsigned int offset = offset_in_page(wish->address);
	struct page *page;
	int count;

	if (buffer->kind == EDU_PINNED)
		count = pin_user_pages_fast(wish->address, 1, FOLL_WRITE | FOLL_LONGTERM, &page);
	else
		count = get_user_pages_fast(wish->address, 1, FOLL_WRITE, &page);
	if (count != 1)
		return count < 0 ? count : -EFAULT;
	buffer->place = page_to_phys(page) + offset;
	if (buffer->kind == EDU_PINNED)
		buffer->page = page;
	buffer->bus = dma_map_page(device, page, offset, wish->size, DMA_BIDIRECTIONAL);
	if (dma_mapping_error(device, buffer->bus)) {
		if (buffer->kind == EDU_STALE)
			put_page(page);
		return -EIO;
	}
	if (buffer->kind == EDU_STALE) {	/* what holds the page goes, the address stays */
		dma_unmap_page(device, buffer->bus, wish->size, DMA_BIDIRECTIONAL);
		put_page(page);
	}
	return 0;
}

static int edu_take(struct edu_buffer *buffer, const struct edu_wish *wish)
{
	struct edu *edu = buffer->edu;
	struct device *device = &edu->pci->dev;
	int error;

	if (buffer->size)
		return -EBUSY;
	buffer->kind = wish->kind;
	if (wish->kind == EDU_PINNED || wish->kind == EDU_STALE)
		error = edu_take_users(buffer, wish);
	else
		error = edu_take_own(buffer, wish->size);
	if (error) {
		buffer->size = wish->size;	/* edu_free() wants it */
		edu_free(buffer);
		buffer->size = 0;
		buffer->memory = NULL;
		buffer->page = NULL;
		buffer->place = 0;
		return error;
	}
	buffer->size = wish->size;
	buffer->owner = task_tgid_nr(current);
	mutex_lock(&edu->listed);
	list_add_tail(&buffer->node, &edu->buffers);
	mutex_unlock(&edu->listed);
	if (buffer->kind == EDU_COHERENT)	/* not for virt_to_phys(): it may be vmapped */
		dev_info(device, "buffer %u coherent bus %pad\n", buffer->number, &buffer->bus);
	else
		dev_info(device, "buffer %u %s at %pap bus %pad\n", buffer->number,
			 edu_kinds[buffer->kind], &buffer->place, &buffer->bus);
	return 0;
}

/* Hand the buffer to the device, or take it back. */
static int edu_sync(struct edu_buffer *buffer, bool to_device)
{
	struct device *device = &buffer->edu->pci->dev;

	if (!buffer->size)
		return -ENXIO;
	if (buffer->kind == EDU_COHERENT || buffer->kind == EDU_STALE)
		return 0;	/* one needs none, the other is no longer mapped */
	if (to_device)
		dma_sync_single_for_device(device, buffer->bus, buffer->size, DMA_BIDIRECTIONAL);
	else
		dma_sync_single_for_cpu(device, buffer->bus, buffer->size, DMA_BIDIRECTIONAL);
	return 0;
}

static int edu_move(struct edu_buffer *buffer, bool to_ram)
{
	int error = edu_sync(buffer, true);

	return error ? error : edu_transfer(buffer, to_ram);
}

/* There and back, for whoever watches. The lock is let go of between two transfers. */
static int edu_repeat(struct edu_buffer *buffer, u32 times)
{
	int error = 0;
	u64 i;

	for (i = 0; i < 2 * (u64)times && !error; i++) {
		mutex_lock(&buffer->lock);
		error = edu_move(buffer, i & 1) ?: edu_sync(buffer, false);
		mutex_unlock(&buffer->lock);
		if (!error && signal_pending(current))
			error = -EINTR;
	}
	return error;
}

static long edu_ioctl(struct file *file, unsigned int command, unsigned long argument)
{
	struct edu_buffer *buffer = file->private_data;
	struct edu_wish wish;
	u32 times;
	int error = -ENOTTY;

	if (command == EDU_TAKE) {
		if (copy_from_user(&wish, (void __user *)argument, sizeof(wish)))
			return -EFAULT;
		if (wish.kind >= EDU_KINDS || !wish.size || wish.size > EDU_SIZE ||
		    offset_in_page(wish.address) + wish.size > PAGE_SIZE)
			return -EINVAL;
	}
	if (command == EDU_REPEAT) {
		if (get_user(times, (u32 __user *)argument))
			return -EFAULT;
		return edu_repeat(buffer, times);
	}
	mutex_lock(&buffer->lock);
	if (command == EDU_TAKE)
		error = edu_take(buffer, &wish);
	else if (command == EDU_SEND || command == EDU_RECEIVE)
		error = edu_move(buffer, command == EDU_RECEIVE) ?: edu_sync(buffer, false);
	else if (command == EDU_WRITTEN)
		error = edu_move(buffer, true);
	else if (command == EDU_SYNC)
		error = edu_sync(buffer, false);
	mutex_unlock(&buffer->lock);
	return error;
}

static ssize_t edu_read(struct file *file, char __user *to, size_t count, loff_t *at)
{
	struct edu_buffer *buffer = file->private_data;
	ssize_t done = -ENXIO;

	mutex_lock(&buffer->lock);
	if (buffer->memory)
		done = simple_read_from_buffer(to, count, at, buffer->memory, buffer->size);
	mutex_unlock(&buffer->lock);
	return done;
}

static ssize_t edu_write(struct file *file, const char __user *from, size_t count, loff_t *at)
{
	struct edu_buffer *buffer = file->private_data;
	ssize_t done = -ENXIO;

	mutex_lock(&buffer->lock);
	if (buffer->memory)
		done = simple_write_to_buffer(buffer->memory, buffer->size, at, from, count);
	mutex_unlock(&buffer->lock);
	return done;
}

static const struct file_operations edu_fops = {
	.owner = THIS_MODULE,
	.open = edu_open,
	.release = edu_release,
	.unlocked_ioctl = edu_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.read = edu_read,
	.write = edu_write,
	.llseek = default_llseek,
};

static int edu_probe(struct pci_dev *pci, const struct pci_device_id *id)
{
	struct edu *edu = devm_kzalloc(&pci->dev, sizeof(*edu), GFP_KERNEL);
	int error;

	if (!edu)
		return -ENOMEM;
	edu->pci = pci;
	mutex_init(&edu->listed);
	INIT_LIST_HEAD(&edu->buffers);
	mutex_init(&edu->engine);
	init_completion(&edu->done);
	error = pcim_enable_device(pci);
	if (error)
		return error;
	error = pcim_iomap_regions(pci, BIT(EDU_BAR), KBUILD_MODNAME);
	if (error)
		return error;
	edu->registers = pcim_iomap_table(pci)[EDU_BAR];
	error = dma_set_mask_and_coherent(&pci->dev, DMA_BIT_MASK(mask));
	if (error)
		return error;
	pci_set_master(pci);
	error = pci_alloc_irq_vectors(pci, 1, 1, PCI_IRQ_ALL_TYPES);
	if (error < 0)
		return error;
	error = request_irq(pci_irq_vector(pci, 0), edu_interrupt, IRQF_SHARED, KBUILD_MODNAME,
			    edu);
	if (error)
		goto free_vectors;
	edu->misc.minor = MISC_DYNAMIC_MINOR;
	edu->misc.name = "edu";
	edu->misc.fops = &edu_fops;
	edu->misc.mode = 0600;
	error = misc_register(&edu->misc);
	if (error)
		goto free_irq;
	pci_set_drvdata(pci, edu);
	return 0;

free_irq:
	free_irq(pci_irq_vector(pci, 0), edu);
free_vectors:
	pci_free_irq_vectors(pci);
	return error;
}

static void edu_remove(struct pci_dev *pci)
{
	struct edu *edu = pci_get_drvdata(pci);

	misc_deregister(&edu->misc);
	free_irq(pci_irq_vector(pci, 0), edu);
	pci_free_irq_vectors(pci);
	pci_clear_master(pci);
}

static const struct pci_device_id edu_ids[] = {
	{ PCI_DEVICE(0x1234, 0x11e8) },
	{ }
};
MODULE_DEVICE_TABLE(pci, edu_ids);

static struct pci_driver edu_driver = {
	.name = KBUILD_MODNAME,
	.id_table = edu_ids,
	.probe = edu_probe,
	.remove = edu_remove,
	/* An open file has the device: only rmmod, which waits for it, takes the driver off. */
	.driver.suppress_bind_attrs = true,
};

module_pci_driver(edu_driver);

MODULE_DESCRIPTION("QEMU's edu device: DMA into buffers of every kind");
MODULE_LICENSE("Dual MIT/GPL");
