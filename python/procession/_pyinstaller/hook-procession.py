"""Has PyInstaller collect the modules that are imported by name."""

import pkgutil

import procession

hiddenimports = [
    module.name
    for module in pkgutil.walk_packages(procession.__path__, "procession.")
    if not module.name.startswith("procession._pyinstaller") and not module.name.endswith("__main__")
]
