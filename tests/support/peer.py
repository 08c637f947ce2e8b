"""Run as ``python peer.py ADDRESS``: receives from everybody, sends what its input asks for.

Input: one ``[address, num_bytes]`` a line, each sent at once. Output: ``ready``, then
``[address, seconds, whole]`` a line: from the arrival of the first byte to that of the last by the
receiver's clock, and from the start to the receiver's word by the sender's.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading
import time

PORT = 5000
HEADER_BYTES = 8


def receive(connection: socket.socket) -> None:
    buffer = bytearray(2**20)
    header = connection.recv(HEADER_BYTES, socket.MSG_WAITALL)
    begun = time.perf_counter()
    left = int.from_bytes(header, "big")
    while left:
        left -= connection.recv_into(buffer, min(left, len(buffer)))
    connection.sendall(struct.pack("!d", time.perf_counter() - begun))


def send(address: str, num_bytes: int) -> None:
    with socket.create_connection((address, PORT)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        data = num_bytes.to_bytes(HEADER_BYTES, "big") + bytes(num_bytes)
        begun = time.perf_counter()
        connection.sendall(data)
        (seconds,) = struct.unpack("!d", connection.recv(8, socket.MSG_WAITALL))
        whole = time.perf_counter() - begun
    sys.stdout.write(json.dumps([address, seconds, whole]) + "\n")
    sys.stdout.flush()


def main() -> None:
    listener = socket.create_server((sys.argv[1], PORT))

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=receive, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        threading.Thread(target=send, args=json.loads(line), daemon=True).start()


if __name__ == "__main__":
    main()
