"""Input: records as arrays, their order, preprocessing and tf.data pipelines."""
