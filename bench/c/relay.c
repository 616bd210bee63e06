/* What a relay with a log costs at the least: takes the chat request of S1, asks the upstream, and writes each event
 * to one segment file before it passes it on as an SSE frame.
 *
 *   relay PORT UPSTREAM_PORT MODEL SEGMENT [fsync]
 *
 * With `fsync` nothing is passed on before the file is on the disk: one fdatasync for all events of one round of the
 * loop. One thread, no back pressure: what a slow client does not take is kept in memory. */
#define REQUEST_SIZE 2048
#include "wire.h"
#include <sys/uio.h>

struct side {
    struct stream *stream;
    int fd;
};

struct stream {
    struct side client, upstream;
    int id, ended, writable, dirty;
    unsigned offset;
    struct stream *next; /* in the list of closed ones */
    struct buffer out, ask;
    struct request in;
    struct reader reader;
};

struct record {
    uint32_t stream, offset, length, checksum;
};

static int epoll_fd, segment_fd, upstream_port, durable;
static const char *model;
static struct stream *closed;
static struct stream **dirty;
static size_t dirty_used, dirty_room;
static int serial;

/* --- the log ---------------------------------------------------------------------------------------------------- */

static uint32_t checksum(const char *bytes, size_t n) {
    uint32_t sum = 2166136261u;
    while (n--) sum = (sum ^ (uint8_t)*bytes++) * 16777619u;
    return sum;
}

static void append(struct stream *s, char *json, size_t n) {
    struct record record = {(uint32_t)s->id, s->offset, (uint32_t)n, checksum(json, n)};
    struct iovec parts[] = {{&record, sizeof record}, {json, n}};
    if (writev(segment_fd, parts, 2) != (ssize_t)(sizeof record + n)) die("segment");
}

/* --- streams ---------------------------------------------------------------------------------------------------- */

static void side_close(struct side *side) {
    if (side->fd >= 0) close(side->fd);
    side->fd = -1;
}

static void stream_close(struct stream *s) {
    if (s->client.fd < 0) return;
    side_close(&s->client);
    side_close(&s->upstream);
    s->next = closed;
    closed = s;
}

static void free_closed(void) {
    while (closed) {
        struct stream *s = closed;
        closed = s->next;
        free(s->out.bytes);
        free(s->ask.bytes);
        free(s);
    }
}

static void stream_flush(struct stream *s) {
    if (s->client.fd < 0) return;
    int sent = buffer_send(&s->out, s->client.fd);
    if (sent < 0) {
        stream_close(s);
    } else if (s->writable == sent) {
        s->writable = !sent;
        watch(epoll_fd, EPOLL_CTL_MOD, s->client.fd, EPOLLIN | (sent ? 0 : EPOLLOUT), &s->client);
    }
}

static void stream_deliver(struct stream *s) {
    if (!durable) {
        stream_flush(s);
        return;
    }
    if (s->dirty) return;
    if (dirty_used == dirty_room) {
        dirty_room = dirty_room ? dirty_room * 2 : 1024;
        dirty = realloc(dirty, dirty_room * sizeof *dirty);
        if (!dirty) die("realloc");
    }
    s->dirty = 1;
    dirty[dirty_used++] = s;
}

static void deliver_dirty(void) {
    if (!dirty_used) return;
    if (fdatasync(segment_fd)) die("fdatasync");
    for (size_t i = 0; i < dirty_used; i++) {
        dirty[i]->dirty = 0;
        stream_flush(dirty[i]);
    }
    dirty_used = 0;
}

static void emit(struct stream *s, char *json, size_t n) {
    char head[96], size[32];
    s->offset++;
    append(s, json, n);
    int head_size = sprintf(head, "id: relay-%u\ndata: ", s->offset);
    buffer_put(&s->out, size, (size_t)sprintf(size, "%zx\r\n", (size_t)head_size + n + 2));
    buffer_put(&s->out, head, (size_t)head_size);
    buffer_put(&s->out, json, n);
    buffer_put(&s->out, "\n\n\r\n", 4);
}

static void stream_end(struct stream *s, const char *type) {
    char json[128];
    if (s->ended) return;
    s->ended = 1;
    emit(s, json, (size_t)sprintf(json, "{\"type\":\"%s\",\"message_id\":\"m%d\"}", type, s->id));
    buffer_put(&s->out, "0\r\n\r\n", 5);
}

/* --- upstream ---------------------------------------------------------------------------------------------------- */

static const char *string_end(const char *at, const char *end) {
    while (at < end && *at != '"') at += *at == '\\' ? 2 : 1;
    return at < end ? at : NULL;
}

static void upstream_line(void *owner, const char *line, size_t n) {
    static const char data[] = "data: ", delta[] = "\"delta\":{", content[] = "\"content\":\"";
    struct stream *s = owner;
    const char *end = line + n;
    if (n < sizeof data - 1 || memcmp(line, data, sizeof data - 1)) return;
    if (!strcmp(line + sizeof data - 1, "[DONE]")) {
        stream_end(s, "end");
        return;
    }
    const char *at = memmem(line, n, delta, sizeof delta - 1);
    if (at) at = memmem(at, (size_t)(end - at), content, sizeof content - 1);
    if (!at) return;
    at += sizeof content - 1;
    const char *stop = string_end(at, end);
    if (!stop || stop == at) return;
    char json[sizeof s->reader.line.bytes + 64];
    int size = sprintf(json, "{\"type\":\"token\",\"content\":\"%.*s\"}", (int)(stop - at), at);
    emit(s, json, (size_t)size);
}

