/* The client of the benchmark: asks for streams, times every event, and counts no answer that is not complete.
 *
 *     cc -O2 -o benchmarks/.build/load benchmarks/native/load.c
 *     load --port 8080 --path /forward-sse --mode request|streams|cancel|slow --connections 400 --events 300 …
 *
 *     request   --requests N in a closed loop over --connections kept connections
 *     streams   --connections streams at once, begun over --ramp-ms, each connection --repeat times; with --hold-s they
 *               are kept open that long after the last has begun (then `holding K` is printed), and closed
 *     cancel    --requests streams, --connections at a time, each left within --leave-ms: odd ids by RST, even by FIN
 *     slow      reads each answer's head, then nothing for --stall-s (`stalled K` is printed), then the rest
 *
 * One JSON object on standard output at the end; exit 0 if the run ran its course, whatever its failures.
 * One thread, epoll, one receive an event: at any load that a proxy survives this side is idle most of the time. */
#include "common.h"

#include "check.h"
#include "http.h"
#include "load_options.h"
#include "results.h"
#include "timers.h"

enum {
    HEAD_READ = 1024, /* a slow reader takes little beyond the head */
    RETRY_MS = 10,    /* after a connection failed: no busy loop against a proxy that is down */
    TICK_MS = 200,
    BATCH = 64,
};

struct stream {
    enum { IDLE, CONNECTING, ASKED, STALLED } state;
    int fd;       /* -1: not connected */
    bool running; /* its first event has come */
    uint64_t id, asked_ns, first_ns, last_ns;
    struct message answer;
    struct check check;
    char *rest; /* what the socket did not take of the request */
    size_t rest_len;
};

static int epoll_fd;
static struct stream *streams;
static struct timers timers;               /* a stream's: when it begins, or when it leaves */
static uint32_t tick, hold_end, stall_end; /* owners of the run's own timers; the first two also tag its descriptors */
static uint64_t hash_wanted, random_state;
static uint64_t begun, running, stalled, held_since_ns;
static bool over, interrupted;
static char scratch[262144];

static void begin(struct stream *stream);

static uint32_t index_of(const struct stream *stream) {
    return (uint32_t)(stream - streams);
}

/* splitmix64: the same moments for the same seed, on every machine. */
static uint64_t random_below(uint64_t bound) {
    uint64_t value = random_state += 0x9e3779b97f4a7c15u;
    value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9u;
    value = (value ^ value >> 27) * 0x94d049bb133111ebu;
    return (value ^ value >> 31) % bound;
}

/* ---- how a stream ends ---- */

static void disconnect(struct stream *stream) {
    if (stream->fd >= 0) close(stream->fd);
    stream->fd = -1;
    free(stream->rest);
    stream->rest = NULL;
}

/* Everything has either begun to wait, or ended: what the harness wants to look at can be announced. */
static void announce(void) {
    uint64_t waiting = mode == SLOW ? stalled : running, *from = &held_since_ns;
    if (*from || (mode != SLOW && !options.hold_ns) || waiting + complete + failed < options.requests) return;
    *from = now_ns();
    printf("%s %" PRIu64 "\n", mode == SLOW ? "stalled" : "holding", waiting);
    fflush(stdout);
    if (mode == SLOW) {
        timers_set(&timers, stall_end, *from + options.stall_ns);
    } else {
        timers_set(&timers, hold_end, *from + options.hold_ns);
        /* The delays of a hold are those while it is held: opening thousands of streams has its own. */
        memset(&delay_ns, 0, sizeof delay_ns);
    }
}

