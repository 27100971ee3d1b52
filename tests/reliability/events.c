/* Sees every system call of this process that changes files below one folder, whoever makes it: python, libc, or
   Rust code that calls the kernel directly. A seccomp filter turns each into SIGSYS; the handler counts it, and either
   carries it out, kills the process in the middle of it, or lets it fail. Linux on x86-64 and arm64. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <ucontext.h>
#include <unistd.h>

enum { COUNT = 0, KILL = 1, FAIL_ONCE = 2, FAIL_FROM = 3 };
static char root[PATH_MAX], graves[PATH_MAX];
static size_t root_length;
static long count, target;
static int mode, error_code, log_fd = -1;

long events_call(long number, long a, long b, long c, long d, long e, long f);
extern char events_after[];
#if defined(__x86_64__)
__asm__(".text\n.globl events_call\nevents_call:\n mov %rdi,%rax\n mov %rsi,%rdi\n mov %rdx,%rsi\n mov %rcx,%rdx\n"
        " mov %r8,%r10\n mov %r9,%r8\n mov 8(%rsp),%r9\n syscall\n.globl events_after\nevents_after:\n ret\n");
#define ARG(u, n) ((long)(u)->uc_mcontext.gregs[(const int[]){REG_RDI, REG_RSI, REG_RDX, REG_R10, REG_R8, REG_R9}[n]])
#define RESULT(u) ((u)->uc_mcontext.gregs[REG_RAX])
#elif defined(__aarch64__)
__asm__(".text\n.globl events_call\nevents_call:\n mov x8,x0\n mov x0,x1\n mov x1,x2\n mov x2,x3\n mov x3,x4\n"
        " mov x4,x5\n mov x5,x6\n svc #0\n.globl events_after\nevents_after:\n ret\n");
#define ARG(u, n) ((long)(u)->uc_mcontext.regs[n])
#define RESULT(u) ((u)->uc_mcontext.regs[0])
#else
#error "no such machine"
#endif
#define CALL(n, a, b, c, d) events_call(n, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)

struct event {
  const char *name;
  int at, path, at2, path2; /* positions of arguments; -1: none; `path` -2: `at` is the file itself */
  int grows;                /* a full disk refuses it */
};
static const struct event *described(long number) {
#define EVENT(n, ...) case n: { static const struct event found = {__VA_ARGS__}; return &found; }
  switch (number) {
#ifdef SYS_open
    EVENT(SYS_open, "open", -1, 0, -1, -1, 1)
    EVENT(SYS_creat, "open", -1, 0, -1, -1, 1)
    EVENT(SYS_mkdir, "mkdir", -1, 0, -1, -1, 1)
    EVENT(SYS_rmdir, "rmdir", -1, 0, -1, -1, 0)
    EVENT(SYS_unlink, "unlink", -1, 0, -1, -1, 0)
    EVENT(SYS_rename, "rename", -1, 0, -1, 1, 1)
    EVENT(SYS_link, "link", -1, 0, -1, 1, 1)
    EVENT(SYS_symlink, "symlink", -1, 1, -1, -1, 1)
#endif
#ifdef SYS_renameat
    EVENT(SYS_renameat, "rename", 0, 1, 2, 3, 1)
#endif
    EVENT(SYS_openat, "open", 0, 1, -1, -1, 1)
    EVENT(SYS_mkdirat, "mkdir", 0, 1, -1, -1, 1)
    EVENT(SYS_unlinkat, "unlink", 0, 1, -1, -1, 0)
    EVENT(SYS_renameat2, "rename", 0, 1, 2, 3, 1)
    EVENT(SYS_linkat, "link", 0, 1, 2, 3, 1)
    EVENT(SYS_symlinkat, "symlink", 1, 2, -1, -1, 1)
    EVENT(SYS_truncate, "truncate", -1, 0, -1, -1, 1)
    EVENT(SYS_write, "write", 0, -2, -1, -1, 1)
    EVENT(SYS_pwrite64, "write", 0, -2, -1, -1, 1)
    EVENT(SYS_writev, "write", 0, -2, -1, -1, 1)
    EVENT(SYS_pwritev, "write", 0, -2, -1, -1, 1)
    EVENT(SYS_copy_file_range, "write", 2, -2, -1, -1, 1)
    EVENT(SYS_sendfile, "write", 0, -2, -1, -1, 1)
    EVENT(SYS_ftruncate, "truncate", 0, -2, -1, -1, 1)
    EVENT(SYS_fallocate, "truncate", 0, -2, -1, -1, 1)
    EVENT(SYS_fsync, "fsync", 0, -2, -1, -1, 1)
    EVENT(SYS_fdatasync, "fsync", 0, -2, -1, -1, 1)
  }
  return NULL;
}
static const int WATCHED[] = {
#ifdef SYS_open
    SYS_creat, SYS_mkdir, SYS_rmdir, SYS_unlink, SYS_rename, SYS_link, SYS_symlink,
#endif
#ifdef SYS_renameat
    SYS_renameat,
#endif
    SYS_mkdirat, SYS_unlinkat, SYS_renameat2, SYS_linkat, SYS_symlinkat, SYS_truncate, SYS_write, SYS_pwrite64,
    SYS_writev, SYS_pwritev, SYS_copy_file_range, SYS_sendfile, SYS_ftruncate, SYS_fallocate, SYS_fsync, SYS_fdatasync};

