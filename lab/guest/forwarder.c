/* SPDX-License-Identifier: Apache-2.0
 *
 * forwarder IFACE MEMORY_MIB RATE_MIB_PER_S [DISK START_MIB MIB]
 *
 * The lab's network function. It sends every unicast frame that arrives at
 * IFACE back to its sender, as DPDK testpmd does in macswap mode, and stamps
 * probe frames (protocol.h) with the guest's identity and state. Meanwhile a
 * second thread rewrites and verifies MEMORY_MIB of memory at RATE_MIB_PER_S,
 * so that a migration has dirty pages to send and a lost or stale page shows.
 * A probe may ask for another rate, and for more or less memory.
 *
 * A third thread does nothing until a probe asks for it, and then as long as
 * probes do. It goes round the MIB from START_MIB on of DISK, past its cache:
 * it reads a block, verifies what it wrote there the last time, and writes it
 * anew.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdalign.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/sysinfo.h>
#include <time.h>
#include <unistd.h>

#include "../probe/protocol.h"

#define PAGE_BYTES 4096
#define WORDS_PER_PAGE (PAGE_BYTES / sizeof(uint64_t))
#define WORD_STRIDE 64 /* verify one word in every 512 bytes */
#define PAGES_PER_MIB 256
#define FREE_MIB 16 /* for everything else */
#define TICK_NS 10000000 /* the verifier works in slices of 10 ms */
#define HEARTBEAT_NS 5000000000ULL
#define REPORTED_CORRUPTIONS 20
#define BLOCKS_PER_MIB ((1 << 20) / DISK_BLOCK_BYTES)
#define WORDS_PER_BLOCK (DISK_BLOCK_BYTES / sizeof(uint64_t))
/* after so long a wait for the disk it does not catch up any more */
#define DISK_DEBT_NS 1000000000ULL
#define DISK_STACK_BYTES (128 << 10) /* all of it is locked */

static atomic_uint_fast64_t frames, probes, corruptions, pages_verified;
static atomic_uint_fast64_t pages_per_tick;
static atomic_uint_fast64_t working_set_pages, wanted_pages;
static atomic_uint_fast64_t disk_mib_per_s, disk_blocks, disk_faults;
static char boot_id_text[37];
static uint8_t boot_id[BOOT_ID_BYTES];

static uint64_t monotonic_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

static void read_boot_id(void)
{
	FILE *f = fopen("/proc/sys/kernel/random/boot_id", "r");
	const char *p = boot_id_text;

	if (!f || fscanf(f, "%36s", boot_id_text) != 1)
		errx(1, "cannot read the boot id");
	fclose(f);
	for (int i = 0; i < BOOT_ID_BYTES; i++, p += 2) {
		if (*p == '-')
			p++;
		if (sscanf(p, "%2hhx", &boot_id[i]) != 1)
			errx(1, "boot id '%s' is not a UUID", boot_id_text);
	}
}

/* working_set_pages of it are rewritten, the others are as they were left */
struct memory {
	volatile uint64_t *words;
	uint64_t pages;
};

/* The page number is part of the value, so a page that lands in the wrong
 * place is noticed as well as a stale one. */
static uint64_t pattern(uint64_t page, uint64_t pass)
{
	return pass << 32 | page;
}

static void verify_page(const struct memory *m, uint64_t page, uint64_t pass)
{
	volatile uint64_t *words = m->words + page * WORDS_PER_PAGE;

	for (size_t i = 0; i < WORDS_PER_PAGE; i += WORD_STRIDE) {
		uint64_t found = words[i], expected = pattern(page, pass - 1);

		if (found != expected
		    && atomic_fetch_add(&corruptions, 1) < REPORTED_CORRUPTIONS)
			printf("forwarder: page %lu word %zu is %#lx instead "
			       "of %#lx\n", page, i, found, expected);
		words[i] = pattern(page, pass);
	}
	atomic_fetch_add(&pages_verified, 1);
}

static void fill(const struct memory *m, uint64_t from_page, uint64_t to_page,
		 uint64_t pass)
{
	for (uint64_t page = from_page; page < to_page; page++)
		for (size_t i = 0; i < WORDS_PER_PAGE; i += WORD_STRIDE)
			m->words[page * WORDS_PER_PAGE + i] = pattern(page, pass);
}