static void upstream_read(struct stream *s) {
    static char bytes[READ_SIZE];
    ssize_t n = recv(s->upstream.fd, bytes, sizeof bytes, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n > 0) reader_feed(&s->reader, bytes, (size_t)n, upstream_line, s);
    if (n <= 0) stream_end(s, "error");
    if (s->ended) side_close(&s->upstream);
    stream_deliver(s);
}

static void upstream_event(struct stream *s, uint32_t events) {
    if (events & EPOLLOUT && buffer_send(&s->ask, s->upstream.fd) == 1)
        watch(epoll_fd, EPOLL_CTL_MOD, s->upstream.fd, EPOLLIN, &s->upstream);
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) upstream_read(s);
}

static void ask_upstream(struct stream *s, const char *message, int message_size) {
    char body[sizeof s->in.bytes + 512], head[256];
    int n = snprintf(body, sizeof body,
                     "{\"model\":\"%s\",\"stream\":true,\"messages\":[{\"role\":\"user\",\"content\":\"%.*s\"}]}", model,
                     message_size, message);
    int head_size = sprintf(head,
                            "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                            "Content-Length: %d\r\n\r\n",
                            n);
    buffer_put(&s->ask, head, (size_t)head_size);
    buffer_put(&s->ask, body, (size_t)n);
    reader_reset(&s->reader);
    s->upstream.fd = connect_to(upstream_port);
    watch(epoll_fd, EPOLL_CTL_ADD, s->upstream.fd, EPOLLIN | EPOLLOUT, &s->upstream);
}

/* --- clients ---------------------------------------------------------------------------------------------------- */

static void start_stream(struct stream *s, const char *body, const char *end) {
    static const char field[] = "\"message\"";
    const char *message = strstr(body, field);
    message = message ? strchr(message + sizeof field - 1, '"') : NULL;
    message = message && message < end ? message + 1 : end;
    const char *message_end = string_end(message, end);
    char text[256];
    s->id = ++serial;
    int n = sprintf(text,
                    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n"
                    "X-Run-Id: r%d\r\n\r\n",
                    s->id);
    buffer_put(&s->out, text, (size_t)n);
    emit(s, text, (size_t)sprintf(text, "{\"type\":\"start\",\"message_id\":\"m%d\"}", s->id));
    ask_upstream(s, message, message_end ? (int)(message_end - message) : 0);
    stream_deliver(s);
}

static void client_read(struct stream *s) {
    char *body;
    if (request_read(&s->in, s->client.fd) < 0) {
        stream_close(s);
        return;
    }
    size_t length = request_length(&s->in, &body);
    if (!length || s->offset) return;
    if (!strncmp(s->in.bytes, "POST ", 5)) {
        start_stream(s, body, s->in.bytes + length);
    } else {
        static const char ready[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
        buffer_put(&s->out, ready, sizeof ready - 1);
        stream_flush(s);
        s->in.used = 0;
    }
}

static void client_event(struct stream *s, uint32_t events) {
    if (events & EPOLLOUT) stream_flush(s);
    if (s->client.fd >= 0 && events & (EPOLLIN | EPOLLHUP | EPOLLERR)) client_read(s);
}

static void accept_all(int listener) {
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
        struct stream *s = calloc(1, sizeof *s);
        if (!s) die("calloc");
        no_delay(fd);
        s->client = (struct side){s, fd};
        s->upstream = (struct side){s, -1};
        watch(epoll_fd, EPOLL_CTL_ADD, fd, EPOLLIN, &s->client);
    }
}

static void side_event(struct side *side, uint32_t events) {
    if (side->fd < 0) return;
    if (side == &side->stream->client) client_event(side->stream, events);
    else upstream_event(side->stream, events);
}

int main(int argc, char **argv) {
    if (argc < 5) {
        fprintf(stderr, "usage: relay PORT UPSTREAM_PORT MODEL SEGMENT [fsync]\n");
        return 2;
    }
    upstream_port = atoi(argv[2]);
    model = argv[3];
    durable = argc > 5 && !strcmp(argv[5], "fsync");
    segment_fd = open(argv[4], O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0600);
    if (segment_fd < 0) die(argv[4]);
    int listener = listen_on(atoi(argv[1]));
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    watch(epoll_fd, EPOLL_CTL_ADD, listener, EPOLLIN, &listener);
    for (struct epoll_event events[512];;) {
        int n = epoll_wait(epoll_fd, events, 512, -1);
        for (int i = 0; i < n; i++) {
            if (events[i].data.ptr == &listener) accept_all(listener);
            else side_event(events[i].data.ptr, events[i].events);
        }
        deliver_dirty();
        free_closed();
    }
}
