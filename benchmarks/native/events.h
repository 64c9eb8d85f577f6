/* The text of an answer's events: what the upstream writes and the load generator expects.
 *
 * The writers go to memory that the caller has made large enough, and use no printf: they run once an event. */
#ifndef EVENTS_H
#define EVENTS_H

#include "common.h"

/* An event is EVENT_HEAD, the marker `@<seq>,<ns>@`, padding up to the size asked for, EVENT_TAIL. The padding's letter
 * and the marker's bracket occur nowhere else in the answer, so that a reader finds both without parsing JSON. */
#define PADDING '~'
#define EVENT_HEAD                                                                                        \
    "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":0,"                \
    "\"model\":\"bench\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\""
#define EVENT_TAIL "\"},\"finish_reason\":null}]}\n\n"
#define STOP_EVENT                                                                                        \
    "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":0,"                \
    "\"model\":\"bench\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n"
/* With -DTELLS_USAGE streams end as of a vendor that is asked for usage; it must be set for both programs. */
#ifdef TELLS_USAGE
#define USAGE_EVENT                                                                                       \
    "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":0,"                \
    "\"model\":\"bench\",\"choices\":[],\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":34,"        \
    "\"total_tokens\":46,\"prompt_tokens_details\":{\"cached_tokens\":0,\"audio_tokens\":0},"             \
    "\"completion_tokens_details\":{\"reasoning_tokens\":0,\"audio_tokens\":0}}}\n\n"
#define DONE_EVENT USAGE_EVENT "data: [DONE]\n\n"
#else
#define DONE_EVENT "data: [DONE]\n\n"
#endif
#define MAX_EVENT_SIZE 49152

static inline char *put_number(char *to, uint64_t number) {
    char digits[20];
    unsigned count = 0;
    do digits[count++] = (char)('0' + number % 10);
    while (number /= 10);
    while (count) *to++ = digits[--count];
    return to;
}

static inline char *put(char *to, const char *text, size_t len) {
    return (char *)memcpy(to, text, len) + len;
}

static inline char *put_chunk_head(char *to, size_t len) {
    static const char digits[] = "0123456789abcdef";
    int shift = 0;
    while (len >> shift >> 4) shift += 4;
    for (; shift >= 0; shift -= 4) *to++ = digits[len >> shift & 15];
    return put(to, LITERAL("\r\n"));
}

/* One event as large as asked for, at least as large as its marker; stamped with the moment of this call. */
static inline char *put_event(char *to, uint64_t seq, size_t size, bool chunked) {
    char marker[48], *end = marker;
    *end++ = '@';
    end = put_number(end, seq);
    *end++ = ',';
    end = put_number(end, now_ns());
    *end++ = '@';
    size_t marker_len = (size_t)(end - marker);
    size_t padding = size > marker_len ? size - marker_len : 0;
    if (chunked)
        to = put_chunk_head(to, sizeof EVENT_HEAD - 1 + marker_len + padding + sizeof EVENT_TAIL - 1);
    to = put(to, LITERAL(EVENT_HEAD));
    to = put(to, marker, marker_len);
    to = (char *)memset(to, PADDING, padding) + padding;
    to = put(to, LITERAL(EVENT_TAIL));
    return chunked ? put(to, LITERAL("\r\n")) : to;
}

static inline char *put_end(char *to, bool chunked) {
    if (chunked) to = put_chunk_head(to, sizeof STOP_EVENT - 1);
    to = put(to, LITERAL(STOP_EVENT));
    if (chunked) to = put_chunk_head(put(to, LITERAL("\r\n")), sizeof DONE_EVENT - 1);
    to = put(to, LITERAL(DONE_EVENT));
    return chunked ? put(to, LITERAL("\r\n0\r\n\r\n")) : to;
}

#endif
