/* SPDX-License-Identifier: Apache-2.0
 *
 * probe: measure from outside how long a migration keeps packets from a guest
 * that runs the lab's forwarder, and whether the guest lives on unharmed.
 *
 * With --far the guest is any forwarder between two ports, say DPDK's testpmd:
 * frames of 64 bytes go out at --interface and come back at the other one, to
 * its address. They are not stamped then, so nothing is known of the guest
 * itself.
 *
 * It sends one frame per period to the guest's MAC address and waits for the
 * forwarder's answer. Sending is paced on absolute CLOCK_MONOTONIC times;
 * arrivals carry the kernel's time stamp, so they do not depend on when this
 * process gets to run. It writes "ready" to stderr when the first answer is
 * in, or fails after --answer-within seconds without one. It ends after
 * --seconds or at SIGTERM or SIGINT, and then prints one JSON object:
 *
 *   blackout_ms      longest run of consecutive probes without an answer,
 *                    times the period; blackout_at is when it began
 *   gap_ms           longest time between two arrivals, longer than the
 *                    blackout if answers came late instead of not at all, and
 *                    shorter if earlier ones came while later probes were lost
 *   sender_stall_ms  how late the latest probe was sent: the measurement's
 *                    own hiccup, which reads as a blackout of the guest
 *   blackout_stall_ms  the same among the probes of the blackout and the gap
 *                    and next to them, or how late it was looked for their
 *                    answers: how far the figures may be off
 *   unsent           probes that never left, as a queue was full or the link
 *                    down: lost, but not by the guest
 *   dropped          frames that arrived and found no room here
 *   counter_continuous  one boot id throughout, and its count of forwarded
 *                    probes grew with each answer
 *   silent_at_end_ms how long before the last probe the last one was sent that
 *                    was answered
 *   reordered        answers that came after one to a later probe
 *   unreturned       probes that the guest forwarded between the first and
 *                    the last answer and whose answer never arrived
 *   corruptions      wrong memory words that the guest has found
 *   pages_verified   that it has rewritten and verified since it booted;
 *                    first_pages_verified: by the first answer, which
 *                    together with last_guest_ns - first_guest_ns, its own
 *                    clock, tells how fast it is
 *   working_set_mib  how much memory the guest rewrites, as it says at last;
 *                    wanted_working_set_mib: what --working-set asked for
 *   disk_blocks      with --disk, blocks of its disk that it has read, verified
 *                    and written since it booted; first_disk_blocks: by the
 *                    first answer
 *   disk_faults      blocks that it found wrong or that were an error
 *   losses           the runs of consecutive probes without an answer, as
 *                    [when the first one was sent, how many]; not more than
 *                    MAX_LOSSES
 *   phases           what came of the probes that were sent until the first
 *                    SIGUSR1, from then until the second, and so on; and how
 *                    fast the guest rewrote its memory, by its own clock, from
 *                    the first answer in the phase to the first in the next
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/ether.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "protocol.h"
#include "wire.h"

#define NS_PER_S 1000000000LL
#define GRACE_NS (NS_PER_S / 2) /* for answers to the last probes */
#define UDP_PORT 7 /* echo */
#define FAR_ETHERTYPE 0x88b5 /* for experiments */
#define FAR_FRAME_BYTES 60 /* 64 with the checksum */
#define MAX_LOSSES 100
#define MAX_MARKS 2

struct options {
	const char *interface;
	const char *far; /* where frames come back; NULL: at the same one */
	struct ether_addr mac;
	struct in_addr source, destination;
	unsigned rate_per_s;
	unsigned seconds;
	unsigned answer_within_s; /* 0: wait for ever */
	int64_t rewrite_mib_per_s; /* less than 0: the guest's own */
	int64_t working_set_mib; /* less than 0: the guest's own */
	int64_t disk_mib_per_s;
};

/* without --far and with it; of the latter's payload, only what is in
 * FAR_FRAME_BYTES */
union frame {
	struct probe_frame near;
	struct {
		struct ether_header eth;
		struct probe_payload payload;
	} __attribute__((packed)) far;
};

struct probe {
	int64_t due_ns, sent_ns, received_ns; /* 0: not received */
	int64_t late_ns; /* so much earlier it may have been received */
	uint32_t duplicates;
	bool reordered;
};

