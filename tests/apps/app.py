"""The sample application for gunicorn: the routes of server.js, and nothing that knows of Handoff."""

import json
import os
import time

orders = open(os.environ.get("ORDERS", os.devnull), "a")


def order(what, name):
    os.write(orders.fileno(), f"{what} {name} {os.getpid()} {time.monotonic_ns()}\n".encode())


def app(environ, start_response):
    path, status = environ["PATH_INFO"], "200 OK"
    if path == "/slow":
        time.sleep(0.3)
    elif path == "/orders":
        name = json.loads(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))["id"]
        order("start", name)
        time.sleep(0.05)
        order("done", name)
        status = "201 Created"
    start_response(status, [("Content-Length", "3"), ("X-Worker-PID", str(os.getpid()))])
    return [b"ok\n"]
