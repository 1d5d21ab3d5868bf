"""The system calls that code in the sandbox may make; every other one fails with EPERM.

A list of what is allowed, not of what is forbidden: a call that nobody thought of is closed. Left out are, above all,
sockets, `execve`, `fork`, signals to others, `ptrace`, mounts, changes of owner, mode or time of a file (Landlock does
not cover these) and changes of the process's own limits.
"""

from __future__ import annotations

NUMBERS: dict[str, tuple[int | None, int | None]] = {  # name: (x86_64, aarch64); None: not there
    # memory, time and the process itself
    "brk": (12, 214),
    "clock_getres": (229, 114),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "futex": (202, 98),
    "getegid": (108, 177),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getpid": (39, 172),
    "getppid": (110, 173),
    "getrandom": (318, 278),
    "getrusage": (98, 165),
    "gettid": (186, 178),
    "gettimeofday": (96, 169),
    "getuid": (102, 174),
    "madvise": (28, 233),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "munmap": (11, 215),
    "nanosleep": (35, 101),
    "restart_syscall": (219, 128),
    "rseq": (334, 293),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sched_getaffinity": (204, 123),
    "sched_yield": (24, 124),
    "set_robust_list": (273, 99),
    "setitimer": (38, 103),
    "sigaltstack": (131, 132),
    "sysinfo": (99, 179),
    "time": (201, None),
    "times": (100, 153),
    "uname": (63, 160),
    # open files and pipes
    "close": (3, 57),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21),
    "epoll_pwait": (281, 22),
    "epoll_wait": (232, None),
    "fdatasync": (75, 83),
    "fstat": (5, 80),
    "fsync": (74, 82),
    "ftruncate": (77, 46),
    "lseek": (8, 62),
    "pipe": (22, None),
    "pipe2": (293, 59),
    "poll": (7, None),
    "ppoll": (271, 73),
    "pread64": (17, 67),
    "pselect6": (270, 72),
    "pwrite64": (18, 68),
    "read": (0, 63),
    "readv": (19, 65),
    "select": (23, None),
    "sendfile": (40, 71),
    "write": (1, 64),
    "writev": (20, 66),
    # paths; Landlock says which
    "access": (21, None),
    "chdir": (80, 49),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "fchdir": (81, 50),
    "getcwd": (79, 17),
    "getdents64": (217, 61),
    "lstat": (6, None),
    "newfstatat": (262, 79),
    "open": (2, None),
    "openat": (257, 56),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "stat": (4, None),
    "statx": (332, 291),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "umask": (95, 166),
    "unlink": (87, None),
    "unlinkat": (263, 35),
}

CLONE, CLONE3, FCNTL = (56, 220), (435, 435), (72, 25)

THREAD_FLAGS = (0x3D0F00, 0x7D0F00)
"""The flags with which glibc and musl start a thread; `clone` with any others, a new process, is refused."""

FCNTL_COMMANDS = (0, 1, 2, 3, 4, 1030)
"""Duplicate, descriptor flags, file flags. Not F_SETOWN, through which the kernel would signal another process."""

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Machine: (column of `NUMBERS`, AUDIT_ARCH of linux/audit.h)."""
