// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What load.c and datagrams.c have in common: failing, the memory and the loopback interface of both ends, and the
 * client's clock, histogram and line of JSON.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PATIENCE 20		/* seconds without an end, after which a measurement has failed */

static void fail(const char *what)
{
	printf("{\"error\": \"%s: %s\"}\n", what, strerror(errno));
	fflush(stdout);
	_exit(1);
}

static void stalled(int number)
{
	static const char text[] = "{\"error\": \"stalled\"}\n";

	(void)number;
	if (write(STDOUT_FILENO, text, sizeof(text) - 1) < 0)
		_exit(2);
	_exit(1);
}

/* The file that both ends map. */
static void *mapped(const char *path, size_t size)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	void *memory;

	if (fd < 0)
		fail(path);
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (memory == MAP_FAILED)
		fail("mmap");
	close(fd);
	return memory;
}

static struct sockaddr_in loopback(int port)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return address;
}

static void bring_loopback_up(void)
{
	struct ifreq request = { .ifr_name = "lo" };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || ioctl(fd, SIOCGIFFLAGS, &request))
		fail("lo");
	request.ifr_flags |= IFF_UP;
	if (ioctl(fd, SIOCSIFFLAGS, &request))
		fail("lo");
	close(fd);
}

/* Which namespace this is: the inode number of its network namespace. */
static uint64_t namespace_here(void)
{
	struct stat status;

	if (stat("/proc/self/ns/net", &status))
		fail("/proc/self/ns/net");
	return status.st_ino;
}

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

/* --- the client's measurement ---------------------------------------------------------------------- */

/* For how long, or for how many operations, if that isn't 0. */
static struct {
	double seconds;
	double warmup;
	uint64_t operations;
} extent = { .seconds = 1, .warmup = 0.2 };

static uint64_t begun, from, until;	/* of the measurement, in ns */
static uint64_t done, counted;		/* operations in all, and those of the measured time */

/* Latencies in log-linear buckets: 64 to each power of two, so none is off by more than 1.6%. */
#define STEPS 64
static uint64_t histogram[64 * STEPS];

static unsigned bucket(uint64_t value)
{
	unsigned power;

	if (value < STEPS)
		return (unsigned)value;
	power = 63 - (unsigned)__builtin_clzll(value);
	return (power - 5) * STEPS + (unsigned)(value >> (power - 6)) - STEPS;
}

static double middle(unsigned index)
{
	unsigned power = index / STEPS + 5;

	if (index < STEPS)
		return index;
	return ((double)(index % STEPS + STEPS) + 0.5) * (double)(UINT64_C(1) << (power - 6));
}

static double percentile(double share)
{
	uint64_t seen = 0;

	for (unsigned i = 0; i < 64 * STEPS; i++) {
		seen += histogram[i];
		if (seen && (double)seen >= share * (double)counted)
			return middle(i);
	}
	return 0;
}

/* Note an operation that has begun then and ends now; when that is. */
static uint64_t finished(uint64_t started)
{
	uint64_t end = now();

	done++;
	if (end >= from && end < until) {
		counted++;
		histogram[bucket(end - started)]++;
	}
	return end;
}

/* Whether as many operations as are wanted are done or under way, or the time is over. */
static bool enough(uint64_t under_way)
{
	return extent.operations ? done + under_way >= extent.operations : now() >= until;
}

static void start_clock(void)
{
	begun = now();
	from = extent.operations ? begun : begun + (uint64_t)(extent.warmup * 1e9);
	until = extent.operations ? UINT64_MAX : from + (uint64_t)(extent.seconds * 1e9);
}

static double measured(void)
{
	return extent.operations ? (double)(now() - from) / 1e9 : extent.seconds;
}

/* `more` are further members, each with a comma behind it. */
static void report(double seconds, const char *more)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	printf("{\"operations\": %llu, \"rate\": %.1f, \"p50_us\": %.3f, \"p99_us\": %.3f, %s"
	       "\"client_cpu\": %.6f, \"wall\": %.6f}\n",
	       (unsigned long long)done, (double)counted / seconds,
	       percentile(0.5) / 1e3, percentile(0.99) / 1e3, more,
	       (double)usage.ru_utime.tv_sec + (double)usage.ru_stime.tv_sec +
	       (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6,
	       (double)(now() - begun) / 1e9);
}

/* --- the command line ------------------------------------------------------------------------------ */

/* The word behind the one at `index`, which needs it. */
static const char *value_of(int *index, int argc, char **argv)
{
	if (*index + 1 >= argc) {
		errno = EINVAL;
		fail(argv[*index]);
	}
	return argv[++*index];
}

/* Take an option that both programs have, if it is one. */
static bool take_common(int *index, int argc, char **argv)
{
	const char *word = argv[*index];

	if (!strcmp(word, "--lo"))
		bring_loopback_up();
	else if (!strcmp(word, "--seconds"))
		extent.seconds = atof(value_of(index, argc, argv));
	else if (!strcmp(word, "--warmup"))
		extent.warmup = atof(value_of(index, argc, argv));
	else if (!strcmp(word, "--operations"))
		extent.operations = strtoull(value_of(index, argc, argv), NULL, 10);
	else
		return false;
	return true;
}

/* End with an error when nothing has come for PATIENCE seconds more than it is to take. */
static void watch_clock(void)
{
	signal(SIGALRM, stalled);
	alarm((unsigned)(extent.seconds + extent.warmup) + PATIENCE);
}
