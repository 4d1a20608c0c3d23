"""Memory that a process no longer needs."""

import ctypes
import gc


def give_back() -> None:
    """Return what has been let go to the system: the C library of Linux keeps freed weights, gigabytes of them."""
    gc.collect()  # layers with hooks, and the hooks, refer to each other
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
