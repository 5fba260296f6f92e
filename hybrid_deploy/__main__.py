"""`python -m hybrid_deploy`."""

from hybrid_deploy.cli import main

main()
