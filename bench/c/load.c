/* A load client that costs little: opens many S1 streams, or many readers of one run, and counts what arrives.
 *
 *   load --port P --path /api/... [--body JSON] [--streams N] [--rounds R] [--ramp-ms MS] [--timeout SECONDS]
 *
 * Opens N streams, spread over the ramp; a stream that ended is followed by the next until each has done R rounds.
 * With a body it POSTs, without it GETs. A stream is `ok` when it ended with an `end` frame, an `error` when its status
 * is not 200, it has an `error` frame or the time is up, and `cut` when it ended in any other way.
 *
 * Prints {"ready": N} once every stream of the first round has its response head, and at the end one line of JSON.
 * `tokens` counts the upstream's token texts, `frames` the frames that carry them (a server may join some). */
#include "wire.h"
#include <getopt.h>

enum outcome { OPEN, OK, ERROR, CUT };

struct stream {
    int fd, rounds, asked, ready;
    enum outcome outcome;
    long frames, tokens;
    int64_t opened;
    struct reader reader;
};

struct series {
    int64_t *values;
    size_t used;
};

static int epoll_fd, port, streams = 1, rounds = 1, open_streams, ready, announced;
static char *request;
static size_t request_size;
static long totals[4], frames, tokens;
static long long bytes_read;
static struct series first, finish;

/* --- frames ----------------------------------------------------------------------------------------------------- */

static void set_ready(struct stream *s) {
    if (s->ready) return;
    s->ready = 1;
    if (++ready < streams || announced) return;
    announced = 1;
    printf("{\"ready\":%d}\n", ready);
    fflush(stdout);
}

static int holds(const char *line, size_t n, const char *what) {
    return memmem(line, n, what, strlen(what)) != NULL;
}

static void token_frame(struct stream *s, const char *line, size_t n) {
    static const char token[] = " token";
    const char *end = line + n;
    if (!s->frames++) first.values[first.used++] = now_us() - s->opened;
    for (const char *at = line; (at = memmem(at, (size_t)(end - at), token, sizeof token - 1)); at += sizeof token - 1)
        s->tokens++;
}

static void on_body_line(void *owner, const char *line, size_t n) {
    struct stream *s = owner;
    if (n < 5 || memcmp(line, "data:", 5)) return;
    if (holds(line, n, "\"token\"")) token_frame(s, line, n);
    else if (holds(line, n, "\"end\"")) s->outcome = OK;
    else if (holds(line, n, "\"error\"")) s->outcome = ERROR;
}

/* --- streams ---------------------------------------------------------------------------------------------------- */

static void stream_open(struct stream *s) {
    s->fd = connect_to(port);
    s->outcome = OPEN;
    s->asked = 0;
    s->frames = s->tokens = 0;
    s->opened = now_us();
    reader_reset(&s->reader);
    watch(epoll_fd, EPOLL_CTL_ADD, s->fd, EPOLLIN | EPOLLOUT, s);
    open_streams++;
}

static void stream_close(struct stream *s) {
    close(s->fd);
    s->fd = -1;
    open_streams--;
    if (s->reader.status != 200) s->outcome = ERROR;
    else if (s->outcome == OPEN || s->reader.state != DONE) s->outcome = CUT;
    totals[s->outcome]++;
    finish.values[finish.used++] = now_us() - s->opened;
    frames += s->frames;
    tokens += s->tokens;
    if (++s->rounds < rounds) stream_open(s);
}

static void stream_ask(struct stream *s) {
    if (send(s->fd, request, request_size, MSG_NOSIGNAL) != (ssize_t)request_size) {
        stream_close(s);
        return;
    }
    s->asked = 1;
    watch(epoll_fd, EPOLL_CTL_MOD, s->fd, EPOLLIN, s);
}

static void stream_read(struct stream *s) {
    static char bytes[READ_SIZE];
    ssize_t n = recv(s->fd, bytes, sizeof bytes, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n > 0) {
        bytes_read += n;
        reader_feed(&s->reader, bytes, (size_t)n, on_body_line, s);
        if (s->reader.state != HEAD) set_ready(s);
    }
    if (n <= 0 || s->reader.state == DONE) stream_close(s);
}

