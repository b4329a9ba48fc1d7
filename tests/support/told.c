/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * `nc -l -n -v -p PORT` for an image of busybox, whose own nc has no -n and no -v: takes one
 * connection, says in busybox's words who it is from, and writes what it says to standard output.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const char *text(const struct sockaddr_in6 *address, char *room, size_t size)
{
	char name[INET6_ADDRSTRLEN];

	inet_ntop(AF_INET6, &address->sin6_addr, name, sizeof(name));
	snprintf(room, size, "[%s]:%d", name, ntohs(address->sin6_port));
	return room;
}

int main(int argc, char **argv)
{
	struct sockaddr_in6 here = { .sin6_family = AF_INET6 }, peer;
	socklen_t size = sizeof(here);
	char first[80], second[80], data[4096];
	ssize_t length;
	int listener, end;

	for (int at = 1; at + 1 < argc; at++)
		if (strcmp(argv[at], "-p") == 0)
			here.sin6_port = htons(atoi(argv[at + 1]));
	listener = socket(AF_INET6, SOCK_STREAM, 0);
	if (bind(listener, (struct sockaddr *)&here, size) || listen(listener, 1)) {
		perror("nc");
		return 1;
	}
	text(&here, first, sizeof(first));
	fprintf(stderr, "listening on %s (%s)\n", first, first);
	size = sizeof(peer);
	end = accept(listener, (struct sockaddr *)&peer, &size);
	size = sizeof(here);
	getsockname(end, (struct sockaddr *)&here, &size);
	text(&peer, second, sizeof(second));
	fprintf(stderr, "connect to %s from %s (%s)\n", text(&here, first, sizeof(first)), second, second);
	while ((length = read(end, data, sizeof(data))) > 0)
		if (write(1, data, length) != length)
			return 1;
	return length < 0;
}