struct guest {
	bool seen, continuous;
	uint8_t first_boot_id[BOOT_ID_BYTES], last_boot_id[BOOT_ID_BYTES];
	uint64_t first_counter, last_counter;
	uint64_t corruptions, first_pages_verified, pages_verified;
	uint64_t first_ns, last_ns;
	int64_t working_set_mib;
	uint64_t first_disk_blocks, disk_blocks, disk_faults;
};

static struct probe *probes;
static struct guest guest = { .continuous = true };
static uint64_t session, capacity, newest, unsent;
static atomic_uint_fast64_t received;
static atomic_bool stop, finished;
static int64_t marks_ns[MAX_MARKS];
static atomic_uint marks;
/* what the guest said first in each phase; ns 0: nothing */
static struct {
	uint64_t pages_verified, ns;
} phase_starts[MAX_MARKS + 1];

static void on_signal(int number)
{
	(void)number;
	stop = true;
}

int64_t clock_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * NS_PER_S + t.tv_nsec;
}

/* SIGUSR1: a phase ends and the next one begins */
static void on_mark(int number)
{
	(void)number;
	if (marks < MAX_MARKS) {
		marks_ns[marks] = clock_ns(CLOCK_MONOTONIC);
		marks++;
	}
}

static int64_t realtime_offset_ns(void)
{
	return clock_ns(CLOCK_REALTIME) - clock_ns(CLOCK_MONOTONIC);
}

static void use_fifo(int priority)
{
	struct sched_param p = { .sched_priority = priority };

	errno = pthread_setschedparam(pthread_self(), SCHED_FIFO, &p);
	if (errno)
		err(1, "SCHED_FIFO (needs CAP_SYS_NICE)");
}

/* ---- the network ---------------------------------------------------- */

static size_t frame_bytes(const struct options *o)
{
	if (o->far)
		return FAR_FRAME_BYTES;
	return o->disk_mib_per_s ? sizeof(struct probe_frame)
				 : BYTES_WITHOUT_DISK;
}

static struct probe_payload *payload_of(union frame *f,
					const struct options *o)
{
	return o->far ? &f->far.payload : &f->near.payload;
}

static uint16_t ip_checksum(const struct iphdr *ip)
{
	const uint16_t *word = (const void *)ip;
	uint32_t sum = 0;

	for (size_t i = 0; i < sizeof(*ip) / 2; i++)
		sum += word[i];
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

static void make_frame(union frame *frame, const struct options *o,
		       const uint8_t own_mac[ETH_ALEN])
{
	struct probe_payload *payload = payload_of(frame, o);
	struct probe_frame *f = &frame->near;
	size_t ip_bytes = frame_bytes(o) - sizeof(f->eth);
	struct iphdr ip = {
		.version = 4,
		.ihl = 5,
		.tot_len = htons(ip_bytes),
		.frag_off = htons(IP_DF),
		.ttl = 64,
		.protocol = IPPROTO_UDP,
		.saddr = o->source.s_addr,
		.daddr = o->destination.s_addr,
	};

	memset(frame, 0, sizeof(*frame));
	memcpy(f->eth.ether_dhost, &o->mac, ETH_ALEN);
	memcpy(f->eth.ether_shost, own_mac, ETH_ALEN);
	payload->magic = PROBE_MAGIC;
	payload->session = session;
	payload->rewrite_mib_per_s = o->rewrite_mib_per_s;
	payload->working_set_mib = o->working_set_mib;
	if (o->far) {
		f->eth.ether_type = htons(FAR_ETHERTYPE);
		return;
	}
	f->eth.ether_type = htons(ETHERTYPE_IP);
	ip.check = ip_checksum(&ip);
	f->ip = ip;
	f->udp.source = f->udp.dest = htons(UDP_PORT);
	f->udp.len = htons(ip_bytes - sizeof(f->ip));
	f->disk.mib_per_s = o->disk_mib_per_s;
}

/* ---- receiving ------------------------------------------------------ */

static void account_disk(const struct probe_disk *d, bool first)
{
	if (first)
		guest.first_disk_blocks = d->blocks;
	guest.disk_blocks = d->blocks;
	guest.disk_faults = d->faults;
}

static void account_guest(const struct probe_payload *p)
{
	unsigned phase = marks;

	if (!phase_starts[phase].ns) {
		phase_starts[phase].pages_verified = p->pages_verified;
		phase_starts[phase].ns = p->guest_ns;
	}
	if (!guest.seen) {
		guest.seen = true;
		memcpy(guest.first_boot_id, p->boot_id, BOOT_ID_BYTES);
		guest.first_counter = p->counter;
		guest.first_pages_verified = p->pages_verified;
		guest.first_ns = p->guest_ns;
	} else if (memcmp(guest.last_boot_id, p->boot_id, BOOT_ID_BYTES)
		   || p->counter <= guest.last_counter) {
		guest.continuous = false;
	}
	memcpy(guest.last_boot_id, p->boot_id, BOOT_ID_BYTES);
	guest.last_counter = p->counter;
	guest.corruptions = p->corruptions;
	guest.pages_verified = p->pages_verified;
	guest.working_set_mib = p->working_set_mib;
	guest.last_ns = p->guest_ns;
}

/* disk: NULL in a frame without it */
static void account(const struct probe_payload *p,
		    const struct probe_disk *disk, int64_t now_ns,
		    int64_t late_ns, bool stamped)
{
	if (p->magic != PROBE_MAGIC || p->session != session
	    || p->sequence >= capacity || (stamped && !p->counter))
		return;
	if (!received)
		fputs("ready\n", stderr);
	if (probes[p->sequence].received_ns) {
		probes[p->sequence].duplicates++;
	} else {
		probes[p->sequence].received_ns = now_ns;
		probes[p->sequence].late_ns = late_ns;
		received++;
		if (p->sequence < newest)
			probes[p->sequence].reordered = true;
		else
			newest = p->sequence;
	}
	if (disk)
		account_disk(disk, !guest.seen);
	if (stamped)
		account_guest(p);
}

static void take(const void *data, size_t bytes, int64_t at_ns,
		 int64_t late_ns, void *context)
{
	const struct options *o = context;
	union frame frame;

	if (bytes != frame_bytes(o))
		return;
	memcpy(&frame, data, bytes);
	if (o->far || frame.near.ip.protocol == IPPROTO_UDP)
		account(payload_of(&frame, o),
			o->disk_mib_per_s ? &frame.near.disk : NULL, at_ns,
			late_ns, !o->far);
}

static void *receive(void *options)
{
	use_fifo(51);
	while (!finished)
		wire_receive(take, options);
	return NULL;
}

/* ---- sending -------------------------------------------------------- */

static void sleep_until(int64_t ns)
{
	struct timespec t = { ns / NS_PER_S, ns % NS_PER_S };

	while (!stop && clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t,
					NULL) == EINTR)
		;
}

