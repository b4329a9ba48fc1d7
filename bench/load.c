// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Both ends of every measurement: a server that answers whatever a connection's first bytes ask for,
 * and a client that makes load, takes the time of each operation, and prints one line of JSON.
 *
 *   load server [--lo] PORT SHARED
 *   load bulk   [options] PORT SHARED     bytes one way; --down: from the server
 *   load rounds [options] PORT SHARED     request and answer on standing connections (ping-pong)
 *   load visits [options] PORT SHARED     connect, request, answer, close
 *   load idle   [options] PORT SHARED     open, use once, hold until standard input ends
 *
 *   --connections N   at once (1)                  --size BYTES   of request and answer (128)
 *   --seconds S       measured (1)                 --warmup S     before that, not measured (0.2)
 *   --operations N    so many, instead of seconds  --server-closes  visits: the server says FIN first
 *
 * All of it is 127.0.0.1. SHARED is a file that both ends map. It carries what can't be asked through
 * the forwarder without disturbing it: how many bytes the server has received, how many connections it
 * still holds, and the client's word to stop sending. So throughput is always counted where bytes arrive,
 * between two moments while they flow, and a measurement ends when the last byte has come through,
 * with no need for half-closes, which not every forwarder can do.
 *
 * A single connection uses blocking calls, several use epoll: each is the cheapest way there is. The receiver of
 * bulk data lets the kernel throw it away (MSG_TRUNC), so that copying to user space, which would be the same
 * for every forwarder, doesn't hide the differences.
 */

#include "measure.h"

#include <netinet/tcp.h>
#include <poll.h>

#define CHUNK (256 * 1024)	/* bytes a bulk call moves at most */
#define TURN 4			/* bulk calls on one connection before the others have their turn */
#define BATCH 256		/* events taken from epoll at once */
#define FILES 65536		/* connections of either end */

enum { EXCHANGE = 'X', ECHO = 'E', SINK = 'S', SOURCE = 'G', WHERE = 'W' };
enum { CLOSE_AFTER_ANSWER = 1 };

/* What a connection starts with. After it, EXCHANGE answers each `request` bytes with `answer` bytes. */
struct header {
	uint8_t operation;
	uint8_t flags;
	uint16_t reserved;
	uint32_t request;
	uint32_t answer;
};

struct shared {
	_Atomic uint64_t received;	/* by the server, in bulk */
	_Atomic uint64_t connections;	/* that the server holds */
	_Atomic uint32_t stop;		/* the client has had enough of bulk data */
};

static char buffer[CHUNK];
static struct shared *shared;
static int others; /* connections that the server has of somebody else, who keeps them */
static int epoll_fd;

static void watch(int operation, int fd, uint32_t events)
{
	struct epoll_event event = { .events = events, .data.fd = fd };

	if (epoll_ctl(epoll_fd, operation, fd, &event))
		fail("epoll_ctl");
}

static void no_delay(int fd)
{
	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){ 1 }, sizeof(int)))
		fail("TCP_NODELAY");
}

static void most_files(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit))
		fail("getrlimit");
	limit.rlim_cur = limit.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &limit))
		fail("setrlimit");
}

/* --- server ------------------------------------------------------------------------------------- */

static struct session {
	struct header header;
	uint32_t known;		/* bytes of the header that have come */
	uint32_t got;		/* bytes of the current request */
	uint64_t owed;		/* bytes of answers that the socket didn't take yet */
	bool blocked;		/* watched for output */
} sessions[FILES];

static void forget(int fd)
{
	close(fd);
	atomic_fetch_sub(&shared->connections, 1);
}

static void greet(int listener)
{
	int fd;

	while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
		if (fd >= FILES) {
			close(fd);
			continue;
		}
		sessions[fd] = (struct session){ 0 };
		atomic_fetch_add(&shared->connections, 1);
		watch(EPOLL_CTL_ADD, fd, EPOLLIN);
	}
}

/* Send what is owed; false when the connection is over. */
static bool pay(int fd, struct session *session)
{
	while (session->owed) {
		size_t size = session->owed < CHUNK ? session->owed : CHUNK;
		ssize_t sent = send(fd, buffer, size, MSG_NOSIGNAL);
		bool blocked = sent < 0 && errno == EAGAIN;

		if (sent < 0 && !blocked)
			return false;
		if (blocked != session->blocked) {
			session->blocked = blocked;
			watch(EPOLL_CTL_MOD, fd, blocked ? EPOLLIN | EPOLLOUT : EPOLLIN);
		}
		if (blocked)
			return true;
		session->owed -= (uint64_t)sent;
	}
	return !(session->header.flags & CLOSE_AFTER_ANSWER) || !session->header.answer;
}

