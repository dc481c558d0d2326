"""Connect to a Ray cluster, within a bounded time."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator

from jzi.errors import ClusterError, first_line

#: Seconds until a cluster that does not answer is given up.
CONNECT_S = 15.0

#: Set unless the user has set them: nothing is reported to anybody, and the logs of workers stay on their nodes.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_py_gcs_connect_timeout_s": f"{CONNECT_S:g}",
    "RAY_gcs_rpc_server_connect_timeout_s": f"{CONNECT_S:g}",
}


#: What a client of HTTP/2, on which Ray builds, sends first, and the type of the frame that is answered (RFC 9113,
#: section 3.4). Ray itself waits for minutes if nothing is.
_HTTP2, _SETTINGS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]), b"\x04"


@contextlib.contextmanager
def connected(address: str) -> Iterator[None]:
    """Context manager that connects this process to a cluster, whose nodes run what it sends: it must be trusted.

    Args:
        address: "auto" for the cluster that this machine is a node of, or host:port of its head.

    Raises:
        ClusterError: Ray is not installed, or there is no cluster that answers.
    """
    host = re.fullmatch(r"([\w.-]+|\[[0-9a-fA-F:.]+\]):(\d{1,5})", address)
    if address != "auto" and host is None:
        raise ClusterError(f"--ray is {address!r:.100}: give auto, or host:port of the head of a cluster")
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise ClusterError(
            "encoding on a cluster needs a package that is missing (ray): pip install 'jzi[ray]'"
        ) from error
    if host is not None:
        name = host[1].strip("[]")
        # Ray takes the loopback for the machine's own address, on which a head listens
        name = ray.util.get_node_ip_address() if name in ("localhost", "127.0.0.1", "::1") else name
        _check_port(address, name, int(host[2]))
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="CRITICAL")
    except Exception as error:  # of many classes: ConnectionError, RuntimeError, those of gRPC
        raise ClusterError(_reason(address, error)) from error
    finally:
        if main and handler is not None:
            signal.signal(signal.SIGTERM, handler)  # Ray installs its own
    try:
        yield
    finally:
        ray.shutdown()


def _check_port(address: str, host: str, port: int) -> None:
    try:
        with socket.create_connection((host, port), CONNECT_S) as connection:
            connection.sendall(_HTTP2)
            answer = connection.recv(9)
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"there is no Ray cluster at {address} ({first_line(error)}): start one with `ray start --head`, or "
            "correct the address"
        ) from error
    if answer[3:4] != _SETTINGS:
        raise ClusterError(f"what answers at {address} is no Ray cluster: give the address that `ray start` printed")


def _reason(address: str, error: Exception) -> str:
    text = first_line(error)
    if address == "auto" and isinstance(error, ConnectionError):
        return "this machine is no node of a Ray cluster: start one with `ray start --head`, or give --ray host:port"
    if "ersion mismatch" in text:
        return f"the cluster at {address} has another version of Ray or Python ({text}): install the same on all nodes"
    return f"the cluster at {address} cannot be used ({text}): run this on one of its nodes, while its head is up"