/* After a stall the overdue probes go out at once: none is left out, so a
 * run of lost ones still counts periods. */
static uint64_t send_probes(union frame *frame, const struct options *o,
			    int64_t period_ns)
{
	int64_t due_ns = clock_ns(CLOCK_MONOTONIC) + period_ns;
	uint64_t n;

	for (n = 0; n < capacity; n++, due_ns += period_ns) {
		sleep_until(due_ns);
		if (stop)
			break;
		if (o->answer_within_s && !received
		    && n * period_ns > o->answer_within_s * NS_PER_S)
			errx(1, "no answer within %u s", o->answer_within_s);
		payload_of(frame, o)->sequence = n;
		probes[n].due_ns = due_ns;
		probes[n].sent_ns = clock_ns(CLOCK_MONOTONIC);
		unsent += !wire_send(frame, frame_bytes(o));
	}
	return n;
}

/* ---- the result ----------------------------------------------------- */

struct longest {
	int64_t ns, start_ns; /* start 0: there was none */
};

/* among the probes from first to before end */
static struct longest longest_lost_run(uint64_t first, uint64_t end,
				       int64_t period_ns)
{
	struct longest longest = { 0, 0 };
	uint64_t run = 0;

	for (uint64_t i = first; i < end; i++) {
		run = probes[i].received_ns ? 0 : run + 1;
		if ((int64_t)run * period_ns > longest.ns) {
			longest.ns = run * period_ns;
			longest.start_ns = probes[i - run + 1].sent_ns;
		}
	}
	return longest;
}

static int compare(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

	return (x > y) - (x < y);
}

static struct longest longest_gap(const int64_t *arrivals)
{
	struct longest longest = { 0, 0 };

	for (uint64_t i = 1; i < received; i++)
		if (arrivals[i] - arrivals[i - 1] > longest.ns) {
			longest.ns = arrivals[i] - arrivals[i - 1];
			longest.start_ns = arrivals[i - 1];
		}
	return longest;
}