static int link_target(const char *link, char *out) {
  long length = CALL(SYS_readlinkat, AT_FDCWD, link, out, PATH_MAX - 1);
  out[length < 0 ? 0 : length] = 0;
  return length >= 0;
}
static void path_of(ucontext_t *u, int at, int path, char *out) {
  char link[64];
  int descriptor = at < 0 ? AT_FDCWD : (int)ARG(u, at);
  const char *name = path >= 0 ? (const char *)ARG(u, path) : NULL;
  if (name && name[0] == '/') {
    snprintf(out, PATH_MAX, "%s", name);
    return;
  }
  if (descriptor == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
  else snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  if (!link_target(link, out)) return;
  if (name) {
    size_t length = strlen(out);
    snprintf(out + length, PATH_MAX - length, "/%s", name);
  }
}
static int below(const char *path) {
  return !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
}
static void record(long number, const char *name, const char *path, const char *other) {
  char line[2 * PATH_MAX + 128];
  struct stat found;
  memset(&found, 0, sizeof found);
  if (log_fd < 0) return;
  CALL(SYS_newfstatat, AT_FDCWD, path, &found, AT_SYMLINK_NOFOLLOW);
  int length = snprintf(line, sizeof line, "%ld\t%s\t%lu\t%lld\t%s\t%s\n", number, name,
                        (unsigned long)found.st_ino, (long long)found.st_size, path, other);
  CALL(SYS_write, log_fd, line, length, 0);
}
/* What opening a file for writing does: it makes it, empties it, or neither. */
static const char *opening(long number, ucontext_t *u, const char *path) {
  struct stat found;
  long flags = number == SYS_openat ? ARG(u, 2) : ARG(u, 1);
#ifdef SYS_creat
  if (number == SYS_creat) flags = O_CREAT | O_TRUNC;
#endif
  if (CALL(SYS_newfstatat, AT_FDCWD, path, &found, 0)) return flags & O_CREAT ? "create" : "open";
  return flags & O_TRUNC ? "truncate" : "open";
}
static void half(long number, ucontext_t *u) {
  if (number == SYS_write) CALL(number, ARG(u, 0), ARG(u, 1), ARG(u, 2) / 2, 0);
  if (number == SYS_pwrite64) CALL(number, ARG(u, 0), ARG(u, 1), ARG(u, 2) / 2, ARG(u, 3));
  if (number == SYS_writev) {
    const struct iovec *parts = (const struct iovec *)ARG(u, 1);
    if (ARG(u, 2) > 0) CALL(SYS_write, ARG(u, 0), parts[0].iov_base, parts[0].iov_len / 2, 0);
  }
}
static void handle(int signal_number, siginfo_t *info, void *context) {
  ucontext_t *u = context;
  long number = info->si_syscall, c;
  char path[PATH_MAX], other[PATH_MAX];
  const char *name;
  const struct event *event = described(number);
  (void)signal_number;
  path[0] = other[0] = 0;
  if (event && mode >= 0) {
    path_of(u, event->at, event->path, path);
    if (event->path2 >= 0) path_of(u, event->at2, event->path2, other);
  }
  if (!event || mode < 0 || !(below(path) || below(other))) {
    RESULT(u) = events_call(number, ARG(u, 0), ARG(u, 1), ARG(u, 2), ARG(u, 3), ARG(u, 4), ARG(u, 5));
    return;
  }
  c = __sync_add_and_fetch(&count, 1);
  name = strcmp(event->name, "open") ? event->name : opening(number, u, path);
  if (mode == KILL && c == target) {
    half(number, u);
    if (!strcmp(name, "write")) record(c, name, path, other);
    CALL(SYS_kill, CALL(SYS_getpid, 0, 0, 0, 0), SIGKILL, 0, 0);
  }
  if (((mode == FAIL_ONCE && c == target) || (mode == FAIL_FROM && c >= target)) &&
      (error_code != ENOSPC || event->grows)) {
    RESULT(u) = -error_code;
    return;
  }
  if (graves[0] && (!strcmp(event->name, "unlink") || !strcmp(event->name, "rename"))) {
    char grave[PATH_MAX + 32];
    snprintf(grave, sizeof grave, "%s/%ld", graves, c);
    CALL(SYS_linkat, AT_FDCWD, event->path2 >= 0 ? other : path, AT_FDCWD, grave);
  }
  RESULT(u) = events_call(number, ARG(u, 0), ARG(u, 1), ARG(u, 2), ARG(u, 3), ARG(u, 4), ARG(u, 5));
  if (RESULT(u) >= 0 || RESULT(u) < -4095) record(c, name, path, other);
}

long events_count(void) { return count; }

/* What is to happen at event `number` below `folder`; events are counted from 1 again. */
void events_arm(const char *folder, int what, long number, int error, int log, const char *keep) {
  snprintf(root, sizeof root, "%s", folder);
  snprintf(graves, sizeof graves, "%s", keep);
  root_length = strlen(root);
  mode = what, target = number, error_code = error, log_fd = log, count = 0;
}

/* Begin to watch this process; it cannot be undone. */
int events_watch(void) {
  struct sigaction action;
  struct sock_filter filter[128];
  unsigned short n = 0;
  uint64_t after = (uint64_t)(uintptr_t)events_after;
  mode = -1;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO | SA_NODEFER | SA_RESTART;
  if (sigaction(SIGSYS, &action, NULL)) return errno;
#define LOAD(offset) filter[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offset)
#define TEST(kind, value, yes, no) filter[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | kind | BPF_K, value, yes, no)
#define END(what) filter[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, what)
  LOAD(offsetof(struct seccomp_data, instruction_pointer)); /* our own calls */
  TEST(BPF_JEQ, (uint32_t)after, 0, 3);
  LOAD(offsetof(struct seccomp_data, instruction_pointer) + 4);
  TEST(BPF_JEQ, (uint32_t)(after >> 32), 0, 1);
  END(SECCOMP_RET_ALLOW);
  LOAD(offsetof(struct seccomp_data, nr));
#define WRITING (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)
#ifdef SYS_open
  TEST(BPF_JEQ, SYS_open, 0, 4);
  LOAD(offsetof(struct seccomp_data, args[1]));
  TEST(BPF_JSET, WRITING, 0, 1);
  END(SECCOMP_RET_TRAP);
  END(SECCOMP_RET_ALLOW);
#endif
  TEST(BPF_JEQ, SYS_openat, 0, 4);
  LOAD(offsetof(struct seccomp_data, args[2]));
  TEST(BPF_JSET, WRITING, 0, 1);
  END(SECCOMP_RET_TRAP);
  END(SECCOMP_RET_ALLOW);
  for (size_t i = 0; i < sizeof WATCHED / sizeof *WATCHED; i++) {
    TEST(BPF_JEQ, (uint32_t)WATCHED[i], 0, 1);
    END(SECCOMP_RET_TRAP);
  }
  END(SECCOMP_RET_ALLOW);
  struct sock_fprog program = {n, filter};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return errno;
  if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) return errno;
  return 0;
}
