"""A web server of byte ranges that misbehaves as told, run as a process of its own: python flaky_server.py FOLDER

Rules are posted as JSON, [{path, range, method, skip, times, fault}, …]: patterns, how many matching requests pass
first, how many then get the fault: a status code, {"status": …, "headers": {…}}, "truncate", "reset", "stall" or
"drip" (a byte now and then). GET /-/log gives what was asked.
"""

import json
import re
import socket
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FOLDER = Path(sys.argv[1])
RULES, LOG, LOCK = [], [], threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *words):
        pass

    def do_POST(self):
        with LOCK:
            RULES[:] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            LOG.clear()
        self.send(b"")

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        if self.path == "/-/log":
            return self.send(json.dumps(LOG).encode())
        span, fault = self.headers.get("Range"), None
        with LOCK:
            for rule in RULES:
                asked = (("path", self.path), ("range", span or ""), ("method", self.command))
                if all(re.search(rule.get(key, ""), value) for key, value in asked):
                    rule["seen"] = rule.get("seen", 0) + 1
                    skip = rule.get("skip", 0)
                    if skip < rule["seen"] <= skip + rule.get("times", 10**9):
                        fault = rule["fault"]
            LOG.append({"method": self.command, "path": self.path, "range": span, "fault": fault})
        path = FOLDER / self.path.lstrip("/").split("?")[0]
        if fault == "stall":
            time.sleep(20)
        if fault in ("stall", "reset"):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif isinstance(fault, dict):
            self.send(b"", fault["status"], fault["headers"])
        elif isinstance(fault, int) or not path.is_file():
            self.send(b"", fault if isinstance(fault, int) else 404)
        elif fault == "drip":
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            while True:
                self.wfile.write(b"x")
                time.sleep(0.05)
        else:
            self.part(path.read_bytes(), span, fault == "truncate")

    def part(self, data, span, cut):
        code, headers = 200, {"Accept-Ranges": "bytes"}
        if span:
            first, last = re.fullmatch(r"bytes=(\d*)-(\d*)", span).groups()
            if not first:
                first, last = max(len(data) - int(last), 0), ""
            first, last = int(first), min(int(last or len(data)), len(data) - 1)
            code, headers["Content-Range"] = 206, f"bytes {first}-{last}/{len(data)}"
            data = data[first : last + 1]
        self.send(data, code, headers, cut)

    def send(self, data, code=200, headers=None, cut=False):
        self.send_response(code)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
            self.wfile.flush()
            self.close_connection = self.close_connection or cut


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *request):
        pass


if __name__ == "__main__":
    server = Server(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()