static void print_losses(uint64_t sent, int64_t offset_ns)
{
	unsigned printed = 0;

	printf("\"losses\": [");
	for (uint64_t i = 0; i < sent && printed < MAX_LOSSES; i++) {
		uint64_t first = i;

		while (i < sent && !probes[i].received_ns)
			i++;
		if (i == first)
			continue;
		printf("%s[%.6f, %lu]", printed++ ? ", " : "",
		       (probes[first].sent_ns + offset_ns) / 1e9, i - first);
	}
	printf("], ");
}

/* among the probes that were due before to_ns and sent after from_ns; with
 * their answers or without */
static struct longest longest_stall(uint64_t sent, int64_t from_ns,
				    int64_t to_ns, bool answers)
{
	struct longest longest = { 0, 0 };

	for (uint64_t i = 0; i < sent; i++) {
		const struct probe *p = &probes[i];
		int64_t ns = p->sent_ns - p->due_ns;

		if (answers && p->late_ns > ns)
			ns = p->late_ns;
		if (p->due_ns <= to_ns && p->sent_ns >= from_ns
		    && ns > longest.ns) {
			longest.ns = ns;
			longest.start_ns = p->due_ns;
		}
	}
	return longest;
}

static struct longest longest_stall_around(uint64_t sent, int64_t period_ns,
					   struct longest a, struct longest b)
{
	struct longest in_a = longest_stall(sent, a.start_ns - period_ns,
					    a.start_ns + a.ns + period_ns,
					    true);
	struct longest in_b = longest_stall(sent, b.start_ns - period_ns,
					    b.start_ns + b.ns + period_ns,
					    true);

	return in_a.ns > in_b.ns ? in_a : in_b;
}

static void print_longest(const char *name, struct longest l,
			  int64_t offset_ns)
{
	printf("\"%s_ms\": %.3f, ", name, l.ns / 1e6);
	if (l.start_ns)
		printf("\"%s_at\": %.6f, ", name,
		       (l.start_ns + offset_ns) / 1e9);
	else
		printf("\"%s_at\": null, ", name);
}

/* Counts, and round trips, of the probes from first to before end; the
 * duplicates. */
static uint64_t print_answers(uint64_t first, uint64_t end)
{
	int64_t *rtts = calloc(end - first + 1, sizeof(*rtts));
	uint64_t n = 0, duplicates = 0, reordered = 0;

	if (!rtts)
		err(1, "%lu probes", end - first);
	for (uint64_t i = first; i < end; i++) {
		const struct probe *p = &probes[i];

		duplicates += p->duplicates;
		reordered += p->reordered;
		if (p->received_ns)
			rtts[n++] = p->received_ns - p->sent_ns;
	}
	qsort(rtts, n, sizeof(*rtts), compare);
	printf("\"sent\": %lu, \"received\": %lu, \"lost\": %lu, "
	       "\"duplicates\": %lu, \"reordered\": %lu, ", end - first, n,
	       end - first - n, duplicates, reordered);
	if (n)
		printf("\"rtt_p50_ms\": %.3f, \"rtt_p99_ms\": %.3f, "
		       "\"rtt_max_ms\": %.3f", rtts[n / 2] / 1e6,
		       rtts[n * 99 / 100] / 1e6, rtts[n - 1] / 1e6);
	else
		printf("\"rtt_p50_ms\": null, \"rtt_p99_ms\": null, "
		       "\"rtt_max_ms\": null");
	free(rtts);
	return duplicates;
}

static void print_rewriting(unsigned phase)
{
	uint64_t pages = guest.pages_verified, ns = guest.last_ns;
	uint64_t start_ns = phase_starts[phase].ns;

	if (phase < marks) {
		pages = phase_starts[phase + 1].pages_verified;
		ns = phase_starts[phase + 1].ns;
	}
	if (!start_ns || ns <= start_ns) {
		printf("\"rewritten_mib_per_s\": null");
		return;
	}
	pages -= phase_starts[phase].pages_verified;
	printf("\"rewritten_mib_per_s\": %.2f",
	       pages / 256. * NS_PER_S / (ns - start_ns));
}

static void print_phases(uint64_t sent, int64_t period_ns)
{
	uint64_t first = 0, end;

	printf("\"phases\": [");
	for (unsigned phase = 0; phase <= marks; phase++, first = end) {
		for (end = first; end < sent && (phase == marks
		     || probes[end].sent_ns < marks_ns[phase]); end++)
			;
		printf("%s{", phase ? ", " : "");
		print_answers(first, end);
		printf(", \"longest_loss_ms\": %.3f, ",
		       longest_lost_run(first, end, period_ns).ns / 1e6);
		print_rewriting(phase);
		printf("}");
	}
	printf("], ");
}

