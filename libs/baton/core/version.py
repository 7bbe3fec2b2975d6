"""Which Baton this is: what services tell each other and operators."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("baton-serving")
except PackageNotFoundError:  # a source tree on the path that nobody installed
    VERSION = "unknown"
