/* An incremental reader of one HTTP/1 message, request or answer, for any split of its bytes.
 *
 * It is strict where a proxy could be wrong (line ends, lengths, chunk framing, two framings at once) and indifferent
 * to everything else: any fields, in any order and spelling, are fine. No I/O here. */
#ifndef HTTP_H
#define HTTP_H

#include "common.h"

enum { MAX_LINE = 65536 };

struct message {
    enum { START_LINE, FIELDS, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER, BY_LENGTH, BY_CLOSE, ENDED } at;
    bool is_answer;
    bool closes;  /* the connection cannot carry another message after this one */
    bool old;     /* HTTP/1.0 */
    bool has_length, chunked;
    bool has_body; /* some of the body has come */
    int status;
    uint64_t left; /* of the body or of the chunk, in bytes */
    const char *fault;
    char method[8], target[256]; /* of a request */
    char *line;                  /* the part of a line that came with an earlier read */
    size_t line_len, line_size;
};

typedef void body_sink(void *owner, const char *data, size_t len);

/* Ready for the next message on the same connection; keeps the line buffer. */
static inline void message_begin(struct message *message, bool is_answer) {
    char *line = message->line;
    size_t line_size = message->line_size;
    *message = (struct message){.is_answer = is_answer, .line = line, .line_size = line_size};
}

static inline void message_free(struct message *message) {
    free(message->line);
    message->line = NULL;
    message->line_len = message->line_size = 0;
}

/* The next whole line without its CRLF, or NULL when it has not all come (then what came is kept). */
static inline const char *message_line(struct message *message, const char **data, const char *end, size_t *len) {
    const char *newline = memchr(*data, '\n', (size_t)(end - *data));
    const char *stop = newline ? newline + 1 : end, *line = *data;
    size_t part = (size_t)(stop - *data);
    *len = part;
    *data = stop;
    if (!newline || message->line_len) {
        *len = message->line_len + part;
        if (*len > MAX_LINE) {
            message->fault = "line too long";
            return NULL;
        }
        if (*len > message->line_size) message->line = allocate(message->line, message->line_size = *len + 128);
        memcpy(message->line + message->line_len, line, part);
        message->line_len = *len;
        if (!newline) return NULL;
        line = message->line;
        message->line_len = 0;
    }
    if (*len < 2 || line[*len - 2] != '\r') {
        message->fault = "line without CRLF";
        return NULL;
    }
    *len -= 2;
    return line;
}

static inline bool parse_number(const char *text, size_t len, unsigned base, uint64_t *number) {
    *number = 0;
    if (!len || len > 15) return false; /* 15 digits of either base cannot overflow */
    for (; len; len--, text++) {
        unsigned digit = *text >= '0' && *text <= '9'   ? (unsigned)(*text - '0')
                         : *text >= 'a' && *text <= 'f' ? (unsigned)(*text - 'a') + 10
                         : *text >= 'A' && *text <= 'F' ? (unsigned)(*text - 'A') + 10
                                                        : 16;
        if (digit >= base) return false;
        *number = *number * base + digit;
    }
    return true;
}

static inline void message_start_line(struct message *message, const char *line, size_t len) {
    const char *version = line;
    if (message->is_answer) {
        uint64_t status = 0;
        if (len < 12 || line[8] != ' ' || !parse_number(line + 9, 3, 10, &status) || (len > 12 && line[12] != ' '))
            message->fault = "malformed status line";
        message->status = (int)status;
    } else {
        const char *space = memchr(line, ' ', len), *second = memrchr(line, ' ', len);
        if (!space || second == space || (size_t)(line + len - second) != 9 ||
            (size_t)(space - line) >= sizeof message->method ||
            (size_t)(second - space - 1) >= sizeof message->target) {
            message->fault = "malformed request line";
            return;
        }
        memcpy(message->method, line, (size_t)(space - line));
        memcpy(message->target, space + 1, (size_t)(second - space - 1));
        version = second + 1;
    }
    if (!message->fault && (memcmp(version, "HTTP/1.", 7) || (version[7] != '0' && version[7] != '1')))
        message->fault = "not HTTP/1";
    if (!message->fault) message->closes = message->old = version[7] == '0';
}

