/* A task whose address space has one of everything that /proc/PID/maps can show. */
#include "lab.h"

#include <alloca.h>
#include <pthread.h>
#include <sys/shm.h>
#include <sys/stat.h>

static const char usage[] =
	"usage: maps\n"
	"Makes mappings of many kinds, and threads with names, prints its pid and stays. Files lie in /tmp/maps.PID.\n"
	"example: maps\n";

static char folder[64];

/* A file of four pages, mapped with these rights; only the first two pages are touched. */
static void map_file(const char *name, int prot, int flags, int then_delete)
{
	char path[160];
	char *start;
	int fd;

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	if (fd < 0 || ftruncate(fd, 4 * PAGE))
		die("cannot make %s", path);
	start = map(NULL, 4 * PAGE, prot, flags, fd);
	if (prot & PROT_WRITE)
		write_pages(start, 2 * PAGE, 'x');
	else if (prot & PROT_READ)
		(void)((volatile char *)start)[0];
	if (then_delete)
		unlink(path);
	close(fd);
}

static void map_anonymous(void)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS, both = PROT_READ | PROT_WRITE;
	char *holes = map(NULL, 64 * PAGE, both, flags, -1);
	char *sparse = map(NULL, 64 * PAGE, both, flags, -1);
	char *rights = map(NULL, 5 * PAGE, both, flags, -1);
	char *low = map(NULL, 4 * PAGE, both, flags | MAP_32BIT, -1);
	char *locked = map(NULL, 4 * PAGE, both, flags, -1);

	/* Every other page unmapped: many VMAs; every fourth page touched: holes in one VMA. */
	write_pages(holes, 64 * PAGE, 1);
	for (int i = 1; i < 64; i += 2)
		munmap(holes + i * PAGE, PAGE);
	for (int i = 0; i < 64; i += 4)
		sparse[i * PAGE] = 1;
	name_mapping(sparse, 64 * PAGE, "sparse pages");
	write_pages(rights, 5 * PAGE, 1);
	mprotect(rights + PAGE, PAGE, PROT_READ);
	mprotect(rights + 2 * PAGE, PAGE, PROT_READ | PROT_EXEC);
	mprotect(rights + 3 * PAGE, PAGE, PROT_NONE);
	write_pages(low, 4 * PAGE, 1);
	mlock(locked, 4 * PAGE);
	map(NULL, 16 * PAGE, PROT_NONE, flags | MAP_NORESERVE, -1);
	write_pages(map(NULL, 8 * PAGE, both, MAP_SHARED | MAP_ANONYMOUS, -1), 4 * PAGE, 1);
	map(NULL, 8 * PAGE, both, flags | MAP_GROWSDOWN, -1);
}

static void map_special(void)
{
	int fd = memfd_create("lab", 0), segment = shmget(IPC_PRIVATE, 4 * PAGE, IPC_CREAT | 0600);

	if (fd < 0 || ftruncate(fd, 4 * PAGE))
		die("no memfd");
	write_pages(map(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd), 2 * PAGE, 1);
	if (segment >= 0) {
		shmat(segment, NULL, 0);
		shmctl(segment, IPC_RMID, NULL);
	}
}

static void *stay(void *name)
{
	prctl(PR_SET_NAME, name);
	pause_forever();
	return NULL;
}

int main(int argc, char **argv)
{
	static const char *names[] = {"worker-1", "worker-2", "with space", "esc\033[31mred"};
	int both = PROT_READ | PROT_WRITE;
	pthread_t thread;
	char *deep;

	help_or_die(argc, argv, 0, usage);
	if (argc > 1)
		die("unknown option %s; see maps --help", argv[1]);
	snprintf(folder, sizeof(folder), "/tmp/maps.%d", getpid());
	if (mkdir(folder, 0700))
		die("cannot make %s", folder);
	map_file("private", both, MAP_PRIVATE, 0);
	map_file("shared", both, MAP_SHARED, 0);
	map_file("read-only", PROT_READ, MAP_SHARED, 0);
	map_file("executable", PROT_READ | PROT_EXEC, MAP_PRIVATE, 0);
	map_file("deleted", both, MAP_SHARED, 1);
	map_file("with space", both, MAP_SHARED, 0);
	map_file("new\nline", both, MAP_SHARED, 0);
	map_file("esc\033[31mred", both, MAP_SHARED, 0);
	map_anonymous();
	map_special();
	write_pages(sbrk(64 * PAGE), 32 * PAGE, 1);
	deep = alloca(64 * PAGE);
	write_pages(deep, 64 * PAGE, 1);
	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
		if (pthread_create(&thread, NULL, stay, (void *)names[i]))
			die("cannot make a thread");
	usleep(50000); /* the threads name themselves */
	printf("%d\n", getpid());
	pause_forever();
}