/* Called exactly once for each stream begun. No reason: it was all it should be. */
static void settle(struct stream *stream, const char *reason, bool keep) {
    uint64_t now = now_ns();
    if (reason) {
        count_failure(reason);
    } else {
        complete++;
        if (stream->first_ns) record(&first_byte_ns, stream->first_ns - stream->asked_ns);
        if (mode != CANCEL && !options.hold_ns) record(&request_ns, now - stream->asked_ns);
    }
    total_events += stream->check.right;
    total_bytes += stream->check.length;
    if (stream->running) running--;
    if (stream->state == STALLED) stalled--;
    stream->running = false;
    stream->state = IDLE;
    timers_clear(&timers, index_of(stream));
    if (!keep) disconnect(stream);
    ended_ns = now;
    if (complete + failed == options.requests) over = true;
    if (begun < options.requests && !interrupted) {
        if (reason && !keep)
            timers_set(&timers, index_of(stream), now + RETRY_MS * 1000000ull);
        else
            begin(stream);
    }
    announce();
}

static void fail(struct stream *stream, const char *format, const char *detail) {
    char reason[96];
    snprintf(reason, sizeof reason, format, detail);
    settle(stream, reason, false);
}

/* The connection ended under a stream. */
static void cut(struct stream *stream, const char *how) {
    bool in_head = stream->answer.at == START_LINE || stream->answer.at == FIELDS;
    fail(stream, in_head ? "%s before the head" : "%s before the end", how);
}

static void leave(struct stream *stream) {
    bool by_reset = stream->id & 1;
    if (by_reset)
        setsockopt(stream->fd, SOL_SOCKET, SO_LINGER, &(struct linger){.l_onoff = 1}, sizeof(struct linger));
    leaves[leave_count].id = stream->id;
    leaves[leave_count++].ns = now_ns();
    /* close() alone would reset a connection that has unread bytes: the FIN has to be out before it. */
    if (!by_reset) shutdown(stream->fd, SHUT_WR);
    settle(stream, stream->check.fault, false);
}

/* ---- asking ---- */

static bool send_rest(struct stream *stream, const char *data, size_t len) {
    ssize_t sent = send(stream->fd, data, len, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) {
        cut(stream, errno == ECONNRESET || errno == EPIPE ? "reset" : strerror(errno));
        return false;
    }
    if (sent < 0) sent = 0;
    stream->rest_len = len - (size_t)sent;
    char *rest = stream->rest_len ? memcpy(allocate(NULL, stream->rest_len), data + sent, stream->rest_len) : NULL;
    free(stream->rest);
    stream->rest = rest;
    return true;
}

static void ask(struct stream *stream) {
    char body[512];
    int body_len = snprintf(body, sizeof body,
                            "{\"model\":\"%.100s\",\"stream\":true,\"messages\":[{\"role\":\"user\",\"content\":"
                            "\"bench id=%" PRIu64 " events=%" PRIu64 " interval_us=%" PRIu64 " size=%" PRIu64
                            " first_us=%" PRIu64 ";\"}]}",
                            options.model, stream->id, options.events, options.interval_us, options.size,
                            options.first_us);
    char *text = scratch, *end = put(text, request_head, request_head_len);
    end = put_number(end, (uint64_t)body_len);
    end = put(put(end, LITERAL("\r\n\r\n")), body, (size_t)body_len);

    stream->state = ASKED;
    stream->first_ns = 0;
    check_begin(&stream->check, options.events, options.size, options.exact);
    stream->asked_ns = stream->last_ns = stream->check.asked_ns;
    if (!send_rest(stream, text, (size_t)(end - text))) return;
    if (mode == CANCEL)
        timers_set(&timers, index_of(stream),
                   stream->asked_ns + (options.leave_ms ? random_below(options.leave_ms * 1000000) : 0));
    if (stream->rest) watch(epoll_fd, EPOLL_CTL_MOD, stream->fd, EPOLLIN | EPOLLOUT, index_of(stream));
}

