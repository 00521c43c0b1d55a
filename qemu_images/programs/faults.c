/* One page fault of each kind, in a known order, at known addresses. */
#include "lab.h"

#include <linux/perf_event.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static const char usage[] =
	"usage: faults FOLDER [--swap] [--disk DEVICE]\n"
	"Makes one page fault of each kind that this machine can make, in order. Then prints a line for each:\n"
	"  kind user|kernel read|write|exec address pagemap-entry-afterwards\n"
	"and `counted minor major` of the process, up to the last two, which come from tracking writes.\n"
	"  FOLDER         where to make a file\n"
	"  --swap         there is swap: swap a page out and in\n"
	"  --disk DEVICE  a block device to write to, for a major fault\n"
	"example: faults /tmp\n";

/* A window of the address space that is the script's alone. */
#define WINDOW 0x100000000000UL
#define STEP (16 * MIB)
#define STEPS 64

static struct done {
	const char *kind, *mode, *access;
	unsigned long address, entry;
} done[STEPS];
static int count, pagemap;
static char *next_place = (char *)WINDOW;
static sigjmp_buf back;
static struct rusage first, last;

static void did(const char *kind, const char *mode, const char *access, volatile void *address)
{
	unsigned long entry = 0;

	if (pread(pagemap, &entry, 8, (unsigned long)address / PAGE * 8) != 8)
		entry = 0;
	done[count++] = (struct done){ kind, mode, access, (unsigned long)address, entry };
}

static char *place(void)
{
	next_place += STEP;
	return next_place - STEP;
}

static char *anonymous(size_t size, int prot)
{
	char *start = map(place(), size, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1);

	if (size < 2 * MIB)
		madvise(start, size, MADV_NOHUGEPAGE);
	return start;
}

static void reads(const char *kind, volatile char *address)
{
	(void)*address;
	did(kind, "user", "read", address);
}

static void writes(const char *kind, volatile char *address)
{
	*address = 1;
	did(kind, "user", "write", address);
}

/* As many faults as the kernel counts: a driver may map its pages before, a page may be cleaned at once. */
static void counted(const char *kind, volatile char *address, int write)
{
	struct rusage before, after;

	getrusage(RUSAGE_SELF, &before);
	if (write)
		*address = 1;
	else
		(void)*address;
	getrusage(RUSAGE_SELF, &after);
	for (long i = before.ru_minflt + before.ru_majflt; i < after.ru_minflt + after.ru_majflt; i++)
		did(kind, "user", write ? "write" : "read", address);
}

static cpu_set_t everywhere;

/* A new page waits in a list of its CPU, counted there, and only that CPU can take it out again: until then it is
 * neither reused nor swapped out. */
static void stay_here(void)
{
	cpu_set_t here;

	sched_getaffinity(0, sizeof(everywhere), &everywhere);
	CPU_ZERO(&here);
	CPU_SET(sched_getcpu(), &here);
	sched_setaffinity(0, sizeof(here), &here);
}

static void go_anywhere(void)
{
	sched_setaffinity(0, sizeof(everywhere), &everywhere);
}

static void anonymous_memory(void)
{
	char *page = anonymous(4 * PAGE, PROT_READ | PROT_WRITE), *huge;

	writes("ANONYMOUS", page + 24);
	reads("ZERO_PAGE", page + PAGE);
	writes("COW_COPY", page + PAGE);
	huge = map(place(), 2 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1);
	madvise(huge, 2 * MIB, MADV_HUGEPAGE);
	writes("THP", huge + 5 * PAGE);
}

static void forked(void)
{
	char *pages = anonymous(2 * PAGE, PROT_READ | PROT_WRITE);
	int hold[2], status;
	char byte;
	pid_t child;

	stay_here();
	writes("ANONYMOUS", pages);
	writes("ANONYMOUS", pages + PAGE);
	if (pipe(hold))
		die("no pipe");
	child = fork();
	if (child < 0)
		die("cannot fork");
	if (!child) {
		close(hold[1]);
		(void)!read(hold[0], &byte, 1);
		_exit(0);
	}
	close(hold[0]);
	writes("COW_COPY", pages);
	close(hold[1]);
	waitpid(child, &status, 0);
	writes("COW_REUSE", pages + PAGE);
	go_anywhere();
}

