"""A Google Cloud Storage on loopback, for TensorFlow's own `gs://`.

TensorFlow's libcurl goes through the proxy that `https_proxy` names. This proxy
answers CONNECT itself, with certificates of its own authority, and plays
Google's hosts. It runs in a process of its own, because some of TensorFlow's
calls hold Python's lock while they wait for an answer. `fake_gcs.start()` also
sets the environment of the test's process.
"""

import base64
import http.server
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request

BUCKET = "bucket"
HOSTS = ("www.googleapis.com", "storage.googleapis.com")


class Server:
    """The storage in a process of its own, which ends with this one.

    Attributes:
        environment: variables that make TensorFlow use it.
    """

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory()
        authority = _certify(self._folder.name)
        self._process = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), self._folder.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.port = int(self._process.stdout.readline())
        self.environment = {
            "CURL_CA_BUNDLE": authority,
            "https_proxy": f"http://127.0.0.1:{self.port}",
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
        }

    def fail(self, match, **fault):
        """Fails requests; `match` is searched in "CLIENT: METHOD host/path".

        `times` is how many (1), `status` what they are answered (503), `cut`
        the bytes of the answer after which the connection ends. With `hold`
        they wait for `heal`, and are then carried out.
        """
        self._call("fail", match=match, **fault)

    def set(self, **settings):
        """Sets the `latency` of an answer's first byte, in seconds."""
        self._call("set", **settings)

    def heal(self):
        """Ends all faults and settings."""
        self._call("heal")

    def requests(self):
        """Those since the last call: "METHOD host/path status bytes"."""
        return self._call("log")

    def names(self):
        return self._call("names")

    def held(self):
        """How many requests wait."""
        return self._call("held")

    def environment_of(self, client):
        """The environment of a process that `fail` knows by a name."""
        proxy = f"http://{client}:@127.0.0.1:{self.port}"
        return self.environment | {"https_proxy": proxy}

    def _call(self, action, **values):
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/{action}",
            json.dumps(values).encode(),
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=30) as answer:
            return json.load(answer)


def start():
    """Starts a server and points this process at it; None without openssl."""
    if not shutil.which("openssl"):
        return None
    server = Server()
    os.environ.update(server.environment)
    return server


def _certify(folder):
    """Makes an authority and a certificate in a folder; returns the first."""
    path = {
        name: os.path.join(folder, name)
        for name in ("ca.pem", "ca.key", "csr", "names", "server.pem", "key")
    }
    with open(path["names"], "w") as file:
        file.write("subjectAltName=" + ",".join(f"DNS:{h}" for h in HOSTS))
    curve = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes".split()
    for arguments in (
        *("req -x509 -days 9 -subj /CN=test -out ca.pem -keyout ca.key",),
        *("req -subj /CN=storage -out csr -keyout key",),
        *("x509 -req -days 9 -CAcreateserial -in csr -out server.pem",),
    ):
        command = [path.get(word, word) for word in arguments.split()]
        command += curve if command[0] == "req" else []
        if command[0] == "x509":
            command += ["-CA", path["ca.pem"], "-CAkey", path["ca.key"]]
            command += ["-extfile", path["names"]]
        subprocess.run(["openssl", *command], check=True, capture_output=True)
    return path["ca.pem"]


