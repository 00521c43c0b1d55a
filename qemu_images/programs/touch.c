/* Map memory, touch every page of it, stay. */
#include "lab.h"

static const char usage[] =
	"usage: touch SIZE [--thp | --no-thp | --huge 2M | --huge 1G] [--read] [--shared] [--mlock] [--merge]\n"
	"Maps SIZE (anonymous, private), touches every page, prints `pid address size` and stays.\n"
	"  --thp, --no-thp  ask for transparent huge pages, or for none; a kernel that has none is not asked\n"
	"  --huge PAGESIZE  use hugetlb pages; they are reserved first\n"
	"  --read           only read: private pages stay the zero page\n"
	"  --shared         share the mapping (shmem)\n"
	"  --mlock          lock it in memory\n"
	"  --merge          let KSM merge equal pages; all are equal\n"
	"example: touch 8M --no-thp\n";

/* Raise the pool of hugetlb pages by `count`. */
static void reserve(size_t page, size_t count)
{
	char path[96], text[32];
	unsigned long now = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/sys/kernel/mm/hugepages/hugepages-%zukB/free_hugepages", page >> 10);
	file = fopen(path, "r");
	if (!file || fscanf(file, "%lu", &now) != 1)
		die("this machine has no huge pages of %zu KiB", page >> 10);
	fclose(file);
	if (now >= count)
		return;
	snprintf(path, sizeof(path), "/sys/kernel/mm/hugepages/hugepages-%zukB/nr_hugepages", page >> 10);
	file = fopen(path, "r+");
	if (!file || fscanf(file, "%31s", text) != 1)
		die("cannot read %s", path);
	count += strtoul(text, NULL, 10) - now;
	rewind(file);
	fprintf(file, "%zu\n", count);
	fclose(file);
}

int main(int argc, char **argv)
{
	int flags = MAP_ANONYMOUS, shared = 0, lock = 0, read_only = 0, merge = 0, advice = 0;
	size_t size, huge = 0;
	char *start;

	help_or_die(argc, argv, 1, usage);
	size = parse_size(argv[1]);
	for (int i = 2; i < argc; i++) {
		if (!strcmp(argv[i], "--thp"))
			advice = MADV_HUGEPAGE;
		else if (!strcmp(argv[i], "--no-thp"))
			advice = MADV_NOHUGEPAGE;
		else if (!strcmp(argv[i], "--read"))
			read_only = 1;
		else if (!strcmp(argv[i], "--shared"))
			shared = 1;
		else if (!strcmp(argv[i], "--mlock"))
			lock = 1;
		else if (!strcmp(argv[i], "--merge"))
			merge = 1;
		else if (!strcmp(argv[i], "--huge") && i + 1 < argc)
			huge = parse_size(argv[++i]);
		else
			die("unknown option %s; see touch --help", argv[i]);
	}
	flags |= shared ? MAP_SHARED : MAP_PRIVATE;
	if (huge) {
		if (huge != 2 * MIB && huge != GIB)
			die("huge pages are 2M or 1G");
		size = (size + huge - 1) & -huge;
		reserve(huge, size / huge);
		flags |= MAP_HUGETLB | (huge == GIB ? MAP_HUGE_1GB : MAP_HUGE_2MB);
		start = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, -1, 0);
		if (start == MAP_FAILED)
			die("not enough huge pages; reserve them at boot (hugepagesz=%s hugepages=N)",
			    huge == GIB ? "1G" : "2M");
	} else {
		start = map_aligned(size, PROT_READ | PROT_WRITE, flags);
		/* EINVAL: the kernel knows no huge pages, as with PREEMPT_RT. */
		if (advice && madvise(start, size, advice) && errno != EINVAL)
			die("madvise refused");
		if (merge && madvise(start, size, MADV_MERGEABLE))
			die("this kernel has no KSM");
	}
	name_mapping(start, size, "touch");
	if (lock && mlock(start, size))
		die("cannot lock %zu bytes", size);
	if (read_only)
		for (size_t at = 0; at < size; at += PAGE)
			(void)((volatile char *)start)[at];
	else
		write_pages(start, size, 1);
	printf("%d %#lx %zu\n", getpid(), (unsigned long)start, size);
	pause_forever();
}
