#!/usr/bin/env -S python -IS
"""Asks the service in this container whether it is ready (its /readyz); the health check of the compose files.

The answer goes to the container's health log, so that `docker inspect` shows what an unhealthy service waits for. It
runs every few seconds beside each service, hence imports nothing of Holdfast.
"""

import http.client
import os
import sys

ANSWER_S = 2.0
READY = 200


def main() -> int:
    """Return 0 where the service is ready, else 1."""
    port = int(os.environ["HOLDFAST_HEALTH"].rpartition(":")[2])
    service = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    try:
        service.request("GET", "/readyz")
        answer = service.getresponse()
        sys.stdout.write(answer.read().decode())
    except (OSError, http.client.HTTPException) as error:
        sys.stdout.write(f"port {port} does not answer: {error}\n")
        return 1
    return 0 if answer.status == READY else 1


if __name__ == "__main__":
    sys.exit(main())
