/* Writes down what a process does to the files of one directory, so that it is known what a power cut leaves of them.

   For LD_PRELOAD. FSYNCED_DIRECTORY: the directory, an absolute path without symbolic links and without subdirectories.
   FSYNCED_LOG: the file to append to; tests/powercut/disk.py reads it. A record is a `struct head` and what follows it:

     O fd          name   a file was opened, or made; the directory itself has the empty name
     W fd offset   data   is about to be written
     T fd size            is about to get this size
     S fd                 was synchronised (fsync and fdatasync are the same here)
     U             name   is about to be unlinked

   One lock is held during a call and its record: the log has the order in which things happened. What is about to happen
   may not have happened yet when the process is killed; what was synchronised was.

   SQLite's -shm files are left out: they are memory, and needn't survive. What SQLite doesn't use (rename, writev, mapping
   the database) isn't here either. Whoever reads the log compares the files with it, and so notices what was missed. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

_Static_assert(sizeof(long) == 8, "offsets are passed to the kernel in one piece");

enum { DESCRIPTORS = 4096 };

struct __attribute__((packed)) head {
    char kind;
    int32_t fd;
    int64_t number;
    int64_t length;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char watched[DESCRIPTORS];
static const char *directory;
static int log_fd;

static void die(const char *what)
{
    dprintf(2, "fsynced: %s: %s\n", what, strerror(errno));
    abort();
}

__attribute__((constructor)) static void start(void)
{
    const char *path = getenv("FSYNCED_LOG");
    directory = getenv("FSYNCED_DIRECTORY");
    if (!path || !directory)
        die("FSYNCED_LOG and FSYNCED_DIRECTORY aren't set");
    log_fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log_fd < 0)
        die(path);
}

static void record(char kind, int fd, int64_t number, const void *data, size_t length)
{
    struct head head = {kind, fd, number, (int64_t)length};
    struct iovec parts[] = {{&head, sizeof head}, {(void *)data, length}};
    if (syscall(SYS_writev, log_fd, parts, 2) != (long)(sizeof head + length))
        die("the log can't be written");
}

/* The name of a file that is to be watched, "" for the directory, else NULL. */
static const char *name_of(const char *path)
{
    size_t length = strlen(directory), whole = strlen(path);
    if (strncmp(path, directory, length) || (path[length] && path[length] != '/'))
        return NULL;
    if (whole > 4 && !strcmp(path + whole - 4, "-shm"))
        return NULL;
    return path[length] ? path + length + 1 : "";
}

static int is_watched(int fd)
{
    return fd >= 0 && fd < DESCRIPTORS && watched[fd];
}

static int open_file(int at, const char *path, int flags, mode_t mode)
{
    const char *name = name_of(path);
    if (!name)
        return (int)syscall(SYS_openat, at, path, flags, mode);
    if (flags & O_TRUNC || strchr(name, '/'))
        die("O_TRUNC and subdirectories aren't provided for");
    pthread_mutex_lock(&lock);
    int fd = (int)syscall(SYS_openat, at, path, flags, mode);
    if (fd >= DESCRIPTORS)
        die("too many descriptors");
    if (fd >= 0) {
        record('O', fd, 0, name, strlen(name));
        watched[fd] = 1;
    }
    int error = errno;
    pthread_mutex_unlock(&lock);
    errno = error;
    return fd;
}

int openat(int at, const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return open_file(at, path, flags, mode);
}

int open(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return open_file(AT_FDCWD, path, flags, mode);
}

int close(int fd)
{
    if (!is_watched(fd))
        return (int)syscall(SYS_close, fd);
    pthread_mutex_lock(&lock);
    watched[fd] = 0;
    int result = (int)syscall(SYS_close, fd);
    pthread_mutex_unlock(&lock);
    return result;
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset)
{
    if (!is_watched(fd))
        return syscall(SYS_pwrite64, fd, data, length, offset);
    pthread_mutex_lock(&lock);
    record('W', fd, offset, data, length);
    if (syscall(SYS_pwrite64, fd, data, length, offset) != (long)length)
        die("a file can't be written");
    pthread_mutex_unlock(&lock);
    return (ssize_t)length;
}

ssize_t write(int fd, const void *data, size_t length)
{
    if (!is_watched(fd))
        return syscall(SYS_write, fd, data, length);
    pthread_mutex_lock(&lock);
    record('W', fd, lseek(fd, 0, SEEK_CUR), data, length);
    if (syscall(SYS_write, fd, data, length) != (long)length)
        die("a file can't be written");
    pthread_mutex_unlock(&lock);
    return (ssize_t)length;
}

int ftruncate(int fd, off_t size)
{
    if (!is_watched(fd))
        return (int)syscall(SYS_ftruncate, fd, size);
    pthread_mutex_lock(&lock);
    record('T', fd, size, NULL, 0);
    if (syscall(SYS_ftruncate, fd, size))
        die("a file can't be truncated");
    pthread_mutex_unlock(&lock);
    return 0;
}

static int synchronise(long call, int fd)
{
    if (!is_watched(fd))
        return (int)syscall(call, fd);
    pthread_mutex_lock(&lock);
    if (syscall(call, fd))
        die("a file can't be synchronised");
    record('S', fd, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    return 0;
}

int fsync(int fd)
{
    return synchronise(SYS_fsync, fd);
}

int fdatasync(int fd)
{
    return synchronise(SYS_fdatasync, fd);
}

int unlink(const char *path)
{
    const char *name = name_of(path);
    if (!name)
        return (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    pthread_mutex_lock(&lock);
    record('U', -1, 0, name, strlen(name));
    int result = (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    int error = errno;
    if (result && error != ENOENT)
        die(path);
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}

int open64(const char *, int, ...) __attribute__((alias("open")));
int openat64(int, const char *, int, ...) __attribute__((alias("openat")));
ssize_t pwrite64(int, const void *, size_t, off64_t) __attribute__((alias("pwrite")));
int ftruncate64(int, off64_t) __attribute__((alias("ftruncate")));
