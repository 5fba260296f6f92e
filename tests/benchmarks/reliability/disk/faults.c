/* Preloaded into a command: counts its calls that change a watched folder, and strikes at one.

   FAULTS_FOLDER   absolute path of the watched folder
   FAULTS_COUNTER  file of 8 bytes that the processes of the command share: the number of calls
   FAULTS_AT       number of the call to strike at; 0 only counts
   FAULTS_KIND     `kill`: the process group is killed in place of the call, a write is half done
                   `full`: this call and all later ones find the disk full, a write is half done;
                   only the calls that need space are counted                                     */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum outcome { GOES, FAILS, STRIKES };

static _Atomic long *calls;
static long strike_at;
static int disk_is_full;
static const char *folder;

__attribute__((constructor)) static void read_environment(void) {
    const char *path = getenv("FAULTS_COUNTER"), *at = getenv("FAULTS_AT");
    const char *kind = getenv("FAULTS_KIND");
    folder = getenv("FAULTS_FOLDER");
    int file = path == NULL ? -1 : open(path, O_RDWR);
    if (file < 0 || folder == NULL || at == NULL || kind == NULL) return;
    void *shared = mmap(NULL, sizeof *calls, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    strike_at = atol(at);
    disk_is_full = strcmp(kind, "full") == 0;
    if (shared != MAP_FAILED) calls = shared;
}

static int below_folder(const char *path) {
    size_t length = strlen(folder);
    return strncmp(path, folder, length) == 0 && (path[length] == '/' || path[length] == 0);
}

static int watched_file(int file) {
    char link[64], path[PATH_MAX + 1];
    if (calls == NULL) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, PATH_MAX);
    if (length < 0) return 0;
    path[length] = 0;
    return below_folder(path);
}

static int watched_path(int parent, const char *path) {
    char here[PATH_MAX + 1];
    if (calls == NULL || path == NULL) return 0;
    if (path[0] == '/') return below_folder(path);
    if (parent != AT_FDCWD) return watched_file(parent);
    return getcwd(here, PATH_MAX) != NULL && below_folder(here);
}

static void strike(void) {
    kill(0, SIGKILL);
    for (;;) pause();
}

static enum outcome count(int needs_space) {
    if (disk_is_full && !needs_space) return GOES;
    long number = atomic_fetch_add(calls, 1) + 1;
    if (strike_at == 0 || number < strike_at) return GOES;
    if (number == strike_at) return STRIKES;
    return disk_is_full ? FAILS : GOES;
}

/* Whether a call that is not a write goes on; else it has to return -1. */
static int goes(int is_watched, int needs_space) {
    if (!is_watched) return 1;
    enum outcome outcome = count(needs_space);
    if (outcome == GOES) return 1;
    if (outcome == STRIKES && !disk_is_full) strike();
    errno = ENOSPC;
    return 0;
}

/* How many bytes a write may write: all, half of them before the fault, or -1. */
static ssize_t allowed(int file, size_t size, int *strikes) {
    *strikes = 0;
    if (!watched_file(file)) return size;
    enum outcome outcome = count(1);
    if (outcome == GOES) return size;
    *strikes = outcome == STRIKES && !disk_is_full;
    if (outcome == STRIKES && (size > 1 || *strikes)) return size / 2;
    errno = ENOSPC;
    return -1;
}