/* Bulk to the client, until it says stop; false when the connection is over. */
static bool pour(int fd)
{
	for (int turn = 0; turn < TURN; turn++) {
		if (atomic_load(&shared->stop))
			return false;
		if (send(fd, buffer, CHUNK, MSG_NOSIGNAL) < 0)
			return errno == EAGAIN;
	}
	return true;
}

/* Bulk from the client; false when the connection is over. */
static bool swallow(int fd)
{
	for (int turn = 0; turn < TURN; turn++) {
		ssize_t size = recv(fd, buffer, CHUNK, MSG_TRUNC);

		if (size <= 0)
			return size < 0 && errno == EAGAIN;
		atomic_fetch_add(&shared->received, (uint64_t)size);
	}
	return true;
}

static void say_where(int fd)
{
	uint64_t inode = namespace_here();

	if (send(fd, &inode, sizeof(inode), MSG_NOSIGNAL) < 0)
		return;
}

/* Input that isn't bulk; false when the connection is over. */
static bool hear(int fd, struct session *session)
{
	struct header *header = &session->header;
	ssize_t size = recv(fd, buffer, CHUNK, 0);
	uint32_t use;

	if (size <= 0)
		return size < 0 && errno == EAGAIN;
	use = (uint32_t)(sizeof(*header) - session->known);
	use = use < (uint32_t)size ? use : (uint32_t)size;
	memcpy((char *)header + session->known, buffer, use);
	session->known += use;
	size -= use;
	if (session->known < sizeof(*header))
		return true;
	if (use && header->operation == WHERE)
		say_where(fd);
	if (use && header->operation == SOURCE)
		watch(EPOLL_CTL_MOD, fd, EPOLLOUT);
	if (header->operation == SINK)
		atomic_fetch_add(&shared->received, (uint64_t)size);
	if (header->operation == ECHO && size > 0)	/* for checks, which never have much under way */
		return send(fd, buffer + use, (size_t)size, MSG_NOSIGNAL) == size;
	if (header->operation != EXCHANGE || !header->request)
		return true;
	session->got += (uint32_t)size;
	if (session->got < header->request)
		return true;
	session->owed += (uint64_t)(session->got / header->request) * header->answer;
	session->got %= header->request;
	return pay(fd, session);
}

static void attend(int fd, uint32_t events)
{
	struct session *session = &sessions[fd];
	uint8_t operation = session->known == sizeof(struct header) ? session->header.operation : 0;
	bool lives = true;

	if (operation == SOURCE)
		lives = pour(fd);
	else if (operation == SINK)
		lives = swallow(fd);
	else if (session->blocked && (events & EPOLLOUT))
		lives = pay(fd, session);
	else
		lives = hear(fd, session);
	if (!lives)
		forget(fd);
}

static int serve(int port)
{
	struct sockaddr_in address = loopback(port);
	struct epoll_event events[BATCH];
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){ 1 }, sizeof(int)))
		fail("socket");
	no_delay(listener);	/* what it accepts inherits that */
	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, 1 << 15))
		fail("bind");
	watch(EPOLL_CTL_ADD, listener, EPOLLIN);
	watch(EPOLL_CTL_ADD, STDIN_FILENO, EPOLLIN);
	puts("ready");
	fflush(stdout);
	for (;;) {
		int number = epoll_wait(epoll_fd, events, BATCH, -1);

		for (int i = 0; i < number; i++) {
			int fd = events[i].data.fd;

			if (fd == listener)
				greet(fd);
			else if (fd == STDIN_FILENO)
				return 0;	/* whoever started us is gone */
			else
				attend(fd, events[i].events);
		}
	}
}

/* --- client ------------------------------------------------------------------------------------- */

static struct {
	struct sockaddr_in address;
	int connections;
	uint32_t size;
	bool down;
	bool server_closes;
} plan = { .connections = 1, .size = 128 };

static struct peer {
	uint64_t started;	/* the operation under way, in ns */
	uint64_t taken;		/* bytes of its answer */
} peers[FILES];

/* Note an operation that ends now; the next one of the connection starts now. */
static void finish(struct peer *peer)
{
	peer->started = finished(peer->started);
}

