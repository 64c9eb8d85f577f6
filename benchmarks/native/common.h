/* What both halves of the harness share: clock, descriptors, signals, options, histogram.
 *
 * Each program is one translation unit, so everything here is `static inline` and there is nothing to link. */
#ifndef COMMON_H
#define COMMON_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define LITERAL(text) (text), sizeof(text) - 1
#define SECOND_NS 1000000000ull

static inline uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
}

/* Exit 2 is wrong use, 1 is anything else, as in the product's own commands. */
__attribute__((noreturn, format(printf, 2, 3))) static inline void die(int status, const char *format, ...) {
    va_list values;
    va_start(values, format);
    fprintf(stderr, "%s: ", program_invocation_short_name);
    vfprintf(stderr, format, values);
    fputc('\n', stderr);
    va_end(values);
    exit(status);
}

static inline void *allocate(void *old, size_t size) {
    void *memory = realloc(old, size);
    if (!memory) die(1, "out of memory (%zu bytes)", size);
    return memory;
}

static inline void *allocate_zeroed(size_t count, size_t size) {
    void *memory = calloc(count, size);
    if (!memory) die(1, "out of memory (%zu bytes)", count * size);
    return memory;
}

/* The soft limit is a shell's habit, the hard one is the machine's: take all of it, and say how much that is. */
static inline uint64_t raise_descriptor_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit)) die(1, "getrlimit: %s", strerror(errno));
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit)) die(1, "setrlimit: %s", strerror(errno));
    return limit.rlim_cur;
}

/* Signals arrive as a readable descriptor, so that none is lost between looking at a flag and going to sleep. */
static inline int open_signals(void) {
    sigset_t ends;
    sigemptyset(&ends);
    sigaddset(&ends, SIGTERM);
    sigaddset(&ends, SIGINT);
    sigprocmask(SIG_BLOCK, &ends, NULL);
    signal(SIGPIPE, SIG_IGN);
    int fd = signalfd(-1, &ends, SFD_NONBLOCK | SFD_CLOEXEC);
    if (fd < 0) die(1, "signalfd: %s", strerror(errno));
    return fd;
}

static inline void watch(int epoll_fd, int operation, int fd, uint32_t events, uint32_t tag) {
    struct epoll_event event = {.events = events, .data.u32 = tag};
    if (epoll_ctl(epoll_fd, operation, fd, &event)) die(1, "epoll_ctl: %s", strerror(errno));
}

static inline void send_at_once(int fd) {
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
}

/* ---- command line: `--name value` and `--flag`, every name known; SECONDS may have decimals, kept in ns ---- */

struct option {
    const char *name;
    enum { NUMBER, SECONDS, TEXT, FLAG, LIST } kind;
    void *target;
    uint64_t least, most;
};

struct list {
    const char *items[64];
    size_t count;
};

static inline void parse_options(int argc, char **argv, const struct option *options, size_t count) {
    for (int at = 1; at < argc; at++) {
        const struct option *option = NULL;
        for (size_t i = 0; i < count; i++)
            if (!strcmp(argv[at], options[i].name)) option = &options[i];
        if (!option) die(2, "unknown option %s", argv[at]);
        if (option->kind == FLAG) {
            *(bool *)option->target = true;
            continue;
        }
        const char *value = argv[++at];
        if (!value) die(2, "%s needs a value", option->name);
        if (option->kind == TEXT) {
            *(const char **)option->target = value;
        } else if (option->kind == LIST) {
            struct list *list = option->target;
            if (list->count == sizeof list->items / sizeof *list->items) die(2, "too many %s", option->name);
            list->items[list->count++] = value;
        } else if (option->kind == SECONDS) {
            char *end;
            double seconds = strtod(value, &end);
            if (*end || end == value || !(seconds >= 0 && seconds <= 1e6))
                die(2, "%s: %s is not a number of seconds", option->name, value);
            *(uint64_t *)option->target = (uint64_t)(seconds * (double)SECOND_NS);
        } else {
            char *end;
            errno = 0;
            uint64_t number = strtoull(value, &end, 10);
            if (errno || *end || *value < '0' || *value > '9' || number < option->least || number > option->most)
                die(2, "%s: %s is not a whole number from %" PRIu64 " to %" PRIu64, option->name, value,
                    option->least, option->most);
            *(uint64_t *)option->target = number;
        }
    }
}

/* ---- histogram: 128 buckets a power of two, each less than 1 % wide; nothing is sampled, nothing grows ---- */

enum { SUB_BUCKET_BITS = 7, SUB_BUCKETS = 1 << SUB_BUCKET_BITS, BUCKETS = (65 - SUB_BUCKET_BITS) * SUB_BUCKETS };

struct histogram {
    uint64_t count, max;
    uint64_t buckets[BUCKETS];
};

static inline void record(struct histogram *histogram, uint64_t value) {
    unsigned shift = value < SUB_BUCKETS ? 0 : 63 - SUB_BUCKET_BITS - (unsigned)__builtin_clzll(value);
    /* Below SUB_BUCKETS a value is its own bucket; above, the leading one is implied by the power of two. */
    size_t bucket = (shift + 1) * SUB_BUCKETS + ((value >> shift) & (SUB_BUCKETS - 1));
    if (value < SUB_BUCKETS) bucket = value;
    histogram->buckets[bucket]++;
    histogram->count++;
    if (value > histogram->max) histogram->max = value;
}

/* The middle of the bucket that holds the smallest value with at least that share of all values at or below it. */
static inline uint64_t percentile(const struct histogram *histogram, double share) {
    uint64_t rank = (uint64_t)(share * (double)histogram->count), seen = 0;
    if ((double)rank < share * (double)histogram->count || !rank) rank++;
    for (size_t bucket = 0; bucket < BUCKETS; bucket++) {
        seen += histogram->buckets[bucket];
        if (seen < rank) continue;
        if (bucket < SUB_BUCKETS) return bucket;
        unsigned shift = (unsigned)(bucket / SUB_BUCKETS) - 1;
        uint64_t low = (uint64_t)(SUB_BUCKETS + bucket % SUB_BUCKETS) << shift;
        uint64_t middle = low + (((uint64_t)1 << shift) >> 1);
        return middle < histogram->max ? middle : histogram->max;
    }
    return 0;
}

#endif
