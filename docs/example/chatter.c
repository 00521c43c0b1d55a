/* Writes so many messages of so many bytes to /dev/ringlog, and says how many it took. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int count = argc > 1 ? atoi(argv[1]) : 1, size = argc > 2 ? atoi(argv[2]) : 100, taken = 0;
	int ringlog = open("/dev/ringlog", O_WRONLY);
	char *text = malloc(size);

	if (ringlog < 0 || !text)
		return 1;
	for (int i = 0; i < count; i++) {
		memset(text, 'a' + i % 26, size);
		taken += write(ringlog, text, size) == size;
	}
	printf("%d\n", taken);
	return 0;
}