/* As many as there are, or as is wanted. */
static void grow(struct memory *m, uint64_t pages)
{
	struct sysinfo info;
	uint64_t most = m->pages;
	void *words;

	if (!sysinfo(&info) && info.freeram > FREE_MIB << 20)
		most += (info.freeram - (FREE_MIB << 20)) / PAGE_BYTES;
	if (pages > most)
		pages = most;
	if (pages <= m->pages)
		return;
	words = mremap((void *)m->words, m->pages * PAGE_BYTES,
		       pages * PAGE_BYTES, MREMAP_MAYMOVE);
	if (words == MAP_FAILED)
		return;
	m->words = words;
	m->pages = pages;
}

/* Between two passes: the next one writes pass. */
static void resize(struct memory *m, uint64_t pages, uint64_t pass)
{
	uint64_t before = working_set_pages;

	grow(m, pages);
	if (pages > m->pages)
		pages = m->pages;
	/* what was left out for some passes is not known any more */
	if (pages > before)
		fill(m, before, pages, pass - 1);
	working_set_pages = pages;
}

static void heartbeat(void)
{
	printf("forwarder: boot %s frames %lu probes %lu pages verified %lu "
	       "corruptions %lu\n", boot_id_text, frames, probes,
	       pages_verified, corruptions);
}

static void *verify(void *arg)
{
	struct memory *m = arg;
	struct timespec due;
	uint64_t page = 0, pass = 1, next_heartbeat = 0, wanted;
	uint64_t asked = wanted_pages;

	clock_gettime(CLOCK_MONOTONIC, &due);
	for (;;) {
		for (uint64_t i = 0; i < pages_per_tick; i++) {
			verify_page(m, page, pass);
			if (++page == working_set_pages) {
				page = 0;
				pass++;
			}
		}
		wanted = wanted_pages;
		if (wanted != asked) {
			/* the rest of the pass, at once */
			for (; page && page < working_set_pages; page++)
				verify_page(m, page, pass);
			pass += page > 0;
			page = 0;
			resize(m, wanted, pass);
			asked = wanted;
			/* the time that took is not caught up */
			clock_gettime(CLOCK_MONOTONIC, &due);
		}
		if (monotonic_ns() >= next_heartbeat) {
			heartbeat();
			next_heartbeat = monotonic_ns() + HEARTBEAT_NS;
		}
		due.tv_nsec += TICK_NS;
		if (due.tv_nsec >= 1000000000) {
			due.tv_nsec -= 1000000000;
			due.tv_sec++;
		}
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
	}
	return NULL;
}

static uint64_t pages_each_tick(uint64_t mib_per_s)
{
	return mib_per_s * PAGES_PER_MIB / (1000000000 / TICK_NS);
}

