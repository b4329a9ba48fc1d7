// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * As load.c, for datagrams: a server, and a client that makes load and prints one line of JSON.
 *
 *   datagrams server [--lo] PORT SHARED
 *   datagrams rounds [options] PORT SHARED   request and answer, one under way on each flow
 *   datagrams stream [options] PORT SHARED   datagrams one way; --down: from the server
 *
 *   --flows N       clients, each with a socket (1)   --size BYTES    of each datagram (64)
 *   --seconds S     measured (1)                      --warmup S      before that, not measured (0.2)
 *   --operations N  so many, instead of seconds       --segments N    stream: so many a call, by
 *                                                     UDP_SEGMENT; the receiver has UDP_GRO (1)
 *
 * UDP doesn't slow a sender down, and who sends more than is taken measures how well it is thrown away. So
 * a stream has at most WINDOW bytes under way, which every queue on the way holds, and its sender sleeps until
 * the receiver has taken some: the two share a page of memory, as in load.c. What is missing after PATIENCE_NS
 * without one that comes is lost; it is counted, and the stream goes on.
 */

#include "measure.h"

#include <linux/futex.h>
#include <netinet/udp.h>
#include <pthread.h>
#include <sys/syscall.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#define UDP_GRO 104
#endif

#define MOST 65507
#define BATCH 32		/* datagrams a call, where nothing is segmented */
#define FLOWS 256
#define WINDOW (90 * 1024)	/* bytes of a stream under way, if no call is larger */
#define PATIENCE_NS 5000000	/* without a datagram that comes, after which those under way are lost */

enum { EXCHANGE = 'X', HELLO = 'H', SINK = 'S', SOURCE = 'G', WHERE = 'W' };

/* What a datagram that isn't one of a stream or an exchange begins with. */
struct header {
	uint8_t operation;
	uint8_t merges;		/* the receiver is to use UDP_GRO */
	uint16_t size;
	uint32_t segments;
};

struct shared {
	_Atomic uint64_t taken;		/* datagrams of a stream that have come */
	_Atomic uint64_t wanted;	/* the sender sleeps until so many have */
	_Atomic uint32_t bell;		/* it sleeps on this */
	_Atomic uint32_t stop;		/* the client has had enough */
	_Atomic uint64_t lost;
};

static struct {
	struct sockaddr_in address;
	int flows;
	uint32_t size;
	uint32_t segments;
	bool down;
} plan = { .flows = 1, .size = 64, .segments = 1 };

static char buffers[BATCH][1 << 16];
static struct shared *shared;

static void merge(int fd, bool on)
{
	if (setsockopt(fd, SOL_UDP, UDP_GRO, &(int){ on }, sizeof(int)))
		fail("UDP_GRO");
}

/* --- streams, from either end --------------------------------------------------------------------- */

/* Where a stream goes: a socket, and an address unless it is connected. */
struct sink {
	int fd;
	struct sockaddr_in to;
	socklen_t to_size;
};

static struct sink sinks[FLOWS];
static int sinks_number;
static uint32_t stream_size, stream_segments;
static uint64_t stream_sent;	/* and neither taken nor given up: stream_sent - taken */
static uint64_t last_taken, last_progress;

/* Count datagrams of a stream that have come, and wake its sender if it has slept for these. */
static void take(uint64_t number)
{
	uint64_t taken = atomic_fetch_add(&shared->taken, number) + number;
	uint64_t wanted = atomic_load(&shared->wanted);

	if (!wanted || taken < wanted)
		return;
	atomic_store(&shared->wanted, 0);
	atomic_fetch_add(&shared->bell, 1);
	syscall(SYS_futex, &shared->bell, FUTEX_WAKE, 1, NULL, NULL, 0);
}

/* Sleep until half of what is under way has come; what doesn't come in time is lost. */
static void wait_for_room(uint64_t under_way)
{
	uint64_t taken = atomic_load(&shared->taken), time = now();
	uint32_t bell = atomic_load(&shared->bell);
	struct timespec timeout = { .tv_nsec = PATIENCE_NS };

	if (taken != last_taken) {
		last_taken = taken;
		last_progress = time;
	} else if (time - last_progress > PATIENCE_NS) {
		atomic_fetch_add(&shared->lost, under_way);
		stream_sent -= under_way;
		last_progress = time;
		return;
	}
	atomic_store(&shared->wanted, taken + under_way / 2 + 1);
	if (atomic_load(&shared->taken) == taken)
		syscall(SYS_futex, &shared->bell, FUTEX_WAIT, bell, &timeout, NULL, 0);
}

