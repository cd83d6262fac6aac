"""The command `jest-tf export` as a module.

    python -m trainers.export --model runs/jest --format saved_model \
        --output exported/jest --trust
"""

import functools

from jest_tf import cli

main = functools.partial(cli.execute, command="export")

if __name__ == "__main__":
    main()
