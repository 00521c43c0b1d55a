/* A task that never sleeps. */
#include "lab.h"

static const char usage[] =
	"usage: burn [--syscall]\n"
	"Prints its pid, then counts for ever in user space, or in getppid() with --syscall.\n"
	"example: burn\n";

int main(int argc, char **argv)
{
	volatile unsigned long count = 0;
	int syscalls = argc > 1;

	help_or_die(argc, argv, 0, usage);
	if (syscalls && strcmp(argv[1], "--syscall"))
		die("unknown option %s; see burn --help", argv[1]);
	printf("%d\n", getpid());
	fflush(stdout);
	for (;;) {
		count++;
		if (syscalls)
			getppid();
	}
}
