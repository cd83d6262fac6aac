"""Input: records as arrays, order, preprocessing, tf.data pipelines."""
