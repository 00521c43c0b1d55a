/*
 * The in-guest end of the shell channel: runs commands that the host asks for over a serial line.
 *
 * Usage: agent /dev/ttyS1 [WINDOW]          (from init, as a daemon; serves for ever)
 *
 * Everything on the line, both ways, is a frame (little-endian):
 *
 *     0  2  magic "KM"
 *     2  1  type
 *     3  1  version, 1
 *     4  4  id: the request that the frame belongs to
 *     8  4  length of the payload, at most MAX_PAYLOAD
 *    12  4  FNV-1a of the 12 bytes before: what does not check is skipped byte by byte, so stray bytes resync
 *    16     payload
 *
 * host -> guest                            guest -> host
 *   PING   any bytes                         PONG   the same bytes
 *   RUN    a command for /bin/sh -c          STDOUT, STDERR bytes; then EXIT s32 (128+n: killed by signal n)
 *   SPAWN  a command for /bin/sh -c          SPAWNED s32 pid, or -errno
 *   KILL   (the id of a RUN)                 the RUN's EXIT follows: its process group gets SIGKILL
 *   PUT    u32 mode, path                    ACK s32: 0 or -errno
 *   DATA   bytes of the PUT's file           ACK s32; the host waits for it, so the tty's buffer never overflows
 *   DONE   (end of the PUT)                  ACK s32: the file is complete, under its name
 *   WINDOW 16 bytes                          ACK s32; HELLO at start: the agent's pid in decimal
 *   FREE   u32 slot
 *   LOOK   u32 offset, u32 length            ACK s32: as DATA, the bytes are in the window
 *   WAKE   u64 ns since 1970, random bytes   ACK s32: the clock is set
 *                                            SHOWOUT, SHOWERR  u32 offset, u32 length: as STDOUT and STDERR
 *
 * The window is memory that both sides see: QEMU's ivshmem-plain device (docs/specs/ivshmem-spec), or the file WINDOW.
 * A serial line of the emulated kind moves half a megabyte a second; what is large goes through the window instead and
 * the line only says where. The host offers it with 16 bytes that it has written at WINDOW_IN: an agent that finds
 * them there has the same memory, and acknowledges. Below WINDOW_IN are SLOTS slots for the way to the host, each in
 * use until the host's FREE; from WINDOW_IN on, the host writes.
 *
 * Build: gcc -static -O2 -s -o agent agent.c
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { PING = 1, RUN, SPAWN, KILL, PUT, DATA, DONE, WINDOW, FREE, LOOK, WAKE };
enum { HELLO = 64, PONG, STDOUT, STDERR, EXIT, SPAWNED, ACK, SHOWOUT, SHOWERR };

#define VERSION 1
#define HEADER 16
#define MAX_PAYLOAD 65536
#define CHUNK 32768          /* bytes of a command's output in one frame */
#define MAX_REQUESTS 64
#define PATH_LIMIT 4096
#define OUT_SIZE (1 << 18)
#define OUT_RESERVE 8192     /* room kept for short answers while a command floods the line */
#define SLOTS 8
#define SLOT (512u << 10)
#define WINDOW_IN (SLOTS * SLOT)
#define WINDOW_SIZE (2 * WINDOW_IN)
#define LET_FILL (64 << 10)
#define WORTH_A_SLOT 2048    /* bytes; fewer are quicker on the line than a slot's two messages */

struct request {             /* a RUN in progress */
	uint32_t id;
	pid_t pid;           /* 0: the slot is free */
	int fd[2];           /* its stdout and stderr; -1: ended */
	int ended, code;     /* its shell has exited, with that */
	int left[2];         /* what then was in the pipes and still has to go out */
};

struct upload {              /* a PUT in progress */
	uint32_t id;
	int fd;              /* -1: the slot is free */
	uint32_t mode;
	char path[PATH_LIMIT], part[PATH_LIMIT + 8];
};

static int tty = -1;
static const char *tty_path;
static unsigned char in[2 * (HEADER + MAX_PAYLOAD)];
static size_t in_len;
static unsigned char out[OUT_SIZE];      /* out[out_start..out_end) waits for the line */
static size_t out_start, out_end;
static struct request requests[MAX_REQUESTS];
static struct upload uploads[4];
static const char *window_path;
static unsigned char *window;            /* NULL: none, or not offered */
static unsigned slots_used;              /* a bit a slot */

static uint32_t fnv1a(const unsigned char *p, size_t n)
{
	uint32_t h = 2166136261u;
	while (n--)
		h = (h ^ *p++) * 16777619u;
	return h;
}

