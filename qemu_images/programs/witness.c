/*
 * Reads files twice and prints both readings; between them it is called "witness-ready" and sleeps, so that the host
 * can stop the guest and read the same things from its memory. Where both readings agree, the host's must too.
 * All memory is taken before the first reading.
 */
#include "lab.h"

#define SPARE (64UL << 10) /* a file may have grown since its size was taken */

struct file {
	const char *name, *path; /* as given; without its range */
	off_t offset;
	size_t limit, size[2];
	char *text[2];
};

/* PATH, or PATH@OFFSET+LENGTH */
static struct file parse(char *word)
{
	struct file file = { .name = strdup(word), .path = word, .limit = SIZE_MAX };
	char *at = strchr(word, '@');

	if (at) {
		*at++ = '\0';
		file.offset = strtoull(at, &at, 0);
		file.limit = strtoull(at + (*at == '+'), NULL, 0);
	}
	return file;
}

static size_t slurp(const struct file *file, char *into, size_t room)
{
	int fd = open(file->path, O_RDONLY);
	size_t size = 0;
	ssize_t got;

	if (fd < 0 || lseek(fd, file->offset, SEEK_SET) < 0)
		die("cannot read %s", file->path);
	while (size < room && (got = read(fd, into + size, room - size)) > 0)
		size += got;
	close(fd);
	return size;
}

static size_t size_of(const struct file *file)
{
	static char scratch[1 << 20];
	struct file part = *file;
	size_t size = 0, got;

	do {
		size_t left = file->limit - size;

		got = slurp(&part, scratch, left < sizeof(scratch) ? left : sizeof(scratch));
		size += got;
		part.offset += got;
	} while (got == sizeof(scratch));
	return size;
}

int main(int argc, char **argv)
{
	int count = argc - 2;

	help_or_die(argc, argv, 2, "usage: witness SECONDS FILE[@OFFSET+LENGTH]...\n"
				   "Read the files, sleep under the name witness-ready, read them again, print both.\n"
				   "example: witness 0.1 /proc/buddyinfo /proc/1/pagemap@0x2000+64\n");
	struct file files[count];

	for (int i = 0; i < count; i++) {
		files[i] = parse(argv[i + 2]);
		size_t room = files[i].limit == SIZE_MAX ? size_of(&files[i]) + SPARE : files[i].limit;

		for (int pass = 0; pass < 2; pass++)
			files[i].text[pass] = map(NULL, room, PROT_READ | PROT_WRITE,
						  MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1);
		files[i].limit = room;
	}
	for (int pass = 0; pass < 2; pass++) {
		for (int i = 0; i < count; i++)
			files[i].size[pass] = slurp(&files[i], files[i].text[pass], files[i].limit);
		if (!pass) {
			prctl(PR_SET_NAME, "witness-ready");
			usleep(atof(argv[1]) * 1e6);
			prctl(PR_SET_NAME, "witness");
		}
	}
	for (int i = 0; i < count; i++)
		for (int pass = 0; pass < 2; pass++) {
			printf("%s %d %zu\n", files[i].name, pass, files[i].size[pass]);
			fwrite(files[i].text[pass], 1, files[i].size[pass], stdout);
		}
	return 0;
}
