"""The rows of draws by hand: the oracle's, from the noise of a seed."""

import graphs
import numpy as np
import oracles
import own_parts

from jest_tf import selection

_noise = graphs.compiled(selection.gumbel_noise, static_argnums=[1, 2])

# By this, later stages have noise of their own.
STAGE_SALT = 0x57A6E5
_OWN = {
    "none": lambda learner, reference: 0.0,
    "own_parts:doubt": lambda learner, reference: learner - 2.0 * reference,
    "own_parts:squares": own_parts.square_pairs,
}


def rows(
    learner,
    reference,
    stage,
    *,
    batch_size,
    seed,
    loss="sigmoid",
    num_replicas=1,
):
    """The rows that pass a stage, in order; see `oracles.select_jointly`."""
    size = len((reference if learner is None else learner).image)
    num_chunks = stage.num_chunks if stage.in_chunks else 1
    noise = np.asarray(_noise(seed, num_chunks, size))
    criterion = stage.criterion if stage.method != "uniform" else "none"
    return oracles.select_jointly(
        learner,
        reference,
        batch_size=batch_size,
        noise=0.0 * noise if stage.method == "top" else noise,
        criterion=_OWN.get(criterion, criterion),
        loss=_OWN.get(loss, loss),
        gain=stage.gain,
        num_replicas=num_replicas,
    )


def later_seed(number, seed):
    """The seed of the live stage `number` in a step."""
    return seed[0] ^ number * STAGE_SALT, seed[1]


def take(embeddings, rows):
    """The embeddings of some rows."""
    image, text, *scalars = embeddings
    return type(embeddings)(image[rows], text[rows], *scalars)


def through(models, stages, seed, num_replicas=1):
    """For each live stage in turn the rows of the super-batch that it draws.

    On several replicas with a quota rows lie by replica, and then as drawn.
    """
    numbers, draws = np.arange(len(models[0].image)), []
    for place, stage in enumerate(stages):
        drawn = rows(
            *(take(model, numbers) for model in models),
            stage,
            batch_size=len(numbers) // stage.candidates,
            seed=later_seed(place, seed),
            num_replicas=num_replicas,
        )
        draws.append(numbers[drawn])
        owners = drawn // (len(numbers) // num_replicas)
        numbers = numbers[drawn[np.argsort(owners, kind="stable")]]
    return draws