static void put32(unsigned char *p, uint32_t v) { memcpy(p, &v, 4); }
static uint32_t get32(const unsigned char *p) { uint32_t v; memcpy(&v, p, 4); return v; }

/* ---- the line ---- */

static void open_tty(void)
{
	struct termios t;

	if (tty >= 0)
		close(tty);
	while ((tty = open(tty_path, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC)) < 0)
		sleep(1);
	if (tcgetattr(tty, &t) == 0) {
		cfmakeraw(&t);
		t.c_cflag |= CLOCAL | CREAD;
		/* the speed sets how long the emulated UART waits for a FIFO to fill: the fastest is the quickest answer */
		cfsetspeed(&t, B115200);
		tcsetattr(tty, TCSANOW, &t);
	}
	in_len = out_start = out_end = 0;
	slots_used = 0;
}

static void flush_out(void)
{
	while (out_start < out_end) {
		ssize_t n = write(tty, out + out_start, out_end - out_start);
		if (n <= 0)
			return;
		out_start += n;
	}
	out_start = out_end = 0;
}

static size_t out_room(void) { return OUT_SIZE - (out_end - out_start); }

static unsigned char *reserve(size_t n)
{
	while (out_room() < n) {                 /* only for short answers, when even the reserve is used up */
		struct pollfd p = { .fd = tty, .events = POLLOUT };
		poll(&p, 1, 1000);
		flush_out();
	}
	if (out_end + n > OUT_SIZE) {
		memmove(out, out + out_start, out_end - out_start);
		out_end -= out_start;
		out_start = 0;
	}
	return out + out_end;
}

static void header(unsigned char *p, int type, uint32_t id, uint32_t length)
{
	p[0] = 'K';
	p[1] = 'M';
	p[2] = type;
	p[3] = VERSION;
	put32(p + 4, id);
	put32(p + 8, length);
	put32(p + 12, fnv1a(p, 12));
}

static void send_frame(int type, uint32_t id, const void *payload, uint32_t length)
{
	unsigned char *p = reserve(HEADER + length);

	header(p, type, id, length);
	memcpy(p + HEADER, payload, length);
	out_end += HEADER + length;
}

static void send_s32(int type, uint32_t id, int32_t value) { send_frame(type, id, &value, 4); }

/* ---- commands ---- */

static void write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd >= 0) {
		if (write(fd, text, strlen(text)) < 0) { /* not root, or no such file: then not */ }
		close(fd);
	}
}

/* Run a command that needs no shell by itself; come back where it needs one. */
static void exec_plain(const char *command)
{
	char *copy, *words[64], *rest;
	int count = 0;

	if (strpbrk(command, "|&;<>()$`\\\"'*?[]#~=%!{}\n") || !(copy = strdup(command)))
		return;
	for (char *word = strtok_r(copy, " \t", &rest); word && count < 63; word = strtok_r(NULL, " \t", &rest))
		words[count++] = word;
	words[count] = NULL;
	if (count && count < 63)
		execvp(words[0], words);
}

