"""A listener with a key; a client sends and receives objects and bytes.

Prints in any order:

    server: accepted
    client: [2.25, None, 'junk', <class 'float'>]
    client: b'hello'
    client: 8 array('i', [42, 1729, 0])
    server: ['close']
"""

from array import array
from multiprocessing import Process
from multiprocessing.connection import Client, Listener


def client(address):
    with Client(address, authkey=b"secret password") as conn:
        print("client:", conn.recv(), flush=True)
        print("client:", conn.recv_bytes(), flush=True)
        arr = array("i", [0, 0, 0])
        print("client:", conn.recv_bytes_into(arr), arr, flush=True)
        conn.send(["close"])


if __name__ == "__main__":
    with Listener(("localhost", 0), authkey=b"secret password") as listener:
        p = Process(target=client, args=(listener.address,))
        p.start()
        with listener.accept() as conn:
            print("server: accepted", flush=True)
            conn.send([2.25, None, "junk", float])
            conn.send_bytes(b"hello")
            conn.send_bytes(array("i", [42, 1729]))
            print("server:", conn.recv(), flush=True)
        p.join()
