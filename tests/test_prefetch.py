"""Working ahead in threads: the order holds, few are begun early, errors arrive where they belong."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from data.jobs.prefetch import in_order


def test_results_come_in_order_and_few_are_begun_early():
    pauses = np.random.default_rng(0).uniform(0, 0.003, 200)
    begun: list[int] = []
    lock = threading.Lock()

    def work(number: int) -> int:
        with lock:
            begun.append(number)
        time.sleep(pauses[number])
        return number * number

    with ThreadPoolExecutor(4) as pool:
        for number, result in enumerate(in_order(pool, work, range(200), ahead=7)):
            assert result == number * number
            assert max(begun) <= number + 7
    assert sorted(begun) == list(range(200))


def test_an_error_arrives_at_its_turn_and_nothing_more_is_begun():
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 3:
            raise ValueError("the fourth")
        return number

    with ThreadPoolExecutor(1) as pool:
        results = in_order(pool, work, range(100), ahead=2)
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="the fourth"):
            next(results)
    assert max(begun) <= 5
