"""A proxy that now and then does what networks and busy services do, and notes each time.

It stands between the nodes and the emulator of DynamoDB, S3, and SNS. The only answer that it makes up is a refusal.
`chaos.py` uses all of it, and single tests its outages.
"""

import collections
import http.client
import json
import socket
import struct
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REPEAT_BYTES_MAX = 1 << 20
# Per request through the proxy; together 2.4 %.
RATES = {"drop": 0.004, "lose": 0.005, "refuse": 0.006, "repeat": 0.005, "delay": 0.004}


class Events:
    """What happened and when, in a file of JSON lines; counts by kind."""

    def __init__(self, path):
        self._mutex, self._file = threading.Lock(), open(path, "w", encoding="utf-8")
        self._begin = time.monotonic()
        self.counts = collections.Counter()
        self.outages = collections.Counter()  # requests that met one, by service and action
        self.publishes = []  # the kinds of those that befell a Publish
        self.begun_twice = set()  # paths whose multipart upload began, or may have begun, once more than its client knows

    def now_s(self):
        """Seconds since the start."""
        return round(time.monotonic() - self._begin, 3)

    def add(self, kind, **more):
        """Notes one event."""
        with self._mutex:
            self.counts[kind] += 1
            if more.get("action") == "Publish":
                self.publishes.append(kind)
            if kind in ("proxy repeat", "proxy lose") and str(more.get("path", "")).endswith("?uploads"):
                self.begun_twice.add(urllib.parse.unquote(more["path"].removesuffix("?uploads")))
            if kind.startswith("proxy outage"):
                self.outages[f"{more['service']} {more['action']}"] += 1
            self._file.write(json.dumps({"t": self.now_s(), "kind": kind} | more) + "\n")
            self._file.flush()


