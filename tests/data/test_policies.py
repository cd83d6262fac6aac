"""RandAugment and its kin against Model Garden's operations, one by one."""

from unittest import mock

import keras
import numpy as np
import tensorflow as tf
from official.vision.ops import augment

from jest_tf import config, training
from jest_tf.data import augmentation, policies

SEED = tf.constant([3, 4])


def pictures(count=6, side=16):
    random = np.random.default_rng(0)
    return tf.constant(
        random.integers(0, 256, (count, side, side, 3)), tf.uint8
    )


def constant(config):
    """An augmentation of the user's: white pictures."""
    return lambda images, seed, places, batch_size: tf.fill(
        images.shape, tf.constant(255, tf.uint8)
    )


class PoliciesTest(tf.test.TestCase):
    def test_operations_are_model_gardens_at_its_magnitudes(self):
        (image,) = pictures(1, 224)
        with mock.patch.object(
            augment, "_randomly_negate_tensor", lambda value: value
        ):
            arguments = augment.level_to_arg(40.0, 100.0)
            for magnitude in (3.0, 9.0):
                for number, name in enumerate(policies.OPERATIONS):
                    given = arguments[name](magnitude)
                    if name in augment.REPLACE_FUNCS:
                        given = (*given, [128] * 3)
                    operation = augment.NAME_TO_FUNC[name]
                    if name == "Contrast":  # another operation before 2.20
                        operation = tf.image.adjust_contrast
                    expected = operation(image, *given)
                    found = policies.apply(
                        image, tf.constant(number), magnitude / 10, 1.0
                    )
                    # A level's last bit may round a value to the next.
                    self.assertAllClose(
                        tf.cast(found, tf.int32),
                        tf.cast(expected, tf.int32),
                        atol=1,
                        msg=name,
                    )
        self.assertAllEqual(
            policies.apply(image, tf.constant(15), 1.0, 1.0), image
        )

    def test_views_are_a_function_of_seed_and_place(self):
        images = pictures()
        for name in config.POLICIES:
            policy = policies.Policy(name=name)
            whole = policy(images, SEED)
            if name == "randaugment":  # the others are made of the same
                graph = tf.function(policy)
                self.assertAllEqual(graph(images, SEED), whole)
            places = tf.constant([4, 1])
            self.assertAllEqual(
                policy(tf.gather(images, places), SEED, places, 6),
                tf.gather(whole, places),
            )
            self.assertNotAllEqual(policy(images, SEED + 1), whole)
            self.assertNotAllEqual(whole, images)
            again = keras.saving.deserialize_keras_object(
                keras.saving.serialize_keras_object(policy)
            )
            self.assertEqual(again, policy)

    def test_every_operation_is_drawn_about_as_often(self):
        drawn = []

        def record(image, number, level, sign):
            drawn.append((int(number), float(level), float(sign)))
            return image

        count = 800
        images = tf.zeros([count, 2, 2, 3], tf.uint8)
        with mock.patch.object(policies, "apply", record):
            policies.Policy(name="trivialaugment")(images, SEED)
        numbers, levels, signs = np.transpose(drawn)
        kinds = len(policies.OPERATIONS) + 1
        counts = np.bincount(numbers.astype(int), minlength=kinds)
        # Five standard deviations of a binomial.
        share = count / kinds
        self.assertAllClose(counts, [share] * kinds, atol=5 * share**0.5)
        self.assertNear(np.mean(levels), 0.5, 5 / (12 * count) ** 0.5)
        self.assertNear(np.mean(signs), 0.0, 5 / count**0.5)

    def test_recipes_name_them(self):
        def build(name, **devices):
            settings = config.TrainConfig(
                data=config.DataConfig(augment=name, image_size=32),
                model=config.ModelConfig(preset="tiny"),
                distribution=config.DistributionConfig(**devices),
            )
            return training.build._augmentation(settings)

        images = pictures()
        chain = build("randaugment")
        first = augmentation.Augmentation(flip=True, min_area=1.0)
        self.assertEqual(chain.parts[0], first)
        self.assertNotAllEqual(chain(images, SEED), first(images, SEED))
        again = keras.saving.deserialize_keras_object(
            keras.saving.serialize_keras_object(chain)
        )
        self.assertAllEqual(again(images, SEED), chain(images, SEED))
        white = build(f"{__name__}:constant")(images, SEED)
        self.assertAllEqual(white, np.full(images.shape, 255))
        for devices in ({"strategy": "tpu"}, {"jit_compile": True}):
            with self.assertRaisesRegex(ValueError, "XLA cannot compile"):
                build("randaugment", **devices)
        with self.assertRaisesRegex(ValueError, "`data.augment` must be one"):
            build("randomaugment")
