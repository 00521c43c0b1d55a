/* A task that never sleeps. */
#include "lab.h"

static const char usage[] =
	"usage: burn [--syscall | --faults]\n"
	"Prints its pid, then counts for ever: in user space, in getppid() with --syscall, or with --faults while it\n"
	"touches 256 pages in turn and gives them back.\n"
	"example: burn\n";

#define ROUND (256 * PAGE)

int main(int argc, char **argv)
{
	volatile unsigned long count = 0;
	int syscalls = argc > 1 && !strcmp(argv[1], "--syscall");
	int faults = argc > 1 && !strcmp(argv[1], "--faults");
	char *pages;

	help_or_die(argc, argv, 0, usage);
	if (argc > 1 && !syscalls && !faults)
		die("unknown option %s; see burn --help", argv[1]);
	pages = map(NULL, ROUND, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	madvise(pages, ROUND, MADV_NOHUGEPAGE); /* which a kernel without them refuses */
	printf("%d\n", getpid());
	fflush(stdout);
	for (;;) {
		count++;
		if (syscalls)
			getppid();
		if (faults) {
			write_pages(pages, ROUND, 1);
			madvise(pages, ROUND, MADV_DONTNEED);
		}
	}
}