static int open_connection(void)
{
	int flags = plan.connections > 1 ? SOCK_NONBLOCK : 0;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);

	if (fd < 0 || fd >= FILES)
		fail("socket");
	if (connect(fd, (struct sockaddr *)&plan.address, sizeof(plan.address)) && errno != EINPROGRESS)
		fail("connect");
	return fd;
}

/* Over loopback a handshake is done when connect() returns, so a first send need not wait; unless
 * the listener's queue is full and the handshake is tried again. */
static void send_all(int fd, size_t size)
{
	ssize_t sent = send(fd, buffer, size, MSG_NOSIGNAL);

	if (sent < 0 && errno == EAGAIN) {
		poll(&(struct pollfd){ .fd = fd, .events = POLLOUT }, 1, PATIENCE * 1000);
		sent = send(fd, buffer, size, MSG_NOSIGNAL);
	}
	if (sent < 0)
		fail("send");
	if ((size_t)sent != size) {
		errno = EMSGSIZE;
		fail("send");
	}
}

static void send_header(int fd, uint8_t operation, uint32_t request, size_t more)
{
	struct header header = {
		.operation = operation,
		.flags = plan.server_closes ? CLOSE_AFTER_ANSWER : 0,
		.request = request,
		.answer = plan.size,
	};

	memcpy(buffer, &header, sizeof(header));
	send_all(fd, sizeof(header) + more);
}

/* Wait until the server has seen the end of every connection of ours, and so all bytes. */
static void wait_until_drained(void)
{
	while (atomic_load(&shared->connections) > others)
		nanosleep(&(struct timespec){ .tv_nsec = 200000 }, NULL);
}

/* Receive for one exchange; true when the answer is complete. */
static bool answer_complete(int fd, struct peer *peer)
{
	ssize_t size = recv(fd, buffer, CHUNK, 0);

	if (size < 0 && errno == EAGAIN)
		return false;
	if (size < 0)
		fail("recv");
	if (size == 0) {
		if (plan.server_closes && peer->taken == plan.size)
			return true;
		errno = ECONNRESET;
		fail("answer");
	}
	peer->taken += (uint64_t)size;
	return peer->taken == plan.size && !plan.server_closes;
}

static int ready_descriptors(struct epoll_event *events)
{
	int number = epoll_wait(epoll_fd, events, BATCH, -1);

	if (number < 0)
		fail("epoll_wait");
	return number;
}

/* --- rounds: request and answer on standing connections ------------------------------------------- */

static void round_trips(void)
{
	struct epoll_event events[BATCH] = { 0 };
	uint64_t underway = 0;

	for (int i = 0; i < plan.connections; i++) {
		int fd = open_connection();

		no_delay(fd);
		send_header(fd, EXCHANGE, plan.size, 0);
		watch(EPOLL_CTL_ADD, fd, EPOLLIN);
		events[i % BATCH].data.fd = fd;
		peers[fd].started = 1;	/* marks it as ours */
	}
	start_clock();
	for (int fd = 0; fd < FILES && !enough(underway); fd++) {
		if (!peers[fd].started)
			continue;
		peers[fd].started = now();
		send_all(fd, plan.size);
		underway++;
	}
	while (underway) {
		int number = plan.connections == 1 ? 1 : ready_descriptors(events);

		for (int i = 0; i < number; i++) {
			int fd = events[i].data.fd;

			if (!answer_complete(fd, &peers[fd]))
				continue;
			finish(&peers[fd]);
			underway--;
			peers[fd].taken = 0;
			if (enough(underway))
				continue;
			send_all(fd, plan.size);
			underway++;
		}
	}
	report(measured(), "");
}

/* --- visits: connect, request, answer, close ---------------------------------------------------- */

static int visit(void)
{
	uint64_t started = now();
	int fd = open_connection();

	peers[fd] = (struct peer){ .started = started };
	send_header(fd, EXCHANGE, plan.size - (uint32_t)sizeof(struct header),
		    plan.size - sizeof(struct header));
	if (plan.connections > 1)
		watch(EPOLL_CTL_ADD, fd, EPOLLIN);
	return fd;
}

static void visits(void)
{
	struct epoll_event events[BATCH] = { 0 };
	uint64_t underway = 0;

	start_clock();
	for (int i = 0; i < plan.connections && !enough(underway); i++, underway++)
		events[0].data.fd = visit();
	while (underway) {
		int number = plan.connections == 1 ? 1 : ready_descriptors(events);

		for (int i = 0; i < number; i++) {
			int fd = events[i].data.fd;

			if (!answer_complete(fd, &peers[fd]))
				continue;
			finish(&peers[fd]);
			close(fd);
			underway--;
			if (enough(underway))
				continue;
			events[0].data.fd = visit();	/* read already, or a single connection's */
			underway++;
		}
	}
	wait_until_drained();
	report(measured(), "");
}

