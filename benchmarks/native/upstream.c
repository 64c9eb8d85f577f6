/* The vendor of the benchmark: answers chat completions with as many events, as fast, as the request's body asks for.
 *
 *     cc -O2 -o benchmarks/.build/upstream benchmarks/native/upstream.c
 *     upstream --port 9100        (0: any free port; prints `ready PORT` once it listens)
 *
 * POST …/chat/completions reads `bench id=N events=N interval_us=N size=BYTES first_us=N;` out of the body, because a
 * body is what every proxy passes on. GET /bench/stats, GET /bench/closes and POST /bench/reset are the harness's.
 *
 * One thread, epoll, one timerfd. It must never be what limits a run: an event is one small write, made from a prepared
 * text and one clock reading. How late its timers fire is part of /bench/stats, so that a run can prove it. */
#include "common.h"

#include "events.h"
#include "http.h"
#include "timers.h"

#define ANSWER_HEAD "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\n"
#define CHUNKED_HEAD ANSWER_HEAD "Transfer-Encoding: chunked\r\n\r\n"
#define CLOSED_HEAD ANSWER_HEAD "Connection: close\r\n\r\n"

enum {
    MAX_CONNECTIONS = 65536,
    MAX_BODY = 1 << 20,
    MAX_CLOSES = 1 << 20,
    BATCH = 64,           /* the timers are looked at again after that many sockets */
    KEPT_BODY = 4096,     /* a larger body buffer is given back between requests */
    WRITE_BUDGET = 16384, /* how much of an unpaced answer is written, and so may wait, at a time */
    LISTENER = MAX_CONNECTIONS,
    TIMERS,
    SIGNALS,
};

struct connection {
    struct message request;
    char *body;
    size_t body_len, body_size;
    char *pending; /* what the socket did not take */
    size_t pending_at, pending_len;
    uint64_t id, events, sent, size, interval_ns, due_ns;
    int fd;
    bool streaming; /* from the request's end until the answer's last byte is with the kernel */
    bool begun;     /* the head is written */
    bool produced;  /* the end is written */
    bool chunked, closes, wants_out;
};

struct closed {
    uint64_t id, ns;
};

static struct connection *connections[MAX_CONNECTIONS]; /* by descriptor */
static struct timers timers;
static int epoll_fd, listen_fd;
static uint64_t requests, active, finished, cancelled, open_connections, paced_streams;
static struct closed *closes;
static size_t close_count, close_size;
static struct histogram lag_ns;
static char scratch[WRITE_BUDGET + MAX_EVENT_SIZE + 4096];

static void want_out(struct connection *connection, bool wanted) {
    if (connection->wants_out == wanted) return;
    connection->wants_out = wanted;
    watch(epoll_fd, EPOLL_CTL_MOD, connection->fd, EPOLLIN | EPOLLRDHUP | (wanted ? EPOLLOUT : 0),
          (uint32_t)connection->fd);
}

static void end_connection(struct connection *connection) {
    if (connection->streaming) {
        cancelled++;
        active--;
        timers_clear(&timers, (uint32_t)connection->fd);
        if (close_count == close_size && close_size < MAX_CLOSES)
            closes = allocate(closes, (close_size = close_size ? 2 * close_size : 1024) * sizeof *closes);
        if (close_count < close_size) closes[close_count++] = (struct closed){connection->id, now_ns()};
    }
    connections[connection->fd] = NULL;
    close(connection->fd);
    open_connections--;
    message_free(&connection->request);
    free(connection->body);
    free(connection->pending);
    free(connection);
}

/* False when the connection is gone. What the socket does not take waits; nothing more is made until it has left. */
static bool write_out(struct connection *connection, const char *data, size_t len) {
    ssize_t taken = send(connection->fd, data, len, MSG_NOSIGNAL);
    if (taken < 0 && errno != EAGAIN) {
        end_connection(connection);
        return false;
    }
    if (taken < 0) taken = 0;
    if ((size_t)taken < len) {
        connection->pending_len = len - (size_t)taken;
        connection->pending_at = 0;
        connection->pending = memcpy(allocate(NULL, connection->pending_len), data + taken, connection->pending_len);
    }
    return true;
}

