"""``multiprocessing`` on shared memory, in which a killed process never hangs the others."""