static void files(const char *folder)
{
	char path[256], *start;
	int fd;

	snprintf(path, sizeof(path), "%s/faults.%d", folder, getpid());
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	for (size_t at = 0; at < 4 * PAGE; at += PAGE)
		if (fd < 0 || pwrite(fd, "x", 1, at) != 1)
			die("cannot write %s", path);
	unlink(path);
	start = map(place(), 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED_NOREPLACE, fd);
	reads("FILE_MINOR", start);
	writes("COW_COPY", start);
	start = map(place(), PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED_NOREPLACE, fd);
	writes("COW_COPY", start);
	start = map(place(), PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE, fd);
	writes("SHARED_WRITE", start);
	start = map(place(), 8 * PAGE, PROT_READ, MAP_SHARED | MAP_FIXED_NOREPLACE, fd);
	if (!sigsetjmp(back, 1)) {
		volatile char *past = start + 6 * PAGE;

		did("SIGBUS", "user", "read", past);
		(void)*past;
	}
	close(fd);
}

static void disk(const char *path)
{
	static char block[PAGE] __attribute__((aligned(4096)));
	unsigned char resident = 1;
	char *start;
	int fd = open(path, O_RDWR);

	if (fd < 0 || pwrite(fd, block, PAGE, 0) != PAGE || fsync(fd))
		die("cannot write %s", path);
	start = map(place(), PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE, fd);
	for (int i = 0; i < 100 && resident & 1; i++) {
		posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
		mincore(start, PAGE, &resident);
	}
	reads("FILE_MAJOR", start);
	counted("SHARED_WRITE", start, 1);
	close(fd);
}

static void swapped(void)
{
	char *page = anonymous(PAGE, PROT_READ | PROT_WRITE);
	unsigned long entry = 0;

	stay_here();
	writes("ANONYMOUS", page);
	for (int i = 0; i < 100 && !(entry >> 62 & 1); i++) {
		madvise(page, PAGE, MADV_PAGEOUT);
		if (pread(pagemap, &entry, 8, (unsigned long)page / PAGE * 8) != 8)
			die("cannot read pagemap");
	}
	if (!(entry >> 62 & 1))
		die("the page is not swapped out: is swap on?");
	reads("SWAP_IN", page);
	go_anywhere();
}

static void stack(void)
{
	char *start = place() + 8 * MIB;

	map(start, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED_NOREPLACE, -1);
	madvise(start, PAGE, MADV_NOHUGEPAGE);
	writes("STACK_GROWTH", start - 16);
}

static void by_the_kernel(void)
{
	char *pages = anonymous(3 * PAGE, PROT_READ | PROT_WRITE), *locked;
	int fd = open("/dev/zero", O_RDONLY), ends[2];

	if (read(fd, pages, 1) != 1)
		die("cannot read /dev/zero");
	did("ANONYMOUS", "kernel", "write", pages);
	if (pipe(ends) || write(ends[1], pages + PAGE, 1) != 1)
		die("cannot write to a pipe");
	did("ZERO_PAGE", "kernel", "read", pages + PAGE);
	munmap(pages + 2 * PAGE, PAGE);
	if (syscall(SYS_time, pages + 2 * PAGE) != -1 || errno != EFAULT)
		die("the kernel did not refuse a bad address");
	did("KERNEL_EFAULT", "kernel", "write", pages + 2 * PAGE);
	locked = map(place(), PAGE, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE | MAP_FIXED_NOREPLACE, -1);
	did("ANONYMOUS", "asked", "write", locked);
}

/* A ring buffer, whose pages its driver puts in as they are touched; newer kernels do it at once. */
static void driver(void)
{
	struct perf_event_attr what = { .type = PERF_TYPE_SOFTWARE, .size = sizeof(what), .config = PERF_COUNT_SW_DUMMY };
	int fd = syscall(SYS_perf_event_open, &what, 0, -1, -1, 0);
	char *start;

	if (fd < 0)
		return;
	start = mmap(place(), 2 * PAGE, PROT_READ, MAP_SHARED | MAP_FIXED_NOREPLACE, fd, 0);
	if (start == MAP_FAILED)
		return;
	counted("DRIVER", start, 0);
}

static int uffd;
static char filler[PAGE] __attribute__((aligned(4096)));

static void *serve(void *unused)
{
	struct uffd_msg message;

	while (read(uffd, &message, sizeof(message)) == sizeof(message)) {
		unsigned long page = message.arg.pagefault.address & -PAGE;

		if (message.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) {
			struct uffdio_writeprotect let = { .range = { page, PAGE }, .mode = 0 };

			ioctl(uffd, UFFDIO_WRITEPROTECT, &let);
		} else {
			struct uffdio_copy copy = { .dst = page, .src = (unsigned long)filler, .len = PAGE };

			ioctl(uffd, UFFDIO_COPY, &copy);
		}
	}
	return unused;
}

