/* SPDX-License-Identifier: Apache-2.0
 *
 * The only process of the test guest. It rewrites and verifies a window of
 * physical memory that the kernel does not know of, so that a page that was
 * never written here was never written by anybody, and sends a packet every
 * millisecond. Options on the kernel command line (see defaults[]):
 *
 * guest.base_mib          where the window begins; memmap= keeps it from the
 *                         kernel
 * guest.memory_mib        the window's size
 * guest.fill_percent      how many of its pages are ever written; the others
 *                         must read zero
 * guest.dirty_mib_per_s   how fast pages are rewritten; 0: each once, at start
 * guest.verify_mib_per_s  how fast pages are verified
 *
 * A fault is printed once; then the guest does nothing any more.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PAGE_BYTES 4096
#define WORDS_PER_PAGE (PAGE_BYTES / sizeof(uint64_t))
#define PAGES_PER_MIB 256
#define TICK_NS 10000000L /* memory is worked on in slices of 10 ms */
#define STATUS_INTERVAL_MS 250
#define BEACON_NS 1000000L
/* One write in so many makes a page zero again. */
#define ZERO_EVERY 8
/* The clock may stand still with the guest, but it must not leap; a vCPU on a
 * busy host may not run for seconds, though. */
#define MAX_LEAP_MS 60000

struct beacon {
	struct ether_header ethernet;
	char magic[4];
	uint8_t boot_id[16];
	uint64_t sequence;
	uint64_t guest_ns;
} __attribute__((packed));

struct option {
	const char *name;
	uint64_t value;
};

static struct option defaults[] = {
	{ "base_mib", 0 },
	{ "memory_mib", 0 },
	{ "fill_percent", 50 },
	{ "dirty_mib_per_s", 0 },
	{ "verify_mib_per_s", 64 },
};

static char boot_id_text[37];
static uint8_t boot_id[16];

/* Ends the guest's work, visibly. */
static void __attribute__((noreturn, format(printf, 1, 2)))
fault(const char *format, ...)
{
	va_list arguments;

	printf("guest: FAULT ");
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	printf("\n");
	for (;;)
		pause();
}

static uint64_t clock_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

static uint64_t option(const char *name)
{
	for (size_t i = 0; i < sizeof(defaults) / sizeof(*defaults); i++)
		if (!strcmp(defaults[i].name, name))
			return defaults[i].value;
	fault("no option '%s'", name);
}

static void read_options(void)
{
	char line[2048] = "", *save, *word, *end;
	FILE *f = fopen("/proc/cmdline", "r");

	if (!f || !fgets(line, sizeof(line), f))
		fault("cannot read /proc/cmdline");
	fclose(f);
	for (word = strtok_r(line, " \n", &save); word;
	     word = strtok_r(NULL, " \n", &save)) {
		char *value = strchr(word, '=');
		size_t i, n = sizeof(defaults) / sizeof(*defaults);

		if (strncmp(word, "guest.", 6))
			continue;
		if (!value)
			fault("option '%s' has no value", word);
		*value++ = 0;
		for (i = 0; i < n && strcmp(defaults[i].name, word + 6); i++)
			;
		if (i == n)
			fault("unknown option '%s'", word);
		defaults[i].value = strtoull(value, &end, 10);
		if (!*value || *end)
			fault("option '%s': '%s' is not a number", word, value);
	}
}

static void read_boot_id(void)
{
	FILE *f = fopen("/proc/sys/kernel/random/boot_id", "r");
	const char *p = boot_id_text;

	if (!f || fscanf(f, "%36s", boot_id_text) != 1)
		fault("cannot read the boot id");
	fclose(f);
	for (size_t i = 0; i < sizeof(boot_id); i++, p += 2) {
		if (*p == '-')
			p++;
		sscanf(p, "%2hhx", &boot_id[i]);
	}
}

/* ------------------------------------------------------------- packets */

static void load_modules(void)
{
	glob_t modules;

	if (glob("/modules/*.ko", 0, NULL, &modules))
		fault("no modules");
	for (size_t i = 0; i < modules.gl_pathc; i++) {
		int fd = open(modules.gl_pathv[i], O_RDONLY);

		if (fd < 0 || syscall(SYS_finit_module, fd, "", 0))
			fault("cannot load %s: %m", modules.gl_pathv[i]);
		close(fd);
	}
}

