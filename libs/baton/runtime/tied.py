"""A process tied to its parent: the kernel kills it as soon as the parent ends, however that ends.

Also a program of its own, `python -I -S tied.py PARENT_PID COMMAND ...`, which ties itself and becomes COMMAND: so
that programs which are not ours (a Redis server) can be tied too. It imports next to nothing, to start in milliseconds.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int | None = None) -> None:
    """Have the kernel send this process SIGKILL when its parent ends. On other systems than Linux nothing happens.

    `parent_pid`: who the parent was meant to be; when it is gone already, this process ends now. The tie survives exec.
    It is to the parent's *thread* that started this process. Raises OSError when the kernel refuses.
    """
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid() if parent_pid is None else parent_pid
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def tied_command(command: list[str]) -> list[str]:
    """`command`, tied to the calling process when that starts it."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *command]


def main() -> None:
    die_with_parent(int(sys.argv[1]))
    try:
        os.execvp(sys.argv[2], sys.argv[2:])
    except OSError as error:
        sys.exit(f"error: cannot start {sys.argv[2]}: {error.strerror}")


if __name__ == "__main__":
    main()