class Proxy:
    """Stands before the emulator at `upstream`, and does to a request by chance what `rates` say."""

    def __init__(self, upstream, rng, events, rates=RATES):
        self.upstream, self.rng, self.events = urllib.parse.urlsplit(upstream).netloc, rng, events
        self.rates = rates
        self.requests = 0
        self._outages = {}  # service -> monotonic begin and end
        self.on_publish = None  # what is to befall one Publish: when ("before", "after", "lose"), and what to call then
        self.on_request = None  # called with each request: service, method, path, headers, and body if it is small
        self._mutex = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _request_class(self))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Stops listening."""
        self._http.shutdown()
        self._http.server_close()

    def decide(self, service):
        """What befalls this request: a kind and a number in [0, 1)."""
        with self._mutex:
            self.requests += 1
            one, two = self.rng.random(), self.rng.random()
        begin, end = self._outages.get(service, (0, 0))
        if begin <= time.monotonic() < end:
            return ("outage-drop" if two < 0.5 else "outage-refuse"), two
        for kind, rate in self.rates.items():
            if one < rate:
                return kind, two
            one -= rate
        return None, two

    def outage(self, service, after_s, length_s):
        """Makes a service fail every request for a while, some time from now."""
        begin = time.monotonic() + after_s
        self._outages[service] = (begin, begin + length_s)

    def take_publish(self, when):
        """Does to a Publish what is planned for this point, and returns whether something was, and could be done."""
        with self._mutex:
            planned = self.on_publish
            if planned is None or planned[0] != when:
                return False
            self.on_publish = None
        is_done = planned[1]()
        if not is_done:
            self.on_publish = planned
        return is_done


def _request_class(proxy):
    class Request(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        timeout = 120

        def handle_one_request(self):
            try:
                super().handle_one_request()
            except (OSError, http.client.HTTPException):
                self.close_connection = True

        def _any(self):
            scope = self.headers.get("Authorization", "").split("Credential=")[-1].split(",")[0].split("/")
            service = scope[3] if len(scope) > 3 else "other"
            action = self.headers.get("X-Amz-Target", "").split(".")[-1] or self.command
            length = int(self.headers.get("Content-Length") or 0)
            body = None
            if length <= REPEAT_BYTES_MAX and "chunked" not in self.headers.get("Transfer-Encoding", ""):
                body = self.rfile.read(length)
            if service == "sns" and body and b"Action=Publish" in body:
                action = "Publish"
            if proxy.on_request:
                proxy.on_request(service, self.command, self.path, self.headers, body)
            kind, dice = proxy.decide(service)
            if kind == "repeat" and body is None:
                kind = None
            if action == "Publish" and proxy.on_publish:
                # What was planned for it, and nothing else.
                kind = "lose" if proxy.take_publish("lose") else None
                if proxy.take_publish("before"):
                    # Its sender is dead, and the service never hears of it.
                    return self._hang_up(dice)
            if kind:
                proxy.events.add(f"proxy {kind}", service=service, action=action, path=self.path[:200])
            if kind in ("drop", "outage-drop"):
                return self._hang_up(dice)
            if kind in ("refuse", "outage-refuse"):
                return self._refuse(service, kind, length if body is None else 0)
            if kind == "delay":
                time.sleep(0.2 + 1.3 * dice)
            if kind == "repeat":
                with self._forward(body, length) as first:
                    kept = (first.status, first.headers, first.read())
                with self._forward(body, length) as second:
                    again = (second.status, second.headers, second.read())
                return self._send_whole(*(kept if dice < 0.5 else again))
            with self._forward(body, length) as answer:
                if action == "Publish":
                    # Applied, and the sender does not know it yet.
                    proxy.take_publish("after")
                if kind == "lose":
                    answer.read()
                    return self._hang_up(dice)
                self._relay(answer)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _any

        def _forward(self, body, length):
            up = http.client.HTTPConnection(proxy.upstream, timeout=60)
            up.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("expect", "connection"):
                    up.putheader(name, value)
            up.putheader("Connection", "close")
            up.endheaders()
            if body is not None:
                up.send(body)
            elif "chunked" in self.headers.get("Transfer-Encoding", ""):
                while True:
                    line = self.rfile.readline()
                    size = int(line.split(b";")[0], 16)
                    up.send(line + self.rfile.read(size) + self.rfile.readline())
                    if size == 0:
                        break
            else:
                while length > 0:
                    piece = self.rfile.read(min(length, 1 << 16))
                    if not piece:
                        raise ConnectionError("the client went away")
                    up.send(piece)
                    length -= len(piece)
            return up.getresponse()

        def _head(self, status, headers, length):
            # Not send_response: it would add its own Server and Date.
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                    self.send_header(name, value)
            if length is not None:
                self.send_header("Content-Length", str(length))
            else:
                self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()

        def _relay(self, answer):
            length = answer.getheader("Content-Length")
            if self.command == "HEAD" or answer.status in (204, 304):
                return self._head(answer.status, answer.headers, length or 0)
            self._head(answer.status, answer.headers, length)
            while piece := answer.read(1 << 16):
                self.wfile.write(piece if length is not None else b"%x\r\n%s\r\n" % (len(piece), piece))
            if length is None:
                self.wfile.write(b"0\r\n\r\n")

        def _send_whole(self, status, headers, payload):
            length = headers["Content-Length"] if self.command == "HEAD" else len(payload)
            self._head(status, headers, length or 0)
            self.wfile.write(payload)

        def _refuse(self, service, kind, unread):
            while unread > 0 and (piece := self.rfile.read(min(unread, 1 << 16))):
                unread -= len(piece)
            if service == "dynamodb" and kind == "refuse":
                status, mime = 400, "application/x-amz-json-1.0"
                text = '{"__type":"com.amazonaws.dynamodb.v20120810#ThrottlingException","message":"Slow down"}'
            elif service == "dynamodb":
                status, mime = 500, "application/x-amz-json-1.0"
                text = '{"__type":"com.amazonaws.dynamodb.v20120810#InternalServerError","message":"Internal"}'
            elif service == "s3":
                status, mime = 503, "application/xml"
                text = "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
            else:
                status, mime = 400, "text/xml"
                text = (
                    '<ErrorResponse xmlns="http://sns.amazonaws.com/doc/2010-03-31/"><Error><Type>Sender</Type>'
                    "<Code>Throttling</Code><Message>Rate exceeded</Message></Error></ErrorResponse>"
                )
            payload = b"" if self.command == "HEAD" else text.encode()
            self._send_whole(status, {"Content-Type": mime, "Content-Length": str(len(text))}, payload)

        def _hang_up(self, dice):
            self.close_connection = True
            if dice < 0.25 or dice > 0.75:
                # A reset rather than an orderly end.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

        def log_message(self, *_):
            pass

    return Request
