/* Files of devices by name, for the actor: what drivers are asked and answer. Bytes are written in hex. */
#ifndef DEVICE_H
#define DEVICE_H

#include <sys/ioctl.h>

#define DEVICES 8
#define CARRIED 1024 /* bytes in one line */

static struct device {
	char name[24];
	int fd;
} devices[DEVICES];
static unsigned char carried[CARRIED];

/* -1 where there is none of that name. */
static int device_of(const char *name)
{
	for (int i = 0; i < DEVICES; i++)
		if (devices[i].name[0] && !strcmp(devices[i].name, name))
			return devices[i].fd;
	return -1;
}

static size_t from_hex(const char *text)
{
	size_t n = 0;
	unsigned byte;

	while (text && n < CARRIED && sscanf(text + 2 * n, "%2x", &byte) == 1)
		carried[n++] = byte;
	return n;
}

static int say_hex(size_t size)
{
	printf("ok data=");
	for (size_t i = 0; i < size; i++)
		printf("%02x", carried[i]);
	return printf("\n");
}

static int device_refuses(const char *what)
{
	return printf("error %s: %s\n", what, strerror(errno));
}

static int device_open(const char *name, const char *path)
{
	struct device *free = NULL;
	int fd;

	for (int i = DEVICES - 1; i >= 0; i--)
		if (!devices[i].name[0])
			free = &devices[i];
	if (!free || device_of(name) >= 0)
		return printf("error no room for a device %s\n", name);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return device_refuses(path);
	free->fd = fd;
	snprintf(free->name, sizeof(free->name), "%s", name);
	return printf("ok fd=%d\n", fd);
}

static int device_close(const char *name)
{
	for (int i = 0; i < DEVICES; i++)
		if (!strcmp(devices[i].name, name)) {
			devices[i].name[0] = '\0';
			return close(devices[i].fd) ? device_refuses("close") : printf("ok\n");
		}
	return printf("error no device %s is open\n", name);
}

/* ioctl NAME REQUEST [HEX] | pread NAME OFFSET BYTES | pwrite NAME OFFSET HEX */
static int device_act(const char *what, const char *name, const char *number, const char *more)
{
	unsigned long value = strtoul(number, NULL, 0);
	int fd = device_of(name);
	ssize_t size;

	if (fd < 0)
		return printf("error no device %s is open\n", name);
	if (*what == 'i') {
		size = from_hex(more);
		return ioctl(fd, value, carried) < 0 ? device_refuses("ioctl") : say_hex(size);
	}
	if (what[1] == 'r') {
		size = more ? strtoul(more, NULL, 0) : 0;
		size = pread(fd, carried, size < CARRIED ? size : CARRIED, value);
		return size < 0 ? device_refuses("pread") : say_hex(size);
	}
	size = pwrite(fd, carried, from_hex(more), value);
	return size < 0 ? device_refuses("pwrite") : printf("ok bytes=%zd\n", size);
}

#endif
