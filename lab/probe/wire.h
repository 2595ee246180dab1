/* SPDX-License-Identifier: Apache-2.0
 *
 * How probes leave and answers arrive: over packet sockets (wire_socket.c) or
 * over DPDK's ports (wire_dpdk.c), as the program was linked.
 */
#ifndef WIRE_H
#define WIRE_H

#include <net/ethernet.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

/* probe.c's: what a clock shows */
int64_t clock_ns(clockid_t clock);

/* how the program is called, up to the probe's own options */
extern const char wire_usage[];

/* Takes what is for the wire from the beginning of the command line; returns
 * how many arguments to skip for the rest to be a command line again. */
int wire_init(int argc, char **argv);

/*
 * near:       where frames leave
 * far:        where they come back; the same as near, or another one
 * ethertype:  of those that come back
 * realtime_offset_ns: CLOCK_REALTIME without CLOCK_MONOTONIC
 * near_mac:   is set to near's
 */
void wire_open(const char *near, const char *far, uint16_t ethertype,
	       int64_t realtime_offset_ns, uint8_t near_mac[ETH_ALEN]);

/* Returns whether it left: a queue may be full, or the link down. */
bool wire_send(const void *frame, size_t bytes);

/* at_ns: when it arrived, in CLOCK_MONOTONIC
 * late_ns: so much earlier it may have been */
typedef void wire_taker(const void *frame, size_t bytes, int64_t at_ns,
			int64_t late_ns, void *context);

/* Gives what arrived for far's own MAC address to take, so nothing that a switch
 * flooded that did not know the way. Waits for up to 100 ms if there is
 * nothing. */
void wire_receive(wire_taker *take, void *context);

/* How many frames arrived for which there was no room, since it was asked last. */
uint64_t wire_dropped(void);

#endif
