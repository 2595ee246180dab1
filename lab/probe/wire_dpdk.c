/* SPDX-License-Identifier: Apache-2.0
 *
 * DPDK's ports. What arrives is stamped when it is found, so every POLL_NS: a
 * thread that looks all the time would take a core from what is measured.
 */
#define _GNU_SOURCE
#include <err.h>
#include <string.h>
#include <time.h>

#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_mbuf.h>

#include "wire.h"

#define POLL_NS 200000
#define POLLS_PER_WAIT 500 /* 100 ms */
#define BURST 32
#define DESCRIPTORS 256
#define BUFFERS 2048

const char wire_usage[] = "probe-dpdk EAL-OPTION... --";

static uint16_t near_port, far_port;
/* One for each thread: they have different priorities, and the one that gets the
 * core would wait for ever for the other one if both used the same. */
static struct rte_mempool *sent_buffers, *received_buffers;
static struct rte_ether_addr far_mac;
static uint16_t awaited_type;

int wire_init(int argc, char **argv)
{
	int taken = rte_eal_init(argc, argv);

	if (taken < 0)
		errx(1, "DPDK: %s", rte_strerror(rte_errno));
	return taken;
}

static uint16_t start(const char *name, struct rte_ether_addr *mac)
{
	const struct rte_eth_conf configuration = { 0 };
	uint16_t port;
	int failed;

	if (rte_eth_dev_get_port_by_name(name, &port))
		errx(1, "DPDK has no port '%s'", name);
	failed = rte_eth_dev_configure(port, 1, 1, &configuration);
	if (!failed)
		failed = rte_eth_rx_queue_setup(port, 0, DESCRIPTORS,
						rte_eth_dev_socket_id(port),
						NULL, received_buffers);
	if (!failed)
		failed = rte_eth_tx_queue_setup(port, 0, DESCRIPTORS,
						rte_eth_dev_socket_id(port),
						NULL);
	if (!failed)
		failed = rte_eth_dev_start(port);
	if (!failed)
		failed = rte_eth_macaddr_get(port, mac);
	if (failed)
		errx(1, "DPDK's port '%s': %s", name, rte_strerror(-failed));
	return port;
}

static struct rte_mempool *make_buffers(const char *name)
{
	struct rte_mempool *made = rte_pktmbuf_pool_create(
		name, BUFFERS, 0, 0, RTE_MBUF_DEFAULT_BUF_SIZE,
		rte_socket_id());

	if (!made)
		errx(1, "DPDK's buffers: %s", rte_strerror(rte_errno));
	return made;
}

void wire_open(const char *near, const char *far, uint16_t ethertype,
	       int64_t realtime_offset_ns, uint8_t near_mac[ETH_ALEN])
{
	struct rte_ether_addr mac;

	(void)realtime_offset_ns;
	sent_buffers = make_buffers("sent");
	received_buffers = make_buffers("received");
	awaited_type = rte_cpu_to_be_16(ethertype);
	near_port = start(near, &mac);
	memcpy(near_mac, mac.addr_bytes, ETH_ALEN);
	far_mac = mac;
	far_port = strcmp(near, far) ? start(far, &far_mac) : near_port;
}

bool wire_send(const void *frame, size_t bytes)
{
	struct rte_mbuf *buffer = rte_pktmbuf_alloc(sent_buffers);

	if (!buffer)
		return false;
	memcpy(rte_pktmbuf_append(buffer, bytes), frame, bytes);
	if (rte_eth_tx_burst(near_port, 0, &buffer, 1))
		return true;
	rte_pktmbuf_free(buffer);
	return false;
}

/* since_ns: set to how long before it was looked the time before */
static uint16_t wait_for_frames(struct rte_mbuf **found, int64_t *since_ns)
{
	static int64_t polled_ns;
	const struct timespec pause = { .tv_nsec = POLL_NS };
	uint16_t n = 0;

	for (int i = 0; i < POLLS_PER_WAIT; i++) {
		int64_t now_ns = clock_ns(CLOCK_MONOTONIC);

		*since_ns = polled_ns ? now_ns - polled_ns : 0;
		polled_ns = now_ns;
		n = rte_eth_rx_burst(far_port, 0, found, BURST);
		if (n)
			break;
		clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
	}
	return n;
}

void wire_receive(wire_taker *take, void *context)
{
	struct rte_mbuf *found[BURST];
	int64_t late_ns;
	uint16_t n = wait_for_frames(found, &late_ns);
	int64_t at_ns = clock_ns(CLOCK_MONOTONIC);

	for (uint16_t i = 0; i < n; i++) {
		struct rte_mbuf *buffer = found[i];
		const struct rte_ether_hdr *eth =
			rte_pktmbuf_mtod(buffer, struct rte_ether_hdr *);

		if (rte_pktmbuf_is_contiguous(buffer)
		    && rte_pktmbuf_data_len(buffer) >= sizeof(*eth)
		    && eth->ether_type == awaited_type
		    && rte_is_same_ether_addr(&eth->dst_addr, &far_mac))
			take(eth, rte_pktmbuf_data_len(buffer), at_ns, late_ns,
			     context);
		rte_pktmbuf_free(buffer);
	}
}

uint64_t wire_dropped(void)
{
	struct rte_eth_stats found;
	int failed = rte_eth_stats_get(far_port, &found);

	if (failed)
		errx(1, "DPDK's counters: %s", rte_strerror(-failed));
	rte_eth_stats_reset(far_port);
	return found.imissed + found.rx_nombuf;
}
