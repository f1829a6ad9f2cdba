"""Memory that a process keeps.

The C library gives large arrays back to the system when they are freed and asks for them again a moment later, and each
4 kB of them then costs a page fault: a quarter of the time of a large refinement.
"""

import ctypes
import gc
import sys

#: Parameters of glibc's mallopt (malloc.h): above which size an array is mapped by itself, how much that is free is
#: given back. The peak does not change: what is free is used again.
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
MAPPED_BEYOND_BYTES, KEPT_BYTES = 1 << 30, 2**31 - 1


def keep_memory() -> bool:
    """Let this process keep the memory that it has; gives whether the C library can be told so.

    What lives now, modules above all, is not looked at any more when circles of references are sought.
    """
    gc.freeze()
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(MMAP_THRESHOLD, MAPPED_BEYOND_BYTES)) and bool(mallopt(TRIM_THRESHOLD, KEPT_BYTES))


def give_back_memory() -> None:
    """Return to the system what is no longer used.

    A picture is a circle of references that holds its still until Python looks for such circles; and glibc keeps what
    was freed, so that the holes between what lives grow with every still.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