static void dial(struct stream *stream) {
    stream->state = CONNECTING;
    stream->last_ns = now_ns();
    stream->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (stream->fd < 0) die(1, "socket: %s", strerror(errno));
    send_at_once(stream->fd);
    if (mode == SLOW) setsockopt(stream->fd, SOL_SOCKET, SO_RCVBUF, &(int){(int)options.rcvbuf}, sizeof(int));
    if (options.connections > options.per_source) {
        /* One address has about 28,000 ports to speak from; loopback has 16 million addresses. */
        uint32_t address = INADDR_LOOPBACK + 1 + index_of(stream) / (uint32_t)options.per_source;
        struct sockaddr_in source = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(address)};
        setsockopt(stream->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &(int){1}, sizeof(int));
        if (bind(stream->fd, (struct sockaddr *)&source, sizeof source)) die(1, "bind: %s", strerror(errno));
    }
    if (connect(stream->fd, (struct sockaddr *)&peer, sizeof peer) && errno != EINPROGRESS)
        fail(stream, "connect: %s", strerror(errno));
    else
        watch(epoll_fd, EPOLL_CTL_ADD, stream->fd, EPOLLOUT, index_of(stream));
}

static void begin(struct stream *stream) {
    if (!began_ns) began_ns = now_ns();
    stream->id = options.first_id + begun++;
    stream->check.right = stream->check.length = stream->first_ns = 0;
    message_begin(&stream->answer, true);
    if (stream->fd < 0)
        dial(stream);
    else
        ask(stream);
}

/* ---- what comes back ---- */

static void take_body(void *owner, const char *data, size_t len) {
    struct stream *stream = owner;
    if (stream->answer.status == 200) check_body(&stream->check, data, len, stream->last_ns, &delay_ns);
}

static void answered(struct stream *stream, bool surplus) {
    const char *wrong = surplus ? "bytes after the answer" : check_end(&stream->check, hash_wanted);
    char status[32];
    if (stream->answer.status != 200) {
        snprintf(status, sizeof status, "status %d", stream->answer.status);
        wrong = status;
    }
    if (!wrong && options.hold_ns) wrong = "ended while held";
    if (!wrong && mode == CANCEL) wrong = "ended before we left";
    /* An answer that did not wait for the whole request leaves the connection in the middle of one. */
    settle(stream, wrong, !surplus && !stream->answer.closes && !stream->rest);
}

static void stall(struct stream *stream) {
    stream->state = STALLED;
    stalled++;
    watch(epoll_fd, EPOLL_CTL_MOD, stream->fd, 0, index_of(stream));
    announce();
}

