/* Has a page of the shades module's at three addresses, each with a memory type of its own. */
#include "lab.h"

#include <sys/ioctl.h>

#include "../modules/shades/shades.h"

static const char usage[] =
	"usage: shades USER ALIAS DIRECT [--remap]\n"
	"Takes a page from /dev/shades, maps it, writes `shades` into it and prints its PID and the address.\n"
	"  USER, ALIAS, DIRECT  wb, wc or uc-: here, in a vmap() of the kernel's, and in its direct map\n"
	"  --remap              map it with remap_pfn_range(), not with vm_insert_page()\n"
	"example: shades wb uc- wb\n";

static __u32 shade(const char *name)
{
	static const char *const names[] = { "wb", "wc", "uc-" };
	__u32 found = 0;

	while (found < SHADES && strcmp(name, names[found]))
		found++;
	if (found == SHADES)
		die("no such memory type: %s", name);
	return found;
}

int main(int argc, char **argv)
{
	struct shades_wish wish;
	char *page;
	int device;

	help_or_die(argc, argv, 3, usage);
	wish = (struct shades_wish){ .user = shade(argv[1]), .alias = shade(argv[2]), .direct = shade(argv[3]) };
	if (argc > 4 && !strcmp(argv[4], "--remap"))
		wish.way = SHADES_REMAP;
	else if (argc > 4)
		die("no such option: %s", argv[4]);
	device = open("/dev/shades", O_RDWR | O_CLOEXEC);
	if (device < 0)
		die("cannot open /dev/shades: is the module loaded?");
	if (ioctl(device, SHADES_TAKE, &wish) < 0)
		die("cannot take a page");
	page = map(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, device);
	close(device);
	strcpy(page, "shades");
	printf("%d %p\n", getpid(), (void *)page);
	pause_forever();
}
