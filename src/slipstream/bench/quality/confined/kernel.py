"""Taking rights away from this process for good, by means that need neither root nor packages.

Three parts of Linux, each doing what the others cannot: resource limits bound what is used up; Landlock (Linux 5.13)
bounds which files can be read and written; a seccomp filter bounds which system calls there are, so that there is no
network, no second process and no signal. All hold for root too, and none can be undone from inside.

`confine` raises RefusedError, naming the part, when one of them is not there: nothing runs half protected.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
import sys
import sysconfig
from collections.abc import Sequence

from .syscalls import CLONE, CLONE3, FCNTL, FCNTL_COMMANDS, MACHINES, NUMBERS, THREAD_FLAGS


class RefusedError(Exception):
    """A part of the sandbox is missing here; the message says which."""


def confine(*, folder: str | None, cpu_s: int, memory_bytes: int, file_bytes: int, num_files: int) -> None:
    """Leave this process computing, reading Python's library, and writing files in `folder` (None: nowhere).

    Raises RefusedError where the kernel or the machine lacks a part.
    """
    missing = missing_part()
    if missing is not None:
        raise RefusedError(missing)
    _prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: die with the process that started us
    _limit(cpu_s, memory_bytes, file_bytes, num_files)
    _prctl(38, 1)  # PR_SET_NO_NEW_PRIVS: without it only root may do the next two
    _restrict_files(folder)
    _filter_syscalls()
    _check()


def missing_part() -> str | None:
    """What this machine lacks for the sandbox, in words, or None. Changes nothing."""
    if sys.platform != "linux":
        return f"Landlock and seccomp, which only Linux has; this is {sys.platform}"
    if os.uname().machine not in MACHINES:
        return f"its list of system calls for {os.uname().machine}; there is one for {' and '.join(MACHINES)}"
    if _landlock_version() < 1:
        return "Landlock, which this kernel or container does not offer (Linux 5.13 or newer does)"
    if _libc().prctl(21, 0, 0, 0, 0) != 0:  # PR_GET_SECCOMP
        return "seccomp, which this kernel does not offer, or which something around this process already uses"
    return None


# Resource limits


def _limit(cpu_s: int, memory_bytes: int, file_bytes: int, num_files: int) -> None:
    """Soft and hard limit alike, so that there is no first signal to ignore: the kernel kills."""
    import resource  # not at the top: this file is also read where there is no such module, to say so

    limits = {
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_NOFILE: num_files,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in limits.items():
        hard = resource.getrlimit(kind)[1]
        value = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (value, value))


# Landlock (linux/landlock.h)

WRITE_FILE, READ_FILE, READ_DIR = 1 << 1, 1 << 2, 1 << 3
REMOVE_FILE, MAKE_REG, MAKE_SYM = 1 << 5, 1 << 8, 1 << 12
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15

READ = READ_FILE | READ_DIR
OWN = READ | WRITE_FILE | REMOVE_FILE | MAKE_REG | MAKE_SYM | TRUNCATE
"""What may be done in the one folder. No folders in it: thousands of them, one in another, are hard to remove again."""
OF_FILES = READ_FILE | WRITE_FILE | TRUNCATE
"""The rights that a rule on a single file may hold."""

SINCE_VERSION = {1: (1 << 13) - 1, 2: REFER, 3: TRUNCATE, 5: IOCTL_DEV}
"""The rights that each version of Landlock added. Before version 3 `truncate` stays closed by the seccomp filter."""

SHARED_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo")


def _restrict_files(folder: str | None) -> None:
    version = _landlock_version()
    handled = sum(rights for since, rights in SINCE_VERSION.items() if since <= version)
    ruleset = _syscall("landlock_create_ruleset", 444, struct.pack("=Q", handled), 8, 0)
    library = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}
    for path in (*sorted(library), *SHARED_LIBRARIES, "/dev/urandom", "/dev/zero"):
        _allow(ruleset, path, READ & handled)
    _allow(ruleset, "/dev/null", (READ_FILE | WRITE_FILE) & handled)
    if folder is not None:
        _allow(ruleset, folder, OWN & handled)
    _syscall("landlock_restrict_self", 446, ruleset, 0)
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # not every system has all of these; what is not there needs no rule
    try:
        if not os.path.isdir(path):
            rights &= OF_FILES
        _syscall("landlock_add_rule", 445, ruleset, 1, struct.pack("=Qi", rights, descriptor), 0)
    finally:
        os.close(descriptor)


def _landlock_version() -> int:
    """The version that the kernel offers; below 1: none."""
    return int(_libc().syscall(444, None, ctypes.c_size_t(0), 1))


# seccomp (linux/seccomp.h, linux/filter.h)

LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, FAIL = 0x7FFF0000, 0x00050000
AT_NUMBER, AT_MACHINE = 0, 4
AT_ARGUMENT_0, AT_ARGUMENT_1 = 16, 24  # low halves; both machines are little-endian


def syscall_filter(machine: str) -> bytes:
    """The filter as BPF instructions: what `syscalls` lists is allowed, the rest fails with EPERM."""
    column, audit_arch = MACHINES[machine]
    denied = FAIL | errno.EPERM
    program = [_step(LOAD, AT_MACHINE), _step(JUMP_IF_EQUAL, audit_arch, 1, 0), _step(RETURN, denied)]
    program += [_step(LOAD, AT_NUMBER)]
    for number in (row[column] for row in NUMBERS.values()):
        if number is None:
            continue
        program += [_step(JUMP_IF_EQUAL, number, 0, 1), _step(RETURN, ALLOW)]
    # The C library tries clone3 first and falls back to clone, whose flags a filter can see, when it is "not there".
    program += [_step(JUMP_IF_EQUAL, CLONE3[column], 0, 1), _step(RETURN, FAIL | errno.ENOSYS)]
    program += _only_with(CLONE[column], AT_ARGUMENT_0, THREAD_FLAGS)
    program += _only_with(FCNTL[column], AT_ARGUMENT_1, FCNTL_COMMANDS)
    return b"".join([*program, _step(RETURN, denied)])


def _only_with(number: int, argument: int, values: Sequence[int]) -> list[bytes]:
    """Allow the call `number` if its `argument` is one of `values`, else end with EPERM."""
    tests = [step for value in values for step in (_step(JUMP_IF_EQUAL, value, 0, 1), _step(RETURN, ALLOW))]
    body = [_step(LOAD, argument), *tests, _step(RETURN, FAIL | errno.EPERM)]
    return [_step(JUMP_IF_EQUAL, number, 0, len(body)), *body]


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _filter_syscalls() -> None:
    instructions = ctypes.create_string_buffer(syscall_filter(os.uname().machine))
    program = struct.pack("@HP", len(instructions) // 8, ctypes.addressof(instructions))  # struct sock_fprog
    _prctl(22, 2, program)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def _check() -> None:
    """Try two forbidden things: a filter that did not take is found here and not by the code under test."""
    for attempt in (lambda: os.open("/", os.O_RDONLY), lambda: os.kill(os.getpid(), 0)):
        try:
            attempt()
        except PermissionError:
            continue
        raise RefusedError("a kernel that enforces Landlock and seccomp; this one took the rules and does not")


# Calls


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int, pointer: bytes | int = 0) -> None:
    if _libc().prctl(option, value, pointer, 0, 0) != 0:
        raise RefusedError(f"prctl option {option}, which failed: {os.strerror(ctypes.get_errno())}")


def _syscall(name: str, number: int, *arguments: bytes | int) -> int:
    result = int(_libc().syscall(number, *arguments))
    if result < 0:
        raise RefusedError(f"{name}, which failed: {os.strerror(ctypes.get_errno())}")
    return result
