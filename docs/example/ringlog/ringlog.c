// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * ringlog: /dev/ringlog keeps the last messages that were written to it, each in a page of its own.
 *
 * It has two leaks, as drivers have them. The tests find both; fix.patch mends them.
 */
#include <linux/fs.h>
#include <linux/gfp.h>
#include <linux/jiffies.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#define RING_SIZE 8

struct message {
	struct page *page;
	size_t length;		/* bytes */
	u64 when;		/* jiffies */
};

static struct message *ringlog_ring[RING_SIZE];
static unsigned int ringlog_next;
static DEFINE_MUTEX(ring_lock);

static void ring_put(struct message *message)
{
	struct message **place = &ringlog_ring[ringlog_next++ % RING_SIZE];

	kfree(*place);
	*place = message;
}

static ssize_t ringlog_write(struct file *file, const char __user *text, size_t length, loff_t *at)
{
	struct message *message = kzalloc(sizeof(*message), GFP_KERNEL_ACCOUNT);

	if (!message)
		return -ENOMEM;
	if (length > PAGE_SIZE)
		return -EMSGSIZE;
	message->page = alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO);
	if (!message->page) {
		kfree(message);
		return -ENOMEM;
	}
	if (copy_from_user(page_address(message->page), text, length)) {
		__free_page(message->page);
		kfree(message);
		return -EFAULT;
	}
	message->length = length;
	message->when = get_jiffies_64();
	mutex_lock(&ring_lock);
	ring_put(message);
	mutex_unlock(&ring_lock);
	return length;
}

static const struct file_operations ringlog_fops = {
	.owner = THIS_MODULE,
	.write = ringlog_write,
};

static struct miscdevice ringlog_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "ringlog",
	.fops = &ringlog_fops,
	.mode = 0600,
};

static int __init ringlog_init(void)
{
	return misc_register(&ringlog_device);
}

static void __exit ringlog_exit(void)
{
	unsigned int i;

	misc_deregister(&ringlog_device);
	for (i = 0; i < RING_SIZE; i++) {
		if (ringlog_ring[i])
			__free_page(ringlog_ring[i]->page);
		kfree(ringlog_ring[i]);
	}
}

module_init(ringlog_init);
module_exit(ringlog_exit);

MODULE_DESCRIPTION("Keeps the last messages");
MODULE_LICENSE("Dual MIT/GPL");