static void print_boot_id(const char *name, const uint8_t id[BOOT_ID_BYTES])
{
	if (!guest.seen) {
		printf("\"%s\": null, ", name);
		return;
	}
	printf("\"%s\": \"", name);
	for (int i = 0; i < BOOT_ID_BYTES; i++)
		printf("%s%02x", i == 4 || i == 6 || i == 8 || i == 10
		       ? "-" : "", id[i]);
	printf("\", ");
}

static void print_wanted_working_set(int64_t mib)
{
	if (mib < 0)
		printf("\"wanted_working_set_mib\": null, ");
	else
		printf("\"wanted_working_set_mib\": %ld, ", mib);
}

static void print_disk(bool used)
{
	if (used)
		printf("\"first_disk_blocks\": %lu, \"disk_blocks\": %lu, "
		       "\"disk_faults\": %lu, ", guest.first_disk_blocks,
		       guest.disk_blocks, guest.disk_faults);
	else
		printf("\"first_disk_blocks\": null, \"disk_blocks\": null, "
		       "\"disk_faults\": null, ");
}

static void print_result(uint64_t sent, int64_t period_ns, int64_t offset_ns,
			 const struct options *o)
{
	bool stamped = !o->far;
	int64_t *arrivals = calloc(received + 1, sizeof(*arrivals));
	struct longest blackout, gap;
	uint64_t n = 0, last = 0, duplicates;

	if (!arrivals)
		err(1, "%lu answers", received);
	for (uint64_t i = 0; i < sent; i++)
		if (probes[i].received_ns) {
			last = i;
			arrivals[n++] = probes[i].received_ns;
		}
	qsort(arrivals, n, sizeof(*arrivals), compare);

	printf("{\"period_ms\": %.3f, ", period_ns / 1e6);
	duplicates = print_answers(0, sent);
	printf(", ");
	blackout = longest_lost_run(0, sent, period_ns);
	gap = longest_gap(arrivals);
	print_longest("blackout", blackout, offset_ns);
	print_longest("gap", gap, offset_ns);
	print_longest("sender_stall", longest_stall(sent, 0, INT64_MAX, false),
		      offset_ns);
	print_longest("blackout_stall",
		      longest_stall_around(sent, period_ns, blackout, gap),
		      offset_ns);
	printf("\"unsent\": %lu, \"dropped\": %lu, ", unsent, wire_dropped());
	print_losses(sent, offset_ns);
	printf("\"silent_at_end_ms\": %.3f, ",
	       sent ? (probes[sent - 1].sent_ns - probes[last].sent_ns) / 1e6
	       : 0.);
	print_phases(sent, period_ns);
	print_boot_id("first_boot_id", guest.first_boot_id);
	print_boot_id("last_boot_id", guest.last_boot_id);
	print_disk(o->disk_mib_per_s);
	print_wanted_working_set(o->working_set_mib);
	printf("\"first_counter\": %lu, \"last_counter\": %lu, "
	       "\"unreturned\": %ld, \"counter_continuous\": %s, "
	       "\"corruptions\": %lu, \"first_pages_verified\": %lu, "
	       "\"pages_verified\": %lu, \"first_guest_ns\": %lu, "
	       "\"last_guest_ns\": %lu, \"working_set_mib\": %ld, "
	       "\"clock_step_ms\": %.3f}\n",
	       guest.first_counter, guest.last_counter,
	       guest.seen ? (long)(guest.last_counter - guest.first_counter
				   + 1 - received - duplicates) : 0,
	       !stamped ? "null" : guest.seen && guest.continuous
	       ? "true" : "false",
	       guest.corruptions, guest.first_pages_verified,
	       guest.pages_verified, guest.first_ns, guest.last_ns,
	       guest.working_set_mib, (realtime_offset_ns() - offset_ns) / 1e6);
	free(arrivals);
}

/* ---- the command line ----------------------------------------------- */

static const char usage[] =
	" --interface NAME --mac GUEST_MAC --source IPV4\n"
	"    --destination IPV4 [--rate PER_SECOND] [--seconds N]\n"
	"    [--answer-within SECONDS] [--rewrite MIB_PER_S]\n"
	"    [--working-set MIB] [--disk MIB_PER_S]\n"
	"or with --far NAME, for a guest between two ports, instead of\n"
	"--source, --destination and --disk\n"
	"defaults: 1000 probes per second for 600 seconds\n";

__attribute__((noreturn)) static void wrong_usage(void)
{
	fprintf(stderr, "usage: %s%s", wire_usage, usage);
	exit(2);
}

