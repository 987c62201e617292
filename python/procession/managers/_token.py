"""What identifies a manager's object wherever its proxies are made."""

from multiprocessing import managers as _stdlib


class Token(_stdlib.Token):
    """What identifies an object of a manager."""

    # What keeps the object until the proxy is there that is made from the token.
    __slots__ = ("_ticket",)

    def __init__(self, typeid, address, id):
        super().__init__(typeid, address, id)
        self._ticket = None

    def __getstate__(self):
        return self.typeid, self.address, self.id, self._ticket

    def __setstate__(self, state):
        self.typeid, self.address, self.id, self._ticket = state


def token_with(ticket, *args):
    """A token that has a ticket."""
    token = Token(*args)
    token._ticket = ticket
    return token
