"""Runs a function in a process of its own, confined by the Linux kernel: what the sandbox rests on.

The process, forked and never replaced by another program,

  * is the only one of its PID namespace and can make no other: what limits it limits the whole;
  * has new network, IPC, host-name and mount namespaces: no network at all, and of the host's files none but the
    interpreter's library and the system's shared libraries, read-only, and an empty folder /tmp in memory. There is no
    /proc, /sys or /dev;
  * has another user id (65534) and no capabilities. Started by root, that is so for the host too. Started by anybody
    else it has a user namespace, and for the host it stays theirs;
  * has limits on CPU time, memory, file size and open files, and no core dumps;
  * may not make the system calls of DENIED or any that is newer than Linux 5.1 (seccomp): no sockets (some kinds know
    no namespaces), no memory that the limits don't count, no further namespaces;
  * dies with its supervisor, and that when its standard input ends.

Needs Linux 5.12 on x86-64 or arm64. What cannot be had raises OSError, before the function is called. This module runs
before and in the sandbox: standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import select
import signal
import struct
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

USER = 65534
_GRACE_S = 0.5  # for a process to end by itself, as it does where nobody calls any more
_NEW_ROOT = "/proc"  # a folder that is everywhere, and that nothing is needed from once the ids are mapped

# From the kernel's headers, as all numbers below.
_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
_MOUNT_ATTR_RDONLY, _MOUNT_ATTR_NOSUID, _MOUNT_ATTR_NODEV, _AT_RECURSIVE, _MNT_DETACH = 1, 2, 4, 0x8000, 2
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_SYS_MOUNT_SETATTR = 442
_FIRST_NEWER = 424  # system calls are numbered alike on all machines from here on

# Machine -> its name for seccomp (AUDIT_ARCH) and its place in DENIED, which has each call's number on it.
MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
DENIED = {
    "fork": (57, None), "vfork": (58, None), "clone": (56, 220), "execve": (59, 221), "execveat": (322, 281),
    "socket": (41, 198), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kcmp": (312, 272), "prctl": (157, 167), "seccomp": (317, 277), "personality": (135, 92),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "memfd_create": (319, 279), "shmget": (29, 194), "shmat": (30, 196), "semget": (64, 190), "msgget": (68, 186),
    "mq_open": (240, 180), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_setup": (206, 0),
    "inotify_init": (253, None), "inotify_init1": (294, 26), "fanotify_init": (300, 262),
}  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)


class Limits(NamedTuple):
    """What a confined process may use.

    Attributes:
      cpu_s: seconds of CPU time.
      wall_s: seconds from the start of its code, after which `hhh_jax.evals.sandbox` ends it: for those that sleep.
      memory_mb: MiB of address space, of which a bare interpreter takes about 25.
      files_mb: MiB of files in its folder.
      message_mb: MiB of one message, an answer to a call.
    """

    cpu_s: int = 4
    wall_s: float = 20.0
    memory_mb: int = 512
    files_mb: int = 16
    message_mb: int = 16


def supervise(action: Callable[[], None], limits: Limits, fds: Iterable[int]) -> None:
    """Calls the action in a confined process, which keeps `fds`, and ends it when standard input ends.

    Says on standard output, as a line of JSON, how it ended: {"stopped", "signal", "cpu_s"}. What keeps the action from
    being called is raised, or stands there as a line before.
    """
    _enter_namespaces()
    child = os.fork()
    if child == 0:
        try:
            null = os.open("/dev/null", os.O_RDWR)
            _confine(limits)
        except BaseException as error:
            os.write(1, f"{error}\n".encode())
            os._exit(1)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.close(null)
        try:
            action()
        finally:
            os._exit(0)
    for fd in fds:  # the child's other ends see it end
        os.close(fd)
    ended = os.pidfd_open(child)
    select.select([0, ended], [], [])
    stopped = not select.select([ended], [], [], _GRACE_S)[0]
    if stopped:
        os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    killed_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    print(json.dumps({"stopped": stopped, "signal": killed_by, "cpu_s": usage.ru_utime + usage.ru_stime}))


def _enter_namespaces() -> None:
    """New namespaces for this process, but for the PID namespace: that is its next child's."""
    flags = _CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWIPC | _CLONE_NEWPID | _CLONE_NEWNET
    uid, gid = os.geteuid(), os.getegid()
    _call("unshare", flags if uid == 0 else flags | _CLONE_NEWUSER)
    if uid:
        for file, line in (("setgroups", "deny"), ("uid_map", f"{USER} {uid} 1"), ("gid_map", f"{USER} {gid} 1")):
            with open(f"/proc/self/{file}", "w") as mapping:
                mapping.write(line)


