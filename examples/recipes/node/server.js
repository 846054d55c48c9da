// `/` answers the worker's pid, `/grow` takes memory until the fence ends it.
"use strict";
const http = require("node:http");
const net = require("node:net");

let draining = false;

const server = http.createServer((request, response) => {
  if (request.url === "/grow") {
    // Given back when it is answered; it is not, where [memory] max is enforced.
    const taken = [];
    for (let megabyte = 0; megabyte < 512; megabyte += 1) taken.push(Buffer.alloc(1 << 20, "x"));
  }
  if (draining) response.setHeader("Connection", "close");
  response.end(String(process.pid));
});

// The first of the sockets that paddock holds. No worker binds anything.
server.listen({ fd: 3 });

process.on("SIGTERM", () => {
  draining = true;
  // Not server.close(): since Node 19 that also closes connections that wait for their next request, and a client that
  // is just sending it loses it. So only the listening ends; each open connection ends with its next answer, or
  // after server.keepAliveTimeout (5 s) without a request. The process ends with the last of them.
  net.Server.prototype.close.call(server, () => process.exit(0));
});
