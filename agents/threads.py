"""Small problems on one thread: more of them only wait for each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep numpy's and scipy's linear algebra on one thread; torch is not touched.

    Fits of a few hundred cases call the library thousands of times for a few numbers. With a thread per core each call
    waits for all of them, which on a busy machine takes several times as long as the arithmetic.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1, user_api="blas"):
        yield