static unsigned number(const char *name, unsigned low, unsigned high)
{
	char *end;
	unsigned long value = strtoul(optarg, &end, 10);

	if (!*optarg || *end || value < low || value > high)
		errx(2, "--%s '%s' is not a number from %u to %u", name,
		     optarg, low, high);
	return value;
}

static void address(const char *name, struct in_addr *result)
{
	if (inet_pton(AF_INET, optarg, result) != 1)
		errx(2, "--%s '%s' is not an IPv4 address", name, optarg);
}

static struct options parse(int argc, char **argv)
{
	static const struct option names[] = {
		{ "interface", required_argument, NULL, 'i' },
		{ "far", required_argument, NULL, 'f' },
		{ "mac", required_argument, NULL, 'm' },
		{ "source", required_argument, NULL, 's' },
		{ "destination", required_argument, NULL, 'd' },
		{ "rate", required_argument, NULL, 'r' },
		{ "seconds", required_argument, NULL, 't' },
		{ "answer-within", required_argument, NULL, 'a' },
		{ "rewrite", required_argument, NULL, 'w' },
		{ "working-set", required_argument, NULL, 'k' },
		{ "disk", required_argument, NULL, 'b' },
		{ 0 },
	};
	struct options o = { .rate_per_s = 1000, .seconds = 600,
			     .rewrite_mib_per_s = -1, .working_set_mib = -1 };
	bool have_mac = false;
	int c;

	while ((c = getopt_long(argc, argv, "", names, NULL)) != -1)
		switch (c) {
		case 'i':
			o.interface = optarg;
			break;
		case 'f':
			o.far = optarg;
			break;
		case 'm':
			have_mac = ether_aton_r(optarg, &o.mac);
			if (!have_mac)
				errx(2, "--mac '%s' is not a MAC address",
				     optarg);
			break;
		case 's':
			address("source", &o.source);
			break;
		case 'd':
			address("destination", &o.destination);
			break;
		case 'r':
			o.rate_per_s = number("rate", 1, 100000);
			break;
		case 't':
			o.seconds = number("seconds", 1, 3600);
			break;
		case 'a':
			o.answer_within_s = number("answer-within", 1, 3600);
			break;
		case 'w':
			o.rewrite_mib_per_s = number("rewrite", 0, 100000);
			break;
		case 'k':
			o.working_set_mib = number("working-set", 1, 1 << 20);
			break;
		case 'b':
			o.disk_mib_per_s = number("disk", 0, 100000);
			break;
		default:
			wrong_usage();
		}
	if (optind != argc || !o.interface || !have_mac
	    || (o.far && o.disk_mib_per_s)
	    || (!o.far && (!o.source.s_addr || !o.destination.s_addr)))
		wrong_usage();
	return o;
}

int main(int argc, char **argv)
{
	int taken = wire_init(argc, argv);
	struct options o = parse(argc - taken, argv + taken);
	struct sigaction action = { .sa_handler = on_signal };
	struct sigaction mark = { .sa_handler = on_mark };
	union frame frame;
	uint8_t own_mac[ETH_ALEN];
	int64_t period_ns = NS_PER_S / o.rate_per_s;
	int64_t offset_ns = realtime_offset_ns();
	pthread_t thread;
	uint64_t sent;

	capacity = (uint64_t)o.rate_per_s * o.seconds;
	probes = calloc(capacity, sizeof(*probes));
	if (!probes)
		err(1, "memory for %lu probes", capacity);
	if (getrandom(&session, sizeof(session), 0) != sizeof(session))
		err(1, "getrandom");
	wire_open(o.interface, o.far ? o.far : o.interface,
		  o.far ? FAR_ETHERTYPE : ETH_P_IP, offset_ns, own_mac);
	make_frame(&frame, &o, own_mac);
	if (mlockall(MCL_CURRENT | MCL_FUTURE))
		err(1, "mlockall");

	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGUSR1, &mark, NULL);
	/*
	 * Without what started it nobody reads what it saw, and its packets
	 * would disturb what is measured next.
	 */
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	errno = pthread_create(&thread, NULL, receive, &o);
	if (errno)
		err(1, "pthread_create");
	use_fifo(50);
	sent = send_probes(&frame, &o, period_ns);
	usleep(GRACE_NS / 1000);
	finished = true;
	pthread_join(thread, NULL);
	print_result(sent, period_ns, offset_ns, &o);
	return 0;
}
