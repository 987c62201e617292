"""CPython's tests of multiprocessing under ``fork``, in a module from which children import them."""

import test._test_multiprocessing as suite

suite.install_tests_in_module_dict(globals(), "fork")
