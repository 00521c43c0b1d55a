/*
 * The one who acts in the labs: does to memory what each line of stdin says, and answers each with a line.
 * `error ...`, or `ok name=value ...`. What it says of its pages comes from its own /proc: the host has another source.
 */
#include "lab.h"

#include "device.h"

#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

static const char usage[] =
	"usage: actor\n"
	"Does what the lines of stdin say, and answers each. A PLACE is NAME, NAME+PAGES or 0xADDRESS; N counts pages.\n"
	"  map NAME N [shared] [none|ro|exec] [thp|nothp] [at=0xADDRESS] [file=PATH|device=NAME]   aligned to 2 MiB with thp\n"
	"  read PLACE | write PLACE VALUE | exec PLACE | scan PLACE N (reads) | touch PLACE N (writes)    and what faults and signals it took\n"
	"  look PLACE                                  its word in /proc/self/pagemap\n"
	"  count PLACE N                               how many are present and swapped there, and their frames\n"
	"  cached PLACE N                              how many of a file's pages the page cache has: mincore\n"
	"  smaps PLACE                                 the mapping's numbers in /proc/self/smaps, in KiB\n"
	"  protect PLACE N none|r|rw|rx                mprotect\n"
	"  advise PLACE N normal|cold|free|drop|pageout|thp|nothp    madvise\n"
	"  thin PLACE N                                give every other 64 pages back: madvise DONTNEED\n"
	"  lock PLACE N | unlock PLACE N | sync PLACE N | unmap PLACE N    mlock, munlock, msync, munmap\n"
	"  peek PLACE BYTES | poke PLACE HEX           what is in memory there\n"
	"  open NAME PATH | close NAME                 a device's file\n"
	"  ioctl NAME REQUEST [HEX] | pread NAME OFFSET BYTES | pwrite NAME OFFSET HEX\n"
	"  fill PATH N | forget PATH                   write N pages to a file and to its disk; drop its page cache\n"
	"  fork | child COMMAND | reap                 make a child, let it act, end it\n"
	"  perish COMMAND                              a child acts, with no handler for signals\n"
	"example: printf 'map page 1\\nread page\\n' | actor\n";

#define NAMES 24
#define HOLE 64
#define LINE 4096
#ifndef MADV_COLD
#define MADV_COLD 20
#define MADV_PAGEOUT 21
#endif

static struct mapping {
	char name[24];
	char *start;
} mappings[NAMES];
static int count, pagemap, to_child = -1, from_child = -1;
static pid_t child;
static char *spare;
static sigjmp_buf back;
static volatile sig_atomic_t caught;
static siginfo_t signal_seen;
static struct rusage before, after;

static void handler(int number, siginfo_t *info, void *context)
{
	(void)context;
	caught = number;
	signal_seen = *info;
	siglongjmp(back, 1);
}

static int refuse(const char *what)
{
	printf("error %s: %s\n", what, strerror(errno));
	return 0;
}

/* NULL is an address like any other here: `found` says whether there was one. */
static char *place(const char *word, int *found)
{
	const char *plus;
	size_t length;

	*found = 1;
	if (word && !strncmp(word, "0x", 2))
		return (char *)strtoul(word, NULL, 16);
	plus = word ? strchr(word, '+') : NULL;
	length = plus ? (size_t)(plus - word) : word ? strlen(word) : 0;
	for (int i = count - 1; i >= 0; i--)
		if (length && strlen(mappings[i].name) == length && !strncmp(mappings[i].name, word, length))
			return mappings[i].start + (plus ? strtoul(plus + 1, NULL, 0) * PAGE : 0);
	*found = 0;
	return NULL;
}

static unsigned long entry_of(const char *address)
{
	unsigned long entry = 0;

	if ((unsigned long)address >> 47 || pread(pagemap, &entry, 8, (unsigned long)address / PAGE * 8) != 8)
		return 0;
	return entry;
}

