"""The command line as `python -m hybrid_deploy`."""

from hybrid_deploy.cli import start

start()