static void *send_beacons(void *arg)
{
	struct ifreq interface = { .ifr_name = "eth0" };
	struct sockaddr_ll address = { .sll_family = AF_PACKET };
	struct beacon beacon = { .magic = "nfmb" };
	struct timespec due, now;
	int least = 1, s = socket(AF_PACKET, SOCK_RAW, 0);

	/* A packet that the host is slow to take must not make the next ones
	 * wait: they would arrive late, with an old time. */
	if (s < 0 || setsockopt(s, SOL_SOCKET, SO_SNDBUF, &least,
				sizeof(least)))
		fault("socket: %m");
	if (ioctl(s, SIOCGIFINDEX, &interface)) {
		close(s);
		return arg; /* a guest without a network */
	}
	address.sll_ifindex = interface.ifr_ifindex;
	if (ioctl(s, SIOCGIFFLAGS, &interface))
		fault("eth0: %m");
	interface.ifr_flags |= IFF_UP;
	if (ioctl(s, SIOCSIFFLAGS, &interface))
		fault("eth0 up: %m");
	memset(beacon.ethernet.ether_dhost, 0xff, ETH_ALEN);
	beacon.ethernet.ether_type = htons(0x88b5); /* for experiments */
	memcpy(beacon.boot_id, boot_id, sizeof(boot_id));
	clock_gettime(CLOCK_MONOTONIC, &due);
	for (;;) {
		beacon.guest_ns = clock_ns(CLOCK_MONOTONIC);
		if (sendto(s, &beacon, sizeof(beacon), MSG_DONTWAIT,
			   (struct sockaddr *)&address, sizeof(address)) > 0)
			beacon.sequence++;
		due.tv_nsec += BEACON_NS;
		/* what was missed is not made up for: no bursts */
		clock_gettime(CLOCK_MONOTONIC, &now);
		if (now.tv_sec > due.tv_sec || (now.tv_sec == due.tv_sec
						&& now.tv_nsec > due.tv_nsec))
			due = now;
		if (due.tv_nsec >= 1000000000) {
			due.tv_nsec -= 1000000000;
			due.tv_sec++;
		}
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
	}
}

static void start_beacons(void)
{
	struct sched_param fifo = { .sched_priority = 50 };
	pthread_attr_t attributes;
	pthread_t thread;

	pthread_attr_init(&attributes);
	pthread_attr_setinheritsched(&attributes, PTHREAD_EXPLICIT_SCHED);
	pthread_attr_setschedpolicy(&attributes, SCHED_FIFO);
	pthread_attr_setschedparam(&attributes, &fifo);
	errno = pthread_create(&thread, &attributes, send_beacons, NULL);
	if (errno)
		fault("pthread_create: %m");
}

/* -------------------------------------------------------------- memory */

struct memory {
	volatile uint64_t *words;
	uint64_t base; /* physical address */
	uint64_t pages;
	uint64_t fill_percent;
	/* How often a page was written; kept in the kernel's memory. */
	uint32_t *generations;
	uint64_t verified, written, passes;
};

/* As in splitmix64: page and generation decide every bit of the result. */
static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ULL;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
	return x ^ (x >> 31);
}

static uint64_t pattern(uint64_t page, uint32_t generation)
{
	if (generation % ZERO_EVERY == 0)
		return 0;
	return mix(page << 32 | generation) | 1;
}

static void verify_page(struct memory *m, uint64_t page)
{
	volatile uint64_t *words = m->words + page * WORDS_PER_PAGE;
	uint64_t first = pattern(page, m->generations[page]);
	uint64_t step = first ? 2 : 0;

	for (size_t i = 0; i < WORDS_PER_PAGE; i++) {
		uint64_t found = words[i], expected = first + i * step;

		if (found != expected)
			fault("page %lu at %#lx word %zu is %#lx instead of "
			      "%#lx, generation %u", page,
			      m->base + page * PAGE_BYTES, i, found, expected,
			      m->generations[page]);
	}
	m->verified++;
}

static void write_page(struct memory *m, uint64_t page)
{
	volatile uint64_t *words = m->words + page * WORDS_PER_PAGE;
	uint64_t value, step;

	value = pattern(page, ++m->generations[page]);
	step = value ? 2 : 0;
	for (size_t i = 0; i < WORDS_PER_PAGE; i++, value += step)
		words[i] = value;
	m->written++;
}

/* Scattered, so that written and untouched pages lie side by side. */
static int is_filled(const struct memory *m, uint64_t page)
{
	return mix(page) % 100 < m->fill_percent;
}

