"""A stand-in for wandb's server on loopback, for tests: enough of its API for real runs, artifacts, sweeps and agents.

    with WandbServer() as server:
        subprocess.run([...], env={**os.environ, **server.environment})
    assert server.runs["id"].history[0]["train/loss"] == 0.5

What the client asks for was read off wandb 0.31. An operation that is not known here is answered with an error and kept
in `server.unknown_operations`, so that a new release of the client is noticed.
"""

import gzip
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import unquote

from wandb_operations import ServerState

API_KEY = "0" * 40
Fault = Literal["error", "malformed", "drop", "slow"]


class WandbServer(ServerState):
    """The server. Set `fault` at any time; `stop` and `start` make it die and come back at the same address.

    `fault` is "error" (answers 500), "malformed" (200 with JSON cut short), "drop" (closes the connection without an
    answer), "slow" (answers after `delay` seconds), or None. `fault_on` restricts it to requests that contain
    this text, such as the name of an operation.
    """

    def __init__(self, run_cap: int = 2) -> None:
        super().__init__(run_cap)
        self.fault: Fault | None = None
        self.fault_on = ""
        self.delay = 2.0
        self.requests: list[str] = []
        self.lock = threading.RLock()
        self._port = 0
        self._http: _HttpServer | None = None
        self._connections: set[socket.socket] = set()

    def __enter__(self) -> "WandbServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def environment(self) -> dict[str, str]:
        """Variables that lead a client here, logged in."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": API_KEY}

    def start(self) -> None:
        handler = type("Handler", (_Handler,), {"wandb": self, "connections": self._connections})
        self._http = _HttpServer(("127.0.0.1", self._port), handler)
        self._port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self._port}"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Die: refuse new connections and cut the open ones."""
        if self._http is None:
            return
        self._http.shutdown()
        self._http.server_close()
        self._http = None
        for connection in list(self._connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # the client was faster
                continue

    def wait_for(self, condition: Callable[[], bool], seconds: float = 60) -> bool:
        """Whether the condition comes true in time."""
        end = time.monotonic() + seconds
        while not condition() and time.monotonic() < end:
            time.sleep(0.05)
        return condition()


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Show what went wrong here, but not that a client hung up."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wandb: WandbServer
    connections: set[socket.socket]

    def setup(self) -> None:
        super().setup()
        self.connections.add(self.connection)

    def finish(self) -> None:
        self.connections.discard(self.connection)
        super().finish()

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean; `requests` has it all."""

    def do_POST(self) -> None:
        body = self._body()
        operation = ""
        if self.path == "/graphql":
            request = json.loads(body)
            operation = re.search(r"(?:query|mutation)\s+(\w+)", request["query"]).group(1)
        if self._fails(f"POST {self.path} {operation}"):
            return
        with self.wandb.lock:
            if operation:
                self._answer(self.wandb.execute(operation, request.get("variables") or {}))
            elif self.path.endswith("/file_stream"):
                self.wandb.receive_stream(self.path.split("/")[-2], json.loads(body))
                self._answer({})
            else:  # telemetry: an empty protobuf will do, anything else makes the client's exit slow
                self._answer(None)

    def do_GET(self) -> None:
        if not self._fails(f"GET {self.path}"):
            self._answer({})

    def do_PUT(self) -> None:
        body = self._body()
        if self._fails(f"PUT {self.path}"):
            return
        _, _, kind, owner, name = self.path.split("/", 4)
        with self.wandb.lock:
            self.wandb.receive_file(kind, owner, unquote(name), body)
        self._answer({})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(iter(self._chunk, b""))
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _chunk(self) -> bytes:
        content = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return content

    def _fails(self, request: str) -> bool:
        """Note the request, and do what the fault demands; False if the request is to be answered."""
        self.wandb.requests.append(request)
        fault = self.wandb.fault if self.wandb.fault_on in request else None
        if fault == "slow":
            time.sleep(self.wandb.delay)
        elif fault == "error":
            self._answer({"error": "out of order"}, status=500)
        elif fault == "malformed":
            self._answer('{"data": {"viewer": ')
        elif fault == "drop":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        return fault not in (None, "slow")

    def _answer(self, content: dict[str, Any] | str | None, status: int = 200) -> None:
        text = content if isinstance(content, str) else "" if content is None else json.dumps(content)
        self.send_response(status)
        self.send_header("Content-Type", "application/json" if text else "application/x-protobuf")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())