/* Pages that have just been touched wait on a list of the CPU's, which counts as a reference: let them off. */
static void settle(void)
{
	madvise(spare, PAGE, MADV_COLD);
}

static int access_memory(const char *how, char *address, size_t pages, int value)
{
	volatile char *at = address;
	volatile int seen = 0;

	caught = 0;
	if (!sigsetjmp(back, 1)) {
		/* Both are in memory before the first count; nothing but the access lies between the counts. */
		memset(&after, 1, sizeof(after));
		memset(&before, 1, sizeof(before));
		getrusage(RUSAGE_SELF, &before);
		if (*how == 'r')
			seen = *at;
		else if (*how == 'w')
			*at = value;
		else if (*how == 'e')
			((void (*)(void))address)();
		else if (*how == 's')
			for (size_t i = 0; i < pages; i++)
				seen = at[i * PAGE];
		else
			for (size_t i = 0; i < pages; i++)
				at[i * PAGE] = 1;
	}
	getrusage(RUSAGE_SELF, &after);
	printf("ok value=%d minor=%ld major=%ld signal=%d", seen, after.ru_minflt - before.ru_minflt,
	       after.ru_majflt - before.ru_majflt, (int)caught);
	if (caught)
		printf(" code=%d address=%#lx", signal_seen.si_code, (unsigned long)signal_seen.si_addr);
	printf(" entry=%#lx\n", entry_of(address));
	settle();
	return 0;
}

static int map_memory(char **words)
{
	struct mapping *made = &mappings[count];
	size_t size = strtoul(words[2], NULL, 0) * PAGE;
	int prot = PROT_READ | PROT_WRITE, flags = 0, shared = 0, advice = MADV_NOHUGEPAGE, fd = -1, lent = 0;
	char *at = NULL;

	if (count == NAMES)
		return printf("error too many mappings\n");
	for (char **word = words + 3; *word; word++) {
		struct stat about;

		if (!strcmp(*word, "shared"))
			shared = 1;
		else if (!strcmp(*word, "none"))
			prot = PROT_NONE;
		else if (!strcmp(*word, "ro"))
			prot = PROT_READ;
		else if (!strcmp(*word, "exec"))
			prot |= PROT_EXEC;
		else if (!strcmp(*word, "thp"))
			advice = MADV_HUGEPAGE;
		else if (!strcmp(*word, "plain"))
			advice = 0;
		else if (!strncmp(*word, "at=", 3))
			at = (char *)strtoul(*word + 3, NULL, 0);
		else if (!strncmp(*word, "file=", 5)) {
			fd = open(*word + 5, O_RDWR | O_CREAT, 0600);
			if (fd < 0 || fstat(fd, &about))
				return refuse(*word + 5);
			if (S_ISREG(about.st_mode) && (size_t)about.st_size < size && ftruncate(fd, size))
				return refuse(*word + 5);
		} else if (!strncmp(*word, "device=", 7)) {
			fd = device_of(*word + 7);
			lent = 1;
			if (fd < 0)
				return printf("error no device %s is open\n", *word + 7);
		} else if (strcmp(*word, "nothp"))
			return printf("error unknown option %s\n", *word);
	}
	flags = (shared ? MAP_SHARED : MAP_PRIVATE) | (fd < 0 ? MAP_ANONYMOUS : 0) | (at ? MAP_FIXED_NOREPLACE : 0);
	if (advice != MADV_NOHUGEPAGE)
		made->start = map_aligned(size, prot, flags);
	else
		made->start = mmap(at, size, prot, flags, fd, 0);
	if (fd >= 0 && !lent)
		close(fd);
	if (made->start == MAP_FAILED)
		return refuse("mmap");
	/* EINVAL: the kernel knows no huge pages. */
	if (advice && fd < 0 && madvise(made->start, size, advice) && errno != EINVAL)
		return refuse("madvise");
	snprintf(made->name, sizeof(made->name), "%s", words[1]);
	if (fd < 0 && !shared)
		name_mapping(made->start, size, made->name);
	count++;
	return printf("ok start=%#lx\n", (unsigned long)made->start);
}