static void child(const char *command, int out_fd, int err_fd)
{
	sigset_t none;
	char log[40];

	setsid();
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	signal(SIGHUP, SIG_DFL);
	setpriority(PRIO_PROCESS, 0, 0);
	write_text("/proc/self/oom_score_adj", "0");     /* the agent may not be killed, what it runs may */
	dup2(open("/dev/null", O_RDWR | O_CLOEXEC), 0);
	int spawned = out_fd < 0;

	if (spawned) {
		snprintf(log, sizeof log, "/tmp/spawn-%d.log", (int)getpid());
		out_fd = err_fd = open(log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
		if (out_fd < 0)
			out_fd = err_fd = 0;
	}
	dup2(out_fd, 1);
	dup2(err_fd, 2);
	if (spawned)
		exec_plain(command);
	execl("/bin/sh", "sh", "-c", command, (char *)NULL);
	_exit(127);
}

static void run(uint32_t id, const char *command)
{
	struct request *r = requests;
	int o[2], e[2];

	while (r < requests + MAX_REQUESTS && r->pid)
		r++;
	if (r == requests + MAX_REQUESTS) {
		static const char full[] = "agent: too many commands at once\n";
		send_frame(STDERR, id, full, sizeof full - 1);
		send_s32(EXIT, id, 126);
		return;
	}
	if (pipe2(o, O_CLOEXEC) < 0)
		goto fail;
	if (pipe2(e, O_CLOEXEC) < 0) {
		close(o[0]), close(o[1]);
		goto fail;
	}
	r->pid = fork();
	if (r->pid == 0)
		child(command, o[1], e[1]);
	close(o[1]), close(e[1]);
	if (r->pid < 0) {
		r->pid = 0;
		close(o[0]), close(e[0]);
		goto fail;
	}
	if (window)
		fcntl(o[0], F_SETPIPE_SZ, 1 << 20);
	setpgid(r->pid, r->pid);                 /* a KILL may come before the child's own setsid */
	fcntl(o[0], F_SETFL, O_NONBLOCK);
	fcntl(e[0], F_SETFL, O_NONBLOCK);
	r->id = id;
	r->ended = 0;
	r->fd[0] = o[0];
	r->fd[1] = e[0];
	return;
fail:
	send_frame(STDERR, id, strerror(errno), strlen(strerror(errno)));
	send_s32(EXIT, id, 126);
}

/* The answer waits until the program is in place: who asks for the task at once must not find the agent's copy. */
static void spawn(uint32_t id, const char *command)
{
	int started[2] = { -1, -1 };
	char byte;
	pid_t pid;

	if (pipe2(started, O_CLOEXEC) < 0)
		started[0] = started[1] = -1;
	pid = fork();
	if (pid == 0)
		child(command, -1, -1);
	close(started[1]);
	if (pid > 0)
		while (read(started[0], &byte, 1) < 0 && errno == EINTR)
			;
	close(started[0]);
	send_s32(SPAWNED, id, pid < 0 ? -errno : pid);
}

static int room_for_chunk(void)
{
	return out_room() >= HEADER + CHUNK + OUT_RESERVE && slots_used != (1u << SLOTS) - 1;
}

/* Put a large piece of output into a free slot and say so. Returns its size. */
static int show_output(struct request *r, int which, size_t want)
{
	uint32_t slot = __builtin_ctz(~slots_used), where[2] = { slot * SLOT, 0 };
	ssize_t n = read(r->fd[which], window + where[0], want < SLOT ? want : SLOT);

	if (n <= 0)
		return 0;
	where[1] = n;
	slots_used |= 1u << slot;
	send_frame(which ? SHOWERR : SHOWOUT, r->id, where, sizeof where);
	return n;
}

/* Pass on a chunk of what the pipe holds. Returns how much it was; 0: nothing now, or its end. */
static int pass_output(struct request *r, int which)
{
	size_t want = r->ended ? (size_t)r->left[which] : SLOT;
	int waiting = 0;
	unsigned char *p;
	ssize_t n;

	if (!room_for_chunk())
		return 0;
	if (window && ioctl(r->fd[which], FIONREAD, &waiting) == 0 && waiting >= WORTH_A_SLOT) {
		if (!r->ended && waiting < LET_FILL)
			usleep(2000);            /* with a CPU to share, we would wake at the writer's every page */
		n = show_output(r, which, want);
		r->left[which] -= r->ended ? n : 0;
		return n;
	}
	if (want > CHUNK)
		want = CHUNK;
	p = reserve(HEADER + CHUNK);
	n = read(r->fd[which], p + HEADER, want);
	if (n > 0) {
		header(p, which ? STDERR : STDOUT, r->id, n);
		out_end += HEADER + n;
		r->left[which] -= r->ended ? n : 0;
		return n;
	}
	if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
		close(r->fd[which]);
		r->fd[which] = -1;
	}
	return 0;
}

static void reap(void)
{
	struct request *r;
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		for (r = requests; r < requests + MAX_REQUESTS; r++)
			if (r->pid == pid && !r->ended) {
				r->ended = 1;
				r->code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
				for (int which = 0; which < 2; which++)
					if (r->fd[which] < 0 || ioctl(r->fd[which], FIONREAD, &r->left[which]) < 0)
						r->left[which] = 0;
			}
}

/* A command has ended when its shell has: what is in the pipes goes out, but nobody waits for grandchildren. */
static void finish(struct request *r)
{
	for (int which = 0; which < 2; which++) {
		while (r->fd[which] >= 0 && r->left[which] > 0)
			if (!pass_output(r, which) && !room_for_chunk())
				return;          /* the line is full: come back */
		if (r->fd[which] >= 0)
			close(r->fd[which]);
		r->fd[which] = -1;
	}
	send_s32(EXIT, r->id, r->code);
	r->pid = 0;
}

static void kill_request(uint32_t id)
{
	for (int i = 0; i < MAX_REQUESTS; i++)
		if (requests[i].pid && requests[i].id == id) {
			kill(-requests[i].pid, SIGKILL);
		}
}

/* ---- files ---- */

static struct upload *find_upload(uint32_t id)
{
	for (size_t i = 0; i < sizeof uploads / sizeof *uploads; i++)
		if (uploads[i].fd >= 0 && uploads[i].id == id)
			return &uploads[i];
	return NULL;
}