/* ---- the stream ---- */

/* When the second event is due: half to one and a half intervals on, at the stream's own place in the interval, so that
 * the streams of a run are spread evenly however their requests came (multiples of the golden ratio are). */
static uint64_t spread(uint64_t now, uint64_t interval_ns) {
    double turn = (double)paced_streams++ * 0.6180339887498949;
    uint64_t place = (uint64_t)((turn - (double)(uint64_t)turn) * (double)interval_ns);
    uint64_t earliest = now + interval_ns / 2;
    return earliest + (place + interval_ns - earliest % interval_ns) % interval_ns;
}

/* All written: either nothing waits for the socket any more, or this is called again once nothing does. */
static void after_write(struct connection *connection) {
    if (connection->pending) {
        want_out(connection, true);
    } else if (connection->produced) {
        want_out(connection, false);
        if (connection->streaming) {
            connection->streaming = false;
            finished++;
            active--;
        }
        connection->produced = connection->begun = false;
        if (connection->closes)
            end_connection(connection);
        else
            message_begin(&connection->request, false);
    } else if (connection->interval_ns) {
        want_out(connection, false);
        timers_set(&timers, (uint32_t)connection->fd, connection->due_ns);
    } else {
        want_out(connection, true); /* one budget a round of the loop: no stream starves the others */
    }
}

static void write_events(struct connection *connection) {
    char *end = scratch;
    if (!connection->begun) {
        end = connection->chunked ? put(end, LITERAL(CHUNKED_HEAD)) : put(end, LITERAL(CLOSED_HEAD));
        connection->begun = true;
        if (connection->interval_ns) connection->due_ns = spread(now_ns(), connection->interval_ns);
    } else {
        connection->due_ns += connection->interval_ns;
    }
    while (connection->sent < connection->events) {
        end = put_event(end, connection->sent++, connection->size, connection->chunked);
        if (connection->interval_ns || end - scratch >= WRITE_BUDGET) break;
    }
    if (connection->sent == connection->events) {
        end = put_end(end, connection->chunked);
        connection->produced = true;
    }
    if (write_out(connection, scratch, (size_t)(end - scratch))) after_write(connection);
}

static void flush_pending(struct connection *connection) {
    ssize_t taken = send(connection->fd, connection->pending + connection->pending_at, connection->pending_len,
                         MSG_NOSIGNAL);
    if (taken < 0) {
        if (errno != EAGAIN) end_connection(connection);
        return;
    }
    connection->pending_at += (size_t)taken;
    connection->pending_len -= (size_t)taken;
    if (connection->pending_len) return;
    free(connection->pending);
    connection->pending = NULL;
    /* A stream that its reader held up goes on from here: catching up would look like the upstream's own lag. */
    if (connection->due_ns < now_ns()) connection->due_ns = now_ns();
    after_write(connection);
}

/* ---- requests ---- */

static uint64_t control(const char *controls, const char *name, uint64_t otherwise) {
    size_t len = strlen(name);
    for (const char *at = controls; *at && *at != ';' && *at != '"'; at++)
        if (at[-1] == ' ' && !strncmp(at, name, len) && at[len] == '=') return strtoull(at + len + 1, NULL, 10);
    return otherwise;
}

static void begin_stream(struct connection *connection, const char *controls) {
    connection->id = control(controls, "id", 0);
    connection->events = control(controls, "events", 1);
    connection->interval_ns = control(controls, "interval_us", 0) * 1000;
    connection->size = control(controls, "size", 0);
    if (connection->size > MAX_EVENT_SIZE) connection->size = MAX_EVENT_SIZE;
    uint64_t first_us = control(controls, "first_us", 0);
    connection->sent = 0;
    connection->chunked = !connection->request.old;
    connection->closes = connection->request.closes || !connection->chunked;
    connection->streaming = true;
    active++;
    if (first_us)
        timers_set(&timers, (uint32_t)connection->fd, connection->due_ns = now_ns() + first_us * 1000);
    else
        write_events(connection);
}

