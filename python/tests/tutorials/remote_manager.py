"""A server serves a queue of its own at an address; two clients know the address and the key.

Prints in any order:

    first client: put hello
    second client: got hello
    wrong key: AuthenticationError
"""

from multiprocessing import AuthenticationError, Pipe, Process
from multiprocessing.managers import BaseManager
from queue import Queue

queue = Queue()


def get_queue():
    return queue


class Server(BaseManager):
    pass


class QueueManager(BaseManager):
    pass


Server.register("get_queue", callable=get_queue)
QueueManager.register("get_queue")


def serve(conn):
    server = Server(address=("127.0.0.1", 0), authkey=b"abracadabra").get_server()
    conn.send(server.address)
    server.serve_forever()


def first(address):
    m = QueueManager(address=address, authkey=b"abracadabra")
    m.connect()
    m.get_queue().put("hello")
    print("first client: put hello", flush=True)


def second(address):
    m = QueueManager(address=address, authkey=b"abracadabra")
    m.connect()
    print("second client: got", m.get_queue().get(), flush=True)


if __name__ == "__main__":
    ours, theirs = Pipe()
    server = Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    address = ours.recv()
    clients = [Process(target=target, args=(address,)) for target in (second, first)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    try:
        QueueManager(address=address, authkey=b"guess").connect()
    except AuthenticationError as error:
        print("wrong key:", type(error).__name__, flush=True)
    server.terminate()
    server.join()
