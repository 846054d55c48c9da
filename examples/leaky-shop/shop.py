"""A small web shop that leaks.

It has the bug that everybody has had: something is remembered for each request, and nothing ever forgets it. Here it is the
list of scores behind "customers also looked at". ``LEAK_MB`` is the size of one such list in MiB (default 8); at 78 it is
the classic list of ten million elements.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from flask import Flask, abort, jsonify, render_template, request

LEAK_MB = float(os.environ.get("LEAK_MB", "8"))
POINTER = 8  # bytes that one element of a Python list takes


@dataclass(frozen=True)
class Product:
    number: int
    name: str
    cents: int

    @property
    def price(self) -> str:
        return f"{self.cents // 100}.{self.cents % 100:02d} €"


CATALOGUE = {
    number: Product(number, name, cents)
    for number, (name, cents) in enumerate(
        [
            ("Teapot, blue", 2490),
            ("Teapot, chipped", 490),
            ("Kettle", 3990),
            ("Six cups", 1800),
            ("Sieve", 650),
            ("Darjeeling, 100 g", 890),
            ("Assam, 100 g", 790),
            ("Biscuits", 320),
        ],
        start=1,
    )
}

app = Flask(__name__)

scores_of_past_requests: list[list[None]] = []
"""The leak."""

_served = 0
_started = time.monotonic()


@app.before_request
def remember() -> None:
    global _served
    if request.path in ("/health", "/worker"):
        return
    _served += 1
    scores_of_past_requests.append([None] * int(LEAK_MB * 2**20 / POINTER))


@app.after_request
def say_who(response):
    response.headers["X-Worker-Pid"] = str(os.getpid())
    return response


@app.get("/")
def front():
    return render_template("front.html", products=CATALOGUE.values())


@app.get("/product/<int:number>")
def product(number: int):
    found = CATALOGUE.get(number) or abort(404)
    also = [other for other in CATALOGUE.values() if other.number % 3 == number % 3 and other != found]
    return render_template("product.html", product=found, also=also)


@app.post("/order")
def order():
    try:
        lines = [(CATALOGUE[int(number)], int(count)) for number, count in request.form.items()]
    except (KeyError, ValueError):
        abort(400)
    return jsonify(total=sum(product.cents * count for product, count in lines), pid=os.getpid())


@app.get("/health")
def health():
    """For load balancers: leaks nothing."""
    return "ok\n"


@app.get("/worker")
def worker():
    """What this worker has on its conscience; leaks nothing."""
    return jsonify(
        pid=os.getpid(),
        slot=os.environ.get("PADDOCK_SLOT"),
        generation=os.environ.get("PADDOCK_GENERATION"),
        served=_served,
        leaked_mb=round(len(scores_of_past_requests) * LEAK_MB, 1),
        age=round(time.monotonic() - _started, 1),
    )