static void answer(struct connection *connection, const char *status, const char *json, size_t len) {
    connection->produced = true;
    connection->closes = connection->request.closes;
    char *text = allocate(NULL, len + 256);
    int head = sprintf(text, "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n%s\r\n", status,
                       len, connection->closes ? "Connection: close\r\n" : "");
    memcpy(text + head, json, len);
    bool here = write_out(connection, text, (size_t)head + len);
    free(text);
    if (here) after_write(connection);
}

static void answer_stats(struct connection *connection) {
    char json[512];
    int len = sprintf(json,
                      "{\"requests\":%" PRIu64 ",\"active\":%" PRIu64 ",\"finished\":%" PRIu64
                      ",\"cancelled\":%" PRIu64 ",\"open_connections\":%" PRIu64
                      ",\"lag_us\":{\"p50\":%.1f,\"p99\":%.1f,\"max\":%.1f}}",
                      requests, active, finished, cancelled, open_connections,
                      (double)percentile(&lag_ns, 0.5) / 1e3, (double)percentile(&lag_ns, 0.99) / 1e3,
                      (double)lag_ns.max / 1e3);
    answer(connection, "200 OK", json, (size_t)len);
}

static void answer_closes(struct connection *connection) {
    char *json = allocate(NULL, close_count * 48 + 16), *end = json;
    *end++ = '[';
    for (size_t i = 0; i < close_count; i++) {
        if (i) *end++ = ',';
        *end++ = '[';
        end = put_number(end, closes[i].id);
        *end++ = ',';
        end = put_number(end, closes[i].ns);
        *end++ = ']';
    }
    *end++ = ']';
    answer(connection, "200 OK", json, (size_t)(end - json));
    free(json);
}

static bool ends_with(const char *text, const char *suffix) {
    size_t len = strlen(text), suffix_len = strlen(suffix);
    return len >= suffix_len && !strcmp(text + len - suffix_len, suffix);
}

/* The whole request is here. */
static void serve(struct connection *connection) {
    static const char completion[] =
        "{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion\",\"created\":0,\"model\":\"bench\",\"choices\":["
        "{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"ok\"},\"finish_reason\":\"stop\"}],"
        "\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1,\"total_tokens\":2}}";
    static const char models[] =
        "{\"object\":\"list\",\"data\":[{\"id\":\"bench\",\"object\":\"model\",\"created\":0,\"owned_by\":\"bench\"}]}";
    char *target = connection->request.target;
    bool is_post = !strcmp(connection->request.method, "POST");
    target[strcspn(target, "?")] = 0;

    if (is_post && ends_with(target, "/chat/completions")) {
        const char *body = connection->body ? connection->body : "";
        const char *controls = strstr(body, "bench id=");
        requests++;
        if (strstr(body, "\"stream\":true") || strstr(body, "\"stream\": true"))
            begin_stream(connection, controls ? controls + strlen("bench ") : "");
        else
            answer(connection, "200 OK", LITERAL(completion));
    } else if (is_post && !strcmp(target, "/bench/reset")) {
        requests = finished = cancelled = close_count = paced_streams = 0;
        memset(&lag_ns, 0, sizeof lag_ns);
        answer(connection, "200 OK", LITERAL("{}"));
    } else if (!strcmp(target, "/bench/stats")) {
        answer_stats(connection);
    } else if (!strcmp(target, "/bench/closes")) {
        answer_closes(connection);
    } else if (ends_with(target, "/models")) {
        answer(connection, "200 OK", LITERAL(models));
    } else {
        answer(connection, "404 Not Found", LITERAL("{\"error\":{\"message\":\"no such path\"}}"));
    }
}

static void keep_body(void *owner, const char *data, size_t len) {
    struct connection *connection = owner;
    if (connection->body_len + len > MAX_BODY) {
        connection->request.fault = "body too large";
        return;
    }
    if (connection->body_len + len + 1 > connection->body_size)
        connection->body = allocate(connection->body, connection->body_size = connection->body_len + len + 512);
    memcpy(connection->body + connection->body_len, data, len);
    connection->body_len += len;
    connection->body[connection->body_len] = 0;
}

