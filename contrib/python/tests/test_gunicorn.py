"""gunicorn's configuration, without gunicorn's master."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from gunicorn.workers import gthread
from manager import Manager, eventually
from paddock_worker.gunicorn_workers import _Finished, _public

CLASSES = {
    "sync": ["--worker-class=sync"],
    "gthread": ["--worker-class=gthread", "--threads=2"],
    "gevent": ["--worker-class=gevent"],
    "uvicorn": ["--worker-class=uvicorn_worker.UvicornWorker"],
}
if importlib.util.find_spec("gevent") is None:
    # There is no wheel of it for every Python.
    del CLASSES["gevent"]

HOOKS = """
def say(text):
    import sys
    print("hook", text, file=sys.stderr, flush=True)

def on_starting(server): say("on_starting")
def when_ready(server): say("when_ready")
def on_exit(server): say("on_exit")
def pre_fork(server, worker): say("pre_fork")
def post_fork(server, worker): say("post_fork %d" % worker.pid)
def post_worker_init(worker): say("post_worker_init")
def worker_int(worker): say("worker_int")
def worker_abort(worker): say("worker_abort")
def pre_request(worker, req): say("pre_request " + req.path)
def post_request(worker, req, environ, resp): say("post_request " + resp.status)
def worker_exit(server, worker): say("worker_exit")
def child_exit(server, worker): say("child_exit")
"""


def write(manager: Manager, text: str) -> None:
    """``gunicorn.conf.py`` in the working directory, where gunicorn looks for it."""
    (Path(manager.directory) / "gunicorn.conf.py").write_text(text)


def hooks(output: str) -> list[str]:
    return [line[5:] for line in output.splitlines() if line.startswith("hook ")]


def test_an_unchanged_configuration_file_is_read(manager: Manager) -> None:
    write(
        manager,
        """
