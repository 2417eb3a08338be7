"""`python -m reward_services` is `rewards`."""

import sys

from reward_services.cli import main

if __name__ == "__main__":
    sys.exit(main())
