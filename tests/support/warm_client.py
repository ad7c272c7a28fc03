"""`python -IS warm_client.py SOCKET ARGUMENTS...`: what `python ARGUMENTS...` would do, by a fork of the server.

Takes a fiftieth of a second, since it imports nothing that the interpreter doesn't have in memory or small.
"""

import json
import os
import socket
import sys


def main() -> int:
    """Hand over the arguments, the folder, the environment and the three streams; return the exit code."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(sys.argv[1])
        request = {"arguments": sys.argv[2:], "folder": os.getcwd(), "environment": dict(os.environ)}
        content = json.dumps(request).encode()
        socket.send_fds(connection, [len(content).to_bytes(8, "little")], [0, 1, 2])
        connection.sendall(content)
        answer = connection.recv(8)
    if not answer:
        sys.exit("The server of forks has ended.")
    return int.from_bytes(answer, "little", signed=True)


if __name__ == "__main__":
    code = main()
    if code < 0:  # ended by a signal: so does this process
        os.kill(os.getpid(), -code)
    sys.exit(code)
