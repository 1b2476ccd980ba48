"""An S3 at the limit of the loopback device, for `scripts/bench --transfer`.

It serves one object from memory by sendfile(2), and discards what is uploaded in the kernel, so that nearly all of the
measured time is the client's. It verifies no signature. Not for tests: it knows the few requests of a transfer only.
"""

import contextlib
import os
import re
import socket
import ssl
import threading
import urllib.parse
import xml.sax.saxutils

BLOCK_BYTES = 1 << 20
HEAD_BYTES_MAX = 64 * 1024
ETAG = '"00000000000000000000000000000001"'
XML = '<?xml version="1.0" encoding="UTF-8"?>'


class Server:
    """The service. It has one object, of `size` bytes, under each key that is read."""

    def __init__(self, size, certificate=None):
        self.size = size
        self.uploaded = 0  # bytes of bodies since the last look
        self.requests = 0
        self._lock = threading.Lock()
        self._object = os.memfd_create("object")
        for start in range(0, size, BLOCK_BYTES):
            os.write(self._object, os.urandom(min(BLOCK_BYTES, size - start)))
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._tls = None
        if certificate:
            self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self._tls.load_cert_chain(certificate)
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self):
        """The endpoint."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._listener.getsockname()[1]}"

    def content(self):
        """The object's bytes, in blocks."""
        for start in range(0, self.size, BLOCK_BYTES):
            yield os.pread(self._object, BLOCK_BYTES, start)

    def close(self):
        """Ends it."""
        self._listener.close()
        os.close(self._object)

    def take_counts(self):
        """The bytes and the requests since the last call."""
        with self._lock:
            counts = self.uploaded, self.requests
            self.uploaded = self.requests = 0
        return counts

    def _accept(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection):
        # A client that leaves in the middle is its own affair: the run fails on the client's side.
        with contextlib.suppress(OSError, ValueError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
            with connection:
                while self._answer(connection):
                    pass

    def _answer(self, connection):
        head = bytearray()
        while b"\r\n\r\n" not in head:
            received = connection.recv(16 * 1024)
            if not received or len(head) > HEAD_BYTES_MAX:
                return False
            head += received
        head, _, rest = bytes(head).partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if "100-continue" in headers.get("expect", "").lower() and not rest:
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if headers.get("transfer-encoding") == "chunked":
            length, body = self._receive_chunks(connection, rest), b""
        else:
            length = int(headers.get("content-length", 0))
            body = rest + self._receive(connection, length - len(rest), keeps=method == "POST")
        with self._lock:
            self.requests += 1
            self.uploaded += length if method == "PUT" else 0
        self._reply(connection, method, target, headers, body)
        return True

    def _receive(self, connection, left, keeps):
        """Reads a body; one that is not kept stays in the kernel, except with TLS."""
        kept, block = bytearray(), bytearray(BLOCK_BYTES)
        flags = 0 if keeps or self._tls else socket.MSG_TRUNC
        while left > 0:
            received = connection.recv_into(block, min(left, BLOCK_BYTES), flags)
            if not received:
                raise ValueError("the body ended early")
            kept += block[:received] if keeps else b""
            left -= received
        return bytes(kept)

    def _receive_chunks(self, connection, rest):
        """Reads the chunks of a body, and returns their size. Source: RFC 9112, section 7.1."""
        held, total = bytearray(rest), 0
        while True:
            while b"\r\n" not in held:
                held += connection.recv(16 * 1024) or b"\r\nended early\r\n"
            line, _, held = held.partition(b"\r\n")
            size = int(line.split(b";")[0], 16)
            total += size
            left = size + 2 - len(held)  # a line end follows each chunk, and no trailers the last one
            del held[: size + 2]
            self._receive(connection, left, keeps=False)
            if size == 0:
                return total

    def _reply(self, connection, method, target, headers, body):
        path, _, query = target.partition("?")
        asked = urllib.parse.parse_qs(query, keep_blank_values=True)
        bucket, _, key = urllib.parse.unquote(path).lstrip("/").partition("/")
        if method in ("GET", "HEAD") and key:
            self._send_object(connection, method, headers)
        elif method == "GET":
            item = f"<Contents><Key>object</Key><Size>{self.size}</Size><ETag>{ETAG}</ETag>"
            item += "<LastModified>2026-01-01T00:00:00.000Z</LastModified><StorageClass>STANDARD</StorageClass></Contents>"
            self._send(connection, f"{XML}<ListBucketResult><Name>{bucket}</Name>{item}</ListBucketResult>")
        elif method == "POST" and "uploads" in asked:
            names = f"<Bucket>{bucket}</Bucket><Key>{xml.sax.saxutils.escape(key)}</Key><UploadId>1</UploadId>"
            self._send(connection, f"{XML}<InitiateMultipartUploadResult>{names}</InitiateMultipartUploadResult>")
        elif method == "POST" and "uploadId" in asked:
            parts = len(re.findall(rb"<PartNumber>", body))
            etag = f"<ETag>&quot;{parts:032x}-{parts}&quot;</ETag>"
            self._send(connection, f"{XML}<CompleteMultipartUploadResult>{etag}</CompleteMultipartUploadResult>")
        else:
            self._send(connection, "")

    def _send_object(self, connection, method, headers):
        first, last, status = 0, self.size - 1, "200 OK"
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", "")):
            first, last = int(asked[1]), min(int(asked[2] or last), last)
            status = "206 Partial Content"
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {last - first + 1}", f"ETag: {ETAG}", "Accept-Ranges: bytes"]
        lines += ["Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT", "Content-Type: application/octet-stream"]
        if status.startswith("206"):
            lines.append(f"Content-Range: bytes {first}-{last}/{self.size}")
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        while method == "GET" and first <= last:
            if self._tls:
                block = os.pread(self._object, min(BLOCK_BYTES, last - first + 1), first)
                connection.sendall(block)
                first += len(block)
            else:
                first += os.sendfile(connection.fileno(), self._object, first, last - first + 1)

    def _send(self, connection, body):
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nETag: {ETAG}\r\nContent-Type: application/xml\r\n\r\n"
        connection.sendall((head + body).encode())
