/* Lets the n-th call of one kind fail, for files below one folder. Loaded by LD_PRELOAD, armed through ctypes.

   What is intercepted is what goes through the dynamic linker: Python's own input and output, Rust's (safetensors) and
   C++ streams (torch.save). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NONE, OPEN, READ, WRITE, SHORT_WRITE, FSYNC, RENAME };

static int armed = NONE, error_number, countdown, hits;
static char below[PATH_MAX];

void arm(int kind, int number, int nth, const char *folder) {
    armed = kind;
    error_number = number;
    countdown = nth;
    hits = 0;
    snprintf(below, sizeof below, "%s", folder);
}

int disarm(void) {
    armed = NONE;
    return hits;
}

static int is_below(const char *path) { return path && strncmp(path, below, strlen(below)) == 0; }

static int is_file_below(int file) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_below(path);
}

static int fails(int kind, int concerns) {
    if (armed != kind || !concerns || countdown-- > 0) return 0;
    armed = NONE; /* once: what tidies up afterwards must work */
    hits++;
    errno = error_number;
    return 1;
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

ssize_t write(int file, const void *data, size_t size) {
    REAL(write);
    if (armed == WRITE && fails(WRITE, is_file_below(file))) return -1;
    if (armed == SHORT_WRITE && size > 1 && fails(SHORT_WRITE, is_file_below(file))) size /= 2;
    return real(file, data, size);
}

ssize_t writev(int file, const struct iovec *parts, int n) {
    REAL(writev);
    if (armed == WRITE && fails(WRITE, is_file_below(file))) return -1;
    if (armed == SHORT_WRITE && n > 1 && fails(SHORT_WRITE, is_file_below(file))) n = 1;
    return real(file, parts, n);
}

ssize_t read(int file, void *data, size_t size) {
    REAL(read);
    if (armed == READ && fails(READ, is_file_below(file))) return -1;
    return real(file, data, size);
}

int fsync(int file) {
    REAL(fsync);
    return armed == FSYNC && fails(FSYNC, is_file_below(file)) ? -1 : real(file);
}

int rename(const char *from, const char *to) {
    REAL(rename);
    return fails(RENAME, is_below(to)) ? -1 : real(from, to);
}

int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned int flags) {
    REAL(renameat2);
    return fails(RENAME, is_below(to)) ? -1 : real(from_folder, from, to_folder, to, flags);
}

#define OPENS(name)                                                   \
    int name(const char *path, int flags, ...) {                     \
        REAL(name);                                                   \
        va_list rest;                                                 \
        va_start(rest, flags);                                        \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                 \
        if (fails(OPEN, is_below(path))) return -1;                   \
        return real(path, flags, mode);                               \
    }

OPENS(open)
OPENS(open64)
