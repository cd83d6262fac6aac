"""The command `jest-tf train` as a module.

    python -m trainers.train --config configs/quickstart_uniform.py \
        --workdir runs/uniform
"""

import functools

from jest_tf import cli

main = functools.partial(cli.execute, command="train")

if __name__ == "__main__":
    main()
