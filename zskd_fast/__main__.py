"""`python -m zskd_fast` is `zskd-fast`."""

import sys

from zskd_fast.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