/* Send a turn's datagrams to one sink, as many as are allowed. */
static void send_some(const struct sink *sink, uint32_t room)
{
	struct mmsghdr messages[BATCH];
	struct iovec parts[BATCH];
	union {
		char space[CMSG_SPACE(sizeof(uint16_t))];
		struct cmsghdr align;
	} control;
	bool segmented = stream_segments > 1;
	uint32_t number = segmented ? 1 : room < BATCH ? room : BATCH;
	int sent;

	for (uint32_t i = 0; i < number; i++) {
		parts[i] = (struct iovec){ buffers[0], (size_t)stream_size * stream_segments };
		messages[i].msg_hdr = (struct msghdr){
			.msg_name = sink->to_size ? (void *)&sink->to : NULL,
			.msg_namelen = sink->to_size,
			.msg_iov = &parts[i],
			.msg_iovlen = 1,
		};
	}
	if (segmented) {
		struct cmsghdr *header;

		messages[0].msg_hdr.msg_control = control.space;
		messages[0].msg_hdr.msg_controllen = sizeof(control.space);
		header = CMSG_FIRSTHDR(&messages[0].msg_hdr);
		header->cmsg_level = SOL_UDP;
		header->cmsg_type = UDP_SEGMENT;
		header->cmsg_len = CMSG_LEN(sizeof(uint16_t));
		memcpy(CMSG_DATA(header), &(uint16_t){ (uint16_t)stream_size }, sizeof(uint16_t));
	}
	sent = sendmmsg(sink->fd, messages, number, MSG_NOSIGNAL);
	if (sent < 0 && errno != ECONNREFUSED && errno != EAGAIN && errno != ENOBUFS)
		fail("sendmmsg");
	if (sent > 0)
		stream_sent += (uint64_t)sent * stream_segments;
}

/* One turn: to each sink what it may have, or rest if nothing may be sent. */
static void pour(void)
{
	uint64_t call = (uint64_t)stream_segments * stream_size;
	uint64_t window = WINDOW / call < 2 ? 2 * stream_segments : WINDOW / stream_size;
	uint64_t taken = atomic_load(&shared->taken), under_way;

	if (stream_sent < taken)	/* some that had been given up have come */
		stream_sent = taken;
	under_way = stream_sent - taken;
	if (under_way + stream_segments > window) {
		wait_for_room(under_way);
		return;
	}
	for (int i = 0; i < sinks_number; i++) {
		uint64_t room = window - (stream_sent - atomic_load(&shared->taken));

		if (room >= stream_segments && room <= window)
			send_some(&sinks[i], (uint32_t)room);
	}
}

static void prepare_stream(uint32_t size, uint32_t segments)
{
	stream_size = size;
	stream_segments = segments ? segments : 1;
	stream_sent = atomic_load(&shared->taken);
	last_progress = now();
	memset(buffers[0], SINK, sizeof(buffers[0]));
}

/* How many datagrams a received one is: several of one size, the last of which may be shorter. */
static uint64_t datagrams_in(struct msghdr *message, uint32_t bytes)
{
	for (struct cmsghdr *one = CMSG_FIRSTHDR(message); one; one = CMSG_NXTHDR(message, one)) {
		int size;

		if (one->cmsg_level != SOL_UDP || one->cmsg_type != UDP_GRO)
			continue;
		memcpy(&size, CMSG_DATA(one), sizeof(size));
		return (bytes + (uint32_t)size - 1) / (uint32_t)size;
	}
	return 1;
}

static struct mmsghdr received[BATCH];
static struct sockaddr_in senders[BATCH];

/* Receive what is there; the number of messages. */
static int receive(int fd, int flags)
{
	static struct iovec parts[BATCH];
	static char control[BATCH][64];
	int number;

	for (int i = 0; i < BATCH; i++) {
		parts[i] = (struct iovec){ buffers[i], sizeof(buffers[i]) };
		received[i].msg_hdr = (struct msghdr){
			.msg_name = &senders[i],
			.msg_namelen = sizeof(senders[i]),
			.msg_iov = &parts[i],
			.msg_iovlen = 1,
			.msg_control = control[i],
			.msg_controllen = sizeof(control[i]),
		};
	}
	number = recvmmsg(fd, received, BATCH, flags, NULL);
	if (number < 0 && errno != EAGAIN && errno != ECONNREFUSED && errno != EINTR)
		fail("recvmmsg");
	return number < 0 ? 0 : number;
}