static void stream_event(struct stream *s, uint32_t events) {
    if (s->fd < 0) return;
    if (!s->asked && events & EPOLLOUT) stream_ask(s);
    else if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) stream_read(s);
}

/* --- report ----------------------------------------------------------------------------------------------------- */

static int compare(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static double quantile(const struct series *s, double part) {
    return s->used ? (double)s->values[(size_t)(part * (double)(s->used - 1) + 0.5)] : 0;
}

static void report(int64_t started) {
    qsort(first.values, first.used, sizeof *first.values, compare);
    qsort(finish.values, finish.used, sizeof *finish.values, compare);
    printf("{\"ok\":%ld,\"errors\":%ld,\"cut\":%ld,\"tokens\":%ld,\"frames\":%ld,\"bytes\":%lld,\"seconds\":%.6f,"
           "\"first_p50_ms\":%.3f,\"first_p99_ms\":%.3f,\"finish_median_s\":%.6f,\"finish_slowest_s\":%.6f}\n",
           totals[OK], totals[ERROR], totals[CUT], tokens, frames, bytes_read, (double)(now_us() - started) / 1e6,
           quantile(&first, .5) / 1e3, quantile(&first, .99) / 1e3, quantile(&finish, .5) / 1e6,
           quantile(&finish, 1) / 1e6);
}

/* --- program ---------------------------------------------------------------------------------------------------- */

static void make_request(const char *path, const char *body) {
    size_t room = strlen(path) + (body ? strlen(body) : 0) + 256;
    request = malloc(room);
    if (!request) die("malloc");
    int n = body ? snprintf(request, room,
                            "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept: text/event-stream\r\n"
                            "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                            path, port, strlen(body), body)
                 : snprintf(request, room, "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept: text/event-stream\r\n\r\n",
                            path, port);
    request_size = (size_t)n;
}

static struct series make_series(void) {
    struct series s = {calloc((size_t)streams * (size_t)rounds, sizeof *s.values), 0};
    if (!s.values) die("calloc");
    return s;
}

static void run(int ramp_ms, int timeout) {
    struct stream *all = calloc((size_t)streams, sizeof *all);
    if (!all) die("calloc");
    int64_t started = now_us(), deadline = started + timeout * 1000000LL;
    int opened = 0;
    for (struct epoll_event events[512]; opened < streams || open_streams;) {
        int64_t now = now_us();
        if (now > deadline) break;
        while (opened < streams && now >= started + (int64_t)opened * ramp_ms * 1000 / streams) stream_open(&all[opened++]);
        int n = epoll_wait(epoll_fd, events, 512, opened < streams ? 1 : 100);
        for (int i = 0; i < n; i++) stream_event(events[i].data.ptr, events[i].events);
    }
    for (int i = 0; i < opened; i++)
        if (all[i].fd >= 0) {
            totals[ERROR]++;
            frames += all[i].frames;
            tokens += all[i].tokens;
        }
    report(started);
}

int main(int argc, char **argv) {
    const char *path = "/", *body = NULL;
    int ramp_ms = 0, timeout = 120;
    static const struct option options[] = {
        {"port", 1, 0, 'p'},   {"path", 1, 0, 'u'},    {"body", 1, 0, 'b'},    {"streams", 1, 0, 'n'},
        {"rounds", 1, 0, 'r'}, {"ramp-ms", 1, 0, 'm'}, {"timeout", 1, 0, 't'}, {0, 0, 0, 0}};
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (option == 'p') port = atoi(optarg);
        else if (option == 'u') path = optarg;
        else if (option == 'b') body = optarg;
        else if (option == 'n') streams = atoi(optarg);
        else if (option == 'r') rounds = atoi(optarg);
        else if (option == 'm') ramp_ms = atoi(optarg);
        else if (option == 't') timeout = atoi(optarg);
        else return 2;
    }
    make_request(path, body);
    first = make_series();
    finish = make_series();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    run(ramp_ms, timeout);
    return 0;
}