#define REAL(result, name, ...)                                    \
    static result (*real)(__VA_ARGS__);                            \
    if (real == NULL) real = (result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

#define WRITE(name, parameters, types, half)                       \
    ssize_t name parameters {                                      \
        REAL(ssize_t, #name, types);                               \
        int strikes;                                               \
        ssize_t most = allowed(file, size, &strikes);              \
        if (most < 0) return -1;                                   \
        ssize_t done = half;                                       \
        if (strikes) strike();                                     \
        return done;                                               \
    }
#define TYPES(...) __VA_ARGS__

WRITE(write, (int file, const void *data, size_t size), TYPES(int, const void *, size_t),
      real(file, data, most))
WRITE(pwrite, (int file, const void *data, size_t size, off_t at),
      TYPES(int, const void *, size_t, off_t), real(file, data, most, at))
WRITE(pwrite64, (int file, const void *data, size_t size, off64_t at),
      TYPES(int, const void *, size_t, off64_t), real(file, data, most, at))
WRITE(sendfile, (int file, int from, off_t *at, size_t size), TYPES(int, int, off_t *, size_t),
      real(file, from, at, most))
WRITE(sendfile64, (int file, int from, off64_t *at, size_t size),
      TYPES(int, int, off64_t *, size_t), real(file, from, at, most))

ssize_t copy_file_range(int from, off64_t *from_at, int file, off64_t *at, size_t size,
                        unsigned flags) {
    REAL(ssize_t, "copy_file_range", int, off64_t *, int, off64_t *, size_t, unsigned);
    int strikes;
    ssize_t most = allowed(file, size, &strikes);
    if (most < 0) return -1;
    ssize_t done = real(from, from_at, file, at, most, flags);
    if (strikes) strike();
    return done;
}

ssize_t writev(int file, const struct iovec *parts, int number) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    return goes(watched_file(file), 1) ? real(file, parts, number) : -1;
}

#define ON_FILE(name)                                              \
    int name(int file) {                                           \
        REAL(int, #name, int);                                     \
        return goes(watched_file(file), 1) ? real(file) : -1;      \
    }
ON_FILE(fsync)
ON_FILE(fdatasync)

#define TRUNCATE(name, offset)                                     \
    int name(int file, offset size) {                              \
        REAL(int, #name, int, offset);                             \
        return goes(watched_file(file), 1) ? real(file, size) : -1;\
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

static int is_new(int parent, const char *path) { return faccessat(parent, path, F_OK, 0) != 0; }

#define OPENAT(name)                                                             \
    int name(int parent, const char *path, int flags, ...) {                     \
        REAL(int, #name, int, const char *, int, mode_t);                        \
        va_list rest;                                                            \
        va_start(rest, flags);                                                   \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;  \
        va_end(rest);                                                            \
        int makes = flags & O_CREAT && is_new(parent, path);                     \
        int changes = makes || flags & O_TRUNC;                                  \
        if (changes && !goes(watched_path(parent, path), makes)) return -1;      \
        return real(parent, path, flags, mode);                                  \
    }
OPENAT(openat)
OPENAT(openat64)

#define OPEN(name, at)                                                           \
    int name(const char *path, int flags, ...) {                                 \
        va_list rest;                                                            \
        va_start(rest, flags);                                                   \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;  \
        va_end(rest);                                                            \
        return at(AT_FDCWD, path, flags, mode);                                  \
    }
OPEN(open, openat)
OPEN(open64, openat64)

#define FOPEN(name)                                                              \
    FILE *name(const char *path, const char *mode) {                             \
        REAL(FILE *, #name, const char *, const char *);                         \
        int makes = mode[0] != 'r' && is_new(AT_FDCWD, path);                    \
        int changes = makes || mode[0] == 'w';                                   \
        if (changes && !goes(watched_path(AT_FDCWD, path), makes)) return NULL;  \
        return real(path, mode);                                                 \
    }
FOPEN(fopen)
FOPEN(fopen64)

#define ON_PATH(name, needs_space, path, parent, parameters, types, call)        \
    int name parameters {                                                        \
        REAL(int, #name, types);                                                 \
        return goes(watched_path(parent, path), needs_space) ? real call : -1;   \
    }

ON_PATH(unlink, 0, path, AT_FDCWD, (const char *path), TYPES(const char *), (path))
ON_PATH(rmdir, 0, path, AT_FDCWD, (const char *path), TYPES(const char *), (path))
ON_PATH(unlinkat, 0, path, parent, (int parent, const char *path, int flags),
        TYPES(int, const char *, int), (parent, path, flags))
ON_PATH(mkdir, 1, path, AT_FDCWD, (const char *path, mode_t mode), TYPES(const char *, mode_t),
        (path, mode))
ON_PATH(mkdirat, 1, path, parent, (int parent, const char *path, mode_t mode),
        TYPES(int, const char *, mode_t), (parent, path, mode))
ON_PATH(symlink, 1, path, AT_FDCWD, (const char *to, const char *path),
        TYPES(const char *, const char *), (to, path))
ON_PATH(symlinkat, 1, path, parent, (const char *to, int parent, const char *path),
        TYPES(const char *, int, const char *), (to, parent, path))
ON_PATH(link, 1, path, AT_FDCWD, (const char *from, const char *path),
        TYPES(const char *, const char *), (from, path))
ON_PATH(rename, 0, path, AT_FDCWD, (const char *from, const char *path),
        TYPES(const char *, const char *), (from, path))
ON_PATH(renameat, 0, path, parent,
        (int from_parent, const char *from, int parent, const char *path),
        TYPES(int, const char *, int, const char *), (from_parent, from, parent, path))
ON_PATH(renameat2, 0, path, parent,
        (int from_parent, const char *from, int parent, const char *path, unsigned flags),
        TYPES(int, const char *, int, const char *, unsigned),
        (from_parent, from, parent, path, flags))
