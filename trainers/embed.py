"""The command `jest-tf embed` as a module.

    python -m trainers.embed --workdir examples/icontext_mini/reference \
        --data 'examples/icontext_mini/pool-*.tfrecord' --trust
"""

import functools

from jest_tf import cli

main = functools.partial(cli.execute, command="embed")

if __name__ == "__main__":
    main()
