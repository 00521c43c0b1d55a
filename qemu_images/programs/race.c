/* Threads that fault at the same time, each in its own pages and all in common ones. */
#include "lab.h"

#include <pthread.h>
#include <sys/resource.h>

static const char usage[] =
	"usage: race THREADS PAGES\n"
	"Each thread writes PAGES pages of its own, and between them the same PAGES pages as the others.\n"
	"Prints `own-address common-address minor major`: the pages of the threads lie one after the other; the\n"
	"counts are the kernel's of all page faults that the threads made.\n"
	"example: race 4 64\n";

static char *own, *common;
static size_t pages;
static int counts[2];
static pthread_barrier_t ready;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void *touch(void *number)
{
	char *mine = own + (size_t)number * pages * PAGE;
	struct rusage before, after;

	pthread_barrier_wait(&ready);
	getrusage(RUSAGE_THREAD, &before);
	for (size_t at = 0; at < pages * PAGE; at += PAGE) {
		((volatile char *)mine)[at] = 1;
		((volatile char *)common)[at] = 1;
	}
	getrusage(RUSAGE_THREAD, &after);
	pthread_mutex_lock(&lock);
	counts[0] += after.ru_minflt - before.ru_minflt;
	counts[1] += after.ru_majflt - before.ru_majflt;
	pthread_mutex_unlock(&lock);
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[64];
	size_t count;

	help_or_die(argc, argv, 2, usage);
	count = strtoul(argv[1], NULL, 10);
	pages = strtoul(argv[2], NULL, 10);
	if (!count || count > 64 || !pages || pages > 65536)
		die("1 to 64 threads, 1 to 65536 pages; see race --help");
	own = map_aligned(count * pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
	common = map_aligned(pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
	madvise(own, count * pages * PAGE, MADV_NOHUGEPAGE);
	madvise(common, pages * PAGE, MADV_NOHUGEPAGE);
	pthread_barrier_init(&ready, NULL, count);
	for (size_t i = 0; i < count; i++)
		if (pthread_create(&threads[i], NULL, touch, (void *)i))
			die("cannot start a thread");
	for (size_t i = 0; i < count; i++)
		pthread_join(threads[i], NULL);
	printf("%#lx %#lx %d %d\n", (unsigned long)own, (unsigned long)common, counts[0], counts[1]);
	return 0;
}
