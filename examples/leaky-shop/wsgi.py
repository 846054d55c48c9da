"""What a WSGI server imports."""

from shop import app as application

__all__ = ["application"]