class _Storage(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(f"{folder}/server.pem", f"{folder}/key")
        self.objects = {}  # name: (bytes, generation, seconds)
        self.uploads = {}  # id: [name, bytearray]
        self.faults, self.log = [], []
        self.settings = {"latency": 0.0}
        self.held = 0
        self.lock = threading.RLock()
        self.generation = 0

    def handle_error(self, request, client_address):
        pass  # clients that are killed

    def put(self, name, data):
        with self.lock:
            self.generation += 1
            now = time.time()
            self.objects[name] = bytes(data), self.generation, now
            return self.describe(name)

    def describe(self, name):
        data, generation, seconds = self.objects[name]
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        return {
            "bucket": BUCKET,
            "name": name,
            "size": str(len(data)),
            "generation": str(generation),
            "updated": f"{stamp}.{int(seconds % 1 * 1000):03d}Z",
        }

    def fault(self, line):
        with self.lock:
            for fault in self.faults:
                if fault["times"] > 0 and re.search(fault["match"], line):
                    fault["times"] -= 1
                    return fault
        return {}

    def hold(self, fault):
        """Waits until the fault is healed."""
        with self.lock:
            self.held += 1
        while any(left is fault for left in self.faults):
            time.sleep(0.02)
        with self.lock:
            self.held -= 1


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    # An answer is written in two parts; the second would wait 40 ms.
    disable_nagle_algorithm = True
    host = None  # Google's host that is being played, after CONNECT
    client = ""

    def log_message(self, *_):
        pass

    def do_CONNECT(self):
        host = self.path.partition(":")[0]
        client = self.headers.get("Proxy-Authorization", "Basic ").split()[1:]
        self.client = base64.b64decode("".join(client)).decode()[:-1]
        self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            self.connection = self.request = self.server.tls.wrap_socket(
                self.connection, server_side=True
            )
        except OSError:
            self.close_connection = True
            return
        self.host = host
        self.rfile = self.connection.makefile("rb", -1)
        self.wfile = self.connection.makefile("wb", 0)
        self.close_connection = False

    def do_GET(self):
        body = self._read_body()
        url = urllib.parse.urlsplit(self.path)
        if self.host is None:
            return self._control(url.path.strip("/"), json.loads(body))
        line = f"{self.command} {self.host}{self.path}"
        self._fault = self.server.fault(f"{self.client}: {line}")
        if "hold" in self._fault:
            self.server.hold(self._fault)
            self._fault = {}
        time.sleep(self.server.settings["latency"])
        self._status, self._sent = 0, 0
        try:
            if "status" in self._fault:
                self._answer(self._fault["status"], b"injected")
            elif "cut" in self._fault and self.command != "GET":
                self.close_connection = True
            else:
                query = dict(urllib.parse.parse_qsl(url.query))
                with self.server.lock:
                    answer = self._play(url.path, query, body)
                self._answer(*answer)
        finally:
            self.server.log.append(f"{line} {self._status} {self._sent}")

    do_POST = do_PUT = do_DELETE = do_GET

    def _read_body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _control(self, action, values):
        server, answer = self.server, {}
        with server.lock:
            if action == "fail":
                if not {"cut", "hold"} & {*values}:
                    values.setdefault("status", 503)
                server.faults.append({"times": 1, **values})
            elif action == "set":
                server.settings |= values
            elif action == "heal":
                server.faults = []
                server.settings = dict.fromkeys(server.settings, 0.0)
            elif action == "log":
                answer, server.log = server.log, []
            elif action == "names":
                answer = sorted(server.objects)
            elif action == "held":
                answer = server.held
        self._fault, self._status, self._sent = {}, 0, 0
        self._send(200, json.dumps(answer).encode(), {})

    def _play(self, path, query, body):
        """The status, body and headers of an answer."""
        parts = [urllib.parse.unquote(part) for part in path.split("/")[1:]]
        if self.host.startswith("storage"):
            return self._media(parts[0], "/".join(parts[1:]))
        if parts[0] == "upload":
            if self.command == "PUT":
                return self._continue(query["upload_id"], body)
            return self._upload(parts[4], query, body)
        bucket = parts[3]
        if bucket != BUCKET:
            return 404, b"{}"
        if len(parts) == 4:
            return self._json({"name": bucket, "location": "US"})
        if parts[4] != "o":
            return self._json({"hierarchicalNamespace": {"enabled": False}})
        if len(parts) == 5:
            return self._json(self._list(query))
        if parts[5] not in self.server.objects:
            return 404, b"{}"
        if self.command == "DELETE":
            del self.server.objects[parts[5]]
            return 204, b""
        if "rewriteTo" in parts:
            data = self.server.objects[parts[5]][0]
            made = self.server.put(parts[-1], data)
            return self._json({"done": True, "resource": made})
        return self._json(self.server.describe(parts[5]))

    def _json(self, value):
        return 200, json.dumps(value).encode()

    def _media(self, bucket, name):
        if bucket != BUCKET or name not in self.server.objects:
            return 404, b"{}"
        data = self.server.objects[name][0]
        wanted = re.fullmatch(
            r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")
        )
        if not wanted:
            return 200, data
        start, end = int(wanted[1]), int(wanted[2] or len(data)) + 1
        if start >= len(data):
            return 416, b""
        part = data[start:end]
        place = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
        return 206, part, {"Content-Range": place}

    def _list(self, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        entries = {}
        for name in sorted(self.server.objects):
            if not name.startswith(prefix):
                continue
            end = name.find(delimiter, len(prefix)) if delimiter else -1
            entries[name if end < 0 else name[: end + 1]] = end < 0
        after = query.get("pageToken", "")
        limit = int(query.get("maxResults", 1000))
        entries = {
            key: is_object for key, is_object in entries.items() if key > after
        }
        page = list(entries.items())[:limit]
        found = {
            "items": [{"name": name} for name, is_object in page if is_object],
            "prefixes": [name for name, is_object in page if not is_object],
        }
        if len(entries) > limit:
            found["nextPageToken"] = page[-1][0]
        return {key: value for key, value in found.items() if value}

    def _upload(self, bucket, query, body):
        if bucket != BUCKET:
            return 404, b"{}"
        if query["uploadType"] == "media":
            exists = query["name"] in self.server.objects
            if query.get("ifGenerationMatch") == "0" and exists:
                return 412, b"{}"
            return self._json(self.server.put(query["name"], body))
        number = str(len(self.server.uploads))
        self.server.uploads[number] = [query["name"], bytearray()]
        place = f"https://{HOSTS[0]}/upload/storage/v1/b/{bucket}/o"
        return 200, b"", {"Location": f"{place}?upload_id={number}"}

    def _continue(self, number, body):
        if number not in self.server.uploads:
            return 404, b"{}"
        name, data = self.server.uploads[number]
        place, total = self.headers["Content-Range"].split()[1].split("/")
        if place != "*":
            if int(place.split("-")[0]) != len(data):
                return 400, b"{}"
            data += body
        if len(data) < int(total):
            stored = {"Range": f"bytes=0-{len(data) - 1}"} if data else {}
            return 308, b"", stored
        del self.server.uploads[number]
        return self._json(self.server.put(name, data))

    def _answer(self, status, body, headers=None):
        self._status = status
        self._send(status, body, headers or {})

    def _send(self, status, body, headers):
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        part = body[: self._fault.get("cut", len(body))]
        self.wfile.write(part)
        self._sent += len(part)
        if "cut" in self._fault:
            self.close_connection = True


if __name__ == "__main__":
    storage = _Storage(sys.argv[1])
    print(storage.server_address[1], flush=True)
    threading.Thread(target=storage.serve_forever, daemon=True).start()
    sys.stdin.read()  # until the process that started it ends
