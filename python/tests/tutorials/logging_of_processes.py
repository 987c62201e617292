"""The logger of the package writes to standard error, from children too.

Prints in any order:

    [WARNING/MainProcess] doomed
    [WARNING/worker] doomed too
"""

import logging
import multiprocessing


def worker():
    multiprocessing.get_logger().info("not seen")
    multiprocessing.get_logger().warning("doomed too")


if __name__ == "__main__":
    logger = multiprocessing.log_to_stderr(logging.WARNING)
    logger.warning("doomed")
    p = multiprocessing.Process(target=worker, name="worker")
    p.start()
    p.join()