static void receive(struct stream *stream) {
    bool stalls = mode == SLOW && !held_since_ns;
    ssize_t got = recv(stream->fd, scratch, stalls ? HEAD_READ : sizeof scratch, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (stream->state == IDLE) {
        /* A kept connection that nobody asked anything of: it may close, but not speak. */
        if (got > 0) {
            complete--;
            count_failure("bytes after the answer");
        }
        disconnect(stream);
        return;
    }
    if (got == 0 && stream->answer.at == BY_CLOSE) {
        answered(stream, false);
    } else if (got <= 0) {
        cut(stream, got == 0 ? "closed" : errno == ECONNRESET ? "reset" : strerror(errno));
    } else {
        stream->last_ns = now_ns(); /* after the receive: nothing in it can be younger */
        if (!stream->first_ns) stream->first_ns = stream->last_ns;
        size_t taken = message_feed(&stream->answer, scratch, (size_t)got, take_body, stream);
        if (stream->answer.fault)
            fail(stream, "%s", stream->answer.fault);
        else if (stream->answer.at == ENDED)
            answered(stream, taken < (size_t)got);
        else if (stalls && stream->answer.at != START_LINE && stream->answer.at != FIELDS)
            stall(stream);
        else if (!stream->running && stream->check.right) {
            stream->running = true;
            running++;
            announce();
        }
    }
}

static void handle(struct stream *stream, uint32_t events) {
    if (stream->fd < 0) return;
    if (stream->state == CONNECTING) {
        int error = 0;
        getsockopt(stream->fd, SOL_SOCKET, SO_ERROR, &error, &(socklen_t){sizeof error});
        if (error) {
            fail(stream, "connect: %s", strerror(error));
            return;
        }
        watch(epoll_fd, EPOLL_CTL_MOD, stream->fd, EPOLLIN, index_of(stream));
        ask(stream);
    } else if (stream->state == STALLED) {
        cut(stream, "reset"); /* nothing else wakes a connection that waits for nothing */
    } else if (events & ~(uint32_t)EPOLLOUT) {
        receive(stream);
    } else if (stream->rest && send_rest(stream, stream->rest, stream->rest_len) && !stream->rest) {
        watch(epoll_fd, EPOLL_CTL_MOD, stream->fd, EPOLLIN, index_of(stream));
    }
}

/* ---- the run ---- */

static void end_hold(void) {
    for (struct stream *stream = streams; stream < streams + options.connections; stream++)
        if (stream->running) settle(stream, stream->check.fault, false);
}

static void end_stall(void) {
    uint64_t now = now_ns();
    for (struct stream *stream = streams; stream < streams + options.connections; stream++) {
        if (stream->state != STALLED) continue;
        stalled--;
        stream->state = ASKED;
        stream->last_ns = now;
        watch(epoll_fd, EPOLL_CTL_MOD, stream->fd, EPOLLIN, index_of(stream));
    }
}

static void show_progress(void) {
    uint64_t done = complete + failed, total = options.requests;
    if (options.hold_ns) {
        done = held_since_ns ? (now_ns() - held_since_ns) / 1000000 : 0;
        total = options.hold_ns / 1000000;
    } else if (mode == STREAMS || mode == SLOW) {
        done = total_events;
        total *= options.events;
        for (struct stream *stream = streams; stream < streams + options.connections; stream++)
            if (stream->state != IDLE) done += stream->check.right;
    }
    fprintf(stderr, "progress %" PRIu64 " %" PRIu64 "\n", done < total ? done : total, total);
}

static void on_tick(uint64_t now) {
    timers_set(&timers, tick, now + TICK_MS * 1000000ull);
    if (options.progress) show_progress();
    for (struct stream *stream = streams; stream < streams + options.connections; stream++)
        if ((stream->state == CONNECTING || stream->state == ASKED) && now > stream->last_ns + options.silence_ns)
            cut(stream, "silent");
}

static void run_timers(void) {
    uint64_t now = now_ns();
    uint32_t owner;
    while (!over && timers_take(&timers, now, &owner)) {
        if (owner == tick)
            on_tick(now);
        else if (owner == hold_end)
            end_hold();
        else if (owner == stall_end)
            end_stall();
        else if (streams[owner].state != IDLE)
            leave(&streams[owner]);
        else if (begun < options.requests)
            begin(&streams[owner]);
    }
}

static void run(int signals) {
    struct epoll_event events[BATCH];
    watch(epoll_fd, EPOLL_CTL_ADD, signals, EPOLLIN, tick);
    for (uint32_t i = 0; i < options.connections; i++) {
        streams[i].fd = -1;
        timers_set(&timers, i, now_ns() + options.ramp_ms * 1000000 * i / options.connections);
    }
    timers_set(&timers, tick, now_ns());
    while (!over) {
        run_timers();
        if (over) break;
        timers_arm(&timers);
        int count = epoll_wait(epoll_fd, events, BATCH, -1);
        for (int i = 0; i < count; i++) {
            if (events[i].data.u32 < options.connections)
                handle(&streams[events[i].data.u32], events[i].events);
            else if (events[i].data.u32 == tick)
                over = interrupted = true;
        }
    }
    for (struct stream *stream = streams; stream < streams + options.connections; stream++)
        if (stream->state != IDLE) settle(stream, "interrupted", false);
    if (options.progress) show_progress();
}

static void prepare(void) {
    random_state = options.seed;
    if (options.exact) hash_wanted = check_hash_wanted(options.events);
    streams = allocate_zeroed(options.connections, sizeof *streams);
    if (mode == CANCEL) leaves = allocate_zeroed(options.requests, sizeof *leaves);
    tick = (uint32_t)options.connections;
    hold_end = tick + 1;
    stall_end = tick + 2;
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    prepare();
    int signals = open_signals();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    timers_open(&timers, stall_end + 1, epoll_fd, hold_end);
    run(signals);
    print_results(mode == CANCEL);
    return interrupted ? 1 : 0;
}
