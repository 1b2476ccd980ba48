"""A small IMDSv2 server: the metadata service of one instance, or of many told apart by source address.

In a test:     with ImdsServer(Instance("i-0123", tags={"srcID": "a.txt"})) as imds: ... imds.url ...
By itself:     python imds_server.py --port 0 --instance-id i-0123 --tag srcID=a.txt
               (the address is the first line of stdout)
Many of them:  python imds_server.py --instances FILE with {"10.0.0.2": {"instance_id": "i-0123", "tags": {...}}}

It never answers a read without a token it issued itself: a client that speaks IMDSv1 gets 401.
"""

import argparse
import collections
import dataclasses
import datetime
import http.server
import json
import re
import secrets
import sys
import threading
import time
import urllib.parse

META = "/latest/meta-data"
TOKEN_PATH = "/latest/api/token"
TTL_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"
TOKEN_HEADER = "X-aws-ec2-metadata-token"
TTL_S_MAX = 21_600  # six hours, as the real service allows

VERSION = re.compile(r"^/[0-9]{4}-[0-9]{2}-[0-9]{2}/")
# A tag whose key holds anything else is not shown under tags/instance.
TAG_KEY_IN_IMDS = re.compile(r"[A-Za-z0-9+\-=._:@]+\Z")


@dataclasses.dataclass
class Instance:
    """What the service knows of one instance. All of it may be changed while the server runs."""

    instance_id: str = "i-00000000000000001"
    tags: dict = dataclasses.field(default_factory=dict)
    tags_enabled: bool = True
    region: str = "us-east-1"
    zone: str = "a"
    instance_type: str = "t3.micro"
    account_id: str = "123456789012"
    role: str | None = "lighthpc-node"
    access_key_id: str = "ASIAIMDSEXAMPLE00001"
    secret_access_key: str = "from-imds-not-a-secret"
    session_token: str = "from-imds-not-a-token"
    spot_action: dict | None = None  # {"action": "terminate", "time": "2030-01-01T00:00:00Z"}
    rebalance: dict | None = None  # {"noticeTime": "2030-01-01T00:00:00Z"}
    user_data: str | None = None

    def interrupt(self, action="terminate", in_s=120):
        """Gives the two-minute notice."""
        self.spot_action = {"action": action, "time": _utc(in_s)}

    def recommend_rebalance(self):
        """Gives the earlier, vaguer sign."""
        self.rebalance = {"noticeTime": _utc()}

    def answer(self, path):
        """Returns the body for a path, or None: 404."""
        # Versions of the service differ in what they know, not in how it is asked.
        path = VERSION.sub("/latest/", path)
        leaves = {
            "/latest/user-data": self.user_data,
            f"{META}/instance-id": self.instance_id,
            f"{META}/instance-type": self.instance_type,
            f"{META}/instance-life-cycle": "spot",
            f"{META}/ami-id": "ami-12c6146b",
            f"{META}/placement/region": self.region,
            f"{META}/placement/availability-zone": self.region + self.zone,
            f"{META}/spot/instance-action": self.spot_action and json.dumps(self.spot_action),
            f"{META}/events/recommendations/rebalance": self.rebalance and json.dumps(self.rebalance),
            "/latest/dynamic/instance-identity/document": json.dumps(self._identity(), indent=2),
        }
        if path in leaves:
            return leaves[path]
        if path.startswith(f"{META}/tags/instance"):
            return self._tag(path)
        if path.startswith(f"{META}/iam/"):
            return self._credentials(path)
        # A folder lists what is in it.
        folder = path.rstrip("/") + "/"
        below = {leaf.removeprefix(folder) for leaf, text in leaves.items() if text and leaf.startswith(folder)}
        return "\n".join(sorted({re.sub("/.*", "/", name) for name in below})) or None

    def _identity(self):
        return {
            "accountId": self.account_id,
            "architecture": "x86_64",
            "availabilityZone": self.region + self.zone,
            "imageId": "ami-12c6146b",
            "instanceId": self.instance_id,
            "instanceType": self.instance_type,
            "region": self.region,
            "version": "2017-09-30",
        }

    def _tag(self, path):
        if not self.tags_enabled:
            return None
        shown = {key: value for key, value in self.tags.items() if TAG_KEY_IN_IMDS.match(key)}
        name = path.removeprefix(f"{META}/tags/instance")
        if name in ("", "/"):
            return "\n".join(shown) or None
        return shown.get(urllib.parse.unquote(name[1:]))

    def _credentials(self, path):
        prefix = f"{META}/iam/security-credentials"
        if self.role is None or not path.startswith(prefix):
            return None
        name = path.removeprefix(prefix)
        if name in ("", "/"):
            return self.role
        if name != f"/{self.role}":
            return None
        credentials = {
            "Code": "Success",
            "LastUpdated": _utc(),
            "Type": "AWS-HMAC",
            "AccessKeyId": self.access_key_id,
            "SecretAccessKey": self.secret_access_key,
            "Token": self.session_token,
            "Expiration": _utc(6 * 3600),
        }
        return json.dumps(credentials, indent=2)


