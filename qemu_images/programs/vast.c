/* Uses the range of the vast module's from both sides, and checks that nothing is lost between them. */
#include "lab.h"

#include <sched.h>
#include <sys/ioctl.h>
#include <sys/wait.h>

#include "../modules/vast/vast.h"

static const char usage[] =
	"usage: vast hammer TASKS PAGES ROUNDS | vast peek OFFSET\n"
	"  hammer  TASKS processes, on all CPUs, use the same PAGES pages ROUNDS times, each its own bytes of them:\n"
	"          by a mapping, by read() and write(), and by both at once; says `ok` when all had what they wrote\n"
	"  peek    eight bytes as the kernel sees them where it must not sleep, or that it does not see them\n"
	"example: vast hammer 4 64 20000\n";

#define APART 257 /* pages: a page table has room for one or two of them */

static int device;
static uint64_t *range;

static size_t offset_of(size_t page, size_t task)
{
	return page * APART * PAGE + task * sizeof(uint64_t);
}

static uint64_t read_by(unsigned way, size_t offset, size_t spare)
{
	uint64_t value = 0;

	switch (way) {
	case 0:
		return ((volatile uint64_t *)range)[offset / 8];
	case 1:
		if (pread(device, &value, 8, offset) != 8)
			die("cannot read at %#zx", offset);
		return value;
	default: /* the kernel loads from one page of the range and stores to another, in user space */
		if (pread(device, range + spare / 8, 8, offset) != 8)
			die("cannot read at %#zx to %#zx", offset, spare);
		return ((volatile uint64_t *)range)[spare / 8];
	}
}

static void write_by(unsigned way, size_t offset, uint64_t value)
{
	if (way)
		((volatile uint64_t *)range)[offset / 8] = value;
	else if (pwrite(device, &value, 8, offset) != 8)
		die("cannot write at %#zx", offset);
}

static void hammer(size_t task, size_t pages, size_t rounds)
{
	uint64_t *expected = calloc(pages, sizeof(*expected)), seen;
	unsigned random = task + 1;

	for (size_t round = 1; round <= rounds; round++) {
		size_t page, offset;

		random = random * 1103515245 + 12345;
		page = (random >> 8) % pages;
		offset = offset_of(page, task);
		seen = read_by((random >> 4) % 3, offset, offset_of(pages, task));
		if (seen != expected[page]) {
			errno = 0;
			die("task %zu, round %zu, page %zu: %#llx and not %#llx", task, round, page,
			    (unsigned long long)seen, (unsigned long long)expected[page]);
		}
		expected[page] = (uint64_t)task << 56 | (uint64_t)page << 32 | round;
		write_by(random & 8, offset, expected[page]);
	}
	exit(0);
}

static int hammer_all(size_t tasks, size_t pages, size_t rounds)
{
	int status, bad = 0;

	range = map(NULL, (pages + 1) * APART * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, device);
	for (size_t page = 0; page < pages; page++)
		memset((char *)range + offset_of(page, 0), 0, tasks * sizeof(*range));
	for (size_t task = 0; task < tasks; task++) {
		pid_t pid = fork();

		if (pid < 0)
			die("cannot fork");
		if (!pid)
			hammer(task, pages, rounds);
	}
	for (size_t task = 0; task < tasks; task++)
		bad |= wait(&status) < 0 || status;
	puts(bad ? "lost" : "ok");
	return bad;
}

static int peek(size_t offset)
{
	struct vast_peek peek = { .offset = offset };

	if (ioctl(device, VAST_PEEK, &peek))
		die("cannot peek");
	printf("%#llx\n", (unsigned long long)peek.value);
	return 0;
}

int main(int argc, char **argv)
{
	help_or_die(argc, argv, 2, usage);
	device = open("/dev/vast", O_RDWR | O_CLOEXEC);
	if (device < 0)
		die("cannot open /dev/vast: is the module loaded?");
	if (!strcmp(argv[1], "peek"))
		return peek(strtoul(argv[2], NULL, 0));
	if (strcmp(argv[1], "hammer") || argc < 5 || strtoul(argv[2], NULL, 0) > PAGE / 8)
		die("see vast --help");
	return hammer_all(strtoul(argv[2], NULL, 0), strtoul(argv[3], NULL, 0), strtoul(argv[4], NULL, 0));
}
