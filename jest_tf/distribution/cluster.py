"""The processes that train together, and their connections."""

import os

import tensorflow as tf


def workers() -> tuple[list[str], int]:
    """Returns the addresses in TF_CONFIG, and the number of this process.

    A "chief", if there is one, is the first.
    """
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    try:
        address = resolver.cluster_spec().task_address(
            resolver.task_type, resolver.task_id
        )
        jobs = resolver.cluster_spec().as_dict()
        addresses = [*jobs.get("chief", ()), *jobs.get("worker", ())]
        return addresses, addresses.index(address)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            "`distribution.strategy='multi_worker_mirrored'` needs TF_CONFIG, "
            'a JSON object with "cluster": {"worker": ["host:port", ...]} and '
            '"task": {"type": "worker", "index": ...}, one of these. '
            f"Received: {os.environ.get('TF_CONFIG', '')!r}"
        ) from error


def bypass_proxy() -> None:
    """Makes processes connect to each other without a proxy.

    gRPC sends everything through the proxy of `http_proxy` or `https_proxy`,
    and workers behind one would wait for each other forever. To use a proxy
    all the same, set `grpc_proxy`.
    """
    os.environ.setdefault("grpc_proxy", "")
