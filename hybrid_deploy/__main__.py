"""The command line as `python -m hybrid_deploy`."""

import os

try:
    from hybrid_deploy.cli import start
except KeyboardInterrupt:  # before `start` has a handler for it
    os._exit(130)

start()
