"""A whole Django project in one file, for WSGI and ASGI."""

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import JsonResponse
from django.urls import path

settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="test", MIDDLEWARE=["django.middleware.common.CommonMiddleware"])
django.setup()


def total(request):
    import json

    return JsonResponse({"sum": sum(json.loads(request.body))})


urlpatterns = [path("sum", total)]
application = get_wsgi_application()
app = get_asgi_application()
