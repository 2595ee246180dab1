/* SPDX-License-Identifier: Apache-2.0
 *
 * What the probe sends and what the forwarder stamps into the frame on its
 * way back: the payload of a UDP/IPv4 datagram without a UDP checksum, so
 * that the guest need not recompute one. Integers are in host order; the
 * probe and the guest run on one machine.
 */
#ifndef NOVA_FASTMIG_PROBE_PROTOCOL_H
#define NOVA_FASTMIG_PROBE_PROTOCOL_H

#include <net/ethernet.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <stddef.h>
#include <stdint.h>

#define PROBE_MAGIC 0x31474d5453414642ULL /* "BFASTMG1" */
#define BOOT_ID_BYTES 16
#define DISK_BLOCK_BYTES (64 << 10)

struct probe_payload {
	uint64_t magic;
	uint64_t session;	/* random, one per run of the probe */
	uint64_t sequence;
	/* how fast the guest is to rewrite its memory from now on; less than
	 * 0: as it does */
	int64_t rewrite_mib_per_s;
	/* zero in the request, filled in by the forwarder: */
	uint8_t boot_id[BOOT_ID_BYTES];
	uint64_t counter;	/* probe frames forwarded, this one included */
	uint64_t guest_ns;	/* the guest's CLOCK_MONOTONIC */
	uint64_t corruptions;	/* memory words found with a wrong value */
	uint64_t pages_verified;
	/* how much memory the guest is to rewrite from now on; less than 0: as
	 * much as it does. The forwarder fills in how much that is, which is
	 * less if it cannot have so much. */
	int64_t working_set_mib;
} __attribute__((packed));

/* Only in the frames of a probe that wants the guest to use its disk: all
 * others stay as short as they are, and tell it not to. */
struct probe_disk {
	/* how fast the guest is to read, verify and write blocks from now on */
	int64_t mib_per_s;
	/* zero in the request, filled in by the forwarder: */
	uint64_t blocks;	/* of DISK_BLOCK_BYTES that it has done */
	uint64_t faults;	/* those that were wrong, or an error */
} __attribute__((packed));

struct probe_frame {
	struct ether_header eth;
	struct iphdr ip;
	struct udphdr udp;
	struct probe_payload payload;
	struct probe_disk disk;
} __attribute__((packed));

#define BYTES_WITHOUT_DISK offsetof(struct probe_frame, disk)

#endif
