"""What a forkserver imports when the program has called `procession.install`."""

from ._install import install

# Inherited by its children.
install()