def _utc(in_s=0):
    when = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=in_s)
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")


class ImdsServer:
    """The server, on threads of its own. `requests` counts by path; `fail_next` makes it ill for a while."""

    def __init__(self, instance=None, host="127.0.0.1", port=0):
        self.by_address = {}
        self.default = instance
        self.requests = collections.Counter()
        self.refused = 0  # reads without a good token
        self._mutex = threading.Lock()
        self._tokens = {}  # token -> monotonic end
        self._failures = [0, 503]
        self._http = _Server((host, port), _request_class(self))
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self):
        """The value for AWS_EC2_METADATA_SERVICE_ENDPOINT."""
        host, port = self._http.server_address[:2]
        return f"http://{host}:{port}"

    def add(self, address, instance):
        """Makes `instance` the one that asks from this source address."""
        self.by_address[address] = instance

    def fail_next(self, times, status=503):
        """Answers the next `times` requests of any kind with `status`."""
        with self._mutex:
            self._failures = [times, status]

    def count(self, part):
        """How many requests had a path with `part` in it."""
        with self._mutex:
            return sum(number for path, number in self.requests.items() if part in path)

    def start(self):
        """Starts to answer."""
        self._thread.start()
        return self

    def stop(self):
        """Ends the server; safe to call once after `start`."""
        self._http.shutdown()
        self._http.server_close()

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()

    def reply(self, method, address, path, headers):
        """Decides on one request: (status, body, extra headers)."""
        with self._mutex:
            self.requests[f"{method} {path}"] += 1
            if self._failures[0] > 0:
                self._failures[0] -= 1
                return self._failures[1], "", {}
        if "X-Forwarded-For" in headers:
            return 403, "", {}
        if path == TOKEN_PATH:
            return self._issue(headers) if method == "PUT" else (405, "", {"Allow": "OPTIONS, PUT"})
        if method != "GET":
            return 405, "", {"Allow": "OPTIONS, GET"}
        with self._mutex:
            if self._tokens.get(headers.get(TOKEN_HEADER), 0) < time.monotonic():
                self.refused += 1
                return 401, "", {}
        instance = self.by_address.get(address, self.default)
        body = instance.answer(path) if instance else None
        return (404, "", {}) if body is None else (200, body, {})

    def _issue(self, headers):
        ttl = headers.get(TTL_HEADER, "")
        if not ttl.isdigit() or not 1 <= int(ttl) <= TTL_S_MAX:
            return 400, "", {}
        token = secrets.token_urlsafe(40)
        with self._mutex:
            self._tokens[token] = time.monotonic() + int(ttl)
        return 200, token, {TTL_HEADER: ttl}


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        # A client that is killed breaks its connection: nothing to print a traceback about.
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def _request_class(server):
    class Request(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        server_version = "EC2ws"
        disable_nagle_algorithm = True

        def do_GET(self):
            path = self.path.split("?")[0]
            length = int(self.headers.get("Content-Length") or 0)
            if length:
                self.rfile.read(length)
            status, body, extra = server.reply(self.command, self.client_address[0], path, self.headers)
            payload = body.encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Content-Length", str(len(payload)))
            for name, value in extra.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(payload)

        do_PUT = do_GET
        do_POST = do_GET

        def log_message(self, *_):
            pass

    return Request


def _arguments():
    parser = argparse.ArgumentParser(description="Answers as EC2's instance metadata service, version 2, does.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0, the default: any free one")
    parser.add_argument("--instance-id", default=Instance.instance_id)
    parser.add_argument("--tag", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--no-tags", action="store_true", help="instance tags are not offered: 404")
    parser.add_argument("--region", default=Instance.region)
    parser.add_argument("--no-role", action="store_true", help="the instance has no role: no credentials")
    parser.add_argument("--interrupt-in", type=float, metavar="SECONDS", help="give the spot notice so long from now")
    parser.add_argument(
        "--fail", type=int, default=0, metavar="N", help="answer the first N requests with --fail-status"
    )
    parser.add_argument("--fail-status", type=int, default=503)
    parser.add_argument("--instances", metavar="FILE", help="JSON: source address to an instance's fields")
    return parser.parse_args()


def main():
    """Serves until it is interrupted."""
    arguments = _arguments()
    instance = Instance(
        instance_id=arguments.instance_id,
        tags=dict(tag.split("=", 1) for tag in arguments.tag),
        tags_enabled=not arguments.no_tags,
        region=arguments.region,
        role=None if arguments.no_role else Instance.role,
    )
    server = ImdsServer(instance, arguments.host, arguments.port)
    if arguments.instances:
        with open(arguments.instances, encoding="utf-8") as file:
            for address, fields in json.load(file).items():
                server.add(address, Instance(**fields))
    server.fail_next(arguments.fail, arguments.fail_status)
    if arguments.interrupt_in is not None:
        threading.Timer(arguments.interrupt_in, instance.interrupt).start()
    with server:
        print(server.url, flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
