/* SPDX-License-Identifier: Apache-2.0
 *
 * Packet sockets. The kernel stamps what arrives, so the time does not depend on
 * when this process gets to run.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>

#include "wire.h"

#define NS_PER_S 1000000000LL
#define WAIT_MS 100

const char wire_usage[] = "probe";

static int near_socket, far_socket;
static int64_t offset_ns;

int wire_init(int argc, char **argv)
{
	(void)argc;
	(void)argv;
	return 0;
}

static int open_interface(const char *name, uint16_t ethertype,
			  uint8_t mac[ETH_ALEN])
{
	struct sockaddr_ll address = {
		.sll_family = AF_PACKET,
		.sll_protocol = htons(ethertype),
		.sll_ifindex = if_nametoindex(name),
	};
	struct ifreq request = { 0 };
	int on = 1, buffer_bytes = 4 << 20;
	int s = socket(AF_PACKET, SOCK_RAW, 0);

	if (s < 0)
		err(1, "AF_PACKET socket (needs CAP_NET_RAW)");
	snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", name);
	if (ioctl(s, SIOCGIFHWADDR, &request))
		err(1, "interface '%s'", name);
	memcpy(mac, request.ifr_hwaddr.sa_data, ETH_ALEN);
	if (setsockopt(s, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof(on))
	    || setsockopt(s, SOL_PACKET, PACKET_QDISC_BYPASS, &on, sizeof(on))
	    || setsockopt(s, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof(on))
	    || setsockopt(s, SOL_SOCKET, SO_RCVBUFFORCE, &buffer_bytes,
			  sizeof(buffer_bytes)))
		err(1, "socket options");
	if (bind(s, (struct sockaddr *)&address, sizeof(address)))
		err(1, "interface '%s'", name);
	return s;
}

void wire_open(const char *near, const char *far, uint16_t ethertype,
	       int64_t realtime_offset_ns, uint8_t near_mac[ETH_ALEN])
{
	uint8_t far_mac[ETH_ALEN];

	offset_ns = realtime_offset_ns;
	near_socket = open_interface(near, ethertype, near_mac);
	far_socket = strcmp(near, far)
		? open_interface(far, ethertype, far_mac) : near_socket;
}

bool wire_send(const void *frame, size_t bytes)
{
	if (send(near_socket, frame, bytes, 0) >= 0)
		return true;
	if (errno != ENOBUFS && errno != ENETDOWN)
		err(1, "send");
	return false;
}

static int64_t arrival_ns(struct msghdr *message)
{
	struct cmsghdr *c = CMSG_FIRSTHDR(message);
	struct timespec t;

	if (!c || c->cmsg_type != SO_TIMESTAMPNS)
		errx(1, "the kernel put no time stamp on a frame");
	memcpy(&t, CMSG_DATA(c), sizeof(t));
	return t.tv_sec * NS_PER_S + t.tv_nsec - offset_ns;
}

void wire_receive(wire_taker *take, void *context)
{
	struct pollfd readable = { .fd = far_socket, .events = POLLIN };
	uint8_t frame[ETH_FRAME_LEN];
	char control[256];
	struct iovec data = { frame, sizeof(frame) };
	struct sockaddr_ll from;
	struct msghdr message = {
		.msg_name = &from,
		.msg_namelen = sizeof(from),
		.msg_iov = &data,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control),
	};
	ssize_t n;

	if (poll(&readable, 1, WAIT_MS) <= 0)
		return;
	n = recvmsg(far_socket, &message, 0);
	if (n > 0 && from.sll_pkttype == PACKET_HOST)
		take(frame, n, arrival_ns(&message), 0, context);
}

uint64_t wire_dropped(void)
{
	struct tpacket_stats found;
	socklen_t bytes = sizeof(found);

	if (getsockopt(far_socket, SOL_PACKET, PACKET_STATISTICS, &found,
		       &bytes))
		err(1, "PACKET_STATISTICS");
	return found.tp_drops;
}
