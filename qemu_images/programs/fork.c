/* Copy-on-write, half broken: a parent and a child that share one half of a mapping. */
#include "lab.h"

static const char usage[] =
	"usage: fork SIZE [--thp | --no-thp]\n"
	"Maps SIZE, writes every page, forks; the child writes the first half again, so that it owns copies of it.\n"
	"Prints `parent child address size`; both stay. Without an option there are no huge pages.\n"
	"example: fork 4M\n";

int main(int argc, char **argv)
{
	int advice = MADV_NOHUGEPAGE, done[2];
	size_t size;
	char *start, byte;
	pid_t child;

	help_or_die(argc, argv, 1, usage);
	size = parse_size(argv[1]);
	if (argc > 2) {
		if (!strcmp(argv[2], "--thp"))
			advice = MADV_HUGEPAGE;
		else if (strcmp(argv[2], "--no-thp"))
			die("unknown option %s; see fork --help", argv[2]);
	}
	start = map_aligned(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
	madvise(start, size, advice);
	name_mapping(start, size, "fork");
	write_pages(start, size, 1);
	if (pipe(done))
		die("no pipe");
	child = fork();
	if (child < 0)
		die("cannot fork");
	if (!child) {
		prctl(PR_SET_PDEATHSIG, 9);
		write_pages(start, size / 2, 2);
		if (write(done[1], "", 1) != 1)
			die("the parent is gone");
		pause_forever();
	}
	if (read(done[0], &byte, 1) != 1)
		die("the child is gone");
	printf("%d %d %#lx %zu\n", getpid(), child, (unsigned long)start, size);
	pause_forever();
}