/* --- server ------------------------------------------------------------------------------------- */

static void say_where(int fd, const struct sockaddr_in *to)
{
	uint64_t inode = namespace_here();

	sendto(fd, &inode, sizeof(inode), MSG_NOSIGNAL, (const struct sockaddr *)to, sizeof(*to));
}

/* A message that isn't one of a stream. */
static void hear(int fd, int i)
{
	struct header header = { 0 };
	uint32_t size = received[i].msg_len;

	memcpy(&header, buffers[i], size < sizeof(header) ? size : sizeof(header));
	switch (header.operation) {
	case WHERE:
		say_where(fd, &senders[i]);
		return;
	case HELLO:
		merge(fd, header.merges);
		sinks_number = 0;
		/* fall through */
	case EXCHANGE:
		sendto(fd, buffers[i], size, MSG_NOSIGNAL, (struct sockaddr *)&senders[i],
		       sizeof(senders[i]));
		return;
	case SOURCE:
		if (sinks_number < FLOWS)
			sinks[sinks_number++] = (struct sink){ fd, senders[i], sizeof(senders[i]) };
		if (sinks_number == 1)
			prepare_stream(header.size, header.segments);
		return;
	}
}

static void serve_some(int fd, int flags)
{
	int number = receive(fd, flags);
	uint64_t taken = 0;

	for (int i = 0; i < number; i++) {
		if (received[i].msg_len && buffers[i][0] == SINK)
			taken += datagrams_in(&received[i].msg_hdr, received[i].msg_len);
		else
			hear(fd, i);
	}
	if (taken)
		take(taken);
}

/* Until whoever started us closes our standard input. */
static void *end_with_input(void *nothing)
{
	char ignored;

	while (read(STDIN_FILENO, &ignored, 1) > 0)
		;
	_exit(0);
	return nothing;
}

static void serve(int port)
{
	struct sockaddr_in address = loopback(port);
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	pthread_t watcher;

	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)))
		fail("bind");
	if (pthread_create(&watcher, NULL, end_with_input, NULL))
		fail("pthread_create");
	puts("ready");
	fflush(stdout);
	for (;;) {
		if (sinks_number && atomic_load(&shared->stop))
			sinks_number = 0;
		if (sinks_number)
			pour();
		serve_some(fd, sinks_number ? MSG_DONTWAIT : MSG_WAITFORONE);
	}
}

/* --- client ------------------------------------------------------------------------------------- */

static int flows[FLOWS];

static void report_with_lost(double seconds)
{
	char lost[48];

	snprintf(lost, sizeof(lost), "\"lost\": %llu, ", (unsigned long long)atomic_load(&shared->lost));
	report(seconds, lost);
}

/* Sockets that the server has answered once: their flows are there. */
static void open_flows(void)
{
	struct header header = { .operation = HELLO, .merges = !plan.down && plan.segments > 1 };
	struct timeval patience = { .tv_usec = 300000 };

	for (int i = 0; i < plan.flows; i++) {
		char answer[sizeof(header)];
		int tries = 0, fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

		if (fd < 0 || connect(fd, (struct sockaddr *)&plan.address, sizeof(plan.address)) ||
		    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)))
			fail("socket");
		do {
			if (++tries > 20)
				fail("no answer");
			send(fd, &header, sizeof(header), MSG_NOSIGNAL);
		} while (recv(fd, answer, sizeof(answer), 0) != sizeof(header));
		while (recv(fd, answer, sizeof(answer), MSG_DONTWAIT) > 0)
			;
		flows[i] = fd;
	}
}

static int watch_flows(void)
{
	int epoll_fd = epoll_create1(EPOLL_CLOEXEC);

	for (int i = 0; i < plan.flows; i++) {
		struct epoll_event event = { .events = EPOLLIN, .data.u32 = (uint32_t)i };

		if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, flows[i], &event))
			fail("epoll_ctl");
	}
	return epoll_fd;
}

