/* One timer per owner (a small index), in a binary heap behind one timerfd.
 *
 * epoll's own timeout counts milliseconds: with hundreds of streams it would bunch their events, and a proxy that is
 * woken once for twenty events looks cheaper than it is. The timerfd is edge-triggered and never read: setting it
 * anew forgets the expiries that nobody fetched, which saves a system call a wake-up. */
#ifndef TIMERS_H
#define TIMERS_H

#include <sys/timerfd.h>

#include "common.h"

struct timer {
    uint64_t due_ns;
    uint32_t owner;
};

struct timers {
    struct timer *heap;
    uint32_t *place; /* an owner's index in the heap plus one; 0 when it waits for nothing */
    uint32_t count;
    int fd;
    uint64_t armed_ns;
};

static inline void timers_open(struct timers *timers, uint32_t owners, int epoll_fd, uint32_t tag) {
    *timers = (struct timers){.heap = allocate_zeroed(owners, sizeof(struct timer)),
                              .place = allocate_zeroed(owners, sizeof(uint32_t))};
    timers->fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (timers->fd < 0) die(1, "timerfd: %s", strerror(errno));
    watch(epoll_fd, EPOLL_CTL_ADD, timers->fd, EPOLLIN | EPOLLET, tag);
}

static inline void timers_settle(struct timers *timers, uint32_t at, struct timer timer) {
    struct timer *heap = timers->heap;
    for (uint32_t parent; at && heap[parent = (at - 1) / 2].due_ns > timer.due_ns; at = parent) {
        heap[at] = heap[parent];
        timers->place[heap[at].owner] = at + 1;
    }
    for (uint32_t child; (child = 2 * at + 1) < timers->count; at = child) {
        if (child + 1 < timers->count && heap[child + 1].due_ns < heap[child].due_ns) child++;
        if (heap[child].due_ns >= timer.due_ns) break;
        heap[at] = heap[child];
        timers->place[heap[at].owner] = at + 1;
    }
    heap[at] = timer;
    timers->place[timer.owner] = at + 1;
}

static inline void timers_set(struct timers *timers, uint32_t owner, uint64_t due_ns) {
    uint32_t at = timers->place[owner] ? timers->place[owner] - 1 : timers->count++;
    timers_settle(timers, at, (struct timer){due_ns, owner});
}

static inline void timers_clear(struct timers *timers, uint32_t owner) {
    uint32_t place = timers->place[owner];
    if (!place) return;
    timers->place[owner] = 0;
    struct timer last = timers->heap[--timers->count];
    if (last.owner != owner) timers_settle(timers, place - 1, last);
}

/* Takes the earliest timer if its time has come. */
static inline bool timers_take(struct timers *timers, uint64_t now, uint32_t *owner) {
    if (!timers->count || timers->heap[0].due_ns > now) return false;
    *owner = timers->heap[0].owner;
    timers_clear(timers, *owner);
    return true;
}

/* Called once before each sleep, after every timer that was due has been taken. */
static inline void timers_arm(struct timers *timers) {
    if (!timers->count || timers->heap[0].due_ns == timers->armed_ns) return;
    timers->armed_ns = timers->heap[0].due_ns;
    struct itimerspec due = {.it_value = {.tv_sec = (time_t)(timers->armed_ns / SECOND_NS),
                                          .tv_nsec = (long)(timers->armed_ns % SECOND_NS)}};
    if (timerfd_settime(timers->fd, TFD_TIMER_ABSTIME, &due, NULL)) die(1, "timerfd: %s", strerror(errno));
}

#endif
