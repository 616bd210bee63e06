/* A fake model provider that costs little: `POST /v1/chat/completions` answers with a stream of chat.completion.chunk
 * lines, each token in a chunk of its own, for thousands of connections in one thread.
 *
 *   upstream PORT [MODEL]
 *
 * What it answers stands in the request, in the model's name or in a message (MODEL where both say nothing):
 *   bench?count=300      tokens, each the text " token"
 *         &pace_us=20000 microseconds between tokens, on an absolute schedule; 0: as fast as the reader takes them
 *         &gate=1        no token before `POST /gate`
 * The first token comes at once; the others keep a phase of their own per stream, so that streams that were opened
 * together do not tick together.
 *
 * `POST /gate` lets all waiting streams go. `GET /stats` counts streams that are open. Any other GET lists one model. */
#include "wire.h"
#include <sys/timerfd.h>

#define CHUNK_HEAD \
    "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"bench\","
#define CHOICE(delta, reason) \
    CHUNK_HEAD "\"choices\":[{\"index\":0,\"delta\":{" delta "},\"finish_reason\":" reason "}]}\n\n"
#define BLOCK 16384 /* most bytes that an unpaced stream writes before it is another's turn */

static const char *const ROLE = CHOICE("\"role\":\"assistant\",\"content\":\"\"", "null");
static const char *const TOKEN = CHOICE("\"content\":\" token\"", "null");
static const char *const STOP = CHOICE("", "\"stop\"");
static const char *const DONE_LINE = "data: [DONE]\n\n";

struct conn {
    int fd, streaming, gated, want_usage, writable;
    long count, sent;
    int64_t pace, start, phase, due;
    size_t slot; /* place in the heap, from 1; 0: not in it */
    struct conn *next, *previous;
    struct buffer out;
    struct request in;
};

static int epoll_fd, timer_fd;
static struct conn *connections;
static const char *default_model = "bench?count=20";
static char token_chunk[512];
static size_t token_size;
static unsigned serial;

/* --- schedule: a heap of streams, the one that is due first on top ---------------------------------------------- */

static struct conn **heap;
static size_t heap_used, heap_room;

static void heap_set(size_t slot, struct conn *c) {
    heap[slot] = c;
    c->slot = slot;
}

static void heap_sift(struct conn *c, size_t slot) {
    while (slot > 1 && heap[slot / 2]->due > c->due) {
        heap_set(slot, heap[slot / 2]);
        slot /= 2;
    }
    for (size_t child; (child = slot * 2) <= heap_used; slot = child) {
        if (child < heap_used && heap[child + 1]->due < heap[child]->due) child++;
        if (heap[child]->due >= c->due) break;
        heap_set(slot, heap[child]);
    }
    heap_set(slot, c);
}

static void heap_put(struct conn *c) {
    if (c->slot) {
        heap_sift(c, c->slot);
        return;
    }
    if (heap_used + 2 > heap_room) {
        heap_room = heap_room ? heap_room * 2 : 1024;
        heap = realloc(heap, heap_room * sizeof *heap);
        if (!heap) die("realloc");
    }
    heap_sift(c, ++heap_used);
}

static void heap_remove(struct conn *c) {
    if (!c->slot) return;
    struct conn *last = heap[heap_used--];
    if (last != c) heap_sift(last, c->slot);
    c->slot = 0;
}

static void arm_timer(void) {
    struct itimerspec when = {0};
    if (heap_used) {
        int64_t due = heap[1]->due > 0 ? heap[1]->due : 1;
        when.it_value.tv_sec = due / 1000000;
        when.it_value.tv_nsec = due % 1000000 * 1000;
    }
    timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
}

/* --- connections ------------------------------------------------------------------------------------------------ */

static struct conn *closed;

static void conn_close(struct conn *c) {
    if (c->fd < 0) return;
    heap_remove(c);
    close(c->fd);
    c->fd = -1;
    if (c->previous) c->previous->next = c->next;
    else connections = c->next;
    if (c->next) c->next->previous = c->previous;
    c->next = closed; /* freed after this round of events, which may still name it */
    closed = c;
}

static void free_closed(void) {
    while (closed) {
        struct conn *c = closed;
        closed = c->next;
        free(c->out.bytes);
        free(c);
    }
}

static void conn_flush(struct conn *c) {
    int sent = buffer_send(&c->out, c->fd);
    if (sent < 0) {
        conn_close(c);
        return;
    }
    int wants = !sent || (c->streaming && !c->gated && !c->pace);
    if (wants != c->writable) {
        c->writable = wants;
        watch(epoll_fd, EPOLL_CTL_MOD, c->fd, EPOLLIN | (wants ? EPOLLOUT : 0), c);
    }
}

static void put_chunk(struct conn *c, const char *data) {
    char head[32];
    size_t n = strlen(data);
    buffer_put(&c->out, head, (size_t)sprintf(head, "%zx\r\n", n));
    buffer_put(&c->out, data, n);
    buffer_put(&c->out, "\r\n", 2);
}

static void put_usage(struct conn *c) {
    char data[512];
    snprintf(data, sizeof data,
             CHUNK_HEAD "\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":%ld,\"total_tokens\":%ld}}\n\n",
             c->count, c->count + 1);
    put_chunk(c, data);
}

static void stream_end(struct conn *c) {
    put_chunk(c, STOP);
    if (c->want_usage) put_usage(c);
    put_chunk(c, DONE_LINE);
    buffer_put(&c->out, "0\r\n\r\n", 5);
    c->streaming = 0;
}

