// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * The kernel's page tables of the range: they come with the first page in them, go with the last.
 *
 * vunmap() and free_vm_area() clear entries and leave the tables, for whoever has the addresses
 * next. We free them, and may, because:
 * - The range begins at 1 GiB and is whole GiB (VM_IOREMAP aligns it), so that no other area has
 *   entries in its PTE and PMD tables. The table above those is shared, and stays.
 * - All changes to it are made under vast.lock.
 * - No CPU still has the way to a table in its paging-structure caches: INVLPG clears those of one
 *   PCID alone, so everything is flushed. A CPU that walks tables in software does so with
 *   interrupts disabled (spurious_kernel_fault(), perf), and lets us wait for it.
 * - Others walk them under mmap_lock of init_mm (ptdump), or leave a VM_IOREMAP area out (kcore).
 * An IOMMU that shares the kernel's page tables (SVA) would have to be told; here there is none.
 */
#include <linux/mm.h>
#include <linux/smp.h>
#include <linux/string.h>
#include <linux/vmalloc.h>
#include <asm/pgalloc.h>

#include "range.h"

#ifdef HAVE_PTDESC_CLEAR_KERNEL
/*
 * What is marked as the kernel's is freed by a worker, when IOMMUs have been told; no module can
 * ask it to (pagetable_free_kernel(), with CONFIG_ASYNC_KERNEL_PGTABLE_FREE).
 */
static void vast_free_table(void *table)
{
	struct ptdesc *ptdesc = virt_to_ptdesc(table);

	pagetable_dtor(ptdesc);
	ptdesc_clear_kernel(ptdesc);
	__pagetable_free(ptdesc);
}

#define vast_free_ptes vast_free_table
#define vast_free_pmds vast_free_table
#else
static void vast_free_ptes(pte_t *ptes)
{
	pte_free_kernel(vast_mm, ptes);
}

static void vast_free_pmds(pmd_t *pmds)
{
	pmd_free(vast_mm, pmds);
}
#endif

static int vast_set_pte(pte_t *pte, unsigned long address, void *data)
{
	struct page *page = data;

	set_pte_at(vast_mm, address, pte, page ? mk_pte(page, PAGE_KERNEL) : __pte(0));
	return 0;
}

/* NULL where there is no table of PMDs. */
static pud_t *vast_pud(unsigned long address)
{
	pgd_t *pgd = pgd_offset(vast_mm, address);
	p4d_t *p4d;
	pud_t *pud;

	if (pgd_none(*pgd))
		return NULL;
	p4d = p4d_offset(pgd, address);
	if (p4d_none(*p4d))
		return NULL;
	pud = pud_offset(p4d, address);
	return pud_none(*pud) ? NULL : pud;
}

static bool vast_has_table(unsigned long address)
{
	pud_t *pud = vast_pud(address);

	return pud && !pmd_none(*pmd_offset(pud, address));
}

/* Also where it is mapped already, to the same page. */
int vast_map(unsigned long address, struct page *page)
{
	bool had = vast_has_table(address);
	int error = apply_to_page_range(vast_mm, address, PAGE_SIZE, vast_set_pte, page);

	vast.tables += vast_has_table(address) - had;
	return error;
}

static void vast_flush_all(void *unused)
{
	vast_flush_cpu();	/* all PCIDs, global entries and paging-structure caches */
}

static bool vast_all_clear(const void *table)
{
	return !memchr_inv(table, 0, PAGE_SIZE);
}

/* Free the table of an address, and the one above, if they are empty; then all TLBs are too. */
static bool vast_drop_tables(unsigned long address)
{
	pud_t *pud = vast_pud(address);
	pmd_t *pmds = pud_pgtable(*pud), *pmd = pmd_offset(pud, address);
	pte_t *ptes = (pte_t *)pmd_page_vaddr(*pmd);
	bool both;

	if (!vast_all_clear(ptes))
		return false;
	mmap_write_lock(vast_mm);
	pmd_clear(pmd);
	both = vast_all_clear(pmds);
	if (both)
		pud_clear(pud);
	on_each_cpu(vast_flush_all, NULL, 1);
	mmap_write_unlock(vast_mm);

	vast_free_ptes(ptes);
	vast.tables--;
	if (both) {
		vast_free_pmds(pmds);
		mm_dec_nr_pmds(vast_mm);
	}
	return true;
}

/* Afterwards no CPU reaches the page at this address. It must be mapped. */
void vast_unmap(unsigned long address)
{
	/* The table is there: it adds none. */
	apply_to_page_range(vast_mm, address, PAGE_SIZE, vast_set_pte, NULL);
	if (!vast_drop_tables(address))
		vast_flush(address, address + PAGE_SIZE);
}

/* VM_IOREMAP: aligned, so that the tables are ours alone; and /proc/kcore leaves it out. */
int vast_make_range(void)
{
	vast.area = vast_reserve(vast.size, VM_IOREMAP);
	if (!vast.area)
		return -ENOMEM;
	vast.start = (unsigned long)vast.area->addr;
	return 0;
}

void vast_free_range(void)
{
	if (vast.area)
		free_vm_area(vast.area);
}