static int begin_upload(uint32_t id, const unsigned char *p, uint32_t n)
{
	struct upload *u = uploads;

	if (n < 5 || n - 4 >= PATH_LIMIT)
		return -ENAMETOOLONG;
	while (u < uploads + sizeof uploads / sizeof *uploads && u->fd >= 0)
		u++;
	if (u == uploads + sizeof uploads / sizeof *uploads) {
		u = uploads;                     /* its host gave up on it long ago */
		close(u->fd);
		unlink(u->part);
	}
	u->id = id;
	u->mode = get32(p);
	memcpy(u->path, p + 4, n - 4);
	u->path[n - 4] = 0;
	snprintf(u->part, sizeof u->part, "%s.part", u->path);
	u->fd = open(u->part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	return u->fd < 0 ? -errno : 0;
}

static int upload_data(uint32_t id, const unsigned char *p, uint32_t n)
{
	struct upload *u = find_upload(id);

	if (!u)
		return -EBADF;
	while (n) {
		ssize_t w = write(u->fd, p, n);
		if (w < 0) {
			int error = errno;
			close(u->fd);
			u->fd = -1;
			unlink(u->part);
			return -error;
		}
		p += w;
		n -= w;
	}
	return 0;
}

static int end_upload(uint32_t id)
{
	struct upload *u = find_upload(id);
	int error = 0;

	if (!u)
		return -EBADF;
	if (fchmod(u->fd, u->mode) < 0)
		error = -errno;
	if (close(u->fd) < 0 && !error)
		error = -errno;
	u->fd = -1;
	if (!error && rename(u->part, u->path) < 0)
		error = -errno;
	if (error)
		unlink(u->part);
	return error;
}

/* ---- the window ---- */

static int read_hex(const char *device, const char *name)
{
	char path[300], text[16] = "";
	int fd;

	snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/%s", device, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		if (read(fd, text, sizeof text - 1) < 0)
			text[0] = 0;
		close(fd);
	}
	return strtol(text, NULL, 16);
}

/* The ivshmem device's memory, its BAR 2, as a file of sysfs (Documentation/PCI/sysfs-pci.rst). */
static const char *find_window(void)
{
	static char path[300];
	struct dirent *entry;
	DIR *devices = opendir("/sys/bus/pci/devices");
	int found = 0;

	while (devices && !found && (entry = readdir(devices)))
		if (read_hex(entry->d_name, "vendor") == 0x1af4 && read_hex(entry->d_name, "device") == 0x1110) {
			snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/enable", entry->d_name);
			write_text(path, "1");
			snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/resource2", entry->d_name);
			found = 1;
		}
	if (devices)
		closedir(devices);
	return found ? path : NULL;
}

