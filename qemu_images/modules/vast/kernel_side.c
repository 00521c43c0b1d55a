// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * The range, by ordinary loads and stores of the kernel, on a kernel that knows nothing of it.
 *
 * The kernel takes a fault at an address of its own that nothing is mapped at for a bug. It calls
 * bad_area_nosemaphore(), which looks for an entry in the exception tables, and oopses where there
 * is none. A kprobe there sends faults in the range to vast_fault() first. It runs in the context
 * that faulted, may sleep where that may, and returns to the instruction.
 *
 * What cannot be served goes on to the kernel's own handling, as if we were not there.
 */
#include <linux/kprobes.h>
#include <linux/percpu.h>
#include <linux/uaccess.h>
#include <asm/trap_pf.h>

#include "range.h"

struct vm_struct *(*vast_reserve)(unsigned long size, unsigned long flags);
void (*vast_flush)(unsigned long start, unsigned long end);
void (*vast_flush_cpu)(void);	/* __flush_tlb_all(), which newer kernels export to KVM alone */
struct mm_struct *vast_mm;	/* init_mm */

/* The fault that is just being handed on, with interrupts disabled. */
static DEFINE_PER_CPU(struct pt_regs *, vast_handed_on);

static struct kprobe vast_probe;

static int vast_serve(unsigned long address)
{
	struct page *page;

	mutex_lock(&vast.lock);
	page = vast_bring(address & PAGE_MASK);
	if (!IS_ERR(page))
		vast.kernel_faults++;
	mutex_unlock(&vast.lock);
	return PTR_ERR_OR_ZERO(page);
}

/* In the place of bad_area_nosemaphore(), with its arguments and in its context. */
static void vast_fault(struct pt_regs *regs, unsigned long error_code, unsigned long address)
{
	void (*kernels_own)(struct pt_regs *regs, unsigned long error_code, unsigned long address);
	int error = -EFAULT;

	if (regs->flags & X86_EFLAGS_IF) {
		local_irq_enable();
		if (!faulthandler_disabled())
			error = vast_serve(address);
		local_irq_disable();
	}
	if (!error)
		return;
	atomic_inc(&vast.refused);
	this_cpu_write(vast_handed_on, regs);
	kernels_own = (void *)vast_probe.addr;
	kernels_own(regs, error_code, address);
}

static int vast_on_bad_area(struct kprobe *probe, struct pt_regs *regs)
{
	struct pt_regs *faulted = (struct pt_regs *)regs->di;
	unsigned long error_code = regs->si, address = regs->dx;

	if (user_mode(faulted) || address - vast.start >= vast.size)
		return 0;
	if (error_code & ~X86_PF_WRITE)	/* not just a page that is not there */
		return 0;
	if (this_cpu_read(vast_handed_on) == faulted) {
		this_cpu_write(vast_handed_on, NULL);
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

/* What is not exported, by the one function that is not exported and can be probed. */
int vast_look_up(void)
{
	struct kprobe probe = { .symbol_name = "kallsyms_lookup_name" };
	unsigned long (*look_up)(const char *name);
	int error = register_kprobe(&probe);

	if (error)
		return error;
	look_up = (void *)probe.addr;
	unregister_kprobe(&probe);
	vast_reserve = (void *)look_up("get_vm_area");
	vast_flush = (void *)look_up("flush_tlb_kernel_range");
	vast_flush_cpu = (void *)look_up("__flush_tlb_all");
	vast_mm = (void *)look_up("init_mm");
	return vast_reserve && vast_flush && vast_flush_cpu && vast_mm ? 0 : -ENOENT;
}

int vast_hook(void)
{
	return register_kprobe(&vast_probe);
}

void vast_unhook(void)
{
	unregister_kprobe(&vast_probe);
}
