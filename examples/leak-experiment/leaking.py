"""The application: every request keeps a list of ten million elements, for ever."""

import os

from flask import Flask

ELEMENTS = 10_000_000
"""Eight bytes each: 76.3 MiB for a request."""

app = Flask(__name__)
kept = []


@app.get("/")
def front():
    return "it serves"


@app.get("/leak")
def leak():
    kept.append([0] * ELEMENTS)
    return str(os.getpid())
