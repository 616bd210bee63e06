/* What the programs of the bench share: loopback sockets, a clock, a growing buffer, and an incremental reader of
 * HTTP/1.1 messages that hands out the lines of the body, whatever the reads and chunks were cut into.
 *
 * Linux only. A failure of the machine (no memory, no socket) ends the program with a message. */
#ifndef WIRE_H
#define WIRE_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define READ_SIZE 65536
#ifndef REQUEST_SIZE
#define REQUEST_SIZE 16384 /* of the largest request that is taken, head and body */
#endif

static inline void die(const char *what) {
    perror(what);
    exit(1);
}

static inline int64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

/* --- sockets ---------------------------------------------------------------------------------------------------- */

static inline struct sockaddr_in loopback(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static inline int listen_on(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), yes = 1;
    struct sockaddr_in address = loopback(port);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes)) die("socket");
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 4096)) die("listen");
    return fd;
}

static inline void no_delay(int fd) {
    int yes = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
}

/* The connection may still be under way: what is wrong with it shows at the first read or write. */
static inline int connect_to(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = loopback(port);
    if (fd < 0) die("socket");
    no_delay(fd);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) die("connect");
    return fd;
}

static inline void watch(int epoll, int operation, int fd, uint32_t events, void *owner) {
    struct epoll_event event = {.events = events, .data.ptr = owner};
    if (epoll_ctl(epoll, operation, fd, &event)) die("epoll_ctl");
}

/* --- growing buffer --------------------------------------------------------------------------------------------- */

struct buffer {
    char *bytes;
    size_t used, sent, room;
};

static inline void buffer_put(struct buffer *b, const char *bytes, size_t n) {
    if (b->used + n > b->room) {
        b->room = (b->used + n) * 2;
        b->bytes = realloc(b->bytes, b->room);
        if (!b->bytes) die("realloc");
    }
    memcpy(b->bytes + b->used, bytes, n);
    b->used += n;
}

/* 1: all is sent. 0: the socket is full. -1: the connection is broken. */
static inline int buffer_send(struct buffer *b, int fd) {
    while (b->sent < b->used) {
        ssize_t n = send(fd, b->bytes + b->sent, b->used - b->sent, MSG_NOSIGNAL);
        if (n < 0) return errno == EAGAIN || errno == ENOTCONN ? 0 : -1;
        b->sent += (size_t)n;
    }
    b->used = b->sent = 0;
    return 1;
}

/* --- HTTP message reader ---------------------------------------------------------------------------------------- */

struct text {
    size_t used;
    char bytes[2048];
};

struct reader {
    enum { HEAD, SIZE, CHUNK, GAP, TRAILER, PLAIN, DONE } state;
    int started, status, chunked;
    long remaining; /* bytes of this chunk, or of the body; below 0: until the connection ends */
    struct text control, line;
};

typedef void (*on_line)(void *owner, const char *line, size_t length);

static inline void reader_reset(struct reader *r) {
    r->state = HEAD;
    r->started = r->status = r->chunked = 0;
    r->remaining = -1;
    r->control.used = r->line.used = 0;
}

/* Moves bytes into `t` up to a line end. True once the line is whole: then it is ended with NUL, without CR and LF.
 * What does not fit is dropped. */
static inline int text_take(struct text *t, const char **at, const char *end) {
    const char *stop = memchr(*at, '\n', (size_t)(end - *at));
    size_t n = (size_t)((stop ? stop : end) - *at), room = sizeof t->bytes - 1 - t->used;
    size_t kept = n < room ? n : room;
    memcpy(t->bytes + t->used, *at, kept);
    t->used += kept;
    *at += n + (stop != NULL);
    if (!stop) return 0;
    if (t->used && t->bytes[t->used - 1] == '\r') t->used--;
    t->bytes[t->used] = 0;
    return 1;
}

static inline void reader_head_line(struct reader *r, const char *line) {
    if (!r->started) {
        r->started = 1;
        if (!strncmp(line, "HTTP/1.", 7)) r->status = atoi(line + 9);
    } else if (!strncasecmp(line, "transfer-encoding: chunked", 26)) {
        r->chunked = 1;
    } else if (!strncasecmp(line, "content-length:", 15)) {
        r->remaining = atol(line + 15);
    }
}

static inline void reader_control_line(struct reader *r, const char *line) {
    int blank = !*line;
    if (r->state == HEAD) {
        if (!blank) reader_head_line(r, line);
        else r->state = r->chunked ? SIZE : r->remaining ? PLAIN : DONE;
    } else if (r->state == SIZE) {
        r->remaining = strtol(line, NULL, 16);
        r->state = r->remaining ? CHUNK : TRAILER;
    } else if (r->state == GAP) {
        r->state = SIZE;
    } else if (r->state == TRAILER && blank) {
        r->state = DONE;
    }
}

static inline void reader_body(struct reader *r, const char *at, size_t n, on_line call, void *owner) {
    const char *end = at + n;
    while (at < end && text_take(&r->line, &at, end)) {
        call(owner, r->line.bytes, r->line.used);
        r->line.used = 0;
    }
}

static inline void reader_feed(struct reader *r, const char *at, size_t n, on_line call, void *owner) {
    const char *end = at + n;
    while (at < end && r->state != DONE) {
        if (r->state == CHUNK || r->state == PLAIN) {
            size_t left = (size_t)(end - at);
            size_t part = r->remaining >= 0 && (size_t)r->remaining < left ? (size_t)r->remaining : left;
            reader_body(r, at, part, call, owner);
            at += part;
            if (r->remaining >= 0 && !(r->remaining -= (long)part)) r->state = r->state == CHUNK ? GAP : DONE;
        } else if (text_take(&r->control, &at, end)) {
            reader_control_line(r, r->control.bytes);
            r->control.used = 0;
        }
    }
}

/* --- requests, on the side that serves -------------------------------------------------------------------------- */

struct request {
    size_t used;
    char bytes[REQUEST_SIZE];
};

/* Length of the whole request (head and body) at the start of the buffer, 0 while it is not all there. */
static inline size_t request_length(struct request *q, char **body) {
    q->bytes[q->used] = 0;
    char *end = strstr(q->bytes, "\r\n\r\n");
    if (!end) return 0;
    *body = end + 4;
    char *field = strcasestr(q->bytes, "\r\ncontent-length:");
    size_t length = (size_t)(*body - q->bytes);
    if (field && field < end) length += (size_t)atol(field + 17);
    return length <= q->used ? length : 0;
}

/* 1: read something. 0: nothing there now. -1: the connection is over, or the request is too large. */
static inline int request_read(struct request *q, int fd) {
    ssize_t n = recv(fd, q->bytes + q->used, sizeof q->bytes - 1 - q->used, 0);
    if (n < 0) return errno == EAGAIN ? 0 : -1;
    q->used += (size_t)n;
    return n ? 1 : -1;
}

#endif
