"""Run as ``python peer.py ADDRESS``: receives from everybody, sends what its input asks for.

Input: one ``[address, num_bytes]`` a line, each sent at once. Output: ``ready``, then
``[address, sent, first, last, heard]`` a line: when it was sent, when its first and its last byte
arrived, when the sender heard of that. One clock for all hosts: they are one machine.
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
    first = time.monotonic()
    left = int.from_bytes(header, "big")
    while left:
        left -= connection.recv_into(buffer, min(left, len(buffer)))
    connection.sendall(struct.pack("!dd", first, time.monotonic()))


def send(address: str, num_bytes: int) -> None:
    with socket.create_connection((address, PORT)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        data = num_bytes.to_bytes(HEADER_BYTES, "big") + bytes(num_bytes)
        sent = time.monotonic()
        connection.sendall(data)
        first, last = struct.unpack("!dd", connection.recv(16, socket.MSG_WAITALL))
        times = [sent, first, last, time.monotonic()]
    sys.stdout.write(json.dumps([address, *times]) + "\n")
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