wsgi_app = "plain:application"
bind = "0.0.0.0:80"
workers = 7
worker_class = "gthread"
threads = 3
user = "nobody"
umask = 0o077
timeout = 45
graceful_timeout = 9
max_requests = 1000
preload_app = True
pidfile = "/nonexistent/pid"
daemon = True
raw_env = ["GREETING=hello"]
keepalive = 5
""",
    )
    worker = manager.start("gunicorn").ready()
    assert manager.get().text == str(worker.pid)
    output = worker.output()
    for name in ("bind", "workers", "user", "umask", "timeout", "graceful_timeout", "max_requests"):
        assert f"{name} is paddock's here" in output
    for name in ("preload_app", "pidfile", "daemon"):
        assert f"{name} has no meaning here" in output
    for name in ("threads", "raw_env", "keepalive", "worker_class", "wsgi_app"):
        assert f"{name} is" not in output and f"{name} has" not in output
    assert "STATUS" in worker.wait_for("READY").fields and "ThreadWorker" in worker.wait_for("READY").fields["STATUS"]


def test_the_command_line_beats_the_file_and_the_environment_is_read(manager: Manager) -> None:
    write(manager, "wsgi_app = 'plain:nothing'\nthreads = 3\n")
    worker = manager.start("gunicorn", "plain:application", "--log-level=debug", GUNICORN_CMD_ARGS="--threads=2").ready()
    assert "ThreadWorker" in worker.wait_for("READY").fields["STATUS"]


@pytest.mark.parametrize("name", CLASSES)
def test_raw_env_reaches_the_application(manager: Manager, name: str) -> None:
    target = "environment:app" if name == "uvicorn" else "environment:application"
    manager.start("gunicorn", target, *CLASSES[name], "--env=GREETING=hello").ready()
    assert manager.get().text == "hello"


def test_hooks_are_called_in_order(manager: Manager) -> None:
    write(manager, HOOKS)
    worker = manager.start("gunicorn", "plain:application").ready()
    assert manager.get("/x").status == 200
    eventually(lambda: "post_request 200 OK" in hooks(worker.output()), "post_request")
    worker.drain()
    assert worker.wait() == 0
    assert hooks(worker.output()) == [
        "pre_fork",
        f"post_fork {worker.pid}",
        "post_worker_init",
        "pre_request /x",
        "post_request 200 OK",
        "worker_exit",
        "child_exit",
    ]
    for name in ("on_starting", "when_ready", "on_exit"):
        assert f"{name} ran once for all workers" in worker.output()


def test_hooks_of_the_master_on_request(manager: Manager) -> None:
    write(manager, HOOKS)
    worker = manager.start("gunicorn", "--server-hooks", "plain:application").ready()
    worker.signal(signal.SIGINT)
    assert worker.wait() == 0
    said = hooks(worker.output())
    assert said[0] == "on_starting" and "when_ready" in said and said[-1] == "on_exit" and "worker_int" in said


@pytest.mark.parametrize("name", ["sync", "gthread"])
def test_worker_abort_runs_after_the_stacks_were_printed(manager: Manager, name: str) -> None:
    write(manager, HOOKS)
    worker = manager.start("gunicorn", "plain:application", *CLASSES[name]).ready()
    worker.signal(signal.SIGABRT)
    assert worker.wait() == 1
    assert "Fatal Python error: Aborted" in worker.output()
    assert "worker_abort" in hooks(worker.output())


@pytest.mark.parametrize("name", CLASSES)
def test_its_own_max_requests_asks_for_a_replacement(manager: Manager, name: str) -> None:
    target = "plain:app" if name == "uvicorn" else "plain:application"
    worker = manager.start("gunicorn", target, *CLASSES[name], "--max-requests=5").ready()
    with manager.client() as client:
        for _ in range(4):
            client.get()
        time.sleep(0.3)
        assert not worker.values("X_PADDOCK_RECYCLE")
        client.get()
        worker.wait_for("X_PADDOCK_RECYCLE", "1")
        # It serves on until it is drained.
        assert client.get().text == str(worker.pid)


def test_paddocks_quota_beats_max_requests(manager: Manager) -> None:
    worker = manager.start("gunicorn", "plain:application", "--max-requests=3", PADDOCK_MAX_REQUESTS=6).ready()
    for _ in range(6):
        manager.get()
    worker.wait_for("X_PADDOCK_REQUESTS", "6", 2)
    assert not worker.values("X_PADDOCK_RECYCLE")


@pytest.mark.parametrize("name", CLASSES)
def test_it_survives_its_manager(manager: Manager, name: str) -> None:
    """The worker's parent dies: gunicorn's own worker would shut down, this one is adopted."""
    target = "plain:app" if name == "uvicorn" else "plain:application"
    script = manager.directory / "adopted.py"
    script.write_text(
        "import os, sys\n"
        "if os.fork(): os.wait(); sys.exit()\n"
        "os.environ['LISTEN_PID'] = os.environ['WATCHDOG_PID'] = str(os.getpid())\n"
        "open('child', 'w').write(str(os.getpid()))\n"
        f"os.execv(sys.executable, [sys.executable, '-m', 'paddock_worker', 'gunicorn', {target!r}, *{CLASSES[name]!r}])\n"
    )
    # The watchdog makes gunicorn's loops come round more often than once in half a minute.
    worker = manager.start(command=[sys.executable, str(script)], WATCHDOG_USEC=1_200_000)
    child = int(worker.wait_for("READY") and (manager.directory / "child").read_text())
    try:
        assert manager.get().text == str(child)
        time.sleep(1.2)
        worker.process.kill()
        worker.process.wait()
        # Longer than gunicorn's loops take to look at their parent.
        time.sleep(1.5)
        assert manager.get().text == str(child)
    finally:
        os.kill(child, signal.SIGKILL)


def test_check_config_works(manager: Manager) -> None:
    assert manager.start("gunicorn", "--check-config", "plain:application").wait() == 0
    assert manager.start("gunicorn", "--check-config", "broken:application").wait() == 1


def test_the_sync_class_takes_its_timeout_for_the_request_timeout(manager: Manager) -> None:
    worker = manager.start("gunicorn", "plain:application", "--timeout=1").ready()
    with manager.client() as client:
        client.send("/sleep/3")
        message = worker.wait_for("X_PADDOCK_RECYCLE", "1")
        assert client.receive().status == 200
        assert message.fields["STATUS"] == "GET /sleep/3 is hung"


def test_a_hung_thread_of_gthread_gets_a_substitute(manager: Manager) -> None:
    worker = manager.start("gunicorn", "plain:application", *CLASSES["gthread"], "--request-timeout=0.5").ready()
    with manager.client() as one, manager.client() as two, manager.client() as three:
        one.send("/sleep/60")
        two.send("/sleep/60")
        time.sleep(0.2)
        began = time.monotonic()
        # Both threads are taken for a minute.
        assert three.get().text == str(worker.pid)
        assert time.monotonic() - began < 10


def test_a_gthread_that_drops_connections_is_announced(manager: Manager) -> None:
    worker = manager.start("gunicorn", "plain:application", *CLASSES["gthread"]).ready()
    announced = "closes idle keep-alive connections when it drains" in worker.output()
    assert announced == (not hasattr(gthread, "STOP_KEEPALIVE_LINGER"))


def test_every_setting_of_gunicorn_has_its_place() -> None:
    """A new gunicorn with a setting that nobody has thought about fails here."""
    from gunicorn.config import KNOWN_SETTINGS
    from paddock_worker.gunicorn import ONCE_PER_SERVICE, TAKEN_OVER, WITHOUT_MEANING

    kept = set(
        """
        config chdir wsgi_app worker_class threads worker_connections keepalive limit_request_line limit_request_fields
        limit_request_field_size spew check_config print_config sendfile raw_env tmp_upload_dir secure_scheme_headers
        forwarded_allow_ips accesslog disable_redirect_access_to_syslog access_log_format errorlog loglevel capture_output
        logger_class logconfig logconfig_dict logconfig_json syslog_addr syslog syslog_prefix syslog_facility statsd_host
        dogstatsd_tags statsd_prefix proc_name default_proc_name pythonpath paste pre_fork post_fork post_worker_init worker_int
        worker_abort pre_request post_request child_exit worker_exit ssl_context proxy_protocol proxy_allow_ips protocol
        uwsgi_allow_ips keyfile certfile ssl_version cert_reqs ca_certs suppress_ragged_eofs do_handshake_on_connect ciphers
        http_protocols http2_cleartext http2_max_concurrent_streams http2_initial_window_size http2_max_frame_size
        http2_max_header_list_size raw_paste_global_conf permit_obsolete_folding strip_header_spaces
        permit_unconventional_http_method permit_unconventional_http_version casefold_http_method forwarder_headers header_map
        asgi_loop asgi_lifespan asgi_disconnect_grace_period websocket_max_message_size http_parser root_path
        """.split()
    )
    placed = kept | set(TAKEN_OVER) | set(WITHOUT_MEANING) | set(ONCE_PER_SERVICE)
    assert {setting.name for setting in KNOWN_SETTINGS} <= placed


def test_threads_wake_the_loop_once_for_all_they_have_finished() -> None:
    queue = _Finished()
    queue.init()
    try:
        done: list[int] = []
        for number in range(3):
            queue.defer(done.append, number)
        assert os.read(queue.fileno(), 10) == b"\0"
        os.write(queue._writer, b"\0")
        # What is handed in meanwhile is for the next turn, and wakes the loop for it.
        queue.defer(queue.defer, done.append, 3)
        queue.run_callbacks(None)
        assert done == [0, 1, 2]
        queue.run_callbacks(None)
        assert done == [0, 1, 2, 3]
        queue.run_callbacks(None)
    finally:
        queue.close()


def test_gthread_hands_back_through_the_quiet_queue() -> None:
    # Otherwise this version of gunicorn asks more of it, and its own is left in place.
    assert _public(getattr(gthread, "PollableMethodQueue", _Finished)) <= _public(_Finished)
