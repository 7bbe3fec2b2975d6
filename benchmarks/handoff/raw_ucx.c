/* The yardstick: UCX one-sided reads of scattered pages by nothing but a C loop, between two processes.
 *
 *   raw_ucx source POOL_BYTES                  prints its address (hex), serves until stdin ends
 *   raw_ucx reader POOL_BYTES PAGE_BYTES COUNT  reads from stdin the source's address, then COUNT pairs of page
 *                                               indices (own, source's); then one read of all pages per line of stdin,
 *                                               each answered with "seconds cpu_seconds checksum"
 *
 * A page list is posted whole, one ucp_get_nbx per page, and progress is called until all are complete: what a
 * transport in Python is measured against. The reader spins while bytes are in flight; the source spins while requests
 * come, and sleeps in UCX's event descriptor after a millisecond without any.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <ucp/api/ucp.h>
#include <unistd.h>

#define CHECK(call)                                                                                                    \
    do {                                                                                                               \
        ucs_status_t status_ = (call);                                                                                 \
        if (status_ != UCS_OK) {                                                                                       \
            fprintf(stderr, "%s: %s\n", #call, ucs_status_string(status_));                                            \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

#define WINDOW_BYTES (8 << 20)

static ucp_context_h context;
static ucp_worker_h worker;
static ucp_mem_h memory;
static uint8_t *pool;
static int events_fd;
#define SPINS 20


static double seconds(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec + now.tv_nsec * 1e-9;
}

/* A shared mapping of a memfd, as Baton's pool is. */
static void open_pool(size_t size) {
    int fd = memfd_create("raw-ucx-pool", 0);
    if (fd < 0 || ftruncate(fd, (off_t)size) != 0) {
        perror("pool");
        exit(1);
    }
    pool = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    memset(pool, 7, size);
    ucp_params_t params = {.field_mask = UCP_PARAM_FIELD_FEATURES, .features = UCP_FEATURE_RMA | UCP_FEATURE_WAKEUP};
    CHECK(ucp_init(&params, NULL, &context));
    ucp_worker_params_t single = {.field_mask = 0};
    CHECK(ucp_worker_create(context, &single, &worker));
    CHECK(ucp_worker_get_efd(worker, &events_fd));
    ucp_mem_map_params_t map = {
        .field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH, .address = pool, .length = size};
    CHECK(ucp_mem_map(context, &map, &memory));
}

static void print_hex(const void *data, size_t size) {
    for (size_t i = 0; i < size; i++) printf("%02x", ((const uint8_t *)data)[i]);
}

static void *read_hex(const char *text, size_t *size) {
    *size = strlen(text) / 2;
    uint8_t *data = malloc(*size + 1);
    for (size_t i = 0; i < *size; i++) {
        unsigned byte = 0;
        sscanf(text + 2 * i, "%2x", &byte);
        data[i] = (uint8_t)byte;
    }
    return data;
}

/* Work, or sleep until there is some; `input`, when not negative, ends the sleep too. Returns whether it is readable. */
static int progress(int input) {
    static unsigned idle;
    if (ucp_worker_progress(worker)) {
        idle = 0;
        return 0;
    }
    if (++idle < SPINS || ucp_worker_arm(worker) == UCS_ERR_BUSY) return 0;
    struct pollfd events[2] = {{.fd = events_fd, .events = POLLIN}, {.fd = input, .events = POLLIN}};
    poll(events, 2, -1);
    idle = 0;
    return events[1].revents != 0;
}

static int serve(void) {
    ucp_address_t *address;
    size_t address_size, key_size;
    void *key;
    CHECK(ucp_worker_get_address(worker, &address, &address_size));
    CHECK(ucp_rkey_pack(context, memory, &key, &key_size));
    print_hex(address, address_size);
    printf(" ");
    print_hex(key, key_size);
    printf(" %llu\n", (unsigned long long)(uintptr_t)pool);
    fflush(stdout);
    while (!progress(STDIN_FILENO)) continue;
    return 0;
}

static void finish(void *request) {
    ucs_status_t status;
    while ((status = ucp_request_check_status(request)) == UCS_INPROGRESS) progress(-1);
    CHECK(status);
    ucp_request_free(request);
}

static void read_all(ucp_ep_h ep, ucp_rkey_h key, uint64_t base, size_t page, size_t count, const uint32_t *own,
                     const uint32_t *theirs, void **requests) {
    ucp_request_param_t plain = {.op_attr_mask = 0};
    size_t window = WINDOW_BYTES / page, done = 0;
    for (size_t i = 0; i < count; i++) {
        for (; i - done >= window; done++)
            if (requests[done] != NULL) finish(requests[done]);
        requests[i] =
            ucp_get_nbx(ep, pool + (size_t)own[i] * page, page, base + (uint64_t)theirs[i] * page, key, &plain);
        if (UCS_PTR_IS_ERR(requests[i])) CHECK(UCS_PTR_STATUS(requests[i]));
    }
    for (; done < count; done++)
        if (requests[done] != NULL) finish(requests[done]);
}

static int read_pages(size_t page, size_t count) {
    static char address_text[1 << 16], key_text[1 << 16], line[64];
    unsigned long long base;
    if (scanf("%65535s %65535s %llu", address_text, key_text, &base) != 3) return 1;
    uint32_t *own = calloc(count, sizeof *own), *theirs = calloc(count, sizeof *theirs);
    void **requests = calloc(count, sizeof *requests);
    for (size_t i = 0; i < count; i++)
        if (scanf("%u %u", &own[i], &theirs[i]) != 2) return 1;
    if (fgets(line, sizeof line, stdin) == NULL) return 1; /* the rest of that line */
    size_t size;
    ucp_ep_params_t peer = {.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE,
                            .address = read_hex(address_text, &size),
                            .err_mode = UCP_ERR_HANDLING_MODE_NONE};
    ucp_ep_h ep;
    ucp_rkey_h key;
    CHECK(ucp_ep_create(worker, &peer, &ep));
    CHECK(ucp_ep_rkey_unpack(ep, read_hex(key_text, &size), &key));
    while (fgets(line, sizeof line, stdin) != NULL) {
        double started = seconds(CLOCK_MONOTONIC), cpu = seconds(CLOCK_PROCESS_CPUTIME_ID);
        read_all(ep, key, base, page, count, own, theirs, requests);
        double took = seconds(CLOCK_MONOTONIC) - started;
        unsigned sum = 0;
        for (size_t i = 0; i < count; i++) sum += pool[(size_t)own[i] * page] + pool[(size_t)(own[i] + 1) * page - 1];
        printf("%.9f %.9f %u\n", took, seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu, sum);
        fflush(stdout);
    }
    return 0;
}

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    open_pool(strtoull(argv[2], NULL, 10));
    if (strcmp(argv[1], "source") == 0) return serve();
    memset(pool, 0, strtoull(argv[2], NULL, 10));
    return argc == 5 ? read_pages(strtoull(argv[3], NULL, 10), strtoull(argv[4], NULL, 10)) : 2;
}