static void stream_token(struct conn *c) {
    if (c->sent < c->count) {
        buffer_put(&c->out, token_chunk, token_size);
        c->sent++;
    }
    if (c->sent == c->count) stream_end(c);
}

static void stream_block(struct conn *c) {
    while (c->streaming && c->out.used < BLOCK) stream_token(c);
    conn_flush(c);
}

static void stream_due(struct conn *c, int64_t now) {
    heap_remove(c);
    do {
        stream_token(c);
        c->due = c->start + c->phase + c->sent * c->pace;
    } while (c->streaming && c->due <= now);
    if (c->streaming) heap_put(c);
    conn_flush(c);
}

static void stream_go(struct conn *c) {
    c->gated = 0;
    c->start = now_us();
    if (c->pace) stream_due(c, c->start);
    else stream_block(c);
}

static long parameter(const char *model, const char *end, const char *name, long otherwise) {
    const char *found = memmem(model, (size_t)(end - model), name, strlen(name));
    return found ? atol(found + strlen(name)) : otherwise;
}

static void stream_start(struct conn *c, const char *body) {
    const char *model = strstr(body, "bench?");
    if (!model) model = default_model;
    const char *end = model + strcspn(model, "\"");
    c->count = parameter(model, end, "count=", 20);
    c->pace = parameter(model, end, "pace_us=", 0);
    c->gated = (int)parameter(model, end, "gate=", 0);
    c->want_usage = strstr(body, "\"include_usage\"") != NULL;
    c->phase = c->pace ? (int64_t)(serial++ * 2654435761u) % c->pace : 0;
    c->streaming = 1;
    c->sent = 0;
    static const char head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    buffer_put(&c->out, head, sizeof head - 1);
    put_chunk(c, ROLE);
    if (c->gated) conn_flush(c);
    else stream_go(c);
}

static void answer(struct conn *c, const char *json) {
    char head[128];
    int n = sprintf(head, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n", strlen(json));
    buffer_put(&c->out, head, (size_t)n);
    buffer_put(&c->out, json, strlen(json));
    conn_flush(c);
}

static void open_gate(void) {
    for (struct conn *c = connections, *next; c; c = next) {
        next = c->next;
        if (c->streaming && c->gated) stream_go(c);
    }
}

static void answer_stats(struct conn *c) {
    char json[64];
    long open = 0;
    for (struct conn *each = connections; each; each = each->next) open += each->streaming;
    sprintf(json, "{\"open\":%ld}", open);
    answer(c, json);
}

static void conn_request(struct conn *c, const char *body) {
    const char *line = c->in.bytes;
    if (!strncmp(line, "POST /gate", 10)) {
        open_gate();
        answer(c, "{}");
    } else if (!strncmp(line, "GET /stats", 10)) {
        answer_stats(c);
    } else if (!strncmp(line, "POST ", 5)) {
        stream_start(c, body);
    } else {
        answer(c, "{\"object\":\"list\",\"data\":[{\"id\":\"bench\",\"object\":\"model\"}]}");
    }
}

static void conn_read(struct conn *c) {
    char *body;
    if (request_read(&c->in, c->fd) < 0) {
        conn_close(c);
        return;
    }
    for (size_t length; c->fd >= 0 && !c->streaming && (length = request_length(&c->in, &body));) {
        char next = c->in.bytes[length];
        c->in.bytes[length] = 0;
        conn_request(c, body);
        c->in.bytes[length] = next;
        memmove(c->in.bytes, c->in.bytes + length, c->in.used - length);
        c->in.used -= length;
    }
}

static void conn_event(struct conn *c, uint32_t events) {
    if (c->fd >= 0 && events & (EPOLLIN | EPOLLHUP | EPOLLERR)) conn_read(c);
    if (c->fd < 0 || !(events & EPOLLOUT)) return;
    if (c->streaming && !c->gated && !c->pace) stream_block(c);
    else conn_flush(c);
}

static void accept_all(int listener) {
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
        struct conn *c = calloc(1, sizeof *c);
        if (!c) die("calloc");
        no_delay(fd);
        c->fd = fd;
        c->next = connections;
        if (connections) connections->previous = c;
        connections = c;
        watch(epoll_fd, EPOLL_CTL_ADD, fd, EPOLLIN, c);
    }
}

static void run_due(void) {
    uint64_t ticks;
    int64_t now = now_us();
    if (read(timer_fd, &ticks, sizeof ticks) < 0 && errno != EAGAIN) die("timer");
    while (heap_used && heap[1]->due <= now) stream_due(heap[1], now);
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: upstream PORT [MODEL]\n");
        return 2;
    }
    if (argc > 2) default_model = argv[2];
    token_size = (size_t)sprintf(token_chunk, "%zx\r\n%s\r\n", strlen(TOKEN), TOKEN);
    int listener = listen_on(atoi(argv[1]));
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    watch(epoll_fd, EPOLL_CTL_ADD, listener, EPOLLIN, &listener);
    watch(epoll_fd, EPOLL_CTL_ADD, timer_fd, EPOLLIN, &timer_fd);
    for (struct epoll_event events[512];;) {
        arm_timer();
        int n = epoll_wait(epoll_fd, events, 512, -1);
        for (int i = 0; i < n; i++) {
            void *owner = events[i].data.ptr;
            if (owner == &listener) accept_all(listener);
            else if (owner == &timer_fd) run_due();
            else conn_event(owner, events[i].events);
        }
        free_closed();
    }
}