static int smaps(unsigned long address)
{
	FILE *file = fopen("/proc/self/smaps", "r");
	char line[512], key[64];
	unsigned long start, end, value;
	int inside = 0, found = 0;

	while (file && fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2) {
			inside = start <= address && address < end;
			if (inside)
				found = printf("ok start=%#lx end=%#lx", start, end);
		} else if (inside && sscanf(line, "%63[^:]: %lu kB", key, &value) == 2)
			printf(" %s=%lu", key, value);
	}
	if (file)
		fclose(file);
	return printf(found ? "\n" : "ok\n");
}

static int count_pages(char *start, size_t pages)
{
	static unsigned long frames[4096];
	int present = 0, swapped = 0, different = 0;

	for (size_t i = 0; i < pages; i++) {
		unsigned long entry = entry_of(start + i * PAGE), frame = entry & ((1UL << 55) - 1);
		int known = 0;

		present += entry >> 63 & 1;
		swapped += entry >> 62 & 1;
		for (int j = 0; j < different && !known; j++)
			known = frames[j] == frame;
		if (entry >> 63 && !known && different < 4096)
			frames[different++] = frame;
	}
	return printf("ok present=%d swapped=%d frames=%d\n", present, swapped, different);
}

static int cached_pages(char *start, size_t pages)
{
	static unsigned char there[4096];
	int found = 0;

	if (pages > sizeof(there) || mincore(start, pages * PAGE, there))
		return refuse("mincore");
	for (size_t i = 0; i < pages; i++)
		found += there[i] & 1;
	return printf("ok pages=%d\n", found);
}

static int fill_file(const char *path, size_t pages)
{
	static char block[PAGE];
	int fd = open(path, O_RDWR | O_CREAT, 0600);

	for (size_t i = 0; i < pages; i++) {
		memset(block, 'a' + i % 26, sizeof(block));
		if (fd < 0 || pwrite(fd, block, PAGE, i * PAGE) != PAGE)
			return refuse(path);
	}
	if (fsync(fd))
		return refuse(path);
	close(fd);
	return printf("ok\n");
}

/* Only pages that are clean, and on no CPU's list, go: the list first. */
static int forget_file(const char *path)
{
	int fd = open(path, O_RDWR);

	settle();
	if (fd < 0 || fsync(fd) || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED))
		return refuse(path);
	close(fd);
	return printf("ok\n");
}

static int advise(char *start, size_t size, const char *word)
{
	static const struct { const char *name; int value; } known[] = {
		{ "normal", MADV_NORMAL }, { "cold", MADV_COLD }, { "free", MADV_FREE }, { "drop", MADV_DONTNEED },
		{ "pageout", MADV_PAGEOUT }, { "thp", MADV_HUGEPAGE }, { "nothp", MADV_NOHUGEPAGE },
	};

	for (size_t i = 0; i < sizeof(known) / sizeof(*known); i++)
		if (!strcmp(word, known[i].name)) {
			if (madvise(start, size, known[i].value))
				return refuse("madvise");
			settle();
			return printf("ok\n");
		}
	return printf("error unknown advice %s\n", word);
}

/* Compaction looks for free pages in strides of up to 32, and would not see single ones (isolate_freepages). */
static int thin(char *start, size_t pages)
{
	for (size_t i = 0; i + HOLE <= pages; i += 2 * HOLE)
		if (madvise(start + i * PAGE, HOLE * PAGE, MADV_DONTNEED))
			return refuse("madvise");
	settle();
	return printf("ok\n");
}

static int protect(char *start, size_t size, const char *word)
{
	int prot = PROT_NONE;

	if (strcmp(word, "none"))
		for (; *word; word++)
			prot |= *word == 'r' ? PROT_READ : *word == 'w' ? PROT_WRITE : PROT_EXEC;
	return mprotect(start, size, prot) ? refuse("mprotect") : printf("ok\n");
}