static void start_verifier(struct memory *m, uint64_t mib, uint64_t mib_per_s)
{
	pthread_t thread;

	m->pages = mib * PAGES_PER_MIB;
	pages_per_tick = pages_each_tick(mib_per_s);
	if (mib_per_s && (!m->pages || !pages_per_tick))
		errx(1, "%lu MiB at %lu MiB/s: both must be at least 1, "
		     "or the rate 0", mib, mib_per_s);
	working_set_pages = wanted_pages = m->pages;
	m->words = mmap(NULL, (m->pages ? m->pages : 1) * PAGE_BYTES,
			PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (m->words == MAP_FAILED)
		err(1, "cannot map %lu MiB", mib);
	fill(m, 0, m->pages, 0);
	errno = pthread_create(&thread, NULL, verify, m);
	if (errno)
		err(1, "pthread_create");
}

/* ---- the disk -------------------------------------------------------- */

struct disk {
	const char *path;
	uint64_t start_bytes, blocks; /* no blocks: it has no disk */
	sem_t wanted;
};

__attribute__((format(printf, 1, 2)))
static void disk_fault(const char *format, ...)
{
	va_list arguments;

	if (atomic_fetch_add(&disk_faults, 1) >= REPORTED_CORRUPTIONS)
		return;
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
}

/* In each sector, its number and the pass in which it was written: a write
 * that was lost or went astray is noticed wherever the disk tears it. */
static void verify_block(const uint64_t *words, uint64_t block, uint64_t pass)
{
	uint64_t sector = block * WORDS_PER_BLOCK / WORD_STRIDE;

	for (size_t i = 0; i < WORDS_PER_BLOCK; i += WORD_STRIDE, sector++)
		if (words[i] != pattern(sector, pass)) {
			disk_fault("forwarder: block %lu word %zu is %#lx "
				   "instead of %#lx\n", block, i, words[i],
				   pattern(sector, pass));
			return;
		}
}

static void rewrite_block(int fd, const struct disk *d, uint64_t block,
			  uint64_t pass)
{
	static alignas(PAGE_BYTES) uint64_t words[WORDS_PER_BLOCK];
	uint64_t sector = block * WORDS_PER_BLOCK / WORD_STRIDE;
	off_t at = d->start_bytes + block * DISK_BLOCK_BYTES;
	ssize_t n = pread(fd, words, sizeof(words), at);

	if (n != sizeof(words))
		disk_fault("forwarder: block %lu: read %zd bytes: %s\n", block,
			   n, n < 0 ? strerror(errno) : "end of the disk");
	else if (pass > 1) /* what was there before is not known */
		verify_block(words, block, pass - 1);
	for (size_t i = 0; i < WORDS_PER_BLOCK; i += WORD_STRIDE)
		words[i] = pattern(sector++, pass);
	n = pwrite(fd, words, sizeof(words), at);
	if (n != sizeof(words))
		disk_fault("forwarder: block %lu: wrote %zd bytes: %s\n",
			   block, n,
			   n < 0 ? strerror(errno) : "end of the disk");
	atomic_fetch_add(&disk_blocks, 1);
}

static void sleep_until(uint64_t ns)
{
	struct timespec t = { ns / 1000000000, ns % 1000000000 };

	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

static void *use_disk(void *arg)
{
	struct disk *d = arg;
	uint64_t block = 0, pass = 1, due_ns = 0, mib_per_s;
	int fd = -1;

	for (;;) {
		while (!(mib_per_s = disk_mib_per_s))
			sem_wait(&d->wanted);
		if (fd < 0)
			fd = open(d->path, O_RDWR | O_DIRECT);
		if (fd < 0) {
			disk_fault("forwarder: %s: %s\n", d->path,
				   strerror(errno));
			return NULL;
		}
		if (due_ns + DISK_DEBT_NS < monotonic_ns())
			due_ns = monotonic_ns();
		sleep_until(due_ns);
		rewrite_block(fd, d, block, pass);
		if (++block == d->blocks) {
			block = 0;
			pass++;
		}
		due_ns += 1000000000 / (mib_per_s * BLOCKS_PER_MIB);
	}
}

static void start_disk(struct disk *d, const char *path, uint64_t start_mib,
		       uint64_t mib)
{
	pthread_attr_t attributes;
	pthread_t thread;

	d->path = path;
	d->start_bytes = start_mib << 20;
	d->blocks = mib * BLOCKS_PER_MIB;
	sem_init(&d->wanted, 0, 0);
	pthread_attr_init(&attributes);
	errno = pthread_attr_setstacksize(&attributes, DISK_STACK_BYTES);
	if (!errno)
		errno = pthread_create(&thread, &attributes, use_disk, d);
	if (errno)
		err(1, "pthread_create");
}

/* ---- frames ---------------------------------------------------------- */

static int open_interface(const char *name)
{
	struct sockaddr_ll address = {
		.sll_family = AF_PACKET,
		.sll_protocol = htons(ETH_P_ALL),
		.sll_ifindex = if_nametoindex(name),
	};
	/* As deep as the rings of a forwarder: what waits in the network while
	 * the guest stands still arrives at once. */
	int on = 1, queue_bytes = 4 << 20;
	int s = socket(AF_PACKET, SOCK_RAW, 0);

	if (s < 0)
		err(1, "AF_PACKET socket");
	if (setsockopt(s, SOL_PACKET, PACKET_IGNORE_OUTGOING, &on, sizeof(on)))
		err(1, "PACKET_IGNORE_OUTGOING");
	if (setsockopt(s, SOL_SOCKET, SO_RCVBUFFORCE, &queue_bytes,
		       sizeof(queue_bytes)))
		err(1, "SO_RCVBUFFORCE");
	if (bind(s, (struct sockaddr *)&address, sizeof(address)))
		err(1, "interface '%s'", name);
	return s;
}

static void swap_bytes(void *a, void *b, size_t n)
{
	uint8_t t[ETH_ALEN];

	memcpy(t, a, n);
	memcpy(a, b, n);
	memcpy(b, t, n);
}

static int is_probe(const struct probe_frame *f, size_t n)
{
	return n >= BYTES_WITHOUT_DISK
	    && f->eth.ether_type == htons(ETHERTYPE_IP)
	    && f->ip.protocol == IPPROTO_UDP
	    && f->payload.magic == PROBE_MAGIC;
}

/* asked: NULL in a frame that asks for nothing */
static void answer_disk(struct disk *d, struct probe_disk *asked)
{
	uint64_t mib_per_s = asked && d->blocks ? asked->mib_per_s : 0;

	if (!atomic_exchange(&disk_mib_per_s, mib_per_s) && mib_per_s)
		sem_post(&d->wanted);
	if (asked) {
		asked->blocks = disk_blocks;
		asked->faults = disk_faults;
	}
}

static void answer_memory(struct probe_payload *p)
{
	/* started without any, it has nothing to rewrite */
	if (working_set_pages) {
		if (p->rewrite_mib_per_s >= 0)
			pages_per_tick = pages_each_tick(p->rewrite_mib_per_s);
		if (p->working_set_mib > 0)
			wanted_pages = p->working_set_mib * PAGES_PER_MIB;
	}
	p->working_set_mib = working_set_pages / PAGES_PER_MIB;
}

static void forward(int s, struct disk *d)
{
	static union {
		uint8_t bytes[ETH_FRAME_LEN + 4];
		struct probe_frame frame;
	} buffer;
	struct probe_frame *f = &buffer.frame;
	struct sockaddr_ll from;
	socklen_t from_len;
	ssize_t n;

	for (;;) {
		from_len = sizeof(from);
		n = recvfrom(s, buffer.bytes, sizeof(buffer), MSG_TRUNC,
			     (struct sockaddr *)&from, &from_len);
		/* PACKET_HOST: broadcast sent back would have a group
		 * address as its source */
		if (n < ETH_HLEN || n > (ssize_t)sizeof(buffer)
		    || from.sll_pkttype != PACKET_HOST)
			continue;
		swap_bytes(f->eth.ether_shost, f->eth.ether_dhost, ETH_ALEN);
		atomic_fetch_add(&frames, 1);
		if (is_probe(f, n)) {
			/* swapped too, so that port security lets it pass;
			 * the IP header's checksum stays the same */
			swap_bytes(&f->ip.saddr, &f->ip.daddr, 4);
			swap_bytes(&f->udp.source, &f->udp.dest, 2);
			memcpy(f->payload.boot_id, boot_id, BOOT_ID_BYTES);
			f->payload.counter = atomic_fetch_add(&probes, 1) + 1;
			f->payload.guest_ns = monotonic_ns();
			f->payload.corruptions = corruptions;
			f->payload.pages_verified = pages_verified;
			answer_memory(&f->payload);
			answer_disk(d, n >= (ssize_t)sizeof(*f) ? &f->disk
								: NULL);
		}
		send(s, buffer.bytes, n, 0);
	}
}

static uint64_t number(const char *text)
{
	char *end;
	uint64_t value = strtoull(text, &end, 10);

	if (!*text || *end || value > 1 << 20)
		errx(1, "'%s' is not a number from 0 to %d", text, 1 << 20);
	return value;
}

int main(int argc, char **argv)
{
	struct sched_param fifo = { .sched_priority = 50 };
	static struct memory memory;
	static struct disk disk;
	int s;

	if (argc != 4 && argc != 7)
		errx(1, "usage: forwarder IFACE MEMORY_MIB RATE_MIB_PER_S "
		     "[DISK START_MIB MIB]");
	setvbuf(stdout, NULL, _IOLBF, 0);
	read_boot_id();
	s = open_interface(argv[1]);
	if (mlockall(MCL_CURRENT | MCL_FUTURE))
		err(1, "mlockall");
	/* the verifier keeps the normal policy: it must not delay a frame */
	start_verifier(&memory, number(argv[2]), number(argv[3]));
	if (argc == 7)
		start_disk(&disk, argv[4], number(argv[5]), number(argv[6]));
	if (sched_setscheduler(0, SCHED_FIFO, &fifo))
		err(1, "SCHED_FIFO");
	forward(s, &disk);
}
