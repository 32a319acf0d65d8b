"""Jobs of linear algebra on several cores at once, with results that do not depend on how many there are."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from rewriter.runtime import cores

Job = TypeVar("Job")
Result = TypeVar("Result")

# What jobs hold adds up; so many at once stay well below what a model's activations take.
_MOST = 4


def in_order(function: Callable[[Job], Result], jobs: Iterable[Job], most: int = _MOST) -> Iterator[Result]:
    """What a function makes of every job, in the order of the jobs, taken as results are, `most` at once.

    It pays for what lets other threads run: products and factors of numpy do, those of scipy's BLAS and
    LAPACK do not.
    """
    threads = min(cores(), most)
    with ThreadPoolExecutor(threads) as pool:
        under_way: deque[Future[Result]] = deque()
        for job in jobs:
            under_way.append(pool.submit(function, job))
            if len(under_way) > threads:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