static int peek(const char *start, size_t size)
{
	if (size > CARRIED)
		return printf("error at most %d bytes\n", CARRIED);
	if (sigsetjmp(back, 1))
		return printf("error signal %d\n", (int)caught);
	memcpy(carried, start, size);
	return say_hex(size);
}

static int poke(char *start, const char *hex)
{
	size_t size = from_hex(hex);

	if (sigsetjmp(back, 1))
		return printf("error signal %d\n", (int)caught);
	memcpy(start, carried, size);
	return printf("ok bytes=%zu\n", size);
}

static int make_child(void)
{
	int down[2], up[2];

	if (child)
		return printf("error there is a child\n");
	if (pipe(down) || pipe(up))
		return refuse("pipe");
	fflush(stdout);
	child = fork();
	if (child < 0) {
		child = 0;
		return refuse("fork");
	}
	if (child) {
		close(down[0]);
		close(up[1]);
		to_child = down[1];
		from_child = up[0];
		settle();
		return printf("ok pid=%d\n", child);
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	prctl(PR_SET_NAME, "child");
	child = 0;
	dup2(down[0], 0);
	dup2(up[1], 1);
	for (int i = 0; i < 2; i++) {
		close(down[i]);
		close(up[i]);
	}
	close(pagemap);
	pagemap = open("/proc/self/pagemap", O_RDONLY);
	return 0;
}

static int ask_child(const char *line)
{
	static char answer[LINE];
	size_t length = 0;

	if (!child)
		return printf("error there is no child\n");
	if (dprintf(to_child, "%s\n", line) < 0)
		return printf("error the child is gone\n");
	do {
		if (read(from_child, answer + length, 1) != 1)
			return printf("error the child is gone\n");
	} while (answer[length++] != '\n' && length < sizeof(answer) - 1);
	answer[length] = '\0';
	return printf("%s", answer);
}

static int reap(void)
{
	int status = 0;

	if (!child)
		return printf("error there is no child\n");
	close(to_child);
	close(from_child);
	waitpid(child, &status, 0);
	child = 0;
	return printf("ok status=%d\n", status);
}

static int act(char *line);

static int perish(char *line)
{
	int status = 0;
	pid_t pid;

	fflush(stdout);
	pid = fork();
	if (pid < 0)
		return refuse("fork");
	if (!pid) {
		signal(SIGSEGV, SIG_DFL);
		signal(SIGBUS, SIG_DFL);
		dup2(open("/dev/null", O_WRONLY), 1);
		act(line);
		_exit(0);
	}
	waitpid(pid, &status, 0);
	return printf("ok pid=%d died=%d\n", pid, WIFSIGNALED(status) ? WTERMSIG(status) : 0);
}

static int act(char *line)
{
	char *words[12] = { NULL }, *rest = strchr(line, ' '), whole[LINE], *start;
	size_t size;
	int found, n = 0;

	snprintf(whole, sizeof(whole), "%s", rest ? rest + 1 : "");
	for (char *word = strtok(line, " \n"); word && n < 11; word = strtok(NULL, " \n"))
		words[n++] = word;
	if (!n)
		return printf("error an empty line\n");
	if (!strcmp(words[0], "fork"))
		return make_child();
	if (!strcmp(words[0], "child"))
		return ask_child(whole);
	if (!strcmp(words[0], "reap"))
		return reap();
	if (!strcmp(words[0], "perish"))
		return perish(whole);
	if (!strcmp(words[0], "map") && n > 2)
		return map_memory(words);
	if (!strcmp(words[0], "fill") && n > 2)
		return fill_file(words[1], strtoul(words[2], NULL, 0));
	if (!strcmp(words[0], "forget") && n > 1)
		return forget_file(words[1]);
	if (!strcmp(words[0], "open") && n > 2)
		return device_open(words[1], words[2]);
	if (!strcmp(words[0], "close") && n > 1)
		return device_close(words[1]);
	if ((!strcmp(words[0], "ioctl") || !strcmp(words[0], "pread") || !strcmp(words[0], "pwrite")) && n > 2)
		return device_act(words[0], words[1], words[2], words[3]);
	start = place(words[1], &found);
	if (!found)
		return printf("error no such place: %s\n", words[1] ? words[1] : "");
	size = words[2] ? strtoul(words[2], NULL, 0) * PAGE : PAGE;
	if (!strcmp(words[0], "read") || !strcmp(words[0], "exec"))
		return access_memory(words[0], start, 1, 0);
	if (!strcmp(words[0], "write"))
		return access_memory(words[0], start, 1, words[2] ? atoi(words[2]) : 1);
	if (!strcmp(words[0], "count"))
		return count_pages(start, size / PAGE);
	if (!strcmp(words[0], "cached"))
		return cached_pages(start, size / PAGE);
	if (!strcmp(words[0], "touch") || !strcmp(words[0], "scan"))
		return access_memory(words[0], start, size / PAGE, 1);
	if (!strcmp(words[0], "look"))
		return printf("ok entry=%#lx\n", entry_of(start));
	if (!strcmp(words[0], "smaps"))
		return smaps((unsigned long)start);
	if (!strcmp(words[0], "peek") && n > 2)
		return peek(start, strtoul(words[2], NULL, 0));
	if (!strcmp(words[0], "poke") && n > 2)
		return poke(start, words[2]);
	if (!strcmp(words[0], "thin"))
		return thin(start, size / PAGE);
	if (!strcmp(words[0], "lock"))
		return mlock(start, size) ? refuse("mlock") : printf("ok\n");
	if (!strcmp(words[0], "unlock"))
		return munlock(start, size) ? refuse("munlock") : printf("ok\n");
	if (!strcmp(words[0], "sync"))
		return msync(start, size, MS_SYNC) ? refuse("msync") : printf("ok\n");
	if (!strcmp(words[0], "unmap"))
		return munmap(start, size) ? refuse("munmap") : printf("ok\n");
	if (!strcmp(words[0], "protect") && n > 3)
		return protect(start, size, words[3]);
	if (!strcmp(words[0], "advise") && n > 3)
		return advise(start, size, words[3]);
	return printf("error what is %s? see actor --help\n", words[0]);
}

/* A line without a buffer of stdio's, which a child would have too. */
static int next_line(char *line, size_t room)
{
	size_t length = 0;

	while (length < room - 1 && read(0, line + length, 1) == 1)
		if (line[length++] == '\n') {
			line[length - 1] = '\0';
			return 1;
		}
	return 0;
}

int main(int argc, char **argv)
{
	static char line[LINE], other_stack[64 * 1024];
	struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK };
	stack_t stack = { .ss_sp = other_stack, .ss_size = sizeof(other_stack) };
	cpu_set_t here;

	help_or_die(argc, argv, 0, usage);
	if (argc > 1)
		die("unknown option %s; see actor --help", argv[1]);
	/* One CPU, so that its lists are the only ones; see settle(). */
	CPU_ZERO(&here);
	CPU_SET(sched_getcpu(), &here);
	sched_setaffinity(0, sizeof(here), &here);
	pagemap = open("/proc/self/pagemap", O_RDONLY);
	if (pagemap < 0)
		die("cannot open pagemap");
	spare = map(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	sigaltstack(&stack, NULL);
	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
	signal(SIGPIPE, SIG_IGN); /* a child that is gone is told of */
	/* What the program itself needs is brought in first. */
	mlockall(MCL_CURRENT);
	munlockall();
	printf("ok pid=%d\n", getpid());
	fflush(stdout);
	while (next_line(line, sizeof(line))) {
		act(line);
		fflush(stdout);
	}
	return 0;
}
