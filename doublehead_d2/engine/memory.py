"""How the C library treats memory that a CPU run has freed."""

import ctypes

# glibc's <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_KEPT_BYTES = 2**31 - 1


def keep_freed_memory() -> bool:
    """Keep up to 2 GiB of freed memory in this process for the tensors to come.

    glibc gives large blocks back to the system at once, and asks for new ones with the next tensor,
    whose pages are then zeroed and mapped anew. On a CPU that takes a third of a detector's time
    (dev/benchmarks/inference_cpu.json against inference_cpu_released_memory.json).

    It is the process that is changed, for good; so this is for programs, not for libraries.

    Returns:
        whether it was done: False where there is no glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS; Windows
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES))
