/* What a run of the load generator found out, and how it says so: one JSON object. */
#ifndef RESULTS_H
#define RESULTS_H

#include "common.h"

enum { MAX_REASONS = 64 };

static uint64_t complete, failed, total_events, total_bytes, began_ns, ended_ns;
static struct histogram delay_ns;      /* of each event in its place: from its stamp to its receipt */
static struct histogram first_byte_ns; /* from the request's sending, of complete answers only */
static struct histogram request_ns;    /* the same, to the answer's end */
static struct {
    char reason[96];
    uint64_t count;
} failures[MAX_REASONS];
static struct {
    uint64_t id, ns;
} *leaves;
static uint64_t leave_count;

static inline void count_failure(const char *reason) {
    size_t at = 0;
    while (at < MAX_REASONS - 1 && failures[at].count && strcmp(failures[at].reason, reason)) at++;
    /* More kinds than there is room for share the last place; the sum stays right. */
    if (!failures[at].count)
        snprintf(failures[at].reason, sizeof failures[at].reason, "%s", at < MAX_REASONS - 1 ? reason : "other");
    failures[at].count++;
    failed++;
}

static inline void print_percentiles(const char *name, const struct histogram *histogram, bool with_max) {
    printf(",\"%s\":{", name);
    if (!histogram->count) {
        printf("\"p50\":null,\"p99\":null%s}", with_max ? ",\"max\":null" : "");
        return;
    }
    printf("\"p50\":%.1f,\"p99\":%.1f", (double)percentile(histogram, 0.5) / 1e3,
           (double)percentile(histogram, 0.99) / 1e3);
    if (with_max) printf(",\"max\":%.1f", (double)histogram->max / 1e3);
    putchar('}');
}

static inline void print_results(bool with_leaves) {
    printf("{\"requests\":%" PRIu64 ",\"complete\":%" PRIu64 ",\"failed\":%" PRIu64 ",\"failures\":{",
           complete + failed, complete, failed);
    for (size_t i = 0; i < MAX_REASONS && failures[i].count; i++)
        printf("%s\"%s\":%" PRIu64, i ? "," : "", failures[i].reason, failures[i].count);
    printf("},\"events\":%" PRIu64 ",\"bytes\":%" PRIu64 ",\"wall_s\":%.6f", total_events, total_bytes,
           (double)(ended_ns - began_ns) / 1e9);
    print_percentiles("delay_us", &delay_ns, true);
    print_percentiles("ttfb_us", &first_byte_ns, false);
    print_percentiles("request_us", &request_ns, false);
    if (with_leaves) {
        printf(",\"leaves\":[");
        for (uint64_t i = 0; i < leave_count; i++)
            printf("%s[%" PRIu64 ",%" PRIu64 "]", i ? "," : "", leaves[i].id, leaves[i].ns);
        putchar(']');
    }
    printf("}\n");
}

#endif