static void receive(struct connection *connection) {
    static char data[65536];
    ssize_t got = recv(connection->fd, data, sizeof data, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        end_connection(connection);
        return;
    }
    bool is_answering = connection->streaming || connection->pending;
    size_t taken = is_answering ? 0 : message_feed(&connection->request, data, (size_t)got, keep_body, connection);
    if (connection->request.fault || taken < (size_t)got) {
        /* No proxy sends a second request before the first is answered; one that does would measure something else. */
        fprintf(stderr, "upstream: refused a request: %s\n",
                connection->request.fault ? connection->request.fault : "bytes after its end");
        end_connection(connection);
        return;
    }
    if (connection->request.at != ENDED) return;
    connection->body_len = 0;
    int fd = connection->fd;
    serve(connection);
    if (connections[fd] == connection && connection->body_size > KEPT_BODY) {
        free(connection->body);
        connection->body = NULL;
        connection->body_size = 0;
    } else if (connections[fd] == connection && connection->body) {
        connection->body[0] = 0;
    }
}

static void accept_all(void) {
    for (;;) {
        int fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0 && (errno == EAGAIN || errno == ECONNABORTED || errno == EINTR)) return;
        /* Dying is the honest way out: refused connections would be counted against the proxy. */
        if (fd < 0 && (errno == EMFILE || errno == ENFILE))
            die(1, "out of descriptors at %" PRIu64 " connections (see ulimit -Hn)", open_connections);
        if (fd < 0) die(1, "accept: %s", strerror(errno));
        if (fd >= MAX_CONNECTIONS) die(1, "more than %d connections", MAX_CONNECTIONS);
        send_at_once(fd);
        struct connection *connection = connections[fd] = allocate_zeroed(1, sizeof *connection);
        connection->fd = fd;
        message_begin(&connection->request, false);
        watch(epoll_fd, EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLRDHUP, (uint32_t)fd);
        open_connections++;
    }
}

static void run_timers(void) {
    uint64_t now = now_ns();
    uint32_t fd;
    while (timers_take(&timers, now, &fd)) {
        struct connection *connection = connections[fd];
        record(&lag_ns, now_ns() - connection->due_ns);
        write_events(connection);
    }
}

static uint64_t listen_on(uint64_t port) {
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof address;
    listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(listen_fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    if (bind(listen_fd, (struct sockaddr *)&address, len) || listen(listen_fd, 65535))
        die(1, "port %" PRIu64 ": %s", port, strerror(errno));
    getsockname(listen_fd, (struct sockaddr *)&address, &len);
    return ntohs(address.sin_port);
}

int main(int argc, char **argv) {
    uint64_t port = 0;
    const struct option options[] = {{"--port", NUMBER, &port, 0, 65535}};
    parse_options(argc, argv, options, 1);
    raise_descriptor_limit();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    timers_open(&timers, MAX_CONNECTIONS, epoll_fd, TIMERS);
    watch(epoll_fd, EPOLL_CTL_ADD, open_signals(), EPOLLIN, SIGNALS);
    port = listen_on(port);
    watch(epoll_fd, EPOLL_CTL_ADD, listen_fd, EPOLLIN, LISTENER);
    printf("ready %" PRIu64 "\n", port);
    fflush(stdout);

    for (;;) {
        struct epoll_event events[BATCH];
        run_timers();
        timers_arm(&timers);
        int count = epoll_wait(epoll_fd, events, BATCH, -1);
        for (int i = 0; i < count; i++) {
            uint32_t tag = events[i].data.u32;
            if (tag == SIGNALS) return 0;
            if (tag == LISTENER) accept_all();
            if (tag >= MAX_CONNECTIONS) continue;
            struct connection *connection = connections[tag];
            if (events[i].events & ~(uint32_t)EPOLLOUT) {
                receive(connection);
                connection = connections[tag];
            }
            if (connection && events[i].events & EPOLLOUT) {
                if (connection->pending)
                    flush_pending(connection);
                else if (connection->streaming && !connection->produced)
                    write_events(connection);
            }
        }
    }
}
