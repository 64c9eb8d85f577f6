/* What the load generator is asked to do, read once: its options, the peer's address, and the head of every request. */
#ifndef LOAD_OPTIONS_H
#define LOAD_OPTIONS_H

#include "events.h"

#include <arpa/inet.h>

enum { HELD_EVENTS = 1000000000 }; /* what a held stream asks for: more than it will get */

static enum mode { REQUEST, STREAMS, CANCEL, SLOW } mode;
static struct sockaddr_in peer;
static char request_head[65536]; /* up to the value of Content-Length */
static size_t request_head_len;

static struct {
    const char *host, *path, *mode, *model;
    struct list headers;
    uint64_t port, connections, requests, events, interval_us, size, first_us, ramp_ms, repeat, hold_ns, leave_ms;
    uint64_t stall_ns, rcvbuf, seed, first_id, silence_ns, per_source;
    bool progress, exact;
} options = {.host = "127.0.0.1", .path = "/v1/chat/completions", .mode = "request", .model = "bench", .connections = 1,
             .requests = 1, .events = 1, .repeat = 1, .leave_ms = 1000, .stall_ns = SECOND_NS, .rcvbuf = 8192,
             .seed = 1, .first_id = 1, .silence_ns = 60 * SECOND_NS, .per_source = 25000};

static const struct option OPTIONS[] = {
    {"--host", TEXT, &options.host, 0, 0},
    {"--port", NUMBER, &options.port, 1, 65535},
    {"--path", TEXT, &options.path, 0, 0},
    {"--header", LIST, &options.headers, 0, 0},
    {"--model", TEXT, &options.model, 0, 0},
    {"--mode", TEXT, &options.mode, 0, 0},
    {"--connections", NUMBER, &options.connections, 1, 200000},
    {"--requests", NUMBER, &options.requests, 1, 1000000000},
    {"--events", NUMBER, &options.events, 0, HELD_EVENTS},
    {"--interval-us", NUMBER, &options.interval_us, 0, 1000000000},
    {"--size", NUMBER, &options.size, 0, MAX_EVENT_SIZE},
    {"--first-us", NUMBER, &options.first_us, 0, 1000000000},
    {"--ramp-ms", NUMBER, &options.ramp_ms, 0, 1000000},
    {"--repeat", NUMBER, &options.repeat, 1, 1000000},
    {"--hold-s", SECONDS, &options.hold_ns, 0, 0},
    {"--leave-ms", NUMBER, &options.leave_ms, 0, 1000000},
    {"--stall-s", SECONDS, &options.stall_ns, 0, 0},
    {"--rcvbuf", NUMBER, &options.rcvbuf, 1024, 1 << 24},
    {"--seed", NUMBER, &options.seed, 0, UINT64_MAX},
    {"--first-id", NUMBER, &options.first_id, 0, 1000000000},
    {"--silence-s", SECONDS, &options.silence_ns, 0, 0},
    {"--per-source", NUMBER, &options.per_source, 1, 60000},
    {"--progress", FLAG, &options.progress, 0, 0},
    {"--expect-exact", FLAG, &options.exact, 0, 0},
};

static inline void read_options(int argc, char **argv) {
    static const char *const modes[] = {"request", "streams", "cancel", "slow"};
    parse_options(argc, argv, OPTIONS, sizeof OPTIONS / sizeof *OPTIONS);
    while (mode <= SLOW && strcmp(options.mode, modes[mode])) mode++;
    if (mode > SLOW) die(2, "--mode is one of request, streams, cancel, slow");
    if (!options.port) die(2, "--port is missing");
    if (options.hold_ns && mode != STREAMS) die(2, "--hold-s goes with --mode streams");
    if (options.repeat > 1 && (mode != STREAMS || options.hold_ns))
        die(2, "--repeat goes with --mode streams, and not with --hold-s");
    if (mode == STREAMS || mode == SLOW) options.requests = options.connections * options.repeat;
    if (options.hold_ns) options.events = HELD_EVENTS;
    if (options.connections > options.requests) options.connections = options.requests;

    peer = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)options.port)};
    const char *host = strcmp(options.host, "localhost") ? options.host : "127.0.0.1";
    if (inet_pton(AF_INET, host, &peer.sin_addr) != 1) die(2, "--host: %s is not an IPv4 address", options.host);
    uint64_t limit = raise_descriptor_limit();
    if (options.connections + 16 > limit)
        die(1, "%" PRIu64 " connections need as many descriptors, and the hard limit is %" PRIu64 " (ulimit -Hn)",
            options.connections, limit);

    int len = snprintf(request_head, sizeof request_head,
                       "POST %s HTTP/1.1\r\nHost: %s:%" PRIu64
                       "\r\nAccept: text/event-stream\r\nContent-Type: application/json\r\n",
                       options.path, options.host, options.port);
    for (size_t i = 0; i < options.headers.count && (size_t)len < sizeof request_head; i++)
        len += snprintf(request_head + len, sizeof request_head - (size_t)len, "%s\r\n", options.headers.items[i]);
    if ((size_t)len + sizeof "Content-Length: " > sizeof request_head) die(2, "the request's head is too long");
    request_head_len = (size_t)(put(request_head + len, LITERAL("Content-Length: ")) - request_head);
}

#endif