static inline bool is_token(const char *value, size_t len, const char *token) {
    return len == strlen(token) && !strncasecmp(value, token, len);
}

static inline void message_field(struct message *message, const char *line, size_t len) {
    const char *colon = memchr(line, ':', len);
    if (!colon) {
        message->fault = "malformed field";
        return;
    }
    size_t name_len = (size_t)(colon - line);
    const char *value = colon + 1, *end = line + len;
    while (value < end && (*value == ' ' || *value == '\t')) value++;
    while (end > value && (end[-1] == ' ' || end[-1] == '\t')) end--;
    size_t value_len = (size_t)(end - value);

    if (is_token(line, name_len, "content-length")) {
        uint64_t length;
        if (!parse_number(value, value_len, 10, &length) || (message->has_length && length != message->left))
            message->fault = "malformed Content-Length";
        message->has_length = true;
        message->left = length;
    } else if (is_token(line, name_len, "transfer-encoding")) {
        if (message->chunked || !is_token(value, value_len, "chunked")) message->fault = "unknown Transfer-Encoding";
        message->chunked = true;
    } else if (is_token(line, name_len, "connection")) {
        if (is_token(value, value_len, "close")) message->closes = true;
        if (is_token(value, value_len, "keep-alive")) message->closes = false;
    }
}

/* The empty line after the fields: decides how the body ends (RFC 9112 §6.3). */
static inline void message_head_end(struct message *message) {
    if (message->is_answer && message->status >= 100 && message->status < 200) {
        message_begin(message, true); /* an interim answer; the real one follows */
        return;
    }
    if (message->chunked && message->has_length) message->fault = "two framings";
    bool bodiless = message->is_answer && (message->status == 204 || message->status == 304);
    if (bodiless)
        message->at = ENDED;
    else if (message->chunked)
        message->at = CHUNK_SIZE;
    else if (message->has_length)
        message->at = message->left ? BY_LENGTH : ENDED;
    else
        message->at = message->is_answer ? BY_CLOSE : ENDED;
    if (message->at == BY_CLOSE) message->closes = true;
}

static inline void message_chunk_size(struct message *message, const char *line, size_t len) {
    const char *extension = memchr(line, ';', len);
    if (!parse_number(line, extension ? (size_t)(extension - line) : len, 16, &message->left))
        message->fault = "malformed chunk size";
    message->at = message->left ? CHUNK_DATA : TRAILER;
}

static inline void message_take_line(struct message *message, const char *line, size_t len) {
    switch (message->at) {
    case START_LINE:
        message->at = FIELDS;
        message_start_line(message, line, len);
        break;
    case FIELDS:
        if (len)
            message_field(message, line, len);
        else
            message_head_end(message);
        break;
    case CHUNK_SIZE:
        message_chunk_size(message, line, len);
        break;
    case CHUNK_END:
        if (len) message->fault = "chunk longer than its size";
        message->at = CHUNK_SIZE;
        break;
    default: /* TRAILER */
        if (!len) message->at = ENDED;
    }
}

/* Takes bytes until the message has ended, is at fault, or the bytes are used up; says how many it took. */
static inline size_t message_feed(struct message *message, const char *data, size_t len, body_sink *sink,
                                  void *owner) {
    const char *at = data, *end = data + len;
    while (at < end && message->at != ENDED && !message->fault) {
        if (message->at == CHUNK_DATA || message->at == BY_LENGTH || message->at == BY_CLOSE) {
            size_t part = (size_t)(end - at);
            if (message->at != BY_CLOSE && part > message->left) part = message->left;
            message->has_body = true;
            sink(owner, at, part);
            at += part;
            if (message->at != BY_CLOSE && !(message->left -= part))
                message->at = message->at == CHUNK_DATA ? CHUNK_END : ENDED;
            continue;
        }
        size_t line_len;
        const char *line = message_line(message, &at, end, &line_len);
        if (line) message_take_line(message, line, line_len);
    }
    return (size_t)(at - data);
}

#endif
