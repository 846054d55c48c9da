"""What gunicorn itself makes of its configuration: run by `paddock import gunicorn`, behind prelude.py."""
import os
import sys

if sys.path and sys.path[0] == "":
    # gunicorn's own program has no working directory in front either; gunicorn adds it itself.
    del sys.path[0]
sys.argv = ["gunicorn", *request["arguments"]]
try:
    import gunicorn
    from gunicorn.app.base import Application
    from gunicorn.app.wsgiapp import WSGIApplication
except ModuleNotFoundError as missing:
    if missing.name != "gunicorn":
        raise
    tell(missing="gunicorn", python=sys.executable)


class Read(WSGIApplication):
    """Reads what gunicorn reads, in its order, and starts nothing."""

    location = None
    names = {}

    def do_load_config(self):
        # Whatever goes wrong shows its traceback.
        self.load_default_config()
        Application.load_config(self)
        if hasattr(self.cfg, "validate"):
            self.cfg.validate()

    def load_config_from_module_name_or_filename(self, location):
        self.location = location
        self.names = super().load_config_from_module_name_or_filename(location)
        return self.names


def words(setting, value):
    flag = max(setting.cli, key=len)
    if setting.action in ("store_true", "store_false", "store_const"):
        return [flag]
    said = []
    for one in value if isinstance(value, list) else [value]:
        text = str(one)
        said += [flag + "=" + text] if text.startswith("-") else [flag, text]
    return said


app = Read("%(prog)s [OPTIONS] [APP_MODULE]", prog="gunicorn")
cfg = app.cfg
plain_cfg = type(cfg)()
parser = cfg.parser()
command_line = {k: v for k, v in vars(parser.parse_args()).items() if v is not None}
environment = {k: v for k, v in vars(parser.parse_args(cfg.get_cmd_args_from_env())).items() if v is not None}
positional = command_line.pop("args", []) or []
environment.pop("args", None)

settings = []
for name, setting in cfg.settings.items():
    origin = "default"
    if name in command_line:
        origin = "command line"
    elif name in environment:
        origin = "GUNICORN_CMD_ARGS"
    elif name in app.names:
        origin = "file"
    value = setting.get()
    given = command_line.get(name, environment.get(name))
    settings.append({
        "name": name,
        "origin": origin,
        "value": plain(value),
        "default": plain(plain_cfg.settings[name].get()),
        "hook": callable(value) and not isinstance(value, type),
        "words": words(setting, given) if given is not None and setting.cli else [],
    })

module = type(os)
unknown = [
    {"name": name, "value": plain(value)}
    for name, value in app.names.items()
    if name not in cfg.settings and not name.startswith("_") and not isinstance(value, (module, type)) and not callable(value)
]


def account(database, get, number):
    try:
        module = __import__(database)
        return getattr(module, get)(number)[0]
    except (ImportError, KeyError, TypeError, OverflowError):
        return None if number is None else str(number)


tell(
    python=sys.executable,
    version=gunicorn.__version__,
    adapter=installed("paddock_worker"),
    location=app.location,
    application=app.app_uri or plain(cfg.wsgi_app if "wsgi_app" in cfg.settings else None),
    positional=[str(word) for word in positional],
    worker_class=cfg.worker_class_str,
    addresses=[plain(address) for address in cfg.address],
    user=account("pwd", "getpwuid", cfg.uid),
    group=account("grp", "getgrgid", cfg.gid),
    settings=settings,
    unknown=unknown,
)
