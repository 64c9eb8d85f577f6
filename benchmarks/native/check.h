/* Is this the answer that was asked for? Reads a body in any fragments and says what is wrong with it.
 *
 * Only the markers `@<seq>,<ns>@` and the last line are looked at, because some proxies write the events anew; with
 * `exact` every byte but the markers' numbers counts too. The first fault found is the one reported. */
#ifndef CHECK_H
#define CHECK_H

#include "events.h"

static const char EVENT_MISSING[] = "event missing", EVENTS_REORDERED[] = "events reordered",
                  EVENT_DUPLICATED[] = "event duplicated", EVENT_SURPLUS[] = "more events than asked",
                  EVENT_STALE[] = "event older than its request", EVENT_EARLY[] = "event from the future",
                  END_MISSING[] = "events missing at the end", DONE_MISSING[] = "no [DONE] at the end",
                  LENGTH_WRONG[] = "length differs", BYTES_WRONG[] = "bytes differ";

struct check {
    uint64_t asked_ns; /* no event of this answer can be older */
    uint64_t events, size;
    uint64_t next;  /* the sequence number that is to come */
    uint64_t right; /* events before the first fault */
    const char *fault;

    /* The marker being read, possibly across fragments. */
    enum { OUTSIDE, IN_SEQ, IN_NS } at;
    unsigned digits, marker_len;
    uint64_t seq, number;

    unsigned char tail_len;
    char tail[24];

    bool exact, in_brackets;
    uint64_t length, length_wanted, hash;
};

/* FNV-1a: byte by byte, so that fragments do not matter. */
static const uint64_t HASH_BASIS = 0xcbf29ce484222325u, HASH_PRIME = 0x100000001b3u;

/* Skips what may differ from answer to answer: the markers' numbers, and the padding that makes up for their length. */
static inline uint64_t check_hash(uint64_t hash, bool *in_brackets, const char *data, size_t len) {
    for (; len; len--, data++) {
        if (*data == '@')
            *in_brackets = !*in_brackets;
        else if (*in_brackets || *data == PADDING)
            continue;
        hash = (hash ^ (unsigned char)*data) * HASH_PRIME;
    }
    return hash;
}

/* What check_hash gives for a right answer. */
static inline uint64_t check_hash_wanted(uint64_t events) {
    uint64_t hash = HASH_BASIS;
    bool in_brackets = false;
    while (events--) hash = check_hash(hash, &in_brackets, LITERAL(EVENT_HEAD "@@" EVENT_TAIL));
    return check_hash(hash, &in_brackets, LITERAL(STOP_EVENT DONE_EVENT));
}

static inline void check_begin(struct check *check, uint64_t events, uint64_t size, bool exact) {
    *check = (struct check){.asked_ns = now_ns(),
                            .events = events,
                            .size = size,
                            .exact = exact,
                            .hash = HASH_BASIS,
                            .length_wanted = sizeof STOP_EVENT - 1 + sizeof DONE_EVENT - 1};
}

static inline void check_fault(struct check *check, const char *fault) {
    if (!check->fault) check->fault = fault;
}

static inline void check_event(struct check *check, uint64_t seq, uint64_t sent_ns, uint64_t now,
                               struct histogram *delay_ns) {
    check->length_wanted += sizeof EVENT_HEAD - 1 + sizeof EVENT_TAIL - 1 +
                            (check->size > check->marker_len ? check->size : check->marker_len);
    if (seq < check->next) {
        /* After a gap, an event that comes late shows that it was not lost but overtaken. */
        if (check->fault == EVENT_MISSING) check->fault = EVENTS_REORDERED;
        check_fault(check, EVENT_DUPLICATED);
        return;
    }
    if (seq >= check->events) check_fault(check, EVENT_SURPLUS);
    if (seq > check->next) check_fault(check, EVENT_MISSING);
    if (sent_ns < check->asked_ns) check_fault(check, EVENT_STALE);
    if (sent_ns > now) check_fault(check, EVENT_EARLY);
    check->next = seq + 1;
    if (check->fault) return;
    check->right++;
    record(delay_ns, now - sent_ns);
}

static inline void check_body(struct check *check, const char *data, size_t len, uint64_t now,
                              struct histogram *delay_ns) {
    check->length += len;
    if (check->exact) check->hash = check_hash(check->hash, &check->in_brackets, data, len);

    size_t kept = len < sizeof check->tail ? sizeof check->tail - len : 0;
    if (kept > check->tail_len) kept = check->tail_len;
    size_t added = len < sizeof check->tail ? len : sizeof check->tail;
    memmove(check->tail, check->tail + check->tail_len - kept, kept);
    memcpy(check->tail + kept, data + len - added, added);
    check->tail_len = (unsigned char)(kept + added);

    for (const char *at = data, *end = data + len; at < end; at++) {
        if (check->at == OUTSIDE && !(at = memchr(at, '@', (size_t)(end - at)))) return;
        check->marker_len++;
        if (*at >= '0' && *at <= '9' && check->at != OUTSIDE && check->digits < 19) {
            check->number = check->number * 10 + (uint64_t)(*at - '0');
            check->digits++;
        } else if (*at == ',' && check->at == IN_SEQ && check->digits) {
            check->seq = check->number;
            check->at = IN_NS;
            check->number = check->digits = 0;
        } else if (*at == '@' && check->at == IN_NS && check->digits) {
            check_event(check, check->seq, check->number, now, delay_ns);
            check->at = OUTSIDE;
        } else { /* no marker, or the start of one; a spoiled one is missed as an event */
            check->at = *at == '@' ? IN_SEQ : OUTSIDE;
            check->number = check->digits = 0;
            check->marker_len = 1;
        }
    }
}

/* `data: [DONE]` and an empty line, with or without the optional space, its lines ended by LF or CRLF. */
static inline bool check_done(const struct check *check) {
    size_t len = check->tail_len, ends = 0;
    for (; len && strchr("\r\n", check->tail[len - 1]); len--) ends += check->tail[len - 1] == '\n';
    const char *line = check->tail + len;
    for (; line > check->tail && line[-1] != '\n'; line--) len--;
    len = (size_t)(check->tail + check->tail_len - line); /* of the line and its ends */
    return ends >= 2 && ((len >= 12 && !memcmp(line, LITERAL("data: [DONE]"))) ||
                         (len >= 11 && !memcmp(line, LITERAL("data:[DONE]"))));
}

/* The body ended as its framing says it should; NULL if it was right. */
static inline const char *check_end(const struct check *check, uint64_t hash_wanted) {
    if (check->fault) return check->fault;
    if (check->next < check->events) return END_MISSING;
    if (!check_done(check)) return DONE_MISSING;
    if (check->exact && check->length != check->length_wanted) return LENGTH_WRONG;
    if (check->exact && check->hash != hash_wanted) return BYTES_WRONG;
    return NULL;
}

#endif