static void rounds(void)
{
	static uint64_t started[FLOWS];
	struct epoll_event events[FLOWS] = { 0 };
	int epoll_fd = watch_flows();
	uint64_t under_way = 0;
	char request[MOST];

	memset(request, EXCHANGE, plan.size);
	start_clock();
	for (int i = 0; i < plan.flows && !enough(under_way); i++, under_way++) {
		started[i] = now();
		send(flows[i], request, plan.size, MSG_NOSIGNAL);
	}
	while (under_way) {
		int number = plan.flows == 1 ? 1 : epoll_wait(epoll_fd, events, FLOWS, 1000);

		if (!number) {
			errno = ETIMEDOUT;
			fail("an answer was lost");
		}
		for (int i = 0; i < number; i++) {
			uint32_t flow = events[i].data.u32;
			uint64_t end;

			if (recv(flows[flow], buffers[0], MOST, 0) != (ssize_t)plan.size)
				fail("answer");
			end = finished(started[flow]);
			under_way--;
			if (enough(under_way))
				continue;
			started[flow] = end;
			send(flows[flow], request, plan.size, MSG_NOSIGNAL);
			under_way++;
		}
	}
	report_with_lost(measured());
}

/* What has come of a stream so far, and until when: the measured time begins and ends with that. */
static uint64_t first, last, first_at, last_at;

static bool streaming(uint64_t before)
{
	uint64_t time = now(), taken = atomic_load(&shared->taken) - before;

	if (!first_at && time >= from) {
		first = taken;
		first_at = time;
	}
	if (extent.operations ? taken < extent.operations : time < until)
		return true;
	last = taken;
	last_at = time;
	return false;
}

static void take_flow(int fd)
{
	int number = receive(fd, MSG_DONTWAIT);
	uint64_t taken = 0;

	for (int i = 0; i < number; i++)
		taken += datagrams_in(&received[i].msg_hdr, received[i].msg_len);
	if (taken)
		take(taken);
}

static void stream(void)
{
	struct header header = {
		.operation = SOURCE, .size = (uint16_t)plan.size, .segments = plan.segments,
	};
	uint64_t before = atomic_load(&shared->taken);
	struct epoll_event events[FLOWS];
	int epoll_fd = watch_flows();

	atomic_store(&shared->lost, 0);
	atomic_store(&shared->stop, 0);
	atomic_store(&shared->wanted, 0);
	if (!plan.down)
		prepare_stream(plan.size, plan.segments);
	start_clock();
	for (int i = 0; i < plan.flows; i++) {
		if (plan.down) {
			merge(flows[i], plan.segments > 1);
			send(flows[i], &header, sizeof(header), MSG_NOSIGNAL);
		} else {
			sinks[sinks_number++] = (struct sink){ .fd = flows[i] };
		}
	}
	while (streaming(before)) {
		int number = plan.down ? epoll_wait(epoll_fd, events, FLOWS, 10) : 0;

		if (!plan.down)
			pour();
		for (int i = 0; i < number; i++)
			take_flow(flows[events[i].data.u32]);
	}
	atomic_store(&shared->stop, 1);
	atomic_fetch_add(&shared->bell, 1);
	syscall(SYS_futex, &shared->bell, FUTEX_WAKE, 1, NULL, NULL, 0);
	done = last;
	counted = last - first;
	if (!counted) {
		errno = EIO;
		fail("nothing came");
	}
	report_with_lost((double)(last_at - first_at) / 1e9);
}

/* --- command line --------------------------------------------------------------------------------- */

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";
	const char *places[2] = { "0", "" };
	int place = 0;

	for (int i = 2; i < argc; i++) {
		if (take_common(&i, argc, argv))
			continue;
		if (!strcmp(argv[i], "--down"))
			plan.down = true;
		else if (!strcmp(argv[i], "--flows"))
			plan.flows = atoi(value_of(&i, argc, argv));
		else if (!strcmp(argv[i], "--size"))
			plan.size = (uint32_t)atoi(value_of(&i, argc, argv));
		else if (!strcmp(argv[i], "--segments"))
			plan.segments = (uint32_t)atoi(value_of(&i, argc, argv));
		else if (place < 2)
			places[place++] = argv[i];
	}
	if (plan.flows > FLOWS || plan.size > MOST)
		return 2;
	plan.address = loopback(atoi(places[0]));
	shared = mapped(places[1], sizeof(*shared));
	if (!strcmp(mode, "server"))
		serve(atoi(places[0]));
	watch_clock();
	open_flows();
	if (!strcmp(mode, "rounds"))
		rounds();
	else if (!strcmp(mode, "stream"))
		stream();
	else
		return 2;
	return 0;
}
