"""The entry point that tells PyInstaller the folder of this package's hooks."""

import os


def get_hook_dirs():
    """Return the folders with hooks."""
    return [os.path.dirname(__file__)]
