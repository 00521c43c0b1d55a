/* What the lab programs share: sizes, errors, mappings. Everything is static and small. */
#ifndef LAB_H
#define LAB_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/mman.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#define PAGE 4096UL
#define MIB (1UL << 20)
#define GIB (1UL << 30)

#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#define PR_SET_VMA_ANON_NAME 0
#endif

static inline void die(const char *format, ...)
{
	va_list args;
	int error = errno;

	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fprintf(stderr, error ? ": %s\n" : "\n", strerror(error));
	exit(1);
}

static inline void help_or_die(int argc, char **argv, int least, const char *usage)
{
	int help = argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"));

	if (help || argc <= least) {
		fputs(usage, help ? stdout : stderr);
		exit(help ? 0 : 2);
	}
}

/* Bytes from 4096, 64K, 8M or 1G. */
static inline size_t parse_size(const char *text)
{
	char *end;
	size_t value = strtoul(text, &end, 0);

	switch (*end) {
	case 'G': case 'g': value <<= 10; /* fall through */
	case 'M': case 'm': value <<= 10; /* fall through */
	case 'K': case 'k': value <<= 10; end++;
	}
	errno = 0;
	if (!value || *end)
		die("not a size: %s; write it like 8M", text);
	return (value + PAGE - 1) & -PAGE;
}

static inline void *map(void *at, size_t size, int prot, int flags, int fd)
{
	void *address = mmap(at, size, prot, flags, fd, 0);

	if (address == MAP_FAILED)
		die("cannot map %zu bytes", size);
	return address;
}

/* An anonymous private mapping that begins on a 2 MiB border, so that huge pages fit. */
static inline char *map_aligned(size_t size, int prot, int flags)
{
	uintptr_t raw = (uintptr_t)map(NULL, size + 2 * MIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	uintptr_t start = (raw + 2 * MIB - 1) & -(2 * MIB);

	munmap((void *)raw, size + 2 * MIB);
	return map((void *)start, size, prot, flags | MAP_FIXED, -1);
}

/* Show a name in /proc/PID/maps; kernels without CONFIG_ANON_VMA_NAME refuse, and that is fine. */
static inline void name_mapping(void *address, size_t size, const char *name)
{
	prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, address, size, name);
}

static inline void write_pages(char *start, size_t size, char value)
{
	for (size_t at = 0; at < size; at += PAGE)
		((volatile char *)start)[at] = value;
}

static inline void pause_forever(void)
{
	fflush(stdout);
	for (;;)
		pause();
}

#endif
