"""CPython's tests of multiprocessing under the start method ``fork``; a module of its own, from which children import them."""

import test._test_multiprocessing as suite

suite.install_tests_in_module_dict(globals(), "fork")
