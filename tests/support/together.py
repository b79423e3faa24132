"""Several processes at once."""

import multiprocessing


def run_together(target, arguments, count):
    # Forked, since four processes that each import torch would wait longer than they write.
    fork = multiprocessing.get_context("fork")
    gate = fork.Barrier(count)
    workers = [fork.Process(target=target, args=(*arguments, gate)) for _ in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * count