static void userfault(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register what = { .mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP };
	struct uffdio_writeprotect protect = { .mode = UFFDIO_WRITEPROTECT_MODE_WP };
	pthread_t server;
	char *page;

	uffd = syscall(SYS_userfaultfd, O_CLOEXEC);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))
		return;
	page = anonymous(PAGE, PROT_READ | PROT_WRITE);
	what.range.start = protect.range.start = (unsigned long)page;
	what.range.len = protect.range.len = PAGE;
	if (ioctl(uffd, UFFDIO_REGISTER, &what) || pthread_create(&server, NULL, serve, NULL))
		return;
	reads("USERFAULTFD", page);
	if (!ioctl(uffd, UFFDIO_WRITEPROTECT, &protect))
		writes("USERFAULTFD_WP", page);
}

static void handler(int signal)
{
	(void)signal;
	siglongjmp(back, 1);
}

static void bad(void)
{
	char *page = anonymous(2 * PAGE, PROT_READ | PROT_WRITE);

	munmap(page + PAGE, PAGE);
	if (!sigsetjmp(back, 1)) {
		did("SIGSEGV", "user", "write", page + PAGE);
		*(volatile char *)(page + PAGE) = 1;
	}
	reads("ZERO_PAGE", page);
	mprotect(page, PAGE, PROT_READ);
	if (!sigsetjmp(back, 1)) {
		did("SIGSEGV", "user", "write", page);
		*(volatile char *)page = 1;
	}
	if (!sigsetjmp(back, 1)) {
		did("SIGSEGV", "user", "exec", page);
		((void (*)(void))page)();
	}
	if (!sigsetjmp(back, 1)) {
		volatile char *kernel = (char *)0xffff800000000000UL;

		did("SIGSEGV", "user", "read", kernel);
		(void)*kernel;
	}
}

/* A page of the pool of huge pages, which is made larger for it. */
static void pooled(void)
{
	static const char path[] = "/proc/sys/vm/nr_hugepages";
	char text[32] = "";
	int fd = open(path, O_RDWR);
	char *huge;

	if (fd < 0 || read(fd, text, sizeof(text) - 1) < 1)
		return;
	snprintf(text, sizeof(text), "%lu", strtoul(text, NULL, 10) + 1);
	if (pwrite(fd, text, strlen(text), 0) < 1)
		return;
	huge = mmap(place(), 2 * MIB, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_HUGE_2MB | MAP_FIXED_NOREPLACE, -1, 0);
	if (huge != MAP_FAILED)
		writes("HUGETLB", huge + PAGE);
	close(fd);
}

/* time() of the vsyscall page, which nobody may execute: the kernel does its work (vsyscall=none: it does not). */
static void vsyscall(void)
{
	long (*old_time)(long *) = (void *)0xffffffffff600400UL;

	if (!sigsetjmp(back, 1)) {
		old_time(NULL);
		did("VSYSCALL", "user", "exec", (void *)old_time);
	} else {
		did("SIGSEGV", "user", "exec", (void *)old_time);
	}
}

static void tracked(void)
{
	char *page = anonymous(PAGE, PROT_READ | PROT_WRITE);
	int fd = open("/proc/self/clear_refs", O_WRONLY);

	writes("ANONYMOUS", page);
	if (fd < 0 || write(fd, "4", 1) != 1)
		return;
	writes("DIRTY_TRACKING", page);
}

int main(int argc, char **argv)
{
	const char *device = NULL;
	int swap = 0;

	help_or_die(argc, argv, 1, usage);
	for (int i = 2; i < argc; i++) {
		if (!strcmp(argv[i], "--swap"))
			swap = 1;
		else if (!strcmp(argv[i], "--disk") && i + 1 < argc)
			device = argv[++i];
		else
			die("unknown option %s; see faults --help", argv[i]);
	}
	pagemap = open("/proc/self/pagemap", O_RDONLY);
	if (pagemap < 0)
		die("cannot open pagemap");
	signal(SIGSEGV, handler);
	signal(SIGBUS, handler);
	/* What the program itself needs is brought in first; what comes later is put in where it is touched. */
	mlockall(MCL_CURRENT);
	munlockall();
	getrusage(RUSAGE_SELF, &first);
	anonymous_memory();
	forked();
	files(argv[1]);
	if (device)
		disk(device);
	if (swap)
		swapped();
	stack();
	by_the_kernel();
	driver();
	userfault();
	bad();
	pooled();
	vsyscall();
	getrusage(RUSAGE_SELF, &last);
	tracked();
	for (int i = 0; i < count; i++)
		printf("%s %s %s %#lx %#lx\n", done[i].kind, done[i].mode, done[i].access, done[i].address, done[i].entry);
	printf("counted %ld %ld\n", last.ru_minflt - first.ru_minflt, last.ru_majflt - first.ru_majflt);
	return 0;
}
