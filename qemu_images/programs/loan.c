/* Borrows pages of the lender module's, maps and writes them, and keeps them. */
#include "lab.h"

#include <sys/ioctl.h>

#include "../modules/lender/lender.h"

static const char usage[] =
	"usage: loan WAY PAGES [--account] [--movable] [--forget] [--dontcopy] [--read]\n"
	"Takes pages from /dev/lender, maps them and writes `loan page N` into each. Then prints its PID, the\n"
	"mapping's address and size, and each page's entry in its pagemap, in hex.\n"
	"  WAY         how the driver maps them: pfn, remap, page, pages, fault\n"
	"  --account   charge them to this task's memory cgroup\n"
	"  --movable   take movable pages\n"
	"  --forget    let the driver leak them at the end\n"
	"  --dontcopy  have no child inherit the mapping\n"
	"  --read      only read them\n"
	"example: loan page 4 --account\n";

static const char *const ways[] = { "pfn", "remap", "page", "pages", "fault" };

int main(int argc, char **argv)
{
	struct lender_wish wish = { 0 };
	int device, pagemap, only_read = 0;
	size_t size;
	char *start;

	help_or_die(argc, argv, 2, usage);
	while (wish.way < LENDER_WAYS && strcmp(argv[1], ways[wish.way]))
		wish.way++;
	if (wish.way == LENDER_WAYS)
		die("no such way: %s", argv[1]);
	wish.count = strtoul(argv[2], NULL, 0);
	for (int i = 3; i < argc; i++)
		if (!strcmp(argv[i], "--account"))
			wish.flags |= LENDER_ACCOUNT;
		else if (!strcmp(argv[i], "--movable"))
			wish.flags |= LENDER_MOVABLE;
		else if (!strcmp(argv[i], "--forget"))
			wish.flags |= LENDER_FORGET;
		else if (!strcmp(argv[i], "--dontcopy"))
			wish.flags |= LENDER_DONTCOPY;
		else if (!strcmp(argv[i], "--read"))
			only_read = 1;
		else
			die("no such option: %s", argv[i]);

	device = open("/dev/lender", O_RDWR | O_CLOEXEC);
	if (device < 0)
		die("cannot open /dev/lender: is the module loaded?");
	if (ioctl(device, LENDER_TAKE, &wish) < 0)
		die("cannot take %u pages", wish.count);
	size = wish.count * PAGE;
	start = map(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, device);
	close(device);                           /* the mapping keeps the loan */
	for (unsigned i = 0; i < wish.count; i++)
		if (only_read)
			(void)*(volatile char *)(start + i * PAGE);
		else
			sprintf(start + i * PAGE, "loan page %u", i);

	pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (pagemap < 0)
		die("cannot open the pagemap");
	printf("%d %p %zu", getpid(), (void *)start, size);
	for (unsigned i = 0; i < wish.count; i++) {
		uint64_t entry;

		if (pread(pagemap, &entry, sizeof entry, ((uintptr_t)start / PAGE + i) * sizeof entry) != sizeof entry)
			die("cannot read the pagemap");
		printf(" %#llx", (unsigned long long)entry);
	}
	printf("\n");
	close(pagemap);
	pause_forever();
}