static void map_memory(struct memory *m)
{
	int fd = open("/dev/mem", O_RDWR);

	m->pages = option("memory_mib") * PAGES_PER_MIB;
	m->fill_percent = option("fill_percent");
	m->base = option("base_mib") << 20;
	if (fd < 0)
		fault("/dev/mem: %m");
	m->words = mmap(NULL, m->pages * PAGE_BYTES, PROT_READ | PROT_WRITE,
			MAP_SHARED, fd, m->base);
	if (m->words == MAP_FAILED)
		fault("cannot map %lu pages at %#lx: %m", m->pages, m->base);
	m->generations = calloc(m->pages, sizeof(*m->generations));
	if (!m->generations)
		fault("no memory for %lu pages", m->pages);
	for (uint64_t page = 0; page < m->pages; page++)
		if (is_filled(m, page))
			write_page(m, page);
	printf("guest: window at %#lx, %lu pages, %lu written\n", m->base,
	       m->pages, m->written);
}

static uint64_t check_clock(uint64_t last_ns)
{
	uint64_t now = clock_ns(CLOCK_MONOTONIC);

	if (now < last_ns)
		fault("the clock went back by %lu ns from %lu", last_ns - now,
		      last_ns);
	if (now - last_ns > MAX_LEAP_MS * 1000000ULL)
		fault("the clock leapt by %lu ms from %lu",
		      (now - last_ns) / 1000000, last_ns / 1000000);
	return now;
}

/* Pages due after so long at this rate. */
static uint64_t due_pages(uint64_t elapsed_ns, uint64_t mib_per_s)
{
	return elapsed_ns / 1000 * mib_per_s * PAGES_PER_MIB / 1000000;
}

static void __attribute__((noreturn)) work(struct memory *m)
{
	const struct timespec tick = { .tv_nsec = TICK_NS };
	uint64_t dirty_rate = option("dirty_mib_per_s");
	uint64_t verify_rate = option("verify_mib_per_s");
	uint64_t now = clock_ns(CLOCK_MONOTONIC), last, next_status_ns = now;
	uint64_t next_verified = 0, random = 1;
	/* counted in a register, in this stack and in the heap */
	uint64_t ticks = 0;
	volatile uint64_t ticks_on_stack = 0;
	volatile uint64_t *ticks_on_heap = calloc(1, sizeof(*ticks_on_heap));

	if (!ticks_on_heap)
		fault("no memory");
	for (;;) {
		nanosleep(&tick, NULL);
		last = now;
		now = check_clock(last);
		/* what a late tick missed is not made up for: no bursts */
		uint64_t elapsed = now - last;
		if (elapsed > 5 * TICK_NS)
			elapsed = 5 * TICK_NS;
		for (uint64_t n = due_pages(elapsed, dirty_rate); n;) {
			uint64_t page = (random = mix(random)) % m->pages;

			if (m->fill_percent && !is_filled(m, page))
				continue;
			verify_page(m, page);
			write_page(m, page);
			n--;
		}
		for (uint64_t n = due_pages(elapsed, verify_rate); n; n--) {
			verify_page(m, next_verified);
			if (++next_verified == m->pages) {
				next_verified = 0;
				m->passes++;
			}
		}
		ticks++;
		ticks_on_stack++;
		(*ticks_on_heap)++;
		if (ticks != ticks_on_stack || ticks != *ticks_on_heap)
			fault("tick %lu is %lu on the stack and %lu on the "
			      "heap", ticks, ticks_on_stack, *ticks_on_heap);
		if (now >= next_status_ns) {
			printf("guest: boot %s passes %lu verified %lu written "
			       "%lu uptime_ms %lu\n", boot_id_text, m->passes,
			       m->verified, m->written, now / 1000000);
			next_status_ns = now + STATUS_INTERVAL_MS * 1000000ULL;
		}
	}
}

int main(void)
{
	struct memory memory = { 0 };

	setvbuf(stdout, NULL, _IOLBF, 0);
	mkdir("/proc", 0755);
	mkdir("/dev", 0755);
	if (mount("proc", "/proc", "proc", 0, NULL))
		fault("/proc: %m");
	/* the kernel may have mounted it */
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	read_options();
	read_boot_id();
	load_modules();
	map_memory(&memory);
	if (mlockall(MCL_CURRENT | MCL_FUTURE))
		fault("mlockall: %m");
	start_beacons();
	work(&memory);
}