def _confine(limits: Limits) -> None:
    """Confines this process, the first of its PID namespace, for good."""
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # where memory is short, this process is the one to go
    os.setsid()  # signals to its process group stay in its namespace
    _see_nothing(limits)
    if os.geteuid() == 0:
        os.setgroups([])
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)
    _call("capset", struct.pack("Ii", 0x20080522, 0), bytes(24))  # none left of the user namespace's either
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # after the ids change, which would undo it
    if os.getppid() != 0:
        raise OSError("no PID namespace")
    os.environ.clear()
    os.umask(0o077)
    mib = 2**20
    for limit, most in (
        (resource.RLIMIT_CPU, limits.cpu_s),
        (resource.RLIMIT_AS, limits.memory_mb * mib),
        (resource.RLIMIT_FSIZE, limits.files_mb * mib),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_NPROC, 1),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        resource.setrlimit(limit, (most, most))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _deny_system_calls()


def _see_nothing(limits: Limits) -> None:
    """Makes a file system in memory the root, with nothing but the libraries and /tmp; the working folder is /tmp."""
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", _NEW_ROOT, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    seen: list[str] = []
    for folder in ("/lib", "/lib64", "/usr/lib", "/usr/lib64", os.path.join(sys.base_prefix, "lib"), *sys.path):
        if os.path.isdir(folder) and not any(folder == above or folder.startswith(above + "/") for above in seen):
            os.makedirs(_NEW_ROOT + folder)
            _mount(folder, _NEW_ROOT + folder, None, _MS_BIND | _MS_REC)
            _set_mount(_NEW_ROOT + folder, _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV, _AT_RECURSIVE)
            seen.append(folder)
    for packages in (os.path.join(folder, "site-packages") for folder in sys.path):  # alike on all machines: none
        if os.path.isdir(_NEW_ROOT + packages):
            _mount("tmpfs", _NEW_ROOT + packages, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=4k,nr_inodes=1,mode=555")
    os.mkdir(_NEW_ROOT + "/tmp")
    own = f"size={limits.files_mb}m,nr_inodes=1024,mode=700,uid={USER},gid={USER}"
    _mount("tmpfs", _NEW_ROOT + "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC, own)
    os.chdir(_NEW_ROOT)
    _call("pivot_root", b".", b".")  # puts the old root on top of the new one
    _call("umount2", b".", _MNT_DETACH)
    _set_mount("/", _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV, 0)
    os.chdir("/tmp")


def _deny_system_calls() -> None:
    """A seccomp filter, for good: DENIED fail as forbidden, newer calls as unknown; another machine's calls kill."""
    machine, place = MACHINES[os.uname().machine]
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06  # of BPF: (operation, jump if true, jump if not, value)
    kill, fail, allow = 0x80000000, 0x00050000, 0x7FFF0000
    program = [
        (load, 0, 0, 4),  # the machine
        (equal, 1, 0, machine),
        (give, 0, 0, kill),
        (load, 0, 0, 0),  # the call's number
        (at_least, 0, 1, _FIRST_NEWER),
        (give, 0, 0, fail | errno.ENOSYS),
    ]
    for number in (numbers[place] for numbers in DENIED.values()):
        if number is not None:
            program += [(equal, 0, 1, number), (give, 0, 0, fail | errno.EPERM)]
    program.append((give, 0, 0, allow))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    _prctl(_PR_SET_SECCOMP, 2, struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str = "") -> None:
    name = None if source is None else os.fsencode(source)
    type_name = None if kind is None else kind.encode()
    _call("mount", name, os.fsencode(target), type_name, ctypes.c_ulong(flags), data.encode(), about=target)


def _set_mount(target: str, attributes: int, flags: int) -> None:
    setting = struct.pack("QQQQ", attributes, 0, 0, 0)
    here = ctypes.c_long(-1)  # the target is an absolute path
    _call("syscall", ctypes.c_long(_SYS_MOUNT_SETATTR), here, os.fsencode(target), ctypes.c_long(flags), setting,
          ctypes.c_long(len(setting)), about=f"mount_setattr of {target}")  # fmt: skip


def _prctl(option: int, *values: int | bytes) -> None:
    given = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in values]
    _call("prctl", option, *given, *[ctypes.c_ulong(0)] * (4 - len(given)))


def _call(name: str, *arguments: Any, about: str = "") -> None:
    """A function of the C library. Raises OSError that names it where it fails."""
    if getattr(_libc, name)(*arguments) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}{' of ' if about else ''}{about}: {os.strerror(number)}")
