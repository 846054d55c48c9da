"""An application that notes what becomes of it when its process ends."""

import atexit
import sys
import threading
import time

from plain import app as plain_app
from plain import application as plain_application


def note(text):
    print(text, file=sys.stderr, flush=True)


class Heap:
    def __del__(self):
        note("the heap is taken apart")


def last_work():
    threading.main_thread().join()
    time.sleep(0.2)
    note("the thread is done")


heap = Heap()
heap.itself = heap
atexit.register(note, "the exit handler runs")
threading.Thread(target=last_work).start()
application, app = plain_application, plain_app
