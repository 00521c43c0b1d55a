/* Lets the edu device copy a buffer to itself and back, and says whether the bytes came. */
#include "lab.h"

#include <signal.h>
#include <sys/ioctl.h>

#include "../modules/edu/edu.h"

static const char usage[] =
	"usage: dma KIND [BYTES [TIMES]]\n"
	"Takes a buffer of /dev/edu's, has the device read it, wipes it and has the device write it. Then prints its\n"
	"PID, the buffer's address in this task (0 for one of the driver's), its pagemap entry in hex, and `came` or\n"
	"`lost`. After each SIGUSR1 it wipes the buffer, has the device write it again and prints the last two anew.\n"
	"  KIND   pages, kmalloc, coherent: the driver's own; pinned, stale: a locked page of this task's\n"
	"  BYTES  2048 unless told, the most\n"
	"  TIMES  after the first: there and back so many times more, 0.2 s each, for whoever watches\n"
	"example: dma pinned\n";

static const char *const kinds[] = { "pages", "kmalloc", "coherent", "pinned", "stale" };
static int device, pagemap;
static char *mine, text[EDU_SIZE];
static struct edu_wish wish;

/* By the CPU: the driver's buffer through its file, our own in place. */
static void fill(const char *bytes)
{
	if (mine)
		memcpy(mine, bytes, wish.size);
	else if (pwrite(device, bytes, wish.size, 0) != wish.size)
		die("cannot write the buffer");
}

static const char *fetched(void)
{
	static const char nothing[EDU_SIZE];
	static char seen[EDU_SIZE];

	fill(nothing);
	if (ioctl(device, EDU_RECEIVE) < 0)
		die("the device does not write the buffer");
	if (!mine && pread(device, seen, wish.size, 0) != wish.size)
		die("cannot read the buffer");
	return memcmp(mine ? mine : seen, text, wish.size) ? "lost" : "came";
}

static uint64_t frame(void)
{
	uint64_t entry = 0;

	if (mine && pread(pagemap, &entry, sizeof entry, (uintptr_t)mine / PAGE * sizeof entry) != sizeof entry)
		die("cannot read the pagemap");
	return entry;
}

int main(int argc, char **argv)
{
	__u32 times = 0;
	sigset_t again;
	int signal;

	help_or_die(argc, argv, 1, usage);
	while (wish.kind < EDU_KINDS && strcmp(argv[1], kinds[wish.kind]))
		wish.kind++;
	if (wish.kind == EDU_KINDS)
		die("no such kind: %s", argv[1]);
	wish.size = argc > 2 ? strtoul(argv[2], NULL, 0) : EDU_SIZE;
	times = argc > 3 ? strtoul(argv[3], NULL, 0) : 0;
	device = open("/dev/edu", O_RDWR | O_CLOEXEC);
	if (device < 0)
		die("cannot open /dev/edu: is the module loaded?");
	if (wish.kind == EDU_PINNED || wish.kind == EDU_STALE) {
		mine = map(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
		if (mlock(mine, PAGE) < 0)
			die("cannot lock the page");
		wish.address = (uintptr_t)mine;
	}
	pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (pagemap < 0)
		die("cannot open the pagemap");
	if (ioctl(device, EDU_TAKE, &wish) < 0)
		die("cannot take %u bytes", wish.size);
	for (unsigned i = 0; i < wish.size; i++)
		text[i] = "edu was here "[i % 13];
	fill(text);
	if (ioctl(device, EDU_SEND) < 0)
		die("the device does not read the buffer");

	sigemptyset(&again);
	sigaddset(&again, SIGUSR1);
	sigprocmask(SIG_BLOCK, &again, NULL);
	printf("%d %#lx", getpid(), (unsigned long)mine);
	for (;;) {
		const char *what = fetched();

		printf(" %#llx %s\n", (unsigned long long)frame(), what);
		fflush(stdout);
		if (times && ioctl(device, EDU_REPEAT, &times) < 0)
			die("the device does not carry on");
		times = 0;
		sigwait(&again, &signal);
	}
}
