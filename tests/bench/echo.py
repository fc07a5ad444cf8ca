"""The bare loop that chimed's heartbeat path is compared with: a ROUTER on CURVE that receives, and sends back.

`python -m tests.bench.echo ENDPOINT ANSWER_BYTES`; reads its secret key from the environment. Nothing is looked at;
the socket's queues are as small as chimed's, which was measured to be faster.
"""

from __future__ import annotations

import os
import sys

import zmq

from chimed.transport import QUEUED_RECEIVED, QUEUED_UNSENT, raise_file_limit

SECRET = "CHIME_BENCH_SECRET"


def main(endpoint: str, answer_bytes: str) -> None:
    """Until it is killed."""
    raise_file_limit()
    answer = bytes(int(answer_bytes))
    router = zmq.Context().socket(zmq.ROUTER)
    router.curve_server = True
    router.curve_secretkey = os.environ[SECRET].encode()
    for option, most in ((zmq.RCVHWM, QUEUED_RECEIVED), (zmq.SNDHWM, QUEUED_UNSENT)):
        router.setsockopt(option, most)
    router.setsockopt(zmq.BACKLOG, 4096)
    router.bind(endpoint)
    receive, send, more = router.recv, router.send, int(zmq.SNDMORE)
    while True:
        route = receive()
        receive()
        send(route, more)
        send(answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
