"""What PyInstaller asks installed packages for: the folder of their hooks."""

import os


def get_hook_dirs():
    """Return the folders with hooks."""
    return [os.path.dirname(__file__)]
