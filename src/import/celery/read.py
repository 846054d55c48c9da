"""What Celery itself makes of its configuration: run by `paddock import celery`, behind prelude.py."""
import os
import sys

# Celery's own program puts the working directory there as well.
sys.path[:1] = [os.getcwd()]
try:
    import celery
    import click
    from celery import Celery
    from celery.app.defaults import NAMESPACES, flatten
    from celery.app.utils import find_app
    from celery.bin.celery import celery as main
    from celery.bin.worker import worker
except ModuleNotFoundError as missing:
    if missing.name not in ("celery", "click"):
        raise
    tell(missing="celery", python=sys.executable)


def wrong(text):
    tell(wrong=text, python=sys.executable)


def parse(command, arguments):
    """An option's canonical flag, its dashless name and its values, as the command line gives them."""
    try:
        given, rest, order = command.make_parser(click.Context(command)).parse_args(list(arguments))
    except click.ClickException as problem:
        wrong(problem.format_message())
    options = []
    for param in command.params:
        if param.name in given and isinstance(param, click.Option) and given[param.name] not in (None, ()):
            flag = max(param.opts, key=len)
            options.append({"flag": flag, "value": None if param.is_flag else plain(given[param.name])})
    return options, rest


arguments = request["arguments"]
# Celery's global options stand before the word worker.
general, rest = parse(main, arguments)
if rest and rest[0] != "worker":
    wrong(f"celery {rest[0]}: only `celery worker` becomes an app of paddock's")
own, rest = parse(worker, rest[1:])
if rest:
    wrong(f"celery worker does not take {' '.join(map(str, rest))!r}")

general_values = {option["flag"]: option["value"] for option in general}
workdir = general_values.get("--workdir")
if workdir:
    os.chdir(workdir)
    sys.path[0] = os.getcwd()
for flag, variable in (("--broker", "CELERY_BROKER_URL"), ("--result-backend", "CELERY_RESULT_BACKEND"),
                       ("--loader", "CELERY_LOADER"), ("--config", "CELERY_CONFIG_MODULE")):
    if general_values.get(flag):
        os.environ[variable] = general_values[flag]
target = request["app"] or general_values.get("--app") or os.environ.get("APP")
if target:
    app = find_app(target)
else:
    app = Celery("imported", set_as_current=False)
if request["config"]:
    import importlib.util

    # Under its own name, so that what it imports and what imports it find it.
    name = os.path.splitext(os.path.basename(request["config"]))[0]
    spec = importlib.util.spec_from_file_location(name, request["config"])
    if spec is None:
        wrong(f"{request['config']} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    app.config_from_object(module)

known = dict(flatten(NAMESPACES))
# Looking something up makes Celery read its configuration.
app.conf["worker_pool"]
conf = app.conf
given = {str(name) for layer in conf.maps[:-1] for name in layer} - {"deprecated_settings"}
settings = []
for name in sorted(known):
    if not name.startswith(("worker_", "task_")):
        continue
    value = conf[name]
    default = known[name].default
    if name in given or value != default:
        settings.append({"name": name, "value": plain(value), "is_default": value == default})
others = sorted(name for name in known if (name in given or name.upper() in given) and not name.startswith(("worker_", "task_")))
old = {name.lower() for option in known.values() for name in option.old or ()}
unknown = sorted(
    name for name in given
    if name.lower() not in known and name.lower() not in old and name.isidentifier() and not name.startswith("_")
    and not isinstance(conf.get(name), (type, type(os))) and not callable(conf.get(name))
)
broker = conf.broker_read_url or conf.broker_url or ""
if isinstance(broker, (list, tuple)):
    broker = broker[0] if broker else ""

tell(
    python=sys.executable,
    version=celery.__version__,
    adapter=installed("paddock_worker"),
    target=target,
    main=app.main,
    directory=os.getcwd(),
    transport=str(broker).partition(":")[0],
    has_visibility_timeout="visibility_timeout" in (conf.broker_transport_options or {}),
    general=general,
    worker=own,
    settings=settings,
    others=others,
    unknown=unknown,
)
