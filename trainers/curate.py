"""The command `jest-tf curate` as a module.

    python -m trainers.curate --workdir examples/icontext_mini/reference \
        --data 'examples/icontext_mini/pool-*.tfrecord' \
        --output manifests/easy --set stage.candidates=4 window=2048 --trust
"""

import functools

from jest_tf import cli

main = functools.partial(cli.execute, command="curate")

if __name__ == "__main__":
    main()