static int open_window(const unsigned char *proof, uint32_t n)
{
	const char *path = window_path ? window_path : find_window();
	struct stat st;
	void *map;
	int fd;

	if (window)
		munmap(window, WINDOW_SIZE);
	window = NULL;
	if (!path || (fd = open(path, O_RDWR | O_CLOEXEC)) < 0)
		return -ENODEV;
	map = fstat(fd, &st) < 0 || st.st_size < (off_t)WINDOW_SIZE ? MAP_FAILED :
	      mmap(NULL, WINDOW_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (map == MAP_FAILED)
		return -ENOMEM;
	if (n != 16 || memcmp((unsigned char *)map + WINDOW_IN, proof, n)) {
		munmap(map, WINDOW_SIZE);
		return -ESTALE;
	}
	window = map;
	return 0;
}

static int upload_shown(uint32_t id, const unsigned char *p, uint32_t n)
{
	uint32_t offset, length;

	if (n != 8 || !window)
		return -EINVAL;
	offset = get32(p);
	length = get32(p + 4);
	if (offset > WINDOW_SIZE || length > WINDOW_SIZE - offset)
		return -EINVAL;
	return upload_data(id, window + offset, length);
}

/* ---- a new life ---- */

/* The guest goes on from a saved state: it is later now, and other guests have the random numbers that it would give. */
static int wake(const unsigned char *p, uint32_t n)
{
	static struct { struct rand_pool_info info; unsigned char bytes[64]; } random;
	uint64_t ns;
	struct timespec now;
	int fd;

	if (n < 8 || n - 8 > sizeof random.bytes)
		return -EINVAL;
	memcpy(&ns, p, 8);
	now = (struct timespec){ .tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000 };
	random.info.buf_size = n - 8;
	random.info.entropy_count = 8 * (n - 8);
	memcpy(random.bytes, p + 8, n - 8);
	fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
	if (fd >= 0) {
		ioctl(fd, RNDADDENTROPY, &random);
		ioctl(fd, RNDRESEEDCRNG);
		close(fd);
	}
	return clock_settime(CLOCK_REALTIME, &now) < 0 ? -errno : 0;
}

/* ---- the loop ---- */

static void handle(int type, uint32_t id, unsigned char *p, uint32_t n)
{
	static char command[MAX_PAYLOAD + 1];

	switch (type) {
	case PING:
		send_frame(PONG, id, p, n);
		break;
	case RUN:
	case SPAWN:
		memcpy(command, p, n);
		command[n] = 0;
		if (type == RUN)
			run(id, command);
		else
			spawn(id, command);
		break;
	case KILL:
		kill_request(id);
		break;
	case PUT:
		send_s32(ACK, id, begin_upload(id, p, n));
		break;
	case DATA:
		send_s32(ACK, id, upload_data(id, p, n));
		break;
	case DONE:
		send_s32(ACK, id, end_upload(id));
		break;
	case WINDOW:
		send_s32(ACK, id, open_window(p, n));
		break;
	case FREE:
		if (n == 4 && get32(p) < SLOTS)
			slots_used &= ~(1u << get32(p));
		break;
	case LOOK:
		send_s32(ACK, id, upload_shown(id, p, n));
		break;
	case WAKE:
		send_s32(ACK, id, wake(p, n));
		break;
	}
}

static void take_frames(void)
{
	size_t at = 0;

	while (in_len - at >= HEADER) {
		unsigned char *p = in + at;
		uint32_t n = get32(p + 8);

		if (p[0] != 'K' || p[1] != 'M' || p[3] != VERSION || n > MAX_PAYLOAD || get32(p + 12) != fnv1a(p, 12)) {
			at++;
			continue;
		}
		if (in_len - at < HEADER + n)
			break;
		handle(p[2], get32(p + 4), p + HEADER, n);
		at += HEADER + n;
	}
	memmove(in, in + at, in_len - at);
	in_len -= at;
}

static void hello(void)
{
	char text[16];
	send_frame(HELLO, 0, text, snprintf(text, sizeof text, "%d", (int)getpid()));
}

static void serve(int signals)
{
	static struct pollfd polled[2 + 2 * MAX_REQUESTS];
	static struct { int i, which; } owner[2 + 2 * MAX_REQUESTS];
	struct signalfd_siginfo info;

	for (;;) {
		int n = 2, room = room_for_chunk();

		polled[0] = (struct pollfd){ .fd = tty, .events = POLLIN | (out_start < out_end ? POLLOUT : 0) };
		polled[1] = (struct pollfd){ .fd = signals, .events = POLLIN };
		for (int i = 0; room && i < MAX_REQUESTS; i++)
			for (int which = 0; requests[i].pid && which < 2; which++)
				if (requests[i].fd[which] >= 0) {
					owner[n].i = i;
					owner[n].which = which;
					polled[n++] = (struct pollfd){ .fd = requests[i].fd[which], .events = POLLIN };
				}
		if (poll(polled, n, -1) < 0)
			continue;
		for (int k = 2; k < n; k++)
			if (polled[k].revents)
				pass_output(&requests[owner[k].i], owner[k].which);
		if (polled[1].revents) {
			while (read(signals, &info, sizeof info) > 0)
				;
			reap();
		}
		for (int i = 0; i < MAX_REQUESTS; i++)
			if (requests[i].pid && requests[i].ended)
				finish(&requests[i]);
		if (polled[0].revents) {
			ssize_t got = read(tty, in + in_len, sizeof in - in_len);
			if (got > 0) {
				in_len += got;
				take_frames();
			} else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
				sleep(1);        /* the line was hung up: take it anew */
				open_tty();
				hello();
			}
		}
		flush_out();
	}
}

int main(int argc, char **argv)
{
	sigset_t set;

	if (argc < 2 || argc > 3) {
		fprintf(stderr, "usage: agent /dev/ttyS1 [WINDOW]\n");
		return 2;
	}
	tty_path = argv[1];
	window_path = argv[2];
	setsid();
	signal(SIGPIPE, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, NULL);
	write_text("/proc/self/oom_score_adj", "-1000");
	setpriority(PRIO_PROCESS, 0, -20);       /* an answer in time, whatever else the guest's only CPU does */
	for (size_t i = 0; i < sizeof uploads / sizeof *uploads; i++)
		uploads[i].fd = -1;
	open_tty();
	hello();
	serve(signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC));
}
