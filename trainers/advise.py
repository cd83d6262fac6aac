"""The command `jest-tf advise` as a module.

    python -m trainers.advise --reference examples/icontext_mini/reference \
        --pool 'examples/icontext_mini/pool-*.tfrecord' \
        --curated 'examples/icontext_mini/curated-*.tfrecord' \
        --sidecar-dir sidecars --output advice --trust
"""

import functools

from jest_tf import cli

main = functools.partial(cli.execute, command="advise")

if __name__ == "__main__":
    main()