/* --- bulk ----------------------------------------------------------------------------------------- */

static uint64_t sent_or_received;	/* by this process */

/* One turn of a connection; false when it is over. */
static bool move(int fd, bool stopping)
{
	for (int turn = 0; turn < TURN; turn++) {
		ssize_t size;

		if (!plan.down && stopping)
			return false;
		size = plan.down ? recv(fd, buffer, CHUNK, MSG_TRUNC | MSG_DONTWAIT)
				 : send(fd, buffer, CHUNK, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (size < 0 && errno == EAGAIN)
			return true;
		if (size < 0)
			fail(plan.down ? "recv" : "send");
		if (size == 0)
			return false;
		sent_or_received += (uint64_t)size;
	}
	return true;
}

static void bulk(void)
{
	struct epoll_event events[BATCH];
	uint64_t first = 0, last = 0, first_at = 0, last_at = 0;
	uint64_t before = atomic_load(&shared->received);
	int left = plan.connections;

	atomic_store(&shared->stop, 0);
	for (int i = 0; i < plan.connections; i++) {
		int fd = open_connection();

		send_header(fd, plan.down ? SOURCE : SINK, 0, 0);
		watch(EPOLL_CTL_ADD, fd, plan.down ? EPOLLIN : EPOLLOUT);
	}
	start_clock();
	while (left) {
		int number = ready_descriptors(events);
		uint64_t time = now();
		uint64_t arrived = plan.down ? sent_or_received : atomic_load(&shared->received) - before;

		if (!first_at && time >= from) {
			first = arrived;
			first_at = time;
		}
		if (!last_at && (extent.operations ? arrived >= extent.operations : time >= until)) {
			last = arrived;
			last_at = time;
			atomic_store(&shared->stop, 1);
		}
		for (int i = 0; i < number; i++) {
			int fd = events[i].data.fd;

			if (move(fd, last_at != 0))
				continue;
			close(fd);
			left--;
		}
	}
	wait_until_drained();
	done = plan.down ? sent_or_received : atomic_load(&shared->received) - before;
	if (!last_at || (!plan.down && done != sent_or_received)) {
		errno = EIO;
		fail(last_at ? "bytes were lost" : "connections ended early");
	}
	counted = last - first;
	report((double)(last_at - first_at) / 1e9, "");
}

/* --- idle ----------------------------------------------------------------------------------------- */

static void idle(void)
{
	int number = 0;

	plan.size = 1;
	for (; number < plan.connections; number++) {
		int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		struct timeval patience = { .tv_sec = 5 };
		struct header header = { .operation = EXCHANGE, .request = 1, .answer = 1 };

		if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)) ||
		    connect(fd, (struct sockaddr *)&plan.address, sizeof(plan.address)))
			break;
		memcpy(buffer, &header, sizeof(header));
		if (send(fd, buffer, sizeof(header) + 1, MSG_NOSIGNAL) < 0 || recv(fd, buffer, 1, 0) != 1)
			break;
		alarm(PATIENCE);
	}
	alarm(0);
	printf("{\"connections\": %d, \"reason\": \"%s\"}\n", number,
	       number == plan.connections ? "" : strerror(errno));
	fflush(stdout);
	while (read(STDIN_FILENO, buffer, 1) > 0)
		;
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
		else if (!strcmp(argv[i], "--server-closes"))
			plan.server_closes = true;
		else if (!strcmp(argv[i], "--connections"))
			plan.connections = atoi(value_of(&i, argc, argv));
		else if (!strcmp(argv[i], "--size"))
			plan.size = (uint32_t)atoi(value_of(&i, argc, argv));
		else if (place < 2)
			places[place++] = argv[i];
	}
	plan.address = loopback(atoi(places[0]));
	shared = mapped(places[1], sizeof(*shared));
	most_files();
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (epoll_fd < 0)
		fail("epoll_create1");
	if (!strcmp(mode, "server"))
		return serve(atoi(places[0]));
	others = atomic_load(&shared->connections);
	watch_clock();
	if (!strcmp(mode, "bulk"))
		bulk();
	else if (!strcmp(mode, "rounds"))
		round_trips();
	else if (!strcmp(mode, "visits"))
		visits();
	else if (!strcmp(mode, "idle"))
		idle();
	else
		return 2;
	return 0;
}
