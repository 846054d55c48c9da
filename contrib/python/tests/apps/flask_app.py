from flask import Flask, jsonify, request

app = Flask(__name__)


@app.post("/sum")
def total():
    return jsonify(sum=sum(request.get_json()))
